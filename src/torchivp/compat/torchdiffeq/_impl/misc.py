"""Norms, step sizes, wrappers of `func`, and the check of the arguments of `odeint`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchivp.api.options import read_options
from torchivp.boundary import warn
from torchivp.callbacks import null_callback as _null_callback
from torchivp.compat.torchdiffeq._impl.event_handling import combine_event_functions
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.state import StateLayout
from torchivp.stepsize.first_step import first_step
from torchivp.times import check_times

_all_callback_names = ["callback_step", "callback_accept_step", "callback_reject_step"]
_all_adjoint_callback_names = [f"{name}_adjoint" for name in _all_callback_names]


def _handle_unused_kwargs(solver: Any, unused_kwargs: Mapping[str, Any]) -> None:
    if unused_kwargs:
        warn(f"{type(solver).__name__}: Unexpected arguments {dict(unused_kwargs)}")


def _linf_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def _rms_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().square().mean().sqrt()


def _zero_norm(tensor: Tensor) -> float:
    return 0.0


def _mixed_norm(tensor_tuple: Sequence[Tensor]) -> Tensor | float:
    """The largest root mean square of the tensors; those without elements have none."""
    return max((_rms_norm(tensor) for tensor in tensor_tuple if tensor.numel()), default=0.0)


def _select_initial_step(
    func: Callable[[Tensor, Tensor], Tensor],
    t0: Tensor,
    y0: Tensor,
    order: int,
    rtol: Any,
    atol: Any,
    norm: Callable[[Tensor], Any],
    f0: Tensor | None = None,
) -> Tensor:
    """The size of a first step, forward in time; `order` is that of the error estimate."""

    def scaled_norm(error: Tensor, before: Tensor, after: Tensor) -> float:
        return float(_compute_error_ratio(error, rtol, atol, before, after, norm))

    f0 = func(t0, y0) if f0 is None else f0
    size = first_step(func, t0, y0, f0, float("inf"), cast(ErrorNorm, scaled_norm), order)
    return t0.new_tensor(size)


def _compute_error_ratio(
    error_estimate: Tensor, rtol: Any, atol: Any, y0: Tensor, y1: Tensor, norm: Callable[[Tensor], Any]
) -> Tensor:
    """The error in units of the tolerance."""
    return torch.as_tensor(norm(error_estimate / (atol + rtol * torch.maximum(y0.abs(), y1.abs())))).abs()


@torch.no_grad()
def _optimal_step_size(
    last_step: Tensor, error_ratio: Tensor, safety: Any, ifactor: Any, dfactor: Any, order: int
) -> Tensor:
    """The size of the next step: a step within the tolerance is followed by none that is shorter."""
    if error_ratio == 0:
        return last_step * ifactor
    smallest = 1.0 if error_ratio < 1 else float(dfactor)
    factor = float(safety) / float(error_ratio) ** (1 / order)
    return last_step * min(float(ifactor), max(factor, smallest))


def _decreasing(t: Tensor) -> Tensor:
    return (t[1:] < t[:-1]).all()


def _assert_one_dimensional(name: str, t: Tensor) -> None:
    assert t.ndim == 1, f"{name} must be one dimensional, got shape {tuple(t.shape)}"


def _assert_increasing(name: str, t: Tensor) -> None:
    assert bool((t[1:] > t[:-1]).all()), f"{name} must be strictly increasing or decreasing, got {t.tolist()}"


def _assert_floating(name: str, t: Tensor) -> None:
    if not t.is_floating_point():
        raise TypeError(f"`{name}` must be a floating point Tensor but is a {t.type()}")


def _check_timelike(name: str, timelike: Any, can_grad: bool) -> None:
    """Check a series of times, which may decrease; whether it may require a gradient is for the caller to say."""
    assert isinstance(timelike, Tensor), f"{name} must be a torch.Tensor, got {type(timelike).__name__}"
    _assert_floating(name, timelike)
    _assert_one_dimensional(name, timelike)
    assert can_grad or not timelike.requires_grad, f"{name} cannot require gradient"
    _assert_increasing(name, -timelike if len(timelike) > 1 and timelike[1] < timelike[0] else timelike)


def _tuple_tol(name: str, tol: Any, shapes: Sequence[torch.Size]) -> Any:
    """Tolerances given one for each of the shapes as one for each element of all; a single one as it is."""
    if not isinstance(tol, Iterable) or (isinstance(tol, Tensor) and tol.ndim == 0):
        return tol
    tol = tuple(tol)
    assert len(tol) == len(shapes), f"If using tupled {name} it must have the same length as the tuple y0"
    return torch.cat([torch.as_tensor(each).expand(shape.numel()) for each, shape in zip(tol, shapes, strict=True)])


def _nextafter(x1: Tensor, x2: Tensor) -> Tensor:
    """The number next to `x1` on the way to `x2`; a gradient flows through it as through `x1`."""
    return x1 + (torch.nextafter(x1, x2) - x1).detach()


def _flat_to_shape(tensor: Tensor, length: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """A [*length, size] tensor as one tensor for each of the shapes, [*length, *shape]."""
    parts = tensor.split([shape.numel() for shape in shapes], dim=-1)
    return tuple(part.reshape((*length, *shape)) for part, shape in zip(parts, shapes, strict=True))


class _TupleFunc(nn.Module):
    """A function of a tuple of tensors as one of a flat tensor."""

    def __init__(self, base_func: Callable[..., Any], shapes: Sequence[torch.Size]):
        super().__init__()
        self.base_func = base_func
        self.shapes = shapes

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([f.reshape(-1) for f in self.base_func(t, _flat_to_shape(y, (), self.shapes))])


class _TupleInputOnlyFunc(_TupleFunc):
    """A function of a tuple of tensors, which returns one tensor, as one of a flat tensor."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.base_func(t, _flat_to_shape(y, (), self.shapes))


