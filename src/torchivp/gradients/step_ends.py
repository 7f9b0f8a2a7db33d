"""The ends of steps that were taken, as functions of the times that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.integrate import Controller
from torchivp.record import ChangeRecord
from torchivp.rows.problem import RowProblem
from torchivp.stepsize.constant import ConstantSteps, GridSteps


@dataclass(frozen=True)
class StepEnds:
    """The start and the ends of the steps of each row.

    A time that the user gave is that entry of the user's tensor: the start before all others, then what is scheduled
    there, the end, an output. That of an event stays where it is. A time that the solver chose moves with the start, or
    with what has changed the state last: the method begins anew there, perhaps with steps so short that a change of
    their size would show. Those of steps of fixed sizes are counted from the start, and move with it.

    Attributes:
        table: [rows, most steps + 1], float64 on the CPU, NaN after a row's last.
        owner: to which of the user's series each belongs, [rows, most steps + 1].
        loose: which of the outputs at an end of a step are times that move on their own, [rows, T].
    """

    CHOSEN: ClassVar = -1
    END: ClassVar = 0
    OUTPUT: ClassVar = 1
    START: ClassVar = 2
    SCHEDULED: ClassVar = 3
    """With the number of the action added."""

    table: Tensor
    owner: np.ndarray
    loose: np.ndarray

    @staticmethod
    def of(
        ends: np.ndarray, problem: RowProblem, changes: ChangeRecord, controller: Controller | None = None
    ) -> StepEnds | None:
        """Those of the steps with these `ends`, as numbers, that the `controller` has sized; None if no time moves."""
        moving, times = problem.moving, problem.times
        scheduled = [(i, action) for i, action in enumerate(problem.actions) if action.times is not None]
        if not (moving.any or any(action.moving is not None for _, action in scheduled)):
            return None
        table, owner = torch.from_numpy(ends), np.full(ends.shape, StepEnds.CHOSEN)
        if moving.start is not None:
            table = table + (moving.start.cpu() - torch.from_numpy(times.start)).unsqueeze(1)
        asked = np.zeros((len(ends), 0)) if times.outputs is None else times.outputs
        series = [(StepEnds.OUTPUT, asked, moving.outputs)]
        series.append((StepEnds.END, times.end[:, None], None if moving.end is None else moving.end.unsqueeze(1)))
        series += [(StepEnds.SCHEDULED + i, action.times, action.moving) for i, action in scheduled]
        for number, at, tensor in series:
            assert at is not None
            row, step, column = _matches(ends, at)
            owner[row, step] = number
            values = torch.from_numpy(at)
            if tensor is not None:
                values = torch.cat([tensor.cpu(), values[:, tensor.shape[1] :]], dim=1)
            table = table.index_put(_index(row, step), values[_index(row, column)])
        events = np.array([any(column < 0 for _, column in firing) for firing in changes.firings], dtype=bool)
        landed = events & ~changes.within
        row, step = changes.rows[landed], changes.steps[landed]
        owner[row, step], owner[:, 0] = StepEnds.CHOSEN, StepEnds.START
        table = table.index_put(_index(row, step), torch.from_numpy(changes.t[landed]))
        if moving.anchors:
            still = np.isin(ends, list(moving.anchors)) & (ends != times.end[:, None])
            still[:, 0] = False
            if not isinstance(controller, ConstantSteps | GridSteps):
                still |= np.logical_or.accumulate(still, axis=1) & (owner == StepEnds.CHOSEN)
            row, step = np.nonzero(still)
            owner[row, step] = StepEnds.CHOSEN
            table = table.index_put(_index(row, step), torch.from_numpy(ends[row, step]))
        if not isinstance(controller, ConstantSteps | GridSteps):
            table = _carried_on(table, ends, owner, changes)
        row, step, column = _matches(ends, asked, first=0)
        loose = np.zeros(asked.shape, dtype=bool)
        tied = moving.tied & ((step == 0) | (owner[row, step] == StepEnds.END))
        loose[row, column] = (owner[row, step] != StepEnds.OUTPUT) & ~tied
        return StepEnds(table, owner, loose)

    def of_steps(self, rows: np.ndarray, steps: np.ndarray | int) -> Tensor:
        """The ends of the steps with these numbers, [len(rows), 1]; the start with number 0."""
        return self.table[_index(rows, np.broadcast_to(steps, rows.shape))].unsqueeze(1)

    def at(self, ends: np.ndarray, times: np.ndarray) -> Tensor:
        """The `times`, [rows, T], that are among the `ends`, as functions of what they depend on; NaN stays NaN."""
        row, step, column = _matches(ends, times, first=0)
        return torch.from_numpy(times.copy()).index_put(_index(row, column), self.table[_index(row, step)])


def _carried_on(table: Tensor, ends: np.ndarray, owner: np.ndarray, changes: ChangeRecord) -> Tensor:
    """The table in which the times that were chosen after a change move with it."""
    begins = np.zeros(ends.shape, dtype=bool)
    begins[changes.rows[~changes.within], changes.steps[~changes.within]] = True
    last = np.maximum.accumulate(np.where(begins, np.arange(ends.shape[1]), 0), axis=1)
    row, step = np.nonzero((owner == StepEnds.CHOSEN) & ~begins & (last > 0))
    since = (row, last[row, step])
    motion = table[_index(*since)] - torch.from_numpy(ends[since])
    return table.index_put(_index(row, step), torch.from_numpy(ends[row, step]) + motion)


def _matches(ends: np.ndarray, times: np.ndarray, first: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where one of the `times`, [rows, n], is an end of a step: the row, the number of the end and that of the time.

    They come in the order of the numbers of the times.
    """
    column, row = (x.ravel() for x in np.indices(times.T.shape))
    steps = (~np.isnan(ends)).sum(1) - 1
    ahead = np.sign(ends[np.arange(len(ends)), steps] - ends[:, 0])[row]
    asked = times[row, column]
    step = first_places(ends, row, lambda x, i: x * ahead[i] < asked[i] * ahead[i], steps[row])
    found = (ends[row, step] == asked) & (step >= first)
    return row[found], step[found], column[found]


def first_places(
    table: np.ndarray,
    rows: np.ndarray,
    before: Callable[[np.ndarray, np.ndarray], np.ndarray],
    high: np.ndarray | None = None,
) -> np.ndarray:
    """The first places in `rows` of a table from which `before`, asked for entries, is no longer true, by bisection."""
    low = np.zeros(len(rows), dtype=np.int64)
    high = np.full(len(rows), table.shape[1] - 1) if high is None else high.copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        earlier = before(table[rows[open_], middle], open_)
        low[open_] = np.where(earlier, middle + 1, low[open_])
        high[open_] = np.where(earlier, high[open_], middle)
    return low


def _index(*positions: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.array(position)) for position in positions)
