"""How `solve_ivp` solves batches whose rows step on their own, and problems with events."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.api.arguments import Gradient, flat_norm
from torchivp.api.times import MovingTimes, as_times, times_of_one, times_of_rows, times_of_span
from torchivp.checks import check_whole_number
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.events.event import Event, Scheduled
from torchivp.gradients.moving_time import moved
from torchivp.gradients.row_gradients import RowResult, solve_rows
from torchivp.gradients.row_replay import at_moving_time
from torchivp.integrate import Controller, check_controller, check_norm
from torchivp.methods.method import Method
from torchivp.rows.changes import apply_firing, function_on, groups, rounds
from torchivp.rows.function import Result, RowArguments, RowFunction, changed_state, derivative, event_value
from torchivp.rows.loop import RowIntegration
from torchivp.rows.problem import Action, RowProblem
from torchivp.rows.times import RowTimes
from torchivp.solution import BatchSolution, EventLog, Solution, SolveError
from torchivp.state import StateLayout
from torchivp.times import time_dtype
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
    if dense_output:
        raise ValueError(
            "dense_output=True does not go with batch_dims or events: ask for the times that you need in t_eval"
        )
    layout = StateLayout(y0, batch_dims)
    if batch_dims:
        times, moving = times_of_rows(t_span, t_eval, layout.lead)
    else:
        times, moving = times_of_one(times_of_span(t_span, t_eval))
    actions = check_events(events)
    problem = build_problem(func, y0, layout, times, args, actions, compact)
    if not method.takes_rows and layout.rows > 1:
        if not problem.func.row_wise:
            raise ValueError(
                f"{method.__name__} takes one row at a time, but func does not work on some of the rows: pass what has "
                "an entry for each row as args, or choose an explicit Runge-Kutta method such as method='dopri5'"
            )
        one_row = partial(
            solve_batch,
            func,
            method=method,
            params=params,
            gradient=gradient,
            dense_output=False,
            controller=controller,
            max_steps=max_steps,
            norm=norm,
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
        problem=_started(problem, moving),
        method=method,
        controller=check_controller(controller, method),
        norm=check_norm(error_norm, controller),
        max_steps=check_whole_number("max_steps", max_steps, 1),
        describe=layout.name,
    )
    result = solve_rows(plan, gradient, params)
    y, t = _moved_outputs(problem, result, moving)
    log = _log(problem, layout, result) if actions else None
    if not batch_dims:
        status = result.status[0]
        if throw and not status.ok:
            raise SolveError(status)
        return Solution(t[0], layout.unflatten(y[0], (y.shape[1],)), status, result.stats[0], events=log)
    count = y.shape[1]
    states = layout.unflatten(y.reshape(layout.rows * count, y.shape[2]), (*layout.lead, count))
    solution = BatchSolution(t.reshape(*layout.lead, count), states, layout.lead, result.status, result.stats, log)
    return _thrown(solution, throw)


def _thrown(solution: BatchSolution, throw: bool) -> BatchSolution:
    failed = [(row, status) for row, status in enumerate(solution.status) if not status.ok]
    if throw and failed:
        shown = "; ".join(f"row {row}: {status.message}" for row, status in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        sentence = (
            f"{len(failed)} of {len(solution.status)} rows did not reach the end: {shown}{more}. With throw=False the "
            "others are returned, and NaN for these"
        )
        raise SolveError(replace(failed[0][1], message=sentence))
    return solution


def _started(problem: RowProblem, moving: MovingTimes) -> RowProblem:
    """The same problem; where the start moves, the initial states are those at a fixed time."""
    if moving.start is None or not torch.is_grad_enabled():
        return problem
    everything = np.arange(problem.rows)
    t = problem.user_time(problem.times.start)
    with torch.no_grad():
        slopes = function_on(problem, everything)(t, problem.y0)
    start = moving.start.to(problem.y0.device).unsqueeze(1)
    return replace(problem, y0=moved(problem.y0, -slopes, start))


def _moved_outputs(problem: RowProblem, result: RowResult, moving: MovingTimes) -> tuple[Tensor, Tensor]:
    """The outputs as functions of their times, where these move, and the times."""
    y, device = result.states, problem.y0.device
    t = torch.from_numpy(result.times.copy()).to(device, time_dtype(device))
    if not torch.is_grad_enabled():
        return y, t
    times = moving.outputs
    if times is None and problem.times.outputs is None and moving.end is not None:
        at_end = torch.from_numpy(result.times == problem.times.end[:, None])
        times = torch.where(at_end, moving.end.unsqueeze(1), t.cpu())
    if times is None:
        return y, t
    times = times.to(device, time_dtype(device))
    func, columns = function_on(problem, np.arange(problem.rows)), []
    for j in range(y.shape[1]):
        with torch.no_grad():
            slopes = func(problem.user_time(result.times[:, j]), y[:, j])
        columns.append(moved(y[:, j], slopes, times[:, j : j + 1]))
    return torch.stack(columns, dim=1) if columns else y, times


def _log(problem: RowProblem, layout: StateLayout, result: RowResult) -> EventLog:
    """What happened, in the order of the rows and, in a row, of the time."""
    changes, device = result.changes, problem.y0.device
    t = torch.from_numpy(changes.t).to(device, time_dtype(device))
    before, after = changes.y, changes.y
    for firing, same in groups(changes.firings).items():
        for where in (same[i] for i in rounds(changes.rows[same])):  # functions take a row once at a time
            select, rows = problem.select(where), changes.rows[where]
            when, y = at_moving_time(problem, firing, rows, changes.t[where], changes.y[select])
            # Not the values, which are known more precisely, but their gradients.
            if when.requires_grad:
                t = t.index_copy(0, select, t[select] + (when - when.detach()).squeeze(1).to(t.dtype))
            before = before.index_copy(0, select, y)
            after = after.index_copy(0, select, apply_firing(problem, firing, rows, when, y))
    entries = [(i, number) for i in np.lexsort((changes.steps, changes.rows)) for number, _ in changes.firings[i]]
    order = torch.tensor([i for i, _ in entries], dtype=torch.int64, device=device)
    index = torch.tensor([number for _, number in entries], dtype=torch.int64, device=device)
    row = torch.from_numpy(changes.rows).to(device)[order]
    count = (len(entries),)
    return EventLog(t[order], layout.unflatten(before[order], count), layout.unflatten(after[order], count), index, row)


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
        log,
    )


def build_problem(
    func: Callable[..., Any],
    y0: Any,
    layout: StateLayout,
    times: RowTimes,
    args: Sequence[Any],
    events: Sequence[Event | Scheduled],
    compact: bool | None,
) -> RowProblem:
    """The problem that the arguments describe, checked.

    Raises:
        TypeError: `func` is not callable, or `args` or `events` are of the wrong type.
        ValueError: `compact` is asked for, but the values of `func` in a row depend on which rows there are.
    """
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}")
    if not isinstance(args, tuple | list):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(args,)")
    if compact not in (None, True, False):
        raise TypeError(f"compact must be True, False or None (find out), got {compact!r}")
    flat = layout.flatten(y0).contiguous()
    filler = _filler(times, flat, layout)
    arguments = RowArguments(args, layout)

    def on_rows(function: Callable[..., Any], result: Result, extra: int = 0) -> RowFunction:
        takes_args = result is not changed_state or _accepts(function, 2 + extra + len(args))
        made = RowFunction(function, layout, arguments, result, filler, takes_args=takes_args)
        if extra or compact is False:
            return made if compact is not False and row_wise else made.filled_in()
        return made if made.is_row_wise() else made.filled_in()

    right_hand_side = on_rows(func, derivative)
    row_wise = right_hand_side.row_wise
    if compact and not row_wise:
        raise ValueError(
            "compact=True, but func gives other values for some of the rows than for all of them at once, or fails: "
            "pass what has an entry for each row as args, so that it can be chosen along with the rows"
        )
    actions = [_action(event, on_rows, flat, layout, times) for event in events]
    return RowProblem(right_hand_side, flat, times, actions, layout.real_dtype)


def _filler(times: RowTimes, y0: Tensor, layout: StateLayout) -> tuple[Tensor, Tensor]:
    """Times and states at which functions can be evaluated for rows that are not under way."""
    device = y0.device
    t = torch.from_numpy(times.start).to(device, time_dtype(device)).to(layout.real_dtype).unsqueeze(1)
    y = y0.detach()
    finite = torch.isfinite(y).all(1)
    if len(y) and not finite.all() and finite.any():
        y = torch.where(finite.unsqueeze(1), y, y[finite][0])
    return t, y


def _action(
    event: Event | Scheduled, on_rows: Callable[..., RowFunction], y0: Tensor, layout: StateLayout, times: RowTimes
) -> Action:
    if isinstance(event, Event):
        apply = None if event.apply is None else on_rows(event.apply, changed_state)
        return Action(apply, on_rows(event.g, event_value), event.direction, event.last_count, event.checks)
    scheduled, moving = as_times("the times of Scheduled", event.times)
    rows, shape = layout.rows, scheduled.shape
    if len(shape) == 1:
        scheduled = np.broadcast_to(scheduled, (rows, *shape)).copy()
        moving = None if moving is None else moving.expand(rows, -1)
    elif shape[:-1] == layout.lead and len(shape) > 1:
        scheduled = scheduled.reshape(rows, -1).copy()
        moving = None if moving is None else moving.reshape(rows, -1)
    else:
        raise ValueError(
            f"the times of Scheduled must be one-dimensional or of the shape {(*layout.lead, 'n')}, got shape {shape}"
        )
    values = None
    if event.values is not None:
        values = _values(event.values, scheduled.shape[1], y0, layout)
    apply = on_rows(event.apply, changed_state, extra=0 if values is None else 1)
    return Action(apply, times=scheduled, moving=moving, values=values)


def _values(values: Any, count: int, y0: Tensor, layout: StateLayout) -> Tensor:
    """What goes with each scheduled time, [rows, count, ...]."""
    values = torch.as_tensor(values).to(y0.device)
    if not values.is_complex():
        values = values.to(layout.real_dtype)
    dims = len(layout.lead)
    if values.shape[: dims + 1] == (*layout.lead, count) and dims:
        return values.reshape(layout.rows, count, *values.shape[dims + 1 :])
    if values.ndim and values.shape[0] == count:
        return values.expand(layout.rows, *values.shape)
    raise ValueError(
        f"the values of Scheduled must have an entry for each of its {count} times, shape ({count}, ...)"
        + (f" or {(*layout.lead, count)} and more" if dims else "")
        + f", got shape {tuple(values.shape)}"
    )


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether the function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # no signature to look at
        return True
    return True


def check_events(events: Any) -> list[Event | Scheduled]:
    """The events as a list; a function stands for an `Event` of it.

    Raises:
        TypeError: there is something else among them.
    """
    entries = list(events) if isinstance(events, list | tuple) else [] if events is None else [events]
    checked: list[Event | Scheduled] = []
    for entry in entries:
        if not isinstance(entry, Event | Scheduled):
            if not callable(entry):
                raise TypeError(
                    f"events must be functions g(t, y), Event(g, ...) and Scheduled(times, apply), got {entry!r}"
                )
            entry = Event(entry)
        checked.append(entry)
    return checked
