"""What a solve of rows gives, as a function of the times that the user gave and of those of events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchivp.gradients.draws import APPLY_NOT_REPEATED, is_repeated
from torchivp.gradients.moving_time import carried_on
from torchivp.gradients.refusals import refuse_to_differentiate
from torchivp.gradients.replay import at_moving_time, end_of
from torchivp.gradients.replayed import RowResult
from torchivp.gradients.step_ends import StepEnds
from torchivp.methods.consistent import slopes_of
from torchivp.record import Firing
from torchivp.rows.changes import apply_firing, changes_state, function_after, groups, rounds
from torchivp.rows.problem import RowProblem
from torchivp.solution import EventLog
from torchivp.state import StateLayout
from torchivp.times import time_dtype
from torchivp.torch_func import may_be_tracked, moves


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
    before, after, again = changes.y, changes.after, torch.is_grad_enabled() or may_be_tracked()
    if not result.moves:
        return MovingChanges(t, before, after)
    for firing, same in groups(changes.firings).items():
        _refuse_several_clocks(problem, firing, float(changes.t[same[0]]))
        for where in (same[i] for i in rounds(changes.rows[same])):  # functions take a row once at a time
            select, rows = problem.select(where), changes.rows[where]
            end, is_own = end_of(result.moving, firing, rows, changes.t[where], changes.steps[where])
            if changes.within[where].any():  # reported on the way, at a time that stays where it is
                end, is_own = changes.t[where], False
            when, y = at_moving_time(problem, firing, rows, end, changes.y[select], is_own)
            # Not the values, which are known more precisely, but their gradients.
            if moves(when):
                t = t.index_copy(0, select, t[select] + (when - when.detach()).squeeze(1).to(t.dtype))
            before = before.index_copy(0, select, y)
            if again and changes_state(problem, firing):
                found, known = apply_firing(problem, firing, rows, when, y), after[select]
                if not may_be_tracked() and not is_repeated(found, known, y):
                    (found,) = refuse_to_differentiate(APPLY_NOT_REPEATED, [known], [found])
                after = after.index_copy(0, select, found)
            elif not changes_state(problem, firing):
                after = after.index_copy(0, select, y)
    return MovingChanges(t, before, after)


def _refuse_several_clocks(problem: RowProblem, firing: Firing, t: float) -> None:
    """Refuse derivatives by the time of what happens together with something that does not move with it.

    Raises:
        ValueError: they are wanted.
    """
    series = [problem.actions[number].moving for number, _ in firing]
    if len(firing) == 1 or all(moving is None for moving in series):
        return
    clocks = {
        None if x is None else x[:, column].data_ptr() for x, (_, column) in zip(series, firing, strict=True)
    }  # of an event, or a constant time, None
    if len(clocks) > 1:
        names = " and ".join(dict.fromkeys(f"events[{number}]" for number, _ in firing))
        raise ValueError(
            f"the solution has no derivative by scheduled times where several things happen at once, {names} at "
            f"t = {t:g}: it depends on which comes first when one moves. Schedule what belongs together at one entry "
            "of one tensor, move the one a little, or give times.detach()"
        )


def times_of_outputs(problem: RowProblem, result: RowResult, changes: MovingChanges) -> tuple[Tensor, Tensor]:
    """The outputs, and their times, as functions of what these depend on.

    Where no times were requested they are the ends of the steps, and those at which something happens move with it.
    """
    y, device = result.states, problem.y0.device
    asked = problem.moving.outputs
    if asked is not None:
        return y, asked.to(device, time_dtype(device))
    t = torch.from_numpy(result.times.copy())
    if result.moving is not None and problem.times.outputs is None:
        t = result.moving.at(result.record.ends, result.times)
    t = t.to(device, time_dtype(device))
    if problem.times.outputs is None and any(map(moves, (changes.t, changes.before, changes.after))):
        y, t = _with_changes(problem, result, changes, y, t)
    return y, t


def final_is_new(problem: RowProblem, result: RowResult) -> np.ndarray:
    """In which rows the last state is one after a change, not that at the end of the last step, [rows]."""
    found, changes = np.zeros(problem.rows, dtype=bool), result.changes
    for i in np.flatnonzero(changes.t == result.final_times[changes.rows]).tolist():
        found[changes.rows[i]] |= changes_state(problem, changes.firings[i])
    return found


def final_and_time(problem: RowProblem, result: RowResult, changes: MovingChanges) -> tuple[Tensor, Tensor]:
    """The last states, [rows, size], and their times, [rows], as functions of what these depend on."""
    y, device, ends = result.final, problem.y0.device, problem.times.end
    rows, steps, moving = np.arange(problem.rows), result.record.steps, result.moving
    t, arrived = torch.from_numpy(result.final_times.copy()), result.final_times == ends
    loose = np.zeros(problem.rows, dtype=bool)  # where the end of the span is a time that moves on its own
    if moving is not None:
        t = moving.of_steps(rows, steps).squeeze(1)
        if problem.moving.end is not None:
            loose = arrived & (moving.owner[rows, steps] != StepEnds.END)
    t = t.to(device, time_dtype(device))
    at_last = result.changes.t == result.final_times[result.changes.rows]
    chosen = np.flatnonzero(at_last & ~result.changes.within)
    if len(chosen) and (problem.moving.end is not None or any(map(moves, (changes.t, changes.after)))):
        where, at = problem.select(chosen), problem.select(result.changes.rows[chosen])
        y, t = y.index_copy(0, at, changes.after[where]), t.index_copy(0, at, changes.t[where])
        planned = [all(column >= 0 for _, column in result.changes.firings[i]) for i in chosen.tolist()]
        loose[result.changes.rows[chosen]] = arrived[result.changes.rows[chosen]] & planned
    if loose.any():
        some = np.flatnonzero(loose)
        at = problem.select(some)
        end = torch.from_numpy(ends) if problem.moving.end is None else problem.moving.end
        motion = end.to(t)[at] - t[at]
        func, places = slopes_of(function_after(problem, some, ends[some])), (t[at], motion)
        y = y.index_copy(0, at, carried_on(func, y[at], *(problem.user_time(x.unsqueeze(1)) for x in places)))
        t = t.index_copy(0, at, t[at] + motion)
    return y, t


def _with_changes(
    problem: RowProblem, result: RowResult, changes: MovingChanges, y: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The ends of all steps; those at which something happens move with it."""
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
