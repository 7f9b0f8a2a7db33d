"""Looks for an event in every step of a solve, and lands on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchivp.events.root import find_root
from torchivp.events.sign_change import EventFunction, SignChange
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.problem import Problem

_CORRECTIONS = 2
"""How often a landing is corrected, each time with a new step. The first correction leaves next to nothing."""


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
        step: the step that ends there; None if the event is at the start of the step in which it was found.
        failure: why there is no event to speak of; None if there is one.
    """

    t: float
    step: Step | None
    failure: str | None = None


class Watch:
    """Looks for the first change of sign of an event function.

    It is looked for between the ends of each step: two changes within a step go unnoticed. It is located on the
    interpolant, to rounding; then the step is taken again, up to the event, and its end corrected until the event
    function vanishes there. So the solve ends on the event with a step of the method, as it would end on a given time.

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
        if self.value > 0.0:
            return None
        if math.isnan(self.value):
            sentence = f"the event function is not finite after a step from t = {t0:.9g} to t = {t1:.9g}"
            return Landing(t0, None, sentence)
        interpolant = plan.method.interpolant(func, step)
        at = plan.problem.times.at

        def remaining(t: float) -> float:
            with torch.no_grad():
                y = interpolant.evaluate([at(t)])
            return self._sign.value(self._time(t), y)

        width = 4 * math.ulp(max(abs(t0), abs(t1)))
        t = find_root(remaining, t0, t1, before, self.value, width)
        if t == t1:
            return Landing(t1, step)
        slope = _slope(remaining, t0, t)
        return self._land(plan, func, step, t0, t1, t, slope)

    def _land(self, plan: _Plan, func: FlatFunc, step: Step, t0: float, t1: float, t: float, slope: float) -> Landing:
        """Take the step again, to where the event is."""
        timed = isinstance(step.t0, Tensor)
        rounding = 8 * torch.finfo(step.y1.dtype).eps * max(abs(t0), abs(t1), abs(t1 - t0))
        landed = step
        for attempt in range(_CORRECTIONS + 1):
            if not min(t0, t1) < t < max(t0, t1):
                break
            end = torch.tensor(t, dtype=torch.float64) if timed else t
            landed = plan.method.step(func, step.t0, end, step.y0, step.retry)
            correction = -self._sign.value(self._time(t), landed.y1) / slope if slope else 0.0
            negligible = not rounding < abs(correction) < 0.1 * abs(t1 - t0)
            if negligible or attempt == _CORRECTIONS:
                return Landing(t, landed)
            t += correction
        return Landing(t0, None) if abs(t - t0) < abs(t - t1) else Landing(t1, step)


def _slope(function: Callable[[float], float], t0: float, t: float) -> float:
    """The derivative of the function just before `t`; 0 where it is of no use."""
    before = t - 1e-3 * (t - t0)
    slope = (function(t) - function(before)) / (t - before) if before != t else 0.0
    return slope if math.isfinite(slope) else 0.0
