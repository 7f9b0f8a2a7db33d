"""Looks for an event in every step of a solve, and lands on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.events.landing import land, slopes_before
from torchivp.events.root import find_root
from torchivp.events.sign_change import EventFunction, SignChange
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.problem import Problem

_ROUNDING = 64
"""By this multiple of the spacing of numbers, an event at the end of the span may seem to lie beyond."""


class _Plan(Protocol):
    @property
    def problem(self) -> Problem: ...
    @property
    def method(self) -> Method: ...


@dataclass(frozen=True)
class Landing:
    """Where a solve ends on an event.

    Attributes:
        t: the time of the event.
        step: the step that ends there; None if there is no event to speak of.
        failure: why there is none; None if there is one.
    """

    t: float
    step: Step | None
    failure: str | None = None


class Watch:
    """Looks for the first change of sign of an event function.

    It is looked for between the ends of each step: two changes within a step go unnoticed. It is located on the
    interpolant, to rounding; then the step is taken again, up to the event, and its end corrected until the event
    function vanishes there. So the solve ends on the event with a step of the method, as it would end on a given time.
    An event that only rounding puts beyond the end of the span is at the end.
    Where the event function is not a number counts as beyond the event; there must be one before that.

    Args:
        event: the event function.
        problem: the problem.
        t: the start.
        y: the state there.
    """

    def __init__(self, event: EventFunction, problem: Problem, t: float, y: Tensor):
        self._time = problem.time
        self._sign = SignChange(event, self._time(t), y)
        self.value = self._sign.value(self._time(t), y)
        """Positive as long as there was no event."""

    def look(self, plan: _Plan, func: FlatFunc, step: Step, t0: float, t1: float) -> Landing | None:
        """The event in the step from `t0` to `t1`, if there is one."""
        before, self.value = self.value, self._sign.value(self._time(t1), step.y1)
        if self.value > 0.0 and t1 != plan.problem.times.end:
            return None
        bracket = _Bracket(plan, func, step, t0, t1, before, self.value)
        if self.value > 0.0 and not _is_near(bracket, (self.value - before) / (t1 - t0)):
            return None
        interpolant = plan.method.interpolant(func, step)
        at = plan.problem.times.at

        def remaining(t: float) -> float:
            with torch.no_grad():
                y = interpolant.evaluate([at(t)])
            return self._sign.value(self._time(t), y)

        width = 4 * math.ulp(max(abs(t0), abs(t1)))
        if self.value > 0.0:
            near = _is_near(bracket, _slope(remaining, t0, t1, width))
            return self._checked(t1, *self._take(bracket, t1)) if near else None
        t = find_root(remaining, t0, t1, before, self.value, width)
        if t == t1 and not isinstance(step.t1, Tensor):
            return self._checked(t, step, self.value)
        wanted = self.value if t == t1 else remaining(t)
        return self._land(bracket, t, wanted, _slope(remaining, t0, t, width))

    def _land(self, bracket: _Bracket, t: float, wanted: float, slope: float) -> Landing:
        """Take the step again, to where the event is: where the function has the value that it has there."""
        near, far = sorted((bracket.t0, bracket.t1))
        rounding = 8 * torch.finfo(bracket.step.y1.dtype).eps * max(abs(near), abs(far), far - near)
        taken: dict[float, tuple[Step, float]] = {}

        def at_end(times: np.ndarray) -> np.ndarray:
            time = float(times[0])
            if time not in taken:
                taken.clear()
                taken[time] = self._take(bracket, time)
            return np.array([taken[time][1]])

        arguments = (np.array([x]) for x in (t, bracket.t0, bracket.t1, slope, wanted, rounding))
        end = land(at_end, *arguments)
        at_end(end)
        return self._checked(float(end[0]), *taken[float(end[0])])

    def _take(self, bracket: _Bracket, t: float) -> tuple[Step, float]:
        """The step taken again, up to `t`, and what the event function is there."""
        step = bracket.step
        # The time of an event does not move with the times that are differentiated.
        end = torch.tensor(t, dtype=torch.float64) if isinstance(step.t0, Tensor) else t
        landed = bracket.plan.method.step(bracket.func, step.t0, end, step.y0, step.retry)
        return landed, math.nan if landed.failure is not None else self._sign.value(self._time(t), landed.y1)

    def _checked(self, t: float, step: Step, value: float) -> Landing:
        if step.failure is None and math.isnan(value):
            return Landing(t, None, f"the event function is not finite at t = {t:.9g}, and has not changed sign before")
        return Landing(t, step)


@dataclass(frozen=True)
class _Bracket:
    """A step in which the event function changes its sign, or may do so: it is `before` at the start, then `after`."""

    plan: _Plan
    func: FlatFunc
    step: Step
    t0: float
    t1: float
    before: float
    after: float


def _is_near(bracket: _Bracket, slope: float) -> bool:
    """Whether the event function, which has this slope at the end of the step, is zero there but for rounding."""
    rounding = _ROUNDING * torch.finfo(bracket.step.y1.dtype).eps * max(abs(bracket.t0), abs(bracket.t1))
    return slope * (bracket.t1 - bracket.t0) < 0.0 and bracket.after <= abs(slope) * rounding


def _slope(function: Callable[[float], float], t0: float, t: float, width: float) -> float:
    """The derivative of the function just before `t`; NaN if it jumps there; 0 if of no use."""
    return float(
        slopes_before(lambda x: np.array([function(float(x[0]))]), *(np.array([x]) for x in (t0, t, width)))[0]
    )
