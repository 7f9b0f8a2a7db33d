"""The door for new programs, shaped like scipy's `solve_ivp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.api.arguments import (
    Gradient,
    build_integration,
    default_tolerances,
    find_gradient,
)
from torchivp.checks import check_number
from torchivp.dense import DenseSolution
from torchivp.integrate import Controller
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.problem import Problem
from torchivp.recording import Interpolants
from torchivp.solution import Solution, SolveError
from torchivp.stepsize.constant import ConstantSteps
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times, check_times, snap, time_dtype


def solve_ivp(
    func: Callable[..., Any],
    t_span: Sequence[float] | Tensor,
    y0: Any,
    *,
    t_eval: Sequence[float] | Tensor | None = None,
    method: str | type[Method] = "dopri5",
    rtol: Any = None,
    atol: Any = None,
    args: Sequence[Any] = (),
    params: Sequence[Tensor] | None = None,
    gradient: str | Gradient = "direct",
    dense_output: bool = False,
    step_size: float | None = None,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = math.inf,
    max_steps: int = 100_000,
    controller: Controller | None = None,
    norm: Callable[[Any], float | Tensor] | None = None,
    throw: bool = True,
) -> Solution:
    """Solve the initial value problem `dy/dt = func(t, y, *args)`, `y(t_span[0]) = y0`.

    Differentiable with respect to `y0`, `t_span`, `t_eval`, the tensors in `args` and the parameters of `func`.

    Args:
        func: the right-hand side. `t` is a 0-d tensor in the real dtype of the state, `y` has the shape (or
            structure) of `y0`; returns the same structure, cast to the state's dtype. Functions and `nn.Module`s
            will do.
        t_span: start and end `(t0, t1)`; `t1 < t0` integrates backwards in time. The last step ends on `t1`.
        y0: the initial state: a tensor of any shape, floating point or complex, or a tuple, list or dict, nested
            at will, of such tensors. All elements share a step.
        t_eval: the times at which to return the solution, strictly monotone in the direction of integration and
            within `t_span`; None for the end of every accepted step.
        method: the name of a method (see `torchivp.ODE_METHODS`), or its class.
        rtol: relative tolerance per step: a number, a tensor that broadcasts to the state, or a pytree like the
            state. Default 1e-6, and 1e-4 for states of single precision or less.
        atol: absolute tolerance per step, likewise. Default 1e-9, and 1e-6.
        args: further arguments of `func`; tensors among them, at any depth, receive gradients.
        params: the tensors that `checkpointed` and `backsolve` compute gradients for, besides `y0`, `args` and
            times. Default: those of `func` if it is a module, and the leaves that one evaluation finds in use.
        gradient: how to differentiate: "direct" (autograd through the steps), "checkpointed" (the same gradient in
            little memory, by replaying steps), "backsolve" (the continuous adjoint), or an object with options
            such as `Checkpointed(checkpoints=20)`.
        dense_output: also return `Solution.sol`, the solution at any time.
        step_size: take fixed steps of this size, with any method but `adams` and `scipy_solver`, which size their own;
            methods without an error estimate need it.
        first_step: size of the first step; None to estimate it.
        min_step: no adaptive step is smaller.
        max_step: no adaptive step is larger.
        max_steps: the largest number of step attempts.
        controller: how to size the steps, instead of `step_size`, `first_step`, `min_step` and `max_step`:
            `PIController()`, for example.
        norm: the norm of the error in units of the tolerance, a function of the scaled error (shaped like `y0`),
            at most 1 where the step is good enough. Default: root mean square, over a pytree the largest one. It
            matters to adaptive and implicit methods only.
        throw: raise `SolveError` if the end is not reached; if False, return what there is, with NaN after it.

    Returns:
        A `Solution` with times `t` [T], states `y` [T, *y0.shape] (each leaf of a pytree), `status`, `stats`, `sol`.

    Raises:
        SolveError: the end was not reached, and `throw` is true; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch, torchivp
        >>> solution = torchivp.solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, dtype=torch.float64))
        >>> bool((solution.y[-1] - torch.e**-1).abs().max() < 1e-6)
        True
    """
    times = _times(t_span, t_eval)
    rtol_default, atol_default = default_tolerances(y0)
    method = find_method(method)
    if controller is None and method.sizes_steps and step_size is None:
        limits = {"first_step": (first_step, None), "min_step": (min_step, 0.0), "max_step": (max_step, math.inf)}
        method = method.with_options(**{name: given for name, (given, default) in limits.items() if given != default})
        controller = OwnSteps()
    elif controller is None:
        controller = _controller(step_size, first_step, min_step, max_step)
    elif (step_size, first_step, min_step, max_step) != (None, None, 0.0, math.inf):
        raise ValueError(
            "give either controller or step_size, first_step, min_step and max_step: "
            "write controller=PIDController(first_step=..., max_step=...)"
        )
    if dense_output and times.start == times.end:
        raise ValueError(
            f"dense_output=True needs a span of some length, got t_span = ({times.start:g}, {times.end:g})"
        )
    integration, layout = build_integration(
        func,
        y0,
        times,
        args=args,
        method=method,
        controller=controller,
        rtol=rtol_default if rtol is None else rtol,
        atol=atol_default if atol is None else atol,
        norm=norm,
        max_steps=max_steps,
    )
    interpolants = Interpolants() if dense_output else None
    states, reached, status, stats = find_gradient(gradient).solve(integration, params, interpolants)
    if throw and not status.ok:
        raise SolveError(status)
    states = _move_with_first_output(states, integration.problem)
    sol = (
        DenseSolution(interpolants.steps, layout.unflatten) if interpolants is not None and interpolants.steps else None
    )
    t = times.select(reached).to(layout.device, time_dtype(layout.device))
    return Solution(t, layout.unflatten(states, (len(states),)), status, stats, sol)


def _times(t_span: Any, t_eval: Any) -> Times:
    ends, ends_tensor = check_times(t_span, "t_span", monotone=False, example="t_span=(t0, t1)")
    if len(ends) != 2:
        raise ValueError(f"t_span must be (t0, t1), got {len(ends)} times: write t_span=(t[0], t[-1]), t_eval=t")
    start, end = ends
    if t_eval is None:
        return Times(start, end, None, ends, ends_tensor)
    empty = isinstance(t_eval, Sequence | Tensor | np.ndarray) and np.shape(t_eval) == (0,)
    wanted, wanted_tensor = ([], None) if empty else check_times(t_eval, "t_eval")
    wanted = snap(wanted, t_eval, ends)
    direction = 1.0 if end >= start else -1.0
    if len(wanted) > 1 and (wanted[-1] - wanted[0]) * direction < 0:
        raise ValueError(
            f"t_eval runs from {wanted[0]:g} to {wanted[-1]:g}, against t_span = ({ends[0]:g}, {ends[1]:g}): "
            "write t_eval=t_eval.flip(0)"
        )
    for t in wanted:
        if not min(ends) <= t <= max(ends):
            raise ValueError(f"t_eval holds {t!r}, outside t_span = ({ends[0]!r}, {ends[1]!r}): widen t_span")
    tensor = None
    if ends_tensor is not None or wanted_tensor is not None:
        tensor = torch.cat(
            [
                torch.tensor(floats, dtype=torch.float64) if known is None else known
                for floats, known in ((ends, ends_tensor), (wanted, wanted_tensor))
            ]
        )
    return Times(start, end, wanted, [*ends, *wanted], tensor)


def _move_with_first_output(states: Tensor, problem: Problem) -> Tensor:
    """The states, the first of them as a function of the time it was asked for, if that equals the start.

    Its value is the initial state. Its derivative with respect to the start and to the time asked for, which are
    different entries of `times.tensor`, is minus and plus the slope.
    """
    times = problem.times
    if times.tensor is None or not times.outputs or times.outputs[0] != times.start:
        return states
    start, asked = times.tensor[0], times.tensor[2]
    slope = problem.func(problem.time(times.start), problem.y0)
    states = states.reshape(len(states), problem.y0.shape[1])
    return torch.cat([states[:1] + slope * (asked - start), states[1:]])


def _controller(step_size: Any, first_step: Any, min_step: Any, max_step: Any) -> Controller:
    adaptive_only = {"first_step": first_step is not None, "min_step": min_step != 0, "max_step": max_step != math.inf}
    if step_size is not None:
        given = [name for name, is_given in adaptive_only.items() if is_given]
        if given:
            raise ValueError(f"step_size fixes the steps, so {', '.join(given)} cannot be given with it: drop one")
        return ConstantSteps(check_number("step_size", step_size))
    return PIDController(
        first_step=None if first_step is None else check_number("first_step", first_step),
        min_step=check_number("min_step", min_step),
        max_step=check_number("max_step", max_step),
    )
