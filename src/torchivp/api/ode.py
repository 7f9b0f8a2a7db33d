"""The doors of torchdiffeq: the same calls."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.api.arguments import Gradient, build_integration, check_number
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.direct import Direct
from torchivp.integrate import Controller, check_max_steps
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.solution import SolveError
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times, check_times

_ADAPTIVE_OPTIONS = {
    "first_step": "first_step",
    "min_step": "min_step",
    "max_step": "max_step",
    "safety": "safety",
    "ifactor": "factor_max",
    "dfactor": "factor_min",
}
"""torchdiffeq's options of adaptive methods, and what `PIDController` calls them."""

_NOT_YET = {"step_t": None, "jump_t": None, "perturb": False, "interp": "cubic", "dtype": torch.float64}
"""Options of torchdiffeq that would change the result if they were ignored, and the value each is fixed to."""

_UNLIMITED = 2**31 - 1


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0`, and return the solution at the times `t`.

    The call of torchdiffeq's `odeint`. Differentiable by autograd through the steps, with respect to `y0`, `t` and
    everything that `func` uses, any number of times.

    Args:
        func: the right-hand side; `t` is a 0-d tensor in the real dtype of the state. The result is cast to the
            dtype of the state.
        y0: the initial state: a tensor of any shape, floating point or complex, or a tuple, list or dict of such.
        t: the times at which to return the solution, strictly increasing or decreasing, [T]; `t[0]` belongs to `y0`.
        rtol: relative tolerance: a number, a tensor that broadcasts to the state, or a tuple with one for each
            tensor of the state. Ignored by methods of fixed step.
        atol: absolute tolerance, likewise.
        method: the name of a method (see `torchivp.ODE_METHODS`); None for "dopri5".
        options: adaptive methods: `first_step`, `min_step` (a step of that size is always accepted), `max_step`,
            `max_num_steps`, `safety`, `ifactor` (the largest factor by which a step grows), `dfactor` (the smallest
            by which it shrinks), `norm` (a function of the scaled error). Methods of fixed step: `step_size`, or
            `grid_constructor`, a function of `(func, y0, t)` that returns the step ends; without either, each
            step leads from one of the times `t` to the next. `step_t`, `jump_t`, `perturb`, `interp` and `dtype` of
            torchdiffeq are refused for now; unknown ones are named in a warning and ignored.

    Returns:
        The solution, [T, *y0.shape], in the dtype of `y0`; for a pytree `y0` the same structure of such tensors.

    Raises:
        SolveError: the last time was not reached; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.
    """
    return _odeint(func, y0, t, rtol, atol, method, options, lambda _: Direct(), None)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """`odeint`, differentiated by solving the adjoint equations backwards in time.

    The call of torchdiffeq's `odeint_adjoint`. Memory does not grow with the number of steps; the gradient is as
    accurate as the tolerances, and can be differentiated once. `solve_ivp(..., gradient="checkpointed")` gives the
    exact gradient in little memory.

    Args:
        func: as in `odeint`; need not be a module.
        y0: as in `odeint`.
        t: as in `odeint`.
        rtol: as in `odeint`.
        atol: as in `odeint`.
        method: as in `odeint`.
        options: as in `odeint`.
        adjoint_rtol: relative tolerance of the backward solve; None for `rtol`.
        adjoint_atol: absolute tolerance of the backward solve; None for `atol`.
        adjoint_method: method of the backward solve; None for `method`.
        adjoint_options: options of the backward solve; None for `options` without `norm`. `norm="seminorm"` leaves
            the parameters out of the error estimate.
        adjoint_params: the tensors to compute gradients for besides `y0` and `t`. Default: the parameters of `func`
            if it is a module, and the leaves that one evaluation finds in use.

    Returns:
        As `odeint`.

    Raises:
        SolveError: the last time, or in the backward pass the first, was not reached.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.
    """
    options = _checked_options("options", options)
    if adjoint_method is not None and adjoint_method != method and options and adjoint_options is None:
        raise ValueError(
            f"options are for method={method!r} and adjoint_method={adjoint_method!r} differs: "
            "pass adjoint_options too, adjoint_options={} for none"
        )
    inherited = {key: value for key, value in options.items() if key != "norm"}
    backward_options = inherited if adjoint_options is None else _checked_options("adjoint_options", adjoint_options)

    def gradient(times: Times) -> Backsolve:
        backward_method = find_method(adjoint_method or method or "dopri5")
        seminorm = backward_options.pop("norm", None)
        if seminorm not in (None, "seminorm"):
            raise ValueError(f"adjoint_options['norm'] must be 'seminorm' or absent, got {seminorm!r}")
        controller, max_steps = _controller(backward_method, backward_options, func, y0, t)
        return Backsolve(
            rtol=adjoint_rtol,
            atol=adjoint_atol,
            method=backward_method,
            controller=controller,
            seminorm=seminorm is not None,
            max_steps=max_steps,
        )

    return _odeint(func, y0, t, rtol, atol, method, options, gradient, adjoint_params)


def _odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    gradient: Callable[[Times], Gradient],
    params: Sequence[Tensor] | None,
) -> Any:
    values, tensor = check_times(t)
    times = Times(values[0], values[-1], values, values, tensor)
    method_class = find_method(method or "dopri5")
    remaining = _checked_options("options", options)
    norm = remaining.pop("norm", None)
    controller, max_steps = _controller(method_class, remaining, func, y0, t)
    integration, layout = build_integration(
        func,
        y0,
        times,
        args=(),
        method=method_class,
        controller=controller,
        rtol=rtol,
        atol=atol,
        norm=norm,
        max_steps=max_steps,
    )
    states, _, status, _ = gradient(times).solve(integration, params, None)
    if not status.ok:
        raise SolveError(status)
    return layout.unflatten(states, (len(values),))


def _checked_options(name: str, options: Any) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{name} must be a dict such as {{'step_size': 0.1}}, got {options!r}")
    return dict(options or {})


def _controller(
    method: type[Method], options: dict[str, Any], func: Callable[..., Any], y0: Any, t: Any
) -> tuple[Controller, int]:
    """The controller and the limit on steps that torchdiffeq's `options` describe."""
    remaining = dict(options)
    max_steps = remaining.pop("max_num_steps", _UNLIMITED)
    max_steps = _UNLIMITED if max_steps in (None, math.inf) else check_max_steps(max_steps)
    if method.error_order is not None:
        given = {theirs: remaining.pop(theirs) for theirs in _ADAPTIVE_OPTIONS if theirs in remaining}
        sizes = {_ADAPTIVE_OPTIONS[k]: check_number(f"option {k!r}", v) for k, v in given.items() if v is not None}
        controller: Controller = PIDController(accept_at_min_step=True, **sizes)  # pyright: ignore[reportArgumentType]
    else:
        controller = _fixed_controller(remaining, func, y0, t)
    for name, value in _NOT_YET.items():
        given = remaining.pop(name, value)
        if given is not value and (value is None or given != value):
            raise ValueError(
                f"option {name!r} of torchdiffeq is not supported yet: leave it out"
                + (f" ({name}={value!r} is what is done)" if value is not None else "")
            )
    if remaining:
        warnings.warn(
            f"{method.__name__}: unexpected options {sorted(remaining)} are ignored", UserWarning, stacklevel=4
        )
    return controller, max_steps


def _fixed_controller(remaining: dict[str, Any], func: Callable[..., Any], y0: Any, t: Any) -> Controller:
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

    def grid(times: Times) -> Any:
        between = [s for s in times.outputs or () if s not in (times.start, times.end)]
        return constructor(func, y0, times.select([times.start, *between, times.end]).detach())

    return GridSteps(grid)
