"""How `solve_ivp` solves batches whose rows step on their own, and problems with events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchivp.api.arguments import consistent_start, norm_of
from torchivp.api.row_problem import build_problem, check_events
from torchivp.api.statement import Statement
from torchivp.api.times import times_of_one, times_of_rows, times_of_span
from torchivp.checks import check_whole_number
from torchivp.dense import NoDenseOutput, RowDenseSolution
from torchivp.events.event import Event, Scheduled
from torchivp.gradients.batches import solve_rows
from torchivp.gradients.moving_results import event_log, final_and_time, final_is_new, moving_changes, times_of_outputs
from torchivp.gradients.replayed import RowResult
from torchivp.integrate import at_steps, check_controller, check_norm
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.solution import BatchSolution, Solution, SolveError, Status
from torchivp.state import StateLayout
from torchivp.torch_func import inside_transform


def solve_batch(stated: Statement) -> Solution | BatchSolution:
    """`solve_ivp` with batch dimensions or events."""
    if inside_transform():
        raise ValueError(
            "batch_dims and events do not work inside torch.func transforms such as vmap or grad: the rows of a batch "
            "need no vmap, pass them with batch_dims=1"
        )
    plan, layout = plan_rows(stated, check_events(stated.events))
    result = solve_rows(plan, stated.gradient, stated.params, stated.dense_output)
    return solution_of_rows(plan.problem, layout, result, stated.throw)


def solution_of_rows(
    problem: RowProblem, layout: StateLayout, result: RowResult, throw: bool
) -> Solution | BatchSolution:
    """The solution, in the user's structure, as a function of all that it depends on.

    Raises:
        SolveError: a row did not reach its end, and `throw` is true.
    """
    changes = moving_changes(problem, result)
    y, t = times_of_outputs(problem, result, changes)
    final, t_final = final_and_time(problem, result, changes)
    log = event_log(layout, problem.times.direction, result, changes) if problem.actions else None
    sol = NoDenseOutput()
    if result.dense is not None:
        times, lead = problem.times.start, layout.lead if problem.batched else None
        new = final_is_new(problem, result)
        sol = RowDenseSolution(result.dense, times, result.final_times, result.final, new, layout.unflatten, lead)
    if not problem.batched:
        status, states, last = result.status[0], layout.unflatten(y[0], (y.shape[1],)), layout.unflatten(final, ())
        if throw and not status.ok:
            raise SolveError(status)
        return Solution(t[0], states, status, result.stats[0], last, t_final[0], sol, log)
    count = y.shape[1]
    solution = BatchSolution(
        t.reshape(*layout.lead, count),
        layout.unflatten(y.reshape(layout.rows * count, y.shape[2]), (*layout.lead, count)),
        layout.lead,
        result.status,
        result.stats,
        layout.unflatten(final, layout.lead),
        t_final.reshape(layout.lead),
        sol,
        log,
    )
    if throw:
        raise_failures(solution.status, batched=True)
    return solution


def raise_failures(status: Sequence[Status], batched: bool) -> None:
    """Raise if a row did not reach its end; the sentence of a problem without batch dimensions names no row."""
    failed = [(row, status) for row, status in enumerate(status) if not status.ok]
    if not failed:
        return
    if not batched:
        raise SolveError(failed[0][1])
    shown = "; ".join(f"row {row}: {status.message}" for row, status in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    sentence = (
        f"{len(failed)} of {len(status)} rows did not reach the end: {shown}{more}. With throw=False the "
        "others are returned, and NaN for these"
    )
    raise SolveError(replace(failed[0][1], message=sentence))


def plan_rows(stated: Statement, events: Sequence[Event | Scheduled] = ()) -> tuple[RowIntegration, StateLayout]:
    """How the step loop solves a problem, and the layout of its states: all that can be asked of the arguments is.

    `events` are what happens on the way, checked.
    """
    layout = StateLayout(stated.y0, stated.batch_dims)
    ends = any(isinstance(event, Event) and (event.terminal or event.max_count) for event in events)
    if stated.batch_dims:
        times, moving = times_of_rows(stated.t_span, stated.t_eval, layout.lead, endless=ends)
    else:
        times, moving = times_of_one(times_of_span(stated.t_span, stated.t_eval, endless=ends))
    known = stated.jac, stated.jac_sparsity, stated.mass
    problem = build_problem(stated.func, stated.y0, layout, times, moving, stated.args, events, stated.compact, *known)
    start = problem.user_time(times.start if moving.start is None else moving.start.reshape(-1, 1))
    problem = replace(problem, y0=consistent_start(problem.func.on(None), start, problem.y0))
    method, controller = stated.method, stated.controller
    error_norm = norm_of(layout, stated.rtol, stated.atol, stated.norm)
    plan = RowIntegration(
        problem=problem,
        method=at_steps(method, controller, layout.rows),
        controller=check_controller(controller, method),
        norm=check_norm(error_norm, controller),
        max_steps=check_whole_number("max_steps", stated.max_steps, 1),
        describe=layout.name,
        callbacks=stated.callbacks and replace(stated.callbacks, unflatten=layout.unflatten, lead=layout.lead),
    )
    return plan, layout
