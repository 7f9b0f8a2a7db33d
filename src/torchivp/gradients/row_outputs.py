"""What a solve of rows gives, as a function of the times that the user gave and of those of events."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from torchivp.gradients.moving_time import moved
from torchivp.gradients.row_gradients import RowResult
from torchivp.gradients.row_replay import at_moving_time
from torchivp.rows.changes import apply_firing, changes_state, function_on, groups, rounds
from torchivp.rows.problem import RowProblem
from torchivp.rows.times import MovingTimes
from torchivp.solution import EventLog
from torchivp.state import StateLayout
from torchivp.times import time_dtype
from torchivp.torch_func import derivatives_enabled, moves


def started(problem: RowProblem, moving: MovingTimes) -> RowProblem:
    """The same problem; where the start moves, the initial states are those at a fixed time."""
    if moving.start is None or not derivatives_enabled():
        return problem
    everything = np.arange(problem.rows)
    t = problem.user_time(problem.times.start)
    with torch.no_grad():
        slopes = function_on(problem, everything)(t, problem.y0)
    start = moving.start.to(problem.y0.device).unsqueeze(1)
    return replace(problem, y0=moved(problem.y0, -slopes, start))


@dataclass(frozen=True)
class MovingChanges:
    """What happened, as functions of all that it depends on, in the order of `RowResult.changes`.

    Attributes:
        t: when, [n].
        before: the states before it, [n, size].
        after: the states after it, [n, size].
    """

    t: Tensor
    before: Tensor
    after: Tensor


def moving_changes(problem: RowProblem, result: RowResult) -> MovingChanges:
    """What happened, moving with its time."""
    changes, device = result.changes, problem.y0.device
    t = torch.from_numpy(changes.t).to(device, time_dtype(device))
    before, after = changes.y, changes.y
    for firing, same in groups(changes.firings).items():
        for where in (same[i] for i in rounds(changes.rows[same])):  # functions take a row once at a time
            select, rows = problem.select(where), changes.rows[where]
            when, y = at_moving_time(problem, firing, rows, changes.t[where], changes.y[select])
            # Not the values, which are known more precisely, but their gradients.
            if moves(when):
                t = t.index_copy(0, select, t[select] + (when - when.detach()).squeeze(1).to(t.dtype))
            before = before.index_copy(0, select, y)
            after = after.index_copy(0, select, apply_firing(problem, firing, rows, when, y))
    return MovingChanges(t, before, after)


def moved_outputs(
    problem: RowProblem, result: RowResult, moving: MovingTimes, changes: MovingChanges
) -> tuple[Tensor, Tensor]:
    """The outputs as functions of their times, where these move, and the times."""
    y, device = result.states, problem.y0.device
    t = torch.from_numpy(result.times.copy()).to(device, time_dtype(device))
    if not derivatives_enabled():
        return y, t
    if problem.times.outputs is None:
        return _moved_ends(problem, result, moving, changes, y, t)
    if moving.outputs is None:
        return y, t
    times = moving.outputs.to(device, time_dtype(device))
    return _moved_to(problem, result.times, y, times), times


def final_is_new(problem: RowProblem, result: RowResult) -> np.ndarray:
    """In which rows the last state is one after a change, not that at the end of the last step, [rows]."""
    found, changes = np.zeros(problem.rows, dtype=bool), result.changes
    for i in np.flatnonzero(changes.t == result.final_times[changes.rows]).tolist():
        found[changes.rows[i]] |= changes_state(problem, changes.firings[i])
    return found


def moved_final(
    problem: RowProblem, result: RowResult, moving: MovingTimes, changes: MovingChanges
) -> tuple[Tensor, Tensor]:
    """The last states, [rows, size], and their times, [rows], which move with the end or with what happens there."""
    y, device = result.final, problem.y0.device
    t = torch.from_numpy(result.final_times.copy()).to(device, time_dtype(device))
    if not derivatives_enabled():
        return y, t
    if moving.end is not None:
        at_end = torch.from_numpy(result.final_times == problem.times.end).to(device)
        t = torch.where(at_end, moving.end.to(device, t.dtype), t)
        y = _moved_to(problem, result.final_times[:, None], y[:, None], t[:, None])[:, 0]
    at_last = result.changes.t == result.final_times[result.changes.rows]
    chosen = np.flatnonzero(at_last & ~result.changes.within)
    if len(chosen) and (moves(changes.t) or moves(changes.after)):
        where, rows = problem.select(chosen), problem.select(result.changes.rows[chosen])
        y, t = y.index_copy(0, rows, changes.after[where]), t.index_copy(0, rows, changes.t[where])
    return y, t


def _moved_to(problem: RowProblem, at: np.ndarray, y: Tensor, times: Tensor) -> Tensor:
    """The states, which are at the times `at`, as functions of these."""
    func, columns = function_on(problem, np.arange(problem.rows)), []
    for j in range(y.shape[1]):
        with torch.no_grad():
            slopes = func(problem.user_time(at[:, j].copy()), y[:, j])
        columns.append(moved(y[:, j], slopes, times[:, j : j + 1]))
    return torch.stack(columns, dim=1) if columns else y


def _moved_ends(
    problem: RowProblem, result: RowResult, moving: MovingTimes, changes: MovingChanges, y: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The ends of all steps: those at which something happens move with it, the last one with the end of the span."""
    if moving.end is not None:
        at_end = torch.from_numpy(result.times == problem.times.end[:, None]).to(t.device)
        t = torch.where(at_end, moving.end.to(t.device, t.dtype).unsqueeze(1), t)
        y = _moved_to(problem, result.times, y, t)
    if any(map(moves, (changes.t, changes.before, changes.after))):
        first: list[tuple[int, int, int]] = []
        last: list[tuple[int, int, int]] = []
        for i in np.flatnonzero(~result.changes.within).tolist():
            row, when, firing = result.changes.rows[i], result.changes.t[i], result.changes.firings[i]
            places = np.flatnonzero(result.times[row] == when)
            first.append((i, row, places[0]))
            if changes_state(problem, firing):
                last.append((i, row, places[-1]))
        for entries, states in ((first, changes.before), (last, changes.after)):
            if entries:
                number, row, place = torch.tensor(entries, device=y.device).t()
                y = y.index_put((row, place), states[number])
                t = t.index_put((row, place), changes.t[number])
    return y, t


def event_log(layout: StateLayout, direction: np.ndarray, result: RowResult, moving: MovingChanges) -> EventLog:
    """What happened, in the order of the rows and, in a row, of the time."""
    changes, device = result.changes, moving.t.device
    ahead = changes.t * direction[changes.rows]
    order = np.lexsort((ahead, changes.steps, changes.rows)).tolist()
    entries = [(i, number) for i in order for number, _ in changes.firings[i]]
    place = torch.tensor([i for i, _ in entries], dtype=torch.int64, device=device)
    index = torch.tensor([number for _, number in entries], dtype=torch.int64, device=device)
    row = torch.from_numpy(changes.rows).to(device)[place]
    count = (len(entries),)
    return EventLog(
        moving.t[place],
        layout.unflatten(moving.before[place], count),
        layout.unflatten(moving.after[place], count),
        index,
        row,
    )
