"""The user's func as a graph of plain operations on the state of one row.

Dynamo reads the function, and its guards say whether what it has read still holds: a closure, an attribute or a global
that has changed is noticed at the next call, and the function is read again. What comes out is decomposed into ATen's
core operations, with mutation removed.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from torchivp.fused.refusal import CannotFuse

_RECOMPILATIONS = 32
"""How often one function may be read again because what it uses has changed."""


@dataclass(eq=False)
class Traced:
    """A function of a row as read once: `graph` computes dy/dt from the inputs that it is called with.

    Attributes:
        module: the graph, a module whose inputs are those of the function and all tensors that it uses besides.
        examples: tensors like its inputs.
        roles: what each input is; None until somebody has found out.
    """

    module: fx.GraphModule
    examples: Sequence[Tensor]
    roles: tuple[Any, ...] | None = None
    kernels: dict[Any, Any] = field(default_factory=dict)
    """What was made of it, by what it was made for."""

    def values(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """dy/dt, the one entry of a tuple."""
        return tuple(self.module(*inputs))

    def __call__(self, *inputs: Any) -> tuple[None, ...]:
        _found.traced, _found.inputs = self, inputs
        return (None,)


class _Found(threading.local):
    traced: Traced | None = None
    inputs: Sequence[Any] = ()


_found = _Found()
_fields: dict[Any, Callable[..., Any]] = {}


def _keep(module: fx.GraphModule, examples: Sequence[Any]) -> Traced:
    return Traced(module, list(examples))


def read_function(key: Any, function: Callable[..., Any], *arguments: Any) -> tuple[Traced, Sequence[Any]]:
    """The graph of `function(*arguments)`, which returns one tensor, and the tensors that the graph is called with.

    Functions are told apart by `key`: each is read on its own, and read again when what it uses has changed.

    Raises:
        CannotFuse: it cannot be read; the sentence names the operation and the line of the user's.
    """
    compiled = _fields.get(key)
    if compiled is None:
        compiled = _fields[key] = _compiled(function)
    if isinstance(compiled, CannotFuse):
        raise compiled
    _found.traced = None
    with_gradients = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        compiled(*arguments)
    except Exception as error:
        why = _refusal(error)
        if type(error).__name__ in ("FailOnRecompileLimitHit", "RecompileLimitExceeded"):
            _fields[key] = why  # each try would read it once more
        raise why from None
    finally:
        torch._C._set_grad_enabled(with_gradients)
    if _found.traced is None:
        raise CannotFuse("func was not read: torch.compile is disabled here, or func uses no tensors at all")
    found = _found.traced, _found.inputs
    _found.traced, _found.inputs = None, ()
    return found


def _compiled(function: Any) -> Callable[..., Any]:
    """The function under Dynamo, as one of its own: what was read of others does not count against it."""
    import torch._dynamo  # takes a second, for which only those wait who compile  # noqa: PLC0415

    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    limits = inspect.signature(torch.compile).parameters
    options = {"recompile_limit": _RECOMPILATIONS} if "recompile_limit" in limits else {}
    return torch.compile(own, backend=_keep, fullgraph=True, dynamic=False, **options)


def _refusal(error: Exception) -> CannotFuse:
    """Why a function cannot be read, in a sentence, from what Dynamo says."""
    text = str(error)
    if type(error).__name__ in ("FailOnRecompileLimitHit", "RecompileLimitExceeded"):
        return CannotFuse(
            f"func has changed at {_RECOMPILATIONS} calls, by a counter or a number of Python's that it uses: pass "
            "numbers that change as tensors in args, and do not count calls in func"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = lines[0] if lines else type(error).__name__
    explanation = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), "")
    places = [i for i, line in enumerate(lines) if line.startswith("File ") and "from user code:" in text]
    where = ""
    if places and places[-1] + 1 < len(lines):
        where = f" ({lines[places[-1]].removeprefix('File ')}: {lines[places[-1] + 1]})"
    if "ata-dependent" in what:
        explanation = "it depends on values, which differ from row to row: write torch.where"
    return CannotFuse(f"{what[0].lower()}{what[1:]}{where}{': ' if explanation else ''}{explanation}")
