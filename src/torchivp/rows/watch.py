"""Looks for events in the steps of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.events.root import find_roots
from torchivp.rows.changes import event_on
from torchivp.rows.problem import RowProblem
from torchivp.rows.record import WithinSteps

_SMALL = 1e-6
"""An event function of this size, in terms of its size in the step before, may be zero but for rounding."""


class EventSteps(Protocol):
    """Steps of some rows, in which events are looked for."""

    @property
    def t0(self) -> np.ndarray: ...
    @property
    def t1(self) -> np.ndarray: ...
    @property
    def y1(self) -> Tensor: ...

    def within(self) -> WithinSteps:
        """The solutions within the steps."""
        ...


@dataclass
class Located:
    """The first events in steps of some rows.

    Attributes:
        t: when the first event of each row is; NaN for none, [m].
        each: when each event would be, [events, m].
        signs: the signs of the event functions after the step, or before the event if there is one, [events, m].
        undefined: in which rows an event function is NaN at the end of the step, and there is no event before, [m].
    """

    t: np.ndarray
    each: np.ndarray
    signs: np.ndarray
    undefined: np.ndarray

    def take(self, where: np.ndarray) -> Located:
        """Those of a choice of the rows."""
        return Located(self.t[where], self.each[:, where], self.signs[:, where], self.undefined[where])


class RowWatch:
    """Knows the sign of every event function in every row.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: RowProblem):
        self._problem = problem
        self.numbers = [i for i, action in enumerate(problem.actions) if action.g is not None]
        """The numbers of those actions that are events."""
        self.actions = [problem.actions[i] for i in self.numbers]
        shape = (len(self.actions), problem.rows)
        self._signs = np.zeros(shape)  # 0: not known yet
        self._values = np.zeros(shape)
        self._sizes = np.zeros(shape)
        self.last_counts = np.array([action.last_count for action in self.actions])
        """The number of each event at which a row ends."""
        self.counts = np.zeros(shape, dtype=np.int64)
        """How often each event has happened in each row."""

    def values(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> np.ndarray:
        """The event functions of `rows`, [events, len(rows)]."""
        with torch.no_grad():
            return np.stack([self._value(i, rows, t, y) for i in range(len(self.actions))])

    def _value(self, event: int, rows: np.ndarray, t: np.ndarray, y: Tensor) -> np.ndarray:
        value = event_on(self._problem, self.actions[event], rows)(self._problem.user_time(t), y)
        return value.detach().reshape(-1).to("cpu", torch.float64).numpy()

    def begin(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> np.ndarray:
        """Start watching `rows`; returns in which of them an event function is NaN."""
        values = self.values(rows, t, y)
        self._values[:, rows] = values
        self._sizes[:, rows] = np.abs(values)
        self._signs[:, rows] = np.sign(values)
        return np.any(np.isnan(values), axis=0)

    def look(self, rows: np.ndarray, steps: EventSteps) -> Located:
        """The first events in `steps` of the `rows`."""
        each, signs, last = [], [], []
        within = steps.within()
        for event, action in enumerate(self.actions):
            found = _Search(self._signs[event, rows], self._values[event, rows], action.direction)
            count = action.checks + 1
            for i in range(1, count + 1):
                theta = i / count
                found.sample(theta, self._within(event, rows, steps, within, np.full(len(rows), theta)))
            for theta, where in found.dips():
                found.insert(theta, where, self._within(event, rows, steps, within, theta))
            each.append(self._locate(event, rows, steps, within, found))
            signs.append(found.sign)
            last.append(found.values[-1])
            self._sizes[event, rows] = np.nanmax(np.abs(found.values), axis=0)
        times, ends = np.array(each), np.array(last)
        direction = np.where(steps.t1 >= steps.t0, 1.0, -1.0)
        first = np.where(np.isnan(times), np.inf, times * direction).min(0)
        t = np.where(np.isinf(first), np.nan, first * direction)
        self._values[:, rows] = ends
        return Located(t, times, np.array(signs), np.isnan(ends).any(0) & np.isnan(t))

    def fired(self, rows: np.ndarray, located: Located) -> np.ndarray:
        """Which events happen in the `rows` at the times located, [events, rows]; they are counted."""
        near = 8 * np.spacing(np.maximum(np.abs(located.t), 1e-300))
        fired = np.abs(located.each - located.t) <= near
        self.counts[:, rows] += fired
        return fired

    def go_on(self, rows: np.ndarray, signs: np.ndarray) -> None:
        """There was no event in the steps of the `rows`."""
        self._signs[:, rows] = signs

    def after(
        self, rows: np.ndarray, t: np.ndarray, y: Tensor, slope: Callable[[], Tensor], ahead: np.ndarray
    ) -> np.ndarray:
        """Find the signs anew after what happened at `t`; returns in which rows an event function is NaN.

        Where an event function may be zero, its sign is that which it will have a moment `ahead`.
        """
        values = self.values(rows, t, y)
        signs = np.sign(values)
        small = np.abs(values) <= _SMALL * self._sizes[:, rows]
        if small.any():
            step = torch.from_numpy(ahead).to(y.device, y.dtype).unsqueeze(1)
            later = self.values(rows, t + ahead, y + step * slope())
            signs = np.where(small, np.sign(later), signs)
        self._signs[:, rows], self._values[:, rows] = signs, values
        return np.any(np.isnan(values), axis=0)

    def _within(
        self, event: int, rows: np.ndarray, steps: EventSteps, within: WithinSteps, theta: np.ndarray
    ) -> np.ndarray:
        """The event function at the fractions `theta` of the steps."""
        if (theta == 1.0).all():
            return self._value(event, rows, steps.t1, steps.y1)
        if (theta == theta[0]).all():
            y = within.at_fraction(float(theta[0]))
        else:
            y = within.at(torch.arange(len(rows), device=steps.y1.device), theta)
        t = np.where(theta == 1.0, steps.t1, steps.t0 + theta * (steps.t1 - steps.t0))
        return self._value(event, rows, t, y)

    def _locate(
        self, event: int, rows: np.ndarray, steps: EventSteps, within: WithinSteps, found: _Search
    ) -> np.ndarray:
        """When the event is in each of the steps, NaN for never."""
        taken = np.abs(steps.t1 - steps.t0)
        if not found.found.any():
            return np.full(len(rows), np.nan)
        width = 4 * np.spacing(np.maximum(np.abs(steps.t0), np.abs(steps.t1))) / taken

        def function(theta: np.ndarray) -> np.ndarray:
            return found.at_crossing * self._within(event, rows, steps, within, theta)

        # Where there is nothing to find, an interval without length.
        a, b = (np.where(found.found, x, 1.0) for x in (found.low, found.high))
        theta = find_roots(
            function, a, b, found.at_crossing * found.value_low, found.at_crossing * found.value_high, width
        )
        t = np.where(theta == 1.0, steps.t1, steps.t0 + theta * (steps.t1 - steps.t0))
        return np.where(found.found, t, np.nan)


class _Search:
    """Looks for the first change of sign that counts among samples of an event function in steps."""

    def __init__(self, sign: np.ndarray, value: np.ndarray, direction: int):
        self._direction = direction
        self.thetas = [0.0]
        self.values = [value]
        self._signs = [sign.copy()]
        self.sign = sign.copy()
        self.found = np.zeros(len(sign), dtype=bool)
        self.low, self.high = np.zeros(len(sign)), np.ones(len(sign))
        self.value_low, self.value_high = value.copy(), value.copy()
        self.at_crossing = sign.copy()
        """The sign before the event."""

    def sample(self, theta: float, value: np.ndarray) -> None:
        """The function at the next fraction of each step."""
        crossed = self.sign * value <= 0.0
        hit = ~self.found & (self.sign != 0.0) & crossed & self._counts(self.sign)
        self._found(hit, self.thetas[-1], theta, self.values[-1], value, self.sign)
        self.sign = np.where(~self.found & (value * self.sign <= 0.0) & (value != 0.0), np.sign(value), self.sign)
        self.thetas.append(theta)
        self.values.append(value)
        self._signs.append(self.sign.copy())

    def _counts(self, sign: np.ndarray) -> np.ndarray:
        """Whether a change from `sign` to the other is meant."""
        return np.full(len(sign), True) if self._direction == 0 else sign == -self._direction

    def _found(self, where, low, high, value_low, value_high, sign) -> None:
        if where.any():
            self.low = np.where(where, low, self.low)
            self.high = np.where(where, high, self.high)
            self.value_low = np.where(where, value_low, self.value_low)
            self.value_high = np.where(where, value_high, self.value_high)
            self.at_crossing = np.where(where, sign, self.at_crossing)
            self.found |= where

    def dips(self) -> list[tuple[np.ndarray, tuple[int, np.ndarray]]]:
        """Where the function may have dipped through zero between samples: the vertex of a parabola through three."""
        found = []
        for i in range(1, len(self.values) - 1):
            sign = self._signs[i]
            left, middle, right = (sign * self.values[j] for j in (i - 1, i, i + 1))
            dip = ~self.found & (sign != 0.0) & (middle > 0.0) & (left > middle) & (right > middle)
            curvature = left - 2 * middle + right
            offset = np.where(dip, 0.5 * (left - right) / np.where(dip, curvature, 1.0), 0.0)
            dip &= middle - 0.5 * curvature * offset**2 < 0.5 * middle
            if dip.any():
                found.append((self.thetas[i] + offset * (self.thetas[1] - self.thetas[0]), (i, dip)))
        return found

    def insert(self, theta: np.ndarray, where: tuple[int, np.ndarray], value: np.ndarray) -> None:
        """The function at the place of a dip: its two changes of sign, if it goes through zero."""
        i, dip = where
        sign = self._signs[i]
        through = dip & ~self.found & (sign * value <= 0.0)
        down = self._counts(sign)
        before = np.where(theta < self.thetas[i], self.thetas[i - 1], self.thetas[i])
        value_before = np.where(theta < self.thetas[i], self.values[i - 1], self.values[i])
        after = np.where(theta < self.thetas[i], self.thetas[i], self.thetas[i + 1])
        value_after = np.where(theta < self.thetas[i], self.values[i], self.values[i + 1])
        self._found(through & down, before, theta, value_before, value, sign)
        self._found(through & ~down & (sign * value < 0.0), theta, after, value, value_after, -sign)
