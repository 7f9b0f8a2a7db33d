"""How `solve_ivp` solves batches whose rows step on their own, and problems with events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.api.arguments import Gradient, consistent_start, flat_norm
from torchivp.api.row_problem import build_problem, check_events
from torchivp.api.times import MovingTimes, times_of_one, times_of_rows, times_of_span
from torchivp.checks import check_whole_number
from torchivp.dense import NoDenseOutput, RowDenseSolution
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.events.event import Event, Scheduled
from torchivp.gradients.batches import solve_rows
from torchivp.gradients.moving_results import event_log, final_and_time, final_is_new, moving_changes, times_of_outputs
from torchivp.integrate import Controller, at_steps, check_controller, check_norm
from torchivp.mass import Mass
from torchivp.methods.method import Method
from torchivp.rows.loop import RowIntegration
from torchivp.rows.problem import Action, RowProblem
from torchivp.solution import BatchSolution, EventLog, Solution, SolveError, Status
from torchivp.state import StateLayout
from torchivp.torch_func import inside_transform


def solve_batch(
    func: Callable[..., Any],
    t_span: Any,
    y0: Any,
    *,
    t_eval: Any,
    method: type[Method],
    rtol: Any,
    atol: Any,
    args: Sequence[Any],
    params: Sequence[Tensor] | None,
    gradient: Gradient,
    dense_output: bool,
    controller: Controller,
    max_steps: int,
    norm: Callable[[Any], Any] | None,
    events: Any,
    jac: Callable[..., Any] | None,
    jac_sparsity: Any,
    mass: Mass | None,
    batch_dims: int,
    compact: bool | None,
    throw: bool,
) -> Solution | BatchSolution:
    """`solve_ivp` with batch dimensions or events; the arguments are those of `solve_ivp`."""
    if inside_transform():
        raise ValueError(
            "batch_dims and events do not work inside torch.func transforms such as vmap or grad: the rows of a batch "
            "need no vmap, pass them with batch_dims=1"
        )
    layout = StateLayout(y0, batch_dims)
    actions = check_events(events)
    ends = any(isinstance(event, Event) and (event.terminal or event.max_count) for event in actions)
    if batch_dims:
        times, moving = times_of_rows(t_span, t_eval, layout.lead, endless=ends)
    else:
        times, moving = times_of_one(times_of_span(t_span, t_eval, endless=ends))
    problem = build_problem(func, y0, layout, times, moving, args, actions, compact, jac, jac_sparsity, mass)
    start = problem.user_time(times.start if moving.start is None else moving.start.reshape(-1, 1))
    problem = replace(problem, y0=consistent_start(problem.func.on(None), start, problem.y0))
    if not method.takes_rows and layout.rows > 1:
        _check_row_by_row(method, problem)
        one_row = partial(
            solve_batch,
            func,
            method=method,
            params=params,
            gradient=gradient,
            dense_output=dense_output,
            controller=controller,
            max_steps=max_steps,
            norm=norm,
            jac=jac,
            jac_sparsity=jac_sparsity,
            mass=mass,
            batch_dims=1,
            compact=None,
            throw=False,
        )
        tolerances = {"rtol": check_tolerance("rtol", rtol, layout), "atol": check_tolerance("atol", atol, layout)}
        return _thrown(_one_by_one(one_row, y0, problem, moving, actions, tolerances), throw)
    scaled_norm = None if norm is None else flat_norm(norm, layout.with_rows(1) if batch_dims else layout)
    error_norm = ErrorNorm(
        check_tolerance("rtol", rtol, layout),
        check_tolerance("atol", atol, layout),
        layout.parts(),
        layout.dtype,
        scaled_norm,
    )
    plan = RowIntegration(
        problem=problem,
        method=at_steps(method, controller),
        controller=check_controller(controller, method),
        norm=check_norm(error_norm, controller),
        max_steps=check_whole_number("max_steps", max_steps, 1),
        describe=layout.name,
    )
    result = solve_rows(plan, gradient, params, dense_output)
    changes = moving_changes(problem, result)
    y, t = times_of_outputs(problem, result, changes)
    final, t_final = final_and_time(problem, result, changes)
    log = event_log(layout, problem.times.direction, result, changes) if actions else None
    sol = NoDenseOutput()
    if result.dense is not None:
        times, lead = problem.times.start, layout.lead if batch_dims else None
        new = final_is_new(problem, result)
        sol = RowDenseSolution(result.dense, times, result.final_times, result.final, new, layout.unflatten, lead)
    if not batch_dims:
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
    return _thrown(solution, throw)


def _thrown(solution: BatchSolution, throw: bool) -> BatchSolution:
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


def plan_rows(
    func: Callable[..., Any],
    t_span: Any,
    y0: Any,
    *,
    t_eval: Any,
    method: type[Method],
    rtol: Any,
    atol: Any,
    args: Sequence[Any],
    controller: Controller,
    max_steps: int,
    batch_dims: int,
    compact: bool | None,
) -> RowIntegration:
    """How the step loop solves such a problem: all that can be asked of the arguments is asked."""
    layout = StateLayout(y0, batch_dims)
    if batch_dims:
        times, moving = times_of_rows(t_span, t_eval, layout.lead)
    else:
        times, moving = times_of_one(times_of_span(t_span, t_eval))
    problem = build_problem(func, y0, layout, times, moving, args, [], compact)
    error_norm = ErrorNorm(
        check_tolerance("rtol", rtol, layout),
        check_tolerance("atol", atol, layout),
        layout.parts(),
        layout.dtype,
        None,
    )
    return RowIntegration(
        problem=problem,
        method=at_steps(method, controller),
        controller=check_controller(controller, method),
        norm=check_norm(error_norm, controller),
        max_steps=check_whole_number("max_steps", max_steps, 1),
        describe=layout.name,
    )


def _check_row_by_row(method: type[Method], problem: RowProblem) -> None:
    functions = {"func": problem.func}
    for i, action in enumerate(problem.actions):
        functions |= {
            f"events[{i}].{name}": f for name, f in (("g", action.g), ("apply", action.apply)) if f is not None
        }
    for name, function in functions.items():
        if not function.row_wise:
            lead = ", ".join(map(str, problem.func.layout.lead))
            raise ValueError(
                f"{method.__name__} solves the rows one by one, but {name} cannot be called with one of them: put "
                "tensors with an entry for each row into args; a tensor that all rows share must not begin with the "
                f"dimensions ({lead}): write args=(w[None],). Or choose an explicit Runge-Kutta method such as "
                "method='dopri5'"
            )


def _one_by_one(
    solve: Callable[..., Any],
    y0: Any,
    problem: RowProblem,
    moving: MovingTimes,
    events: Sequence[Event | Scheduled],
    tolerances: dict[str, Any],
) -> BatchSolution:
    """Solve every row as a batch of its own, and put the solutions together."""
    layout, times = problem.func.layout, problem.times
    flat = layout.flatten(y0)
    solutions = []
    for row in range(layout.rows):
        one = slice(row, row + 1)
        state = layout.with_rows(1).unflatten(flat[one])
        chosen = problem.select(np.array([row]))
        start = times.start if moving.start is None else moving.start
        end = times.end if moving.end is None else moving.end
        outputs = times.outputs if moving.outputs is None else moving.outputs
        planned = [_of_row(event, action, one) for event, action in zip(events, problem.actions, strict=True)]
        solutions.append(
            solve(
                (start[one], end[one]),
                state,
                t_eval=None if outputs is None else outputs[one],
                args=problem.func.args.of(chosen),
                events=planned or None,
                **{
                    name: layout.with_rows(1).unflatten(flat[one]) if isinstance(flat, Tensor) else flat
                    for name, flat in tolerances.items()
                },
            )
        )
    return _together(solutions, layout, bool(events))


def _of_row(event: Event | Scheduled, action: Action, one: slice) -> Event | Scheduled:
    """The event, or the schedule for one of the rows."""
    if isinstance(event, Event) or action.times is None:
        return event
    times = action.times if action.moving is None else action.moving
    return replace(event, times=times[one], values=None if action.values is None else action.values[one])


def _together(solutions: Sequence[BatchSolution], layout: StateLayout, with_events: bool) -> BatchSolution:
    """The solutions of single rows as the solution of the batch."""
    count = max(solution.t.shape[1] for solution in solutions)

    def joined(*leaves: Tensor) -> Tensor:
        padded = [
            torch.cat([leaf, leaf.new_full((1, count - leaf.shape[1], *leaf.shape[2:]), math.nan)], dim=1)
            for leaf in leaves
        ]
        return torch.cat(padded).reshape(*layout.lead, count, *leaves[0].shape[2:])

    def whole(*leaves: Tensor) -> Tensor:
        return torch.cat(leaves).reshape(*layout.lead, *leaves[0].shape[1:])

    logs = [solution.events for solution in solutions if solution.events is not None]
    log = None
    if with_events:
        log = EventLog(
            torch.cat([log.t for log in logs]),
            pytree.tree_map(lambda *leaves: torch.cat(leaves), *(log.y for log in logs)),
            pytree.tree_map(lambda *leaves: torch.cat(leaves), *(log.y_after for log in logs)),
            torch.cat([log.index for log in logs]),
            torch.cat([log.row + row for row, log in enumerate(logs)]),
        )
    return BatchSolution(
        joined(*(solution.t for solution in solutions)),
        pytree.tree_map(joined, *(solution.y for solution in solutions)),
        layout.lead,
        [solution.status[0] for solution in solutions],
        [solution.stats[0] for solution in solutions],
        pytree.tree_map(whole, *(solution.final for solution in solutions)),
        whole(*(solution.t_final for solution in solutions)),
        _dense_together([solution.sol for solution in solutions], layout),
        log,
    )


def _dense_together(parts: Sequence[RowDenseSolution | NoDenseOutput], layout: StateLayout) -> Any:
    """The dense output of single rows as that of the batch; none if they have none."""
    dense = [part for part in parts if isinstance(part, RowDenseSolution)]
    if len(dense) < len(parts):
        return NoDenseOutput()
    start, end, new = (np.concatenate([getattr(part, x) for part in dense]) for x in ("start", "end", "final_is_new"))
    steps = [replace(step, rows=step.rows + row) for row, part in enumerate(dense) for step in part.steps]
    final = torch.cat([part.final for part in dense])
    return RowDenseSolution(steps, start, end, final, new, layout.unflatten, layout.lead)
