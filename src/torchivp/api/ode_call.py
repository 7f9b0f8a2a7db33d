"""A call of torchdiffeq's: its arguments, checked, and what is done with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchivp.api.arguments import Gradient, build_integration
from torchivp.api.fused import Backend, try_fused
from torchivp.api.options import Settings, find_callbacks, settings
from torchivp.api.statement import Statement
from torchivp.boundary import UserFunction
from torchivp.checks import check_number, check_time_first
from torchivp.dense import DenseSolution
from torchivp.events.sign_change import EventFunction, SignChange
from torchivp.gradients.direct import Direct
from torchivp.gradients.event import differentiate_event_time
from torchivp.recording import Interpolants
from torchivp.solution import Outcome, Solution, Status
from torchivp.stepsize.constant import GridSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times, check_times, spacing_of
from torchivp.torch_func import derivatives_enabled, inside_transform

_REMEDY = (
    "Use odeint_adjoint, and name it there, and all others that need a gradient, in adjoint_params=(tensor, ...), or "
    "choose a method other than scipy_solver"
)


class OdeCall:
    """The arguments of a call of torchdiffeq's, checked, and what is done with them."""

    def __init__(
        self,
        func: Any,
        y0: Any,
        t: Any,
        rtol: Any,
        atol: Any,
        method: Any,
        options: dict[str, Any],
        event_fn: Callable[..., Any] | None,
        horizon: float | None = None,
        remedy: str = _REMEDY,
    ):
        self._func, self._y0, self._t = func, y0, t
        self._until_event = event_fn is not None
        if event_fn is not None:
            if not callable(event_fn):
                raise TypeError(f"event_fn must be callable as event_fn(t, y), got {event_fn!r}")
            check_time_first("event_fn", event_fn, "event_fn(t, y)")
        if self._until_event and inside_transform():
            raise ValueError(
                "event_fn does not work inside torch.func transforms such as vmap or grad, where no step can depend "
                "on the state: use autograd (backward(), torch.autograd.grad), and a loop over the batch"
            )
        values, tensor = check_times(t, endless=self._until_event)
        if self._until_event:
            values[1:] = [_end_of_search(values, horizon, options.get("grid_constructor") is not None)]
        elif horizon is not None:
            raise ValueError("horizon is the latest time to look for an event: give event_fn too, or leave it out")
        self._endless = math.isinf(values[-1])
        # The end of a search is no time that the solution depends on.
        known = values[:1] if self._until_event else values
        moving = tensor if tensor is None else tensor[: len(known)]
        self._times = Times(values[0], values[-1], known, known, moving, spacing=spacing_of(t))
        self.settings = found = self.read_settings(method, options)
        self._stated = Statement(
            func,
            (self._times.start, self._times.end),
            y0,
            t,
            found.method,
            found.controller,
            rtol,
            atol,
            found.max_steps,
            Direct(),
            norm=found.norm,
            throw=False,
            callbacks=find_callbacks(func, found.method),
            times=self._times,
        )
        ends, settles = {*found.stops.step_times, *found.stops.jump_times}, isinstance(found.controller, PIDController)
        integration, self._layout = build_integration(self._stated, self._times.anchored(ends, settles=settles))
        self._integration = replace(
            integration,
            stops=found.stops,
            event=None if event_fn is None else EventFunction(UserFunction(event_fn, "event_fn"), self._layout),
            remedy=remedy,
        )

    def read_settings(self, method: Any, options: dict[str, Any], backward: bool = False) -> Settings:
        """The settings of a forward or backward solve."""
        grid = self._backward_grid if backward else self._grid
        found = settings(method, options, grid, self._endless)
        if self._until_event and isinstance(found.controller, GridSteps):
            if found.controller.grid is None:
                raise ValueError(
                    f"{found.method.__name__} takes fixed steps, whose size does not follow from t when there is an "
                    "event_fn: pass options={'step_size': 0.01}"
                )
            if self._endless:
                raise ValueError(
                    "option 'grid_constructor' needs to know where the search for an event ends: pass horizon=, or "
                    "options={'step_size': 0.01} instead"
                )
        return found

    def _grid(self, constructor: Callable[..., Any], times: Times) -> Any:
        between = [s for s in times.outputs or () if s not in (times.start, times.end)]
        return constructor(self._func, self._y0, times.select([times.start, *between, times.end]).detach())

    def _backward_grid(self, constructor: Callable[..., Any], times: Times) -> Tensor:
        """From each output back to the one before it: a constructor may make as many steps however far it is."""
        between = [s for s in reversed(self._times.outputs or ()) if s not in (times.start, times.end)]
        legs = pairwise([times.start, *between, times.end])
        return torch.cat([torch.as_tensor(constructor(self._func, self._y0, times.select(leg)))[1:] for leg in legs])

    def solve(self, gradient: Gradient, params: Sequence[Tensor] | None) -> Any:
        """The states, or with an event its time and the states."""
        states, reached, status, _ = gradient.solve(self._integration, params, None)
        if not status.ok:
            raise self._integration.failure(status)
        if not self._until_event:
            return self._layout.unflatten(states, (len(reached),))
        if status.outcome is not Outcome.EVENT:
            sentence = _no_event(self._times.start, self._times.end)
            raise self._integration.failure(Status(Outcome.NO_EVENT, sentence, status.t))
        both = torch.stack([states[0], states[-1]]) if len(states) != 2 else states
        return self._event_time(status.t, both[-1].reshape(1, -1)), self._layout.unflatten(both, (2,))

    def solve_fused(self, backend: Backend, params: Sequence[Tensor] | None) -> Any:
        """The states by a kernel, whose gradient is that of the steps taken; None if there is none and need not be."""
        stops = self.settings.stops
        solution, _ = try_fused(
            backend,
            replace(self._stated, params=params),
            event_fn=self._integration.event,
            step_t=stops.step_times or None,
            jump_t=stops.jump_times or None,
            perturb=stops.one_sided,
        )
        if solution is None:
            return None
        assert isinstance(solution, Solution)
        if not solution.status.ok:
            raise self._integration.failure(solution.status)
        return solution.y

    def solve_densely(self) -> DenseSolution:
        interpolants = Interpolants()
        _, _, status, _ = Direct().solve(self._integration, None, interpolants)
        if not status.ok:
            raise self._integration.failure(status)
        return DenseSolution(interpolants.steps, self._layout.unflatten)

    def _event_time(self, t: float, y: Tensor) -> Tensor:
        """The time `t` of the event, at which the state is `y`, [1, size]; with its gradient."""
        time = self._t.new_tensor(t) if isinstance(self._t, Tensor) else torch.tensor(t, dtype=torch.float64)
        if not derivatives_enabled():
            return time
        integration, problem = self._integration, self._integration.problem
        assert integration.event is not None
        begins = problem.time(self._times.at(self._times.start)), problem.y0
        sign = SignChange(integration.event, *begins)
        moved = begins[0]
        if not sign.at_start:
            moved = differentiate_event_time(problem.func, sign, begins, problem.time(t), y)
        return time + (moved - moved.detach()).to(time)


def _end_of_search(t: list[float], horizon: Any, on_a_grid: bool) -> float:
    """Where the search for an event ends: at the horizon, or where a grid of the user's does, or nowhere."""
    if len(t) != 2:
        raise ValueError(
            f"with event_fn, t must be the start and another time, which says the direction, got {len(t)} times: write "
            "t=torch.stack([t[0], t[-1]])"
        )
    start, other = t
    direction = math.copysign(1.0, other - start)
    if horizon is None:
        return other if on_a_grid else direction * math.inf
    horizon = check_number("horizon", horizon)
    if (horizon - start) * direction <= 0:
        way = "before t0, since time is reversed" if direction < 0 else "after t0"
        raise ValueError(f"horizon = {horizon:g} must lie {way}, and t0 = {start:g}")
    return horizon


def _no_event(start: float, end: float) -> str:
    """That nothing happened up to `end`, the horizon."""
    return (
        f"there is no event between t = {start:g} and t = {end:g}: event_fn has the same sign at the end of every "
        f"step as at the start. Look further ahead with a later horizon; if event_fn changes its sign twice within a "
        "step, take smaller steps with the option max_step or step_size"
    )
