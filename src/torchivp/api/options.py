"""torchdiffeq's `options`, as what the engine takes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import UserFunction, warn
from torchivp.callbacks import Callbacks, null_callback
from torchivp.checks import check_flag, check_number, check_whole_number, closest
from torchivp.integrate import Controller
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

_COMMON = ("step_t", "jump_t", "perturb", "max_num_steps", "norm", "dtype")
_FIXED = ("step_size", "grid_constructor", "interp")

_OLD_NAMES = {"grid_points": "jump_t", "eps": "perturb"}
"""What early versions of torchdiffeq called some of its options."""

_UNLIMITED = 2**31 - 1
_ENDLESS = 100_000
"""Step attempts after which a solve that waits for an event, with no end in sight, gives up."""


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
            warn(f"option {old!r} is now called {new!r}", DeprecationWarning)
            value = given.pop(old)
            given.setdefault(new, bool(value) if old == "eps" else value)
    return given


def check_adjoint_options(same: bool, method: Any, adjoint_method: Any, options: Any, adjoint_options: Any) -> None:
    """Check that options were given for the method of the backward solve, unless it is the `same` as the forward one.

    Raises:
        ValueError: only the forward method has options.
    """
    if not same and options and adjoint_options is None:
        raise ValueError(
            f"options are for method={method!r} and adjoint_method={adjoint_method!r} differs: "
            "pass adjoint_options too, adjoint_options={} for none"
        )


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
    if max_steps is None or max_steps == math.inf:
        max_steps = _ENDLESS if endless else _UNLIMITED
    max_steps = check_whole_number("option 'max_num_steps'", max_steps, 1)
    norm = remaining.pop("norm", None)
    _check_dtype(remaining.pop("dtype", torch.float64))
    stops = Stops(
        step_times=_read_times("step_t", remaining.pop("step_t", None)),
        jump_times=frozenset(_read_times("jump_t", remaining.pop("jump_t", None))),
        one_sided=check_flag("option 'perturb'", remaining.pop("perturb", False)),
    )
    if method_class.sizes_steps:
        controller: Controller = OwnSteps()
    elif method_class.error_order is not None:
        controller = _adaptive(method_class, remaining)
    else:
        controller = _fixed(remaining, grid)
    if remaining:
        warn(_unknown(method_class, sorted(remaining)))
    return Settings(method_class, controller, stops, norm, max_steps)


def _method(method: str | type[Method] | None, remaining: dict[str, Any]) -> type[Method]:
    """The method with those of the options that are its own, which are taken out of `remaining`."""
    found = find_method(method or "dopri5")
    if "max_order" in found.options and "implicit" in remaining:
        found = _adams(found, remaining.pop("implicit"))
    own = {name: remaining.pop(name) for name in found.options if name in remaining}
    found = found.with_options(**own) if own else found
    found = found.at_steps(fixed=True) if found.fixed_in_odeint else found
    if not _takes_fixed_steps(found):
        return found
    interp = remaining.pop("interp", "cubic")
    if interp not in ("linear", "cubic"):
        raise ValueError(f"Unknown interpolation method {interp!r}: option 'interp' must be 'linear' or 'cubic'")
    return with_linear_output(found) if interp == "linear" else found


def _adams(method: type[Method], implicit: Any) -> type[Method]:
    """The implicit or the explicit Adams method with the options that `method` has."""
    other = ODE_METHODS["implicit_adams" if check_flag("option 'implicit'", implicit) else "explicit_adams"]
    return other.with_options(**{name: getattr(method, name) for name in other.options if hasattr(method, name)})


def _takes_fixed_steps(method: type[Method]) -> bool:
    return method.error_order is None and not method.sizes_steps


def _unknown(method: type[Method], unknown: list[str]) -> str:
    """The sentence about options that `method` does not know."""
    known = [*_COMMON, *method.options]
    if method.error_order is not None:
        known += _CONTROLLER
    if _takes_fixed_steps(method):
        known += _FIXED
    if "max_order" in method.options:
        known.append("implicit")
    close = {name: closest(name, known) for name in unknown}
    meant = [f"{known_name!r} for {name!r}" for name, known_name in close.items() if known_name]
    hint = f" Did you mean {', '.join(meant)}?" if meant else ""
    # The beginning is torchdiffeq's sentence, which programs look for.
    sentence = f"{method.__name__}: Unexpected arguments {unknown} are ignored."
    return f"{sentence}{hint} The options of {method.__name__} are {', '.join(sorted(known))}"


def _check_dtype(dtype: Any) -> None:
    """Times are float64 wherever the device has it, which is what this option can ask for or less."""
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"option 'dtype' must be a floating point dtype, got {dtype!r}: write torch.float64")


def _read_times(name: str, times: Any) -> list[float]:
    is_number = isinstance(times, numbers.Real | Tensor | np.ndarray) and not isinstance(times, bool)
    if is_number and getattr(times, "ndim", 0) == 0:
        times = [times]
    if times is None or (isinstance(times, Sized) and len(times) == 0):
        return []
    values, moving = check_times(times, f"option {name!r}", monotone=False, example=f"options={{{name!r}: [0.5]}}")
    if name == "jump_t" and moving is not None:
        raise ValueError(
            "option 'jump_t' must not require a gradient: steps end on it, but how the solution changes with the time "
            "of a jump is not computed. Write jump_t.detach(); for a jump whose time is learned write "
            "solve_ivp(..., events=torchivp.Scheduled(jump_t)), which differentiates by it"
        )
    return values


def _adaptive(method: type[Method], remaining: dict[str, Any]) -> PIDController:
    given = {theirs: remaining.pop(theirs) for theirs in _CONTROLLER if theirs in remaining}
    sizes = {_CONTROLLER[k]: check_number(f"option {k!r}", v) for k, v in given.items() if v is not None}
    return PIDController(accept_at_min_step=True, **{**method.controller_options, **sizes})  # pyright: ignore[reportArgumentType]


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
    return GridSteps(partial(grid, UserFunction(constructor, "grid_constructor").in_context))


_CALLBACKS = {"step": "callback_step", "accept": "callback_accept_step", "reject": "callback_reject_step"}


def find_callbacks(func: Any, method: type[Method], adjoint: bool = False) -> Callbacks | None:
    """The callbacks that `func` has as attributes: `callback_step`, `callback_accept_step`, `callback_reject_step`.

    Those of the backward solve end in `_adjoint`. One that the method never calls is named in a warning.
    """
    found = _callbacks_of(func, "_adjoint" if adjoint else "")
    called = () if method.sizes_steps else _CALLBACKS if method.error_order is not None else ("step",)
    unsupported = {name for which, (name, _) in found.items() if which not in called}
    if unsupported:
        warn(f"Solver '{method.__name__}' does not support callbacks {unsupported}")
    supported: dict[str, Any] = {
        which: UserFunction(callback, name).in_context for which, (name, callback) in found.items() if which in called
    }
    return Callbacks(**supported) if supported else None


def warn_of_callbacks(door: str, owner: Any) -> None:
    """Warn of the callbacks of a function that was given to a door which calls none."""
    if found := _callbacks_of(owner):
        names = ", ".join(name for name, _ in found.values())
        warn(f"{door} does not support callbacks, and {names} will not be called: odeint and solve_ivp call them")


def _callbacks_of(func: Any, ending: str = "") -> dict[str, tuple[str, Any]]:
    """The names and the callbacks that `func` has as attributes, by what they are told of."""
    found = {which: (name + ending, getattr(func, name + ending, None)) for which, name in _CALLBACKS.items()}
    return {which: entry for which, entry in found.items() if entry[1] not in (None, null_callback)}
