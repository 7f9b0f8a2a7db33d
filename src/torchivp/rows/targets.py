"""Times that the steps of each row must end on."""

from __future__ import annotations

import math

import numpy as np

from torchivp.rows.times import RowTimes
from torchivp.stepsize.clip import IN_SIGHT, STRETCH
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times


class RowTargets:
    """Fits proposed steps to the times that a step must end on, as `Clip` does for one row.

    Args:
        controller: what sizes the steps.
        times: the times of the rows.
        scheduled: further times, [rows, n] in any order, NaN for none.
    """

    def __init__(
        self, controller: PIDController | ConstantSteps | GridSteps | OwnSteps, times: RowTimes, scheduled: np.ndarray
    ):
        self._direction = times.direction
        self._longest = controller.max_step if isinstance(controller, PIDController) else math.inf
        self._end = times.end
        listed = [scheduled, times.end[:, None]]
        if isinstance(controller, GridSteps):
            listed.append(_grids(controller, times))
        after_start = np.concatenate(listed, axis=1) * self._direction[:, None]
        low, high = (x * self._direction for x in (times.start, times.end))
        inside = (after_start > low[:, None]) & (after_start <= high[:, None])
        ordered = np.sort(np.where(inside, after_start, math.nan), axis=1)
        filled = np.concatenate([ordered, np.full((len(ordered), 1), math.nan)], axis=1)
        self._listed = filled * self._direction[:, None]
        self._next = np.zeros(len(filled), dtype=np.int64)
        self._grid = _ConstantGrid(controller, times) if isinstance(controller, ConstantSteps) else None
        self._current = np.full(len(filled), math.nan)
        self._rows: np.ndarray | None = None
        self._of_rows = self._current
        self._look_ahead(np.arange(len(filled)))

    def step_end(self, rows: np.ndarray, t: np.ndarray, h: np.ndarray, rejected: np.ndarray | None) -> np.ndarray:
        """Where steps of the `rows` from `t`, of the proposed sizes `h` or a little longer, end.

        `rejected` says in which of them the last try was rejected, so that this one must not be longer; None for none.
        """
        target = self.of(rows)
        distance = target - t
        longest = np.minimum(STRETCH * h, self._longest)
        if rejected is not None:
            longest = np.where(rejected, h, longest)
        end = t + np.copysign(h, distance)
        near = np.abs(distance) < IN_SIGHT * longest
        if np.count_nonzero(near):
            ratio = np.abs(distance[near]) / longest[near]
            there, t, target = distance[near], t[near], target[near]
            end[near] = np.where(ratio <= 1.0, target, t + there / np.ceil(np.maximum(ratio, 1.0)))
        return end

    def reached(self, rows: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """Steps of the `rows` ended at `t`: look ahead to what comes after, where it was a required time.

        Returns:
            Which of them have reached their end; None if none has.
        """
        there = self.of(rows) == t
        if not np.count_nonzero(there):
            return None
        self._look_ahead(rows[there])
        return there & (t == self._end[rows])

    def pass_to(self, rows: np.ndarray, t: np.ndarray, there: np.ndarray) -> None:
        """The `rows` have come to `t` by any number of steps; those that are `there` have a required time to reach now.

        Where no steps of one size are required.
        """
        ahead = self._direction[rows]
        listed, now = self._listed[rows] * ahead[:, None], (t * ahead)[:, None]
        self._next[rows] = (np.where(there[:, None], listed < now, listed <= now)).sum(1)
        self._current[rows] = self._listed[rows, self._next[rows]]
        self._rows = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The next required time of each of the `rows`, which are mostly the same for many steps."""
        if rows is not self._rows:
            self._rows, self._of_rows = rows, self._current[rows]
        return self._of_rows

    def _look_ahead(self, rows: np.ndarray) -> None:
        """Go to the next required time of each of the rows, which have reached the one before."""
        before = self._current[rows]
        if self._grid is not None:
            self._grid.pass_by(rows, before)
        pending = rows
        while len(pending):
            at = self._listed[pending, self._next[pending]]
            passed = at == self._current[pending]
            pending = pending[passed]
            self._next[pending] += 1
        ahead = self._listed[rows, self._next[rows]]
        if self._grid is not None:
            grid, direction = self._grid.next(rows), self._direction[rows]
            ahead = np.fmin(ahead * direction, grid * direction) * direction
        self._current[rows] = ahead
        self._rows = None


class _ConstantGrid:
    """The ends of steps of one size, as `ConstantSteps` has them, for each row."""

    def __init__(self, controller: ConstantSteps, times: RowTimes):
        self._start, self._end = times.start, times.end
        self._step = controller.step_size * times.direction
        self._count = controller.count(np.abs(times.end - times.start))
        self._i = np.ones(len(self._start))

    def next(self, rows: np.ndarray) -> np.ndarray:
        """The next end of a step of each of the rows; NaN after the last."""
        i, count = self._i[rows], self._count[rows]
        inside = self._start[rows] + i * self._step[rows]
        return np.where(i < count, inside, np.where(i == count, self._end[rows], math.nan))

    def pass_by(self, rows: np.ndarray, t: np.ndarray) -> None:
        """Go past the time `t`, where it is on the grid."""
        self._i[rows] += self.next(rows) == t


def fixed_ends(
    controller: ConstantSteps | GridSteps, times: RowTimes, scheduled: np.ndarray | None = None
) -> np.ndarray:
    """The ends of the steps of each row, [rows, n], NaN after its last.

    `scheduled` are further times that they must end on, [rows, n] in any order, NaN for none.
    """
    targets = RowTargets(controller, times, times.end[:, None] if scheduled is None else scheduled)
    rows = np.arange(len(times.start))
    ends, under_way = [], times.start != times.end
    t = times.start.copy()
    while under_way.any():
        going = rows[under_way]
        t[going] = targets.step_end(going, t[going], np.full(len(going), math.inf), None)
        column = np.full(len(rows), math.nan)
        column[going] = t[going]
        ends.append(column)
        reached = targets.reached(going, t[going])
        if reached is not None:
            under_way[going[reached]] = False
    return np.stack(ends, axis=1) if ends else np.full((len(rows), 1), math.nan)


def _grids(controller: GridSteps, times: RowTimes) -> np.ndarray:
    """The ends of the steps of each row, filled up with NaN."""
    rows = []
    for i, (start, end) in enumerate(zip(times.start.tolist(), times.end.tolist(), strict=True)):
        outputs = None
        if times.outputs is not None:
            asked = times.outputs[i]
            outputs = asked[~np.isnan(asked)].tolist()
        rows.append(controller.targets(Times(start, end, outputs)) if start != end else [end])
    filled = np.full((len(rows), max(map(len, rows), default=0)), math.nan)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled
