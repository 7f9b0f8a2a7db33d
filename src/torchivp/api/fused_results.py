"""What a solve by a kernel returns, and why it failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.api.fused_times import Moving
from torchivp.api.rows import raise_failures
from torchivp.fused.endings import failure_of
from torchivp.fused.outcomes import STIFF, SUCCESS, Outcomes
from torchivp.fused.solve import FusedSolve
from torchivp.methods.method import Method
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import single_problem
from torchivp.solution import BatchSolution, OfRows, Outcome, Solution, Stats, Status
from torchivp.state import StateLayout
from torchivp.stepsize.pid import PIDController


class FusedResult(NamedTuple):
    """What a kernel has found.

    Attributes:
        solve: the solve.
        values: the outputs, [*lead, T, *shape].
        last: the last states, [*lead, *shape].
    """

    solve: FusedSolve
    values: Tensor
    last: Tensor

    @property
    def t(self) -> Tensor:
        """The times of the outputs that are the ends of steps, [rows, T]."""
        count, record, solve = self.values.shape[len(self.solve.lead)], self.solve.record, self.solve
        assert record is not None
        t = record.ends[:, :count].clone()
        t[torch.arange(count, device=t.device) > solve.outcomes.steps_there.unsqueeze(1)] = math.nan
        return t


def solution_of(
    result: FusedResult,
    again: FusedResult | None,
    layout: StateLayout,
    plan: Callable[[type[Method]], RowIntegration],
    methods: tuple[type[Method], type[Method]],
    throw: bool,
    moving: Moving | None = None,
) -> Solution | BatchSolution:
    """The solution, from what the kernel has returned.

    Args:
        result: of all rows.
        again: of those that were found stiff, where the first result does not count; None if there are none.
        layout: that of the user's states.
        plan: tells how the step loop would say why a method failed.
        methods: the methods of the first and the second.
        throw: whether to raise an error if a row has failed.
        moving: the times that move; None for none.

    Raises:
        SolveError: a row did not reach its end, and `throw` is true.
    """
    solve, values, last = result
    outcomes, rows, solves = solve.outcomes, solve.rows, solve.kernel.form.coefficients.solves
    failed = {} if solve.well else _failures(solve, plan(methods[0]))
    t = None if solve.times.wanted is not None else result.t
    ends = solve.taken_ends() if moving is not None else None
    if again is not None:
        stiff = outcomes.counts[0] == STIFF
        chosen = torch.from_numpy(stiff).to(layout.device)
        failed |= {} if again.solve.well else _failures(again.solve, plan(methods[1]))
        outcomes, solves = outcomes.with_again(again.solve.outcomes, stiff), again.solve.kernel.form.coefficients.solves
        dim = len(solve.lead)
        values, last = (
            _joined(chosen, again.values, values, solve.lead, dim),
            _joined(chosen, again.last, last, solve.lead),
        )
        t = None if t is None else _joined(chosen, again.t, t, (rows,), 1)
        if ends is not None:
            others = again.solve.taken_ends()
            ends = _joined(chosen.cpu(), torch.from_numpy(others), torch.from_numpy(ends), (rows,), 1).numpy()
    if failed and throw:
        raise_failures([_status_of(outcomes, failed, row) for row in range(rows)], batched=bool(layout.lead))
    count = values.shape[len(solve.lead)]
    t_final = outcomes.t_there.to(layout.device)
    if moving is not None and solve.timed is not None and ends is not None:
        reached = outcomes.accepted, outcomes.t
        states, of_rows = values.reshape(rows, count, layout.size), last.reshape(rows, layout.size)
        states, t, of_rows, t_final = moving.results(solve.timed, states, of_rows, ends, reached)
        t, t_final = t.to(layout.device), t_final.to(layout.device)
        values, last = states.view(values.shape), of_rows.view(last.shape)
    if not layout.is_tensor:
        values = layout.unflatten(values.reshape(rows * count, layout.size), (*layout.lead, count))
        last = layout.unflatten(last, layout.lead)
    if t is None:
        wanted = solve.times.wanted
        assert wanted is not None
        t = wanted.clone().squeeze(0).to(layout.device)
    elif not solve.lead:
        t = t[0]
    if not layout.lead:
        status, stats = _status_of(outcomes, failed, 0), _stats_of(outcomes, 0, solves)
        return Solution(t, values, status, stats, last, t_final.view(()))
    return BatchSolution(
        t.expand(rows, count).reshape(*layout.lead, count),
        values,
        layout.lead,
        OfRows(rows, lambda row: _status_of(outcomes, failed, row)),
        OfRows(rows, lambda row: _stats_of(outcomes, row, solves), outcomes.stiff is not None),
        last,
        t_final.reshape(layout.lead),
    )


def _joined(chosen: Tensor, one: Tensor, other: Tensor, lead: Sequence[int], dim: int | None = None) -> Tensor:
    """`one` in the rows that are `chosen`, the other elsewhere; the shorter one along `dim` is NaN beyond its end."""
    if bool(chosen.all()):
        return one
    if dim is not None:
        length = max(one.shape[dim], other.shape[dim])
        one, other = (
            torch.cat((x, x.new_full((*x.shape[:dim], length - x.shape[dim], *x.shape[dim + 1 :]), math.nan)), dim)
            for x in (one, other)
        )
    return torch.where(chosen.view(*lead, *[1] * (one.ndim - len(lead))), one, other)


def _status_of(outcomes: Outcomes, failed: dict[int, Status], row: int) -> Status:
    if row in failed:
        return failed[row]
    accepted, rejected, t = outcomes.counts.item(1, row), outcomes.counts.item(2, row), outcomes.numbers.item(0, row)
    return Status(Outcome.SUCCESS, f"reached t = {t:g} in {accepted} steps, {rejected} attempts rejected", t)


def _stats_of(outcomes: Outcomes, row: int, solves: int) -> Stats:
    """What a row cost, by a method that solves so many linear systems with a matrix."""
    _, accepted, rejected, evaluations, jacobians, factorisations = outcomes.counts[:, row].tolist()
    stiff = outcomes.stiff is not None and bool(outcomes.stiff[row])
    return Stats(
        evaluations,
        accepted,
        rejected,
        jacobians=jacobians,
        factorisations=factorisations,
        solves=solves * factorisations,
        stiff=stiff * (accepted + rejected),
        switches=int(stiff),
        backend="fused",
    )


def _failures(solve: FusedSolve, plan: RowIntegration) -> dict[int, Status]:
    """Why the rows that did not reach their ends did not, in sentences."""
    outcomes, found = solve.outcomes, {}
    for row in np.flatnonzero((outcomes.counts[0] != SUCCESS) & (outcomes.counts[0] != STIFF)).tolist():
        assert solve.last_states is not None
        y = solve.last_states[row : row + 1]
        problem = single_problem(plan.problem, row, y)
        norm = plan.norm.take(torch.tensor([row]))
        controller = plan.controller if isinstance(plan.controller, PIDController) else None
        found[row] = failure_of(outcomes, row, y, problem, norm, plan.method, controller, plan.max_steps, plan.describe)
    return found
