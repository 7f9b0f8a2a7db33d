"""The user's func as a graph of plain operations on the state of one row.

Dynamo reads the function, and its guards say whether what it has read still holds: a closure, an attribute or a global
that has changed is noticed at the next call, and the function is read again. What comes out is a graph without
mutation.
"""

from __future__ import annotations

import inspect
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._dynamo.eval_frame import set_eval_frame  # pyright: ignore[reportMissingModuleSource]
from torch.utils import _pytree as pytree

from torchivp.fused.graphs import Function, on_processor, place_of, users_line, values_of, without_mutation
from torchivp.fused.indices import ByNumbersOfTensors
from torchivp.fused.one_reader import one_reader
from torchivp.fused.refusal import CannotFuse, FuncFails

_RECOMPILATIONS = 16
"""How often one function may be read again because what it uses has changed."""

_SIDE_EFFECTS = "side_effect_replay_policy"
"""Dynamo's setting by which it refuses functions that change objects; older versions lack it."""

_OWN_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters
"""Whether Dynamo can be told for one function how often to read it; older versions are told for all while they read."""

_SETTINGS: dict[str, Any] = {"skip_nnmodule_hook_guards": False, "record_runtime_overhead": False}
"""Dynamo's settings when it reads: hooks that come later count, and nothing is measured at every call."""
if not _OWN_LIMIT:
    _SETTINGS["recompile_limit"] = _RECOMPILATIONS


@dataclass(eq=False)
class Traced:
    """A function of a row as read once: `graph` computes dy/dt from the inputs that it is called with.

    Attributes:
        module: the graph, a module whose inputs are those of the function and all tensors that it uses besides.
        examples: tensors like its inputs; on the processor, once it has been settled.
        roles: what each input is; None until somebody has found out.
    """

    module: fx.GraphModule
    examples: Sequence[Tensor]
    roles: tuple[Any, ...] | None = None
    kernels: dict[Any, Any] = field(default_factory=dict)
    """What was made of it, by what it was made for."""
    fresh: bool = True
    """Whether nobody has looked at it yet."""
    why_not: CannotFuse | None = None
    """What stands in the way of a kernel."""
    ready: bool = False
    """Whether all of this is known."""
    _on_processor: fx.GraphModule | None = None

    @property
    def values(self) -> Function:
        """dy/dt of the inputs, the one entry of a tuple; on the processor, where kernels are made."""
        return values_of(self._on_processor or self.module)

    def __call__(self, *inputs: Any) -> tuple[None, ...]:
        _found.traced, _found.inputs = self, inputs
        return (None,)

    def settle(self) -> None:
        """Take the mutation out of the graph."""
        self.fresh = False
        try:
            self.module = without_mutation(self.module, self.examples)
        except CannotFuse as error:
            self.why_not = error
        if any(x.device.type != "cpu" for x in self.examples):
            self._on_processor = on_processor(self.module)
            self.examples = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu") for x in self.examples
            ]


class _Found(threading.local):
    traced: Traced | None = None
    inputs: Sequence[Any] = ()


_found = _Found()
_fields: dict[Any, Callable[..., Any] | CannotFuse] = {}


def _keep(module: fx.GraphModule, examples: Sequence[Any]) -> Traced:
    # Tensors like them, and not they: what is read is kept for as long as the program runs.
    return Traced(module, [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in examples])


def read_function(key: Any, function: Callable[..., Any], *arguments: Any) -> tuple[Traced, Sequence[Any]]:
    """The graph of `function(*arguments)`, which returns one tensor, and the tensors that the graph is called with.

    Functions are told apart by `key`: each is read on its own, and read again when what it uses has changed.

    Raises:
        CannotFuse: it cannot be read; the sentence names the operation and the line of the user's.
    """
    compiled = _fields.get(key)
    if compiled is not None and not isinstance(compiled, CannotFuse):
        found = _read_before(compiled, arguments)
        if found is not None and found[0].ready and found[0].why_not is None:
            return found
    with one_reader():
        return _read_with_care(key, function, arguments)


