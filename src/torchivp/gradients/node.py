"""A solve as one node of autograd's graph: what the node keeps, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph


@contextmanager
def kept(ctx: Any) -> Iterator[tuple[Any, Sequence[Tensor]]]:
    """For the length of a backward pass: `ctx.solve`, and the tensors that `ctx` has saved.

    Autograd frees the tensors after a backward pass that retains no graph. The node then lets go of the solve as well:
    of its checkpoints, and of func. A module that keeps its own solution holds the graph, and the graph, through func,
    the module; Python's garbage collector does not see through the graph, and would never free them.

    Raises:
        RuntimeError: the graph was freed; the sentence is autograd's.
    """
    saved = ctx.saved_tensors
    yield ctx.solve, saved
    if not _get_current_graph_task_keep_graph():
        del ctx.solve
