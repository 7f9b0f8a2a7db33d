"""Times that move, of a solve by a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from torchivp.api.moving_ends import at_end, at_first_output
from torchivp.gradients.moving_results import final_and_time, moving_changes, times_of_outputs
from torchivp.gradients.moving_time import carried_on
from torchivp.gradients.replayed import RowResult
from torchivp.gradients.step_ends import StepEnds
from torchivp.methods.consistent import slopes_of
from torchivp.problem import Problem
from torchivp.record import ChangeRecord, Record
from torchivp.rows.changes import function_after, rounds
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.single import moving_times
from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.times import Times


@dataclass(frozen=True)
class Moving:
    """Those times of a solve that a gradient flows to, and how what it returns moves with them.

    A kernel knows of the steps alone: that an output at the start or the end of the span is a time of its own, and not
    that of the step, is none of its business.

    Attributes:
        times: the times as numbers.
        moving: those that move.
        single: the times of a problem without batch dimensions.
        tied: whether its outputs at the start and the end are these times themselves, as those of `odeint` are.
    """

    times: RowTimes
    moving: MovingTimes
    single: Times | None = None
    tied: bool = False

    @staticmethod
    def of_one(times: Times, tied: bool) -> Moving:
        """Those of a problem without batch dimensions."""
        outputs = None if times.outputs is None else np.array([times.outputs], dtype=np.float64).reshape(1, -1)
        rows = RowTimes(np.array([times.start]), np.array([times.end]), outputs)
        return Moving(rows, moving_times(times), times, tied)

    def restated(self, plan: RowIntegration) -> RowIntegration:
        """The solve by the step loop with these times, as far as the steps go."""
        problem = replace(plan.problem, times=self.times, moving=replace(self.moving, tied=True))
        return replace(plan, problem=problem)

    def results(
        self,
        problem: RowProblem,
        states: Tensor,
        last: Tensor,
        ends: np.ndarray,
        outcomes: tuple[np.ndarray, np.ndarray],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs, their times, the last states and theirs, as functions of all times.

        Args:
            problem: the problem as the step loop has it.
            states: the outputs that the steps led to, [rows, T, size].
            last: the last states, [rows, size].
            ends: the start and the ends of the steps, [rows, most + 1], NaN after a row's last.
            outcomes: how many steps each row took, and when it was over, [rows] each.
        """
        if self.single is not None:
            return self._results_of_one(self.single, problem, states, last, ends)
        steps, final_times = outcomes
        problem = replace(problem, times=self.times, moving=self.moving)
        record = Record(ends, steps, None, [], ChangeRecord.joined([], last), keeps_carry=False)
        found = StepEnds.of(ends, problem, record.changes)
        assert found is not None
        if self.times.outputs is not None:
            states = _at_their_times(problem, found, states, ends)
        asked = ends if self.times.outputs is None else self.times.outputs
        result = RowResult(states, asked, last, final_times, record, found, None, [], [])
        changes = moving_changes(problem, result)
        return *times_of_outputs(problem, result, changes), *final_and_time(problem, result, changes)

    def _results_of_one(
        self, times: Times, problem: RowProblem, states: Tensor, last: Tensor, ends: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        reached = ends[0].tolist()
        t = times.select(reached if times.outputs is None else times.outputs)
        t_final = torch.as_tensor(times.at(reached[-1]))
        if not self.tied:
            alone = Problem(problem.func.on(None), problem.y0, times, problem.real_dtype)
            states = at_first_output(states[0], alone).unsqueeze(0)
            if reached[-1] == times.end:
                last, t_final = at_end(last, t_final, alone)
        return states, t.unsqueeze(0), last, t_final.reshape(1)


def _at_their_times(problem: RowProblem, found: StepEnds, states: Tensor, ends: np.ndarray) -> Tensor:
    """The outputs, those at ends of steps that are times of their own carried there."""
    asked, moving = problem.times.outputs, problem.moving.outputs
    assert asked is not None
    rows, columns = np.nonzero(found.loose)
    reached = found.at(ends, asked)
    for some in rounds(rows):  # functions take a row once at a time
        place = torch.from_numpy(rows[some]), torch.from_numpy(columns[some])
        end = reached[place].unsqueeze(1)
        motion = (torch.from_numpy(asked) if moving is None else moving)[place].unsqueeze(1) - end
        func = slopes_of(function_after(problem, rows[some], asked[rows[some], columns[some]]))
        states = states.index_put(place, carried_on(func, states[place], *map(problem.user_time, (end, motion))))
    return states