def _read_with_care(key: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Traced, Sequence[Any]]:
    compiled = _fields.get(key)
    if isinstance(compiled, CannotFuse):
        raise compiled
    if compiled is None:
        compiled, found = _first_reading(function, arguments)
        _fields[key] = compiled
    else:
        try:
            found = _read(compiled, arguments)
        except _TooOften as error:
            _fields[key] = error.why  # each try would read it once more
            raise error.why from None
        if found[0].fresh:
            _first_reading(function, arguments)  # what it does besides is found out
    traced, inputs = found
    if traced.fresh:
        traced.settle()
        if traced.why_not is None:
            traced.why_not = _values_read(function, arguments) or _numbers_made(traced.module)
        traced.ready = True
    if traced.why_not is not None:
        raise traced.why_not
    return traced, inputs


def _values_read(function: Callable[..., Any], arguments: Sequence[Any]) -> CannotFuse | None:
    """Why a function has no graph that looks at values: of a comparison of `float(t)`, Dynamo takes one outcome."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    why = None
    for attempt in (function, _with_indices(function)):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        given = pytree.tree_map_only(Tensor, mode.from_tensor, tuple(arguments))
        try:
            with torch.no_grad(), mode:
                attempt(*given)
        except DataDependentOutputException as error:
            trace = "".join(traceback.format_tb(error.__traceback__)).splitlines()
            why = _looks_at_values(users_line(trace))
            continue
        except DynamicOutputShapeException:  # which no kernel has an operation for, and says so
            pass
        except Exception as error:
            trace = "".join(traceback.format_tb(error.__traceback__)).splitlines()
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            return CannotFuse(f"func cannot be followed without values{users_line(trace)}: {first[0]}")
        return None
    return why


def _numbers_made(module: fx.GraphModule) -> CannotFuse | None:
    """The same, of a graph that makes numbers of tensors, which torch 2.14 follows without their values."""
    made = next(
        (node for node in module.graph.nodes if node.target is torch.ops.aten._local_scalar_dense.default), None
    )
    return None if made is None else _looks_at_values(place_of(made))


def _looks_at_values(where: str) -> CannotFuse:
    return CannotFuse(
        f"func looks at values{where}, which differ from row to row: write torch.where, and operations of torch on t "
        "and y"
    )


def _first_reading(
    function: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[Callable[..., Any], tuple[Traced, Sequence[Any]]]:
    """The function under Dynamo, and what it has read."""
    compiled = _compiled(function)
    try:
        with _refusing_side_effects() as refused:
            found = _read(compiled, arguments)
    except _DependsOnData as error:
        try:
            compiled, refused = _compiled(_with_indices(function)), False
            found = _read(compiled, arguments)
        except _DependsOnData:
            raise error from None
    if not refused:
        found[0].fresh = False
        if _read(compiled, arguments)[0].fresh:
            raise _side_effect()
        found[0].fresh = True
    return compiled, found


class _DependsOnData(CannotFuse):
    """Perhaps by an index alone, of which tensors of no dimension are taken for numbers."""


class _TooOften(Exception):
    def __init__(self) -> None:
        self.why = CannotFuse(
            f"func, or others made by the same code, was read {_RECOMPILATIONS} times, as numbers of Python's that it "
            "uses have changed: pass numbers that change as tensors in args"
        )


def _read_before(compiled: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Traced, Sequence[Any]] | None:
    """What Dynamo has read of the function, if its guards say that this still holds.

    This asks the guards alone, in a quarter of the time. Where they say no, Python calls the function itself.
    """
    function = getattr(compiled, "_torchdynamo_orig_callable", None)
    if function is None:
        return None
    _found.traced = None
    with_gradients = torch.is_grad_enabled()
    torch._C._set_grad_enabled(True)
    drawn = torch.default_generator.get_state()
    callback = set_eval_frame(False)
    try:
        function(*arguments)
    except Exception:  # the user's: to be seen when it is read
        _found.traced = None
    finally:
        set_eval_frame(callback)
        torch._C._set_grad_enabled(with_gradients)
    if _found.traced is None:
        torch.default_generator.set_state(drawn)
        return None
    found = _found.traced, _found.inputs
    _found.traced, _found.inputs = None, ()
    return found


def _read(compiled: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Traced, Sequence[Any]]:
    _found.traced = None
    with_gradients = torch.is_grad_enabled()
    torch._C._set_grad_enabled(True)  # always the same: Dynamo would read once more
    known = {name: value for name, value in _SETTINGS.items() if hasattr(torch._dynamo.config, name)}
    try:
        with torch._dynamo.config.patch(known):
            compiled(*arguments)
    except Exception as error:
        raise _refusal(error) from None
    finally:
        torch._C._set_grad_enabled(with_gradients)
    if _found.traced is None:
        raise CannotFuse("func was not read: torch.compile is disabled here, or func uses no tensors at all")
    found = _found.traced, _found.inputs
    _found.traced, _found.inputs = None, ()
    return found


@contextmanager
def _refusing_side_effects() -> Iterator[bool]:
    """Have Dynamo refuse functions that change objects, and say whether it can."""
    if hasattr(torch._dynamo.config, _SIDE_EFFECTS):
        with torch._dynamo.config.patch({_SIDE_EFFECTS: "error"}):
            yield True
    else:
        yield False


def _compiled(function: Any) -> Callable[..., Any]:
    """The function under Dynamo, as one of its own: what was read of others does not count against it."""
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    options: dict[str, Any] = {"recompile_limit": _RECOMPILATIONS} if _OWN_LIMIT else {}
    return torch.compile(own, backend=_keep, fullgraph=True, dynamic=False, **options)


def _with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function where tensors of no dimension are indices, and not numbers that are to be known."""

    def evaluate(*arguments: Any) -> Any:
        with ByNumbersOfTensors():
            return function(*arguments)

    return evaluate


