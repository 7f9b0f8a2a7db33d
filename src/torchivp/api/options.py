"""torchdiffeq's `options`, as what the engine takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchivp.api.arguments import check_number
from torchivp.callbacks import Callbacks
from torchivp.integrate import Controller, check_max_steps
from torchivp.methods import ODE_METHODS, find_method
from torchivp.methods.linear_output import with_linear_output
from torchivp.methods.method import Method
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import PIDController
from torchivp.stepsize.stops import Stops
from torchivp.times import Times, check_times

_CONTROLLER = {
    "first_step": "first_step",
    "min_step": "min_step",
    "max_step": "max_step",
    "safety": "safety",
    "ifactor": "factor_max",
    "dfactor": "factor_min",
}
"""torchdiffeq's options of adaptive methods, and what `PIDController` calls them."""

_OLD_NAMES = {"grid_points": "jump_t", "eps": "perturb"}
"""What early versions of torchdiffeq called some of its options."""

_UNLIMITED = 2**31 - 1
_ENDLESS = 100_000
"""Step attempts after which a solve that waits for an event, with no end in sight, gives up."""

GridConstructor = Callable[[Times], Any]


@dataclass(frozen=True)
class Settings:
    """What a dict of options says.

    Attributes:
        method: the method, with its own options.
        controller: what sizes the steps.
        stops: times that steps end on, and where func jumps.
        norm: the user's norm of the error, or None.
        max_steps: the largest number of step attempts.
    """

    method: type[Method]
    controller: Controller
    stops: Stops
    norm: Any
    max_steps: int


def read_options(name: str, options: Any) -> dict[str, Any]:
    """The options as a new dict, those with names of early versions under their new names.

    Raises:
        TypeError: `options` is not a dict.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{name} must be a dict such as {{'step_size': 0.1}}, got {options!r}")
    given = dict(options or {})
    for old, new in _OLD_NAMES.items():
        if old in given:
            warnings.warn(f"option {old!r} is now called {new!r}", DeprecationWarning, stacklevel=4)
            value = given.pop(old)
            given.setdefault(new, bool(value) if old == "eps" else value)
    return given


def settings(
    method: str | type[Method] | None, options: Mapping[str, Any], grid: Callable[[Any, Times], Any], endless: bool
) -> Settings:
    """What the `options` of a `method` say.

    Args:
        method: the method; None for "dopri5".
        options: the options, under their new names.
        grid: calls a grid constructor of the user's for the times of a problem.
        endless: whether the solve has no end but an event.

    Raises:
        TypeError, ValueError: an option does not make sense; the message says how to mend it.
    """
    remaining = dict(options)
    method_class = _method(method, remaining)
    max_steps = remaining.pop("max_num_steps", None)
    unlimited = _ENDLESS if endless else _UNLIMITED
    max_steps = unlimited if max_steps in (None, math.inf) else check_max_steps(max_steps)
    norm = remaining.pop("norm", None)
    _check_dtype(remaining.pop("dtype", torch.float64))
    stops = Stops(
        kinks=_read_times("step_t", remaining.pop("step_t", None)),
        jumps=frozenset(_read_times("jump_t", remaining.pop("jump_t", None))),
        one_sided=bool(remaining.pop("perturb", False)),
    )
    if method_class.sizes_steps:
        controller: Controller = OwnSteps()
    elif method_class.error_order is not None:
        controller = _adaptive(remaining)
    else:
        controller = _fixed(remaining, grid)
    if remaining:
        warnings.warn(
            f"{method_class.__name__}: Unexpected arguments {sorted(remaining)} are ignored", UserWarning, stacklevel=5
        )
    return Settings(method_class, controller, stops, norm, max_steps)


def _method(method: str | type[Method] | None, remaining: dict[str, Any]) -> type[Method]:
    """The method with those of the options that are its own, which are taken out of `remaining`."""
    found = find_method(method or "dopri5")
    if (implicit := remaining.pop("implicit", None)) is not None and "max_order" in found.options:
        found = ODE_METHODS["implicit_adams" if implicit else "explicit_adams"]
    own = {name: remaining.pop(name) for name in found.options if name in remaining}
    found = found.with_options(**own) if own else found
    if found.error_order is not None or found.sizes_steps:
        return found
    interp = remaining.pop("interp", "cubic")
    if interp not in ("linear", "cubic"):
        raise ValueError(f"Unknown interpolation method {interp!r}: option 'interp' must be 'linear' or 'cubic'")
    return with_linear_output(found) if interp == "linear" else found


def _check_dtype(dtype: Any) -> None:
    """Times are float64 wherever the device has it, which is what this option can ask for or less."""
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"option 'dtype' must be a floating point dtype, got {dtype!r}: write torch.float64")


def _read_times(name: str, times: Any) -> list[float]:
    if times is None or len(times) == 0:
        return []
    return check_times(times, f"option {name!r}", monotone=False)[0]


def _adaptive(remaining: dict[str, Any]) -> PIDController:
    given = {theirs: remaining.pop(theirs) for theirs in _CONTROLLER if theirs in remaining}
    sizes = {_CONTROLLER[k]: check_number(f"option {k!r}", v) for k, v in given.items() if v is not None}
    return PIDController(accept_at_min_step=True, **sizes)  # pyright: ignore[reportArgumentType]


def _fixed(remaining: dict[str, Any], grid: Callable[[Any, Times], Any]) -> ConstantSteps | GridSteps:
    step_size = remaining.pop("step_size", None)
    constructor = remaining.pop("grid_constructor", None)
    if step_size is not None and constructor is not None:
        raise ValueError("options 'step_size' and 'grid_constructor' exclude each other: give one of them")
    if step_size is not None:
        return ConstantSteps(check_number("option 'step_size'", step_size))
    if constructor is None:
        return GridSteps()
    if not callable(constructor):
        raise TypeError(f"option 'grid_constructor' must be a function of (func, y0, t), got {constructor!r}")
    return GridSteps(lambda times: grid(constructor, times))


_CALLBACKS = ("step", "accept", "reject")


def find_callbacks(func: Any, method: type[Method], adjoint: bool = False) -> Callbacks | None:
    """The callbacks that `func` has as attributes: `callback_step`, `callback_accept_step`, `callback_reject_step`.

    Those of the backward solve end in `_adjoint`. One that the method never calls is named in a warning.
    """
    names = {
        which: ("callback_step" if which == "step" else f"callback_{which}_step") + ("_adjoint" if adjoint else "")
        for which in _CALLBACKS
    }
    found = {which: getattr(func, name, None) for which, name in names.items()}
    called = () if method.sizes_steps else _CALLBACKS if method.error_order is not None else ("step",)
    unsupported = {names[which] for which, callback in found.items() if callback is not None and which not in called}
    if unsupported:
        warnings.warn(f"Solver '{method.__name__}' does not support callbacks {unsupported}", UserWarning, stacklevel=5)
    supported: dict[str, Any] = {which: found[which] for which in called if found[which] is not None}
    return Callbacks(**supported) if supported else None