class _ReverseFunc(nn.Module):
    """A function in reversed time, times a factor."""

    def __init__(self, base_func: Callable[..., Any], mul: float = 1.0):
        super().__init__()
        self.base_func = base_func
        self.mul = mul

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mul * self.base_func(-t, y)


class Perturb(Enum):
    """Where to evaluate a function: at the given time, just before it, or just after it."""

    NONE = 0
    PREV = 1
    NEXT = 2


class _PerturbFunc(nn.Module):
    """A function that can be evaluated just before or after the given time, in the precision of the state."""

    def __init__(self, base_func: Callable[..., Any]):
        super().__init__()
        self.base_func = base_func

    def forward(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        t = t.to(y.dtype.to_real())
        if perturb is not Perturb.NONE:
            t = _nextafter(t, t + 1 if perturb is Perturb.NEXT else t - 1)
        return self.base_func(t, y)


def _check_inputs(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: Callable[..., Any] | None,
    SOLVERS: Mapping[str, Any],
) -> tuple[Any, ...]:
    """The arguments of `odeint` as a solver class takes them: one tensor, time that increases.

    Returns:
        `(shapes, func, y0, t, rtol, atol, method, options, event_fn, t_is_reversed)`, where `shapes` are those of the
        tensors of a tuple, and None for a tensor.
    """
    method = method or "dopri5"
    if method not in SOLVERS:
        raise ValueError(f"unknown method {method!r}. The methods are {', '.join(SOLVERS)}")
    layout = StateLayout(y0)
    shapes = None if layout.is_tensor else layout.shapes
    values, _ = check_times(t, endless=event_fn is not None)
    if event_fn is not None and len(values) != 2:
        raise ValueError(f"with event_fn, t must be [t0, t1], got {len(values)} times")
    original, options = func, read_options("options", options)
    t = t.to(layout.device)
    rtol, atol = (
        check_tolerance(name, tolerance, layout) if isinstance(tolerance, tuple | list) else tolerance
        for name, tolerance in (("rtol", rtol), ("atol", atol))
    )
    rtol, atol = (tol.reshape(layout.size) if isinstance(tol, Tensor) and shapes else tol for tol in (rtol, atol))
    if event_fn is not None:
        event_fn = combine_event_functions(event_fn, t[0], y0)
    norm = options.get("norm", _rms_norm if shapes is None else _mixed_norm)
    options["norm"] = norm
    if shapes is not None:
        func = _TupleFunc(func, shapes)
        event_fn = event_fn and _TupleInputOnlyFunc(event_fn, shapes)
        options["norm"] = lambda tensor: norm(_flat_to_shape(tensor, (), shapes))
        y0 = layout.flatten(y0)[0]
    is_reversed = values[-1] < values[0]
    if is_reversed:
        t, func = -t, _ReverseFunc(func, mul=-1.0)
        event_fn = event_fn and _ReverseFunc(event_fn)
        _reverse_options(options)
    func = _PerturbFunc(func)
    _attach_callbacks(func, original, shapes, is_reversed, method, SOLVERS[method].valid_callbacks())
    return shapes, func, y0, t, rtol, atol, method, options, event_fn, is_reversed


def _reverse_options(options: dict[str, Any]) -> None:
    """Make the options that hold times hold reversed ones."""
    if (constructor := options.get("grid_constructor")) is not None:
        options["grid_constructor"] = lambda func, y0, t: -constructor(func, y0, -t)
    for name in ("step_t", "jump_t"):
        _flip_option(options, name)


def _flip_option(options: dict[str, Any], option_name: str) -> None:
    """Negate an option that holds times, if it is given."""
    if options.get(option_name) is not None:
        options[option_name] = -torch.as_tensor(options[option_name])


def _attach_callbacks(
    func: nn.Module, original: Any, shapes: Any, is_reversed: bool, method: str, valid: set[str]
) -> None:
    """Give `func` the callbacks of the user's function, which see the user's time and state."""

    def as_user(callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(t0: Tensor, y0: Tensor, dt: Tensor) -> Any:
            return callback(-t0 if is_reversed else t0, y0 if shapes is None else _flat_to_shape(y0, (), shapes), dt)

        return call

    found = {name: getattr(original, name, _null_callback) for name in _all_callback_names}
    for name, callback in found.items():
        setattr(func, name, callback if callback is _null_callback else as_user(callback))
    unsupported = {name for name, callback in found.items() if callback is not _null_callback} - valid
    if unsupported:
        warn(f"Solver '{method}' does not support callbacks {unsupported}")