def _refusal(error: Exception) -> Exception:
    """Why a function cannot be read, in a sentence, from what Dynamo says."""
    if type(error).__name__ in ("FailOnRecompileLimitHit", "RecompileLimitExceeded"):
        return _TooOften()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = lines[0] if lines else type(error).__name__
    begin = next((i for i, line in enumerate(lines) if line.startswith("from user code")), len(lines))
    where = users_line(lines[begin:])
    if "certain side effects" in what:
        return _side_effect()
    if "ata-dependent" in what or "data-dependent" in str(error) or "unbacked symbols" in what:
        return _DependsOnData(
            f"func depends on the values of its arguments, which differ from row to row{where}: write torch.where "
            "instead of if, and do not turn tensors into numbers"
        )
    if what.startswith("Observed exception"):
        return FuncFails(f"func fails{where}")
    for sign, sentence in _REASONS.items():
        if sign in str(error):
            return CannotFuse(f"{sentence[0]}{where}: {sentence[1]}")
    explanation = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), "")
    what = what.removesuffix(".")
    why = f": {explanation.removesuffix('.')}" if explanation else ""
    return CannotFuse(f"{what[0].lower()}{what[1:]}{where}{why}")


def _side_effect() -> CannotFuse:
    return CannotFuse(
        "func changes an object besides computing dy/dt, and a kernel would not: do not count calls or keep values in "
        "func; sol.stats.evaluations is their number"
    )


_REASONS = {
    "leaf Variable that requires grad is being used in an in-place": (
        "func writes into a tensor that it is given",
        "write into a copy, y.clone()",
    ),
    "builtin operator `print`": ("func prints", "print outside of func"),
    "torch.autograd.grad": ("func calls torch.autograd.grad", "write torch.func.grad or torch.func.vjp"),
    "requires_grad_": ("func changes requires_grad", "write torch.func.grad or torch.func.vjp for derivatives in func"),
    "Tensor.backward": ("func calls backward", "write torch.func.grad or torch.func.vjp"),
}
"""What is often met, by what Dynamo says of it: what it is, and what to write instead."""
