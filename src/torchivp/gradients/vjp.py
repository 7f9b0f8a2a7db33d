"""The step that every backward pass of a gradient's own takes: from the results of an evaluation to its leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor


def vjp(
    roots: Sequence[Tensor], seeds: Sequence[Tensor | None], leaves: Sequence[Tensor], create_graph: bool = False
) -> Sequence[Tensor | None]:
    """The gradients of the leaves, given those of the roots, the seeds; None is zero.

    The graph is kept. What the user's functions use may have been computed from parameters elsewhere, and that part of
    it is not ours to free. What `torch.compile` made may give the memory of its graph away, and refuses to be asked
    twice: that one is used up.
    """
    used = [i for i, root in enumerate(roots) if root.requires_grad and seeds[i] is not None]
    if not used:
        return [None] * len(leaves)
    back = partial(torch.autograd.grad, [roots[i] for i in used], leaves, [seeds[i] for i in used], allow_unused=True)
    if create_graph:
        return back(create_graph=True)
    try:
        return back(retain_graph=True)
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        return back()
