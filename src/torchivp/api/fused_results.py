"""What a solve by a kernel returns, and why it failed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torchivp.api.rows import raise_failures
from torchivp.fused.endings import failure_of
from torchivp.fused.solve import SUCCESS, FusedSolve, Outcomes
from torchivp.rows.loop import RowIntegration
from torchivp.rows.problem import single_problem
from torchivp.solution import BatchSolution, OfRows, Outcome, Solution, Stats, Status
from torchivp.state import StateLayout
from torchivp.stepsize.pid import PIDController


def solution_of(
    solve: FusedSolve,
    values: Tensor,
    last: Tensor,
    layout: StateLayout,
    plan: Callable[[], RowIntegration],
    throw: bool,
) -> Solution | BatchSolution:
    """The solution, from what the kernel has returned; `plan` tells how the step loop would say why it failed.

    Raises:
        SolveError: a row did not reach its end, and `throw` is true.
    """
    outcomes, rows = solve.outcomes, solve.rows
    failed = {} if solve.well else _failures(solve, plan())
    if failed and throw:
        raise_failures([_status_of(outcomes, failed, row) for row in range(rows)], batched=bool(layout.lead))
    count, solves = values.shape[len(solve.lead)], solve.kernel.form.coefficients.solves
    if not layout.is_tensor:
        values = layout.unflatten(values.reshape(rows * count, layout.size), (*layout.lead, count))
        last = layout.unflatten(last, layout.lead)
    t, t_final = _times_reached(solve, count), torch.from_numpy(outcomes.t)
    if not layout.lead:
        status, stats = _status_of(outcomes, failed, 0), _stats_of(outcomes, 0, solves)
        return Solution(t, values, status, stats, last, t_final.view(()))
    return BatchSolution(
        t.expand(rows, count).reshape(*layout.lead, count),
        values,
        layout.lead,
        OfRows(rows, lambda row: _status_of(outcomes, failed, row)),
        OfRows(rows, lambda row: _stats_of(outcomes, row, solves)),
        last,
        t_final.reshape(layout.lead),
    )


def _times_reached(solve: FusedSolve, count: int) -> Tensor:
    """The times of the outputs, [rows, T]; [T], of one row or where all have the same."""
    wanted = solve.times.wanted
    if wanted is not None:
        return wanted.clone().squeeze(0)
    assert solve.record is not None
    t = solve.record.ends[:, :count].clone()
    t[torch.arange(count) > torch.from_numpy(solve.outcomes.accepted).unsqueeze(1)] = math.nan
    return t if solve.lead else t[0]


def _status_of(outcomes: Outcomes, failed: dict[int, Status], row: int) -> Status:
    if row in failed:
        return failed[row]
    accepted, rejected, t = outcomes.counts.item(1, row), outcomes.counts.item(2, row), outcomes.numbers.item(0, row)
    return Status(Outcome.SUCCESS, f"reached t = {t:g} in {accepted} steps, {rejected} attempts rejected", t)


def _stats_of(outcomes: Outcomes, row: int, solves: int) -> Stats:
    """What a row cost, by a method that solves so many linear systems with a matrix."""
    _, accepted, rejected, evaluations, jacobians, factorisations = outcomes.counts[:, row].tolist()
    return Stats(
        evaluations,
        accepted,
        rejected,
        jacobians=jacobians,
        factorisations=factorisations,
        solves=solves * factorisations,
        backend="fused",
    )


def _failures(solve: FusedSolve, plan: RowIntegration) -> dict[int, Status]:
    """Why the rows that did not reach their ends did not, in sentences."""
    outcomes, found = solve.outcomes, {}
    for row in np.flatnonzero(outcomes.counts[0] != SUCCESS).tolist():
        assert solve.last_states is not None
        y = solve.last_states[row : row + 1]
        problem = single_problem(plan.problem, row, y)
        norm = plan.norm.take(torch.tensor([row]))
        controller = plan.controller if isinstance(plan.controller, PIDController) else None
        found[row] = failure_of(outcomes, row, y, problem, norm, plan.method, controller, plan.max_steps, plan.describe)
    return found
