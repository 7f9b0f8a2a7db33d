"""Looks for events in the steps of the rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.events.root import find_roots
from torchivp.rows.changes import event_on, rounds
from torchivp.rows.crossings import Crossings, Located, Met, Moments
from torchivp.rows.function import FunctionOnRows
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import WithinSteps
from torchivp.rows.sign_search import Brackets, SignSearch, keep_their_signs
from torchivp.torch_func import read_rows

_ROUNDING = 4
"""Event functions are known to this multiple of their rounding error, as an error of their arguments shows it."""

_OF_STEPS = 1024
"""The rounding errors of a step, at which event functions are left, are this multiple of those of its end at most."""

_OF_ITERATIONS = 1 / 64
"""What is left of an event function at an event is less than this part of what it is in the middle of the step."""

_AT_ONCE = 65536
"""So many numbers at most are put to an event function at once: beyond, a call is no longer what costs time."""


class EventSteps(Protocol):
    """Steps of some rows, in which events are looked for."""

    @property
    def t0(self) -> np.ndarray: ...
    @property
    def t1(self) -> np.ndarray: ...
    @property
    def y1(self) -> Tensor: ...

    def within(self) -> WithinSteps:
        """The solutions within the steps."""
        ...


class RowWatch:
    """Knows the sign of every event function in every row.

    Just after an event its function is zero but for rounding, and its sign is that which it is about to have. It keeps
    it until the function has grown beyond the rounding error.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: RowProblem):
        self._problem = problem
        self.numbers = [i for i, action in enumerate(problem.actions) if action.g is not None]
        """The numbers of those actions that are events."""
        self.actions = [problem.actions[i] for i in self.numbers]
        shape = (len(self.actions), problem.rows)
        self._signs = np.zeros(shape)  # 0: not known yet
        self._levels = np.zeros(shape)
        self._values = np.zeros(shape)
        self.last_counts = np.array([action.last_count for action in self.actions])
        """The number of each event at which a row ends."""
        self.counts = np.zeros(shape, dtype=np.int64)
        """How often each event has happened in each row."""
        self._together = np.zeros(shape, dtype=bool)  # which have happened at about the same time as the last
        self._rows: np.ndarray | None = None
        self._on_rows: list[FunctionOnRows] = []
        self._stacked: dict[int, FunctionOnRows] = {}
        checks = [action.checks for action in self.actions]
        self._alike = [
            _Alike([i for i, m in enumerate(checks) if m == n], len(set(checks)) == 1, n) for n in sorted(set(checks))
        ]

    def values(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> np.ndarray:
        """The event functions of `rows`, [events, len(rows)]; of n times as many times and states as much."""
        time, once = self._problem.user_time(t), len(t) == len(rows)
        values = [function(time, y) if once else function.at_each(time, y) for function in self._functions(rows)]
        return _on_host(*values).reshape(len(values), len(t))

    def _functions(self, rows: np.ndarray) -> list[FunctionOnRows]:
        """The event functions of `rows`, which are the same for many steps."""
        if rows is not self._rows:
            self._rows, self._stacked = rows, {}
            self._on_rows = [event_on(self._problem, action, rows) for action in self.actions]
        return self._on_rows

    def look(self, rows: np.ndarray, steps: EventSteps, counts: np.ndarray | None = None) -> Located | None:
        """The events in `steps` of the `rows`, or None if nothing happens in them; then their ends are noted.

        `counts` says which of the steps matter; None for all.
        """
        samples = self._samples(rows, steps)
        everything = counts is None and len(rows) == self._problem.rows
        these: Any = slice(None) if everything else rows if counts is None else rows[counts]
        quiet = not np.count_nonzero(self._levels[:, these])
        ends, signs = self._values[:, these], self._signs[:, these]
        for alike, values in zip(self._alike, samples, strict=True):
            known = values if counts is None else values[..., counts]
            quiet = quiet and keep_their_signs(signs[alike.events], ends[alike.events], known)
        if not quiet:
            return self.search(rows, steps, samples)
        for alike, values in zip(self._alike, samples, strict=True):
            ends[alike.events] = values[:, -1] if counts is None else values[:, -1, counts]
        self._values[:, these] = ends
        return None

    def _samples(self, rows: np.ndarray, steps: EventSteps) -> list[np.ndarray]:
        """The event functions at their checks within the steps and at their ends, for each of those looked at alike.

        Each [events, checks + 1, rows].
        """
        samples = []
        for alike in self._alike:
            t = steps.t1 - alike.to_go * (steps.t1 - steps.t0)
            y = steps.within().at_fractions(alike.inside, steps.y1) if alike.inside else steps.y1
            time, at_once = self._problem.user_time(t.reshape(-1)), y.numel() <= _AT_ONCE
            values = [self._at_samples(event, rows, at_once)(time, y) for event in alike.numbers]
            samples.append(_on_host(*values).reshape(len(values), *t.shape))
        return samples

    def _at_samples(self, event: int, rows: np.ndarray, at_once: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """The event function of the `rows` at all of its samples, asked for them `at_once` if it can be."""
        action, function = self.actions[event], self._functions(rows)[event]
        if not action.checks:
            return function
        if not at_once or action.g is None or not action.g.may_repeat:
            return function.at_each
        if event not in self._stacked:
            self._stacked[event] = action.g.on(self._problem.select(np.tile(rows, action.checks + 1)))
        return self._stacked[event]

    def search(self, rows: np.ndarray, steps: EventSteps, samples: Sequence[np.ndarray] | None = None) -> Located:
        """The events in `steps` of the `rows`; `samples` are what the event functions are there, if that is known."""
        searches, found = [], []
        within = steps.within()
        samples = self._samples(rows, steps) if samples is None else samples
        of_events = [
            (alike, *each)
            for alike, s in zip(self._alike, samples, strict=True)
            for each in zip(alike.numbers, s, strict=True)
        ]
        for alike, event, values in sorted(of_events, key=itemgetter(1)):
            known = (self._signs[event, rows], self._values[event, rows], self._levels[event, rows])
            search = SignSearch(*known, self.actions[event].direction)
            for theta, value in zip((*alike.inside, 1.0), values, strict=True):
                search.sample(theta, value)
            for theta, where in search.dips():
                search.insert(theta, where, self._at(event, rows, steps, within, theta))
            found.append(self._locate(event, rows, steps, within, search.brackets()))
            searches.append(search)
        crossings = self._in_order(rows, found)
        t, which, sign = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
        stops = np.flatnonzero(crossings.stops)[::-1]  # so that the first of a row is written last
        place = crossings.position[stops]
        t[place], which[place], sign[place] = crossings.t[stops], crossings.event[stops], crossings.sign[stops]
        ends = np.array([search.values[-1] for search in searches])
        return Located(
            t,
            which,
            sign,
            crossings,
            np.array([search.sign for search in searches]),
            np.array([search.level for search in searches]),
            ends,
            _any_nan(ends) & np.isnan(t),
        )

    def _in_order(self, rows: np.ndarray, found: Sequence[Crossings]) -> Crossings:
        """The crossings of all events in the order in which they happen, with those marked that end a step."""
        joined = Crossings(
            **{entry.name: np.concatenate([getattr(one, entry.name) for one in found]) for entry in fields(Crossings)}
        )
        if not len(joined):
            return joined
        ordered = joined.take(np.lexsort((joined.event, joined.theta, joined.position)))
        count = self.counts[ordered.event, rows[ordered.position]] + ordered.number() + 1
        return replace(ordered, stops=self._stops(ordered.event, count))

    def reported(self, rows: np.ndarray, event: np.ndarray) -> None:
        """Events happened in the `rows`, one in each, at which nothing changes; they are counted."""
        np.add.at(self.counts, (event, rows), 1)

    def landed(self, rows: np.ndarray, event: np.ndarray) -> Met:
        """The same as `fired` of events at the ends of steps of the `rows`, one in each."""
        return self._met(rows, event, np.arange(len(rows)), self._signs[event, rows])

    def fired(self, rows: np.ndarray, located: Located, there: np.ndarray) -> Met:
        """The events that happen at the ends of steps of the `rows`.

        Args:
            rows: the rows.
            located: the events in their steps.
            there: which of these are at the ends; they are counted.
        """
        at = located.crossings.take(there)
        return self._met(rows, at.event, at.position, at.sign)

    def none(self, rows: np.ndarray) -> Met:
        """That no event happens in the `rows`."""
        nowhere = np.zeros(0, dtype=np.int64)
        return self._met(rows, nowhere, nowhere, np.zeros(0))

    def _met(self, rows: np.ndarray, event: np.ndarray, position: np.ndarray, sign: np.ndarray) -> Met:
        fired, crossing = np.zeros((len(self.actions), len(rows)), dtype=bool), np.zeros((len(self.actions), len(rows)))
        fired[event, position], crossing[event, position] = True, sign
        self.counts[:, rows] += fired
        return Met(fired, crossing)

    def again(self, rows: np.ndarray, fired: np.ndarray) -> np.ndarray:
        """Whether one of the events that `fired`, [events, m], is among the last that did."""
        return np.logical_or.reduce(fired & self._together[:, rows])

    def together(self, rows: np.ndarray, fired: np.ndarray, soon: np.ndarray) -> np.ndarray:
        """Whether the events that `fired`, [events, m], come `soon` after others, and each of them for the first time.

        `soon` is whether they do, [m], compared with how events have come before.
        """
        together = soon & ~self.again(rows, fired) & self._together[:, rows].any(0)
        self._together[:, rows] = fired | (self._together[:, rows] & together)
        return together

    def go_on(self, rows: np.ndarray, located: Located) -> None:
        """There was no event in the steps of the `rows`, which were accepted."""
        self._signs[:, rows], self._values[:, rows] = located.signs, located.ends
        self._levels[:, rows] = located.levels

    def known(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The signs of the event functions of the `rows`, their values and the levels, each [events, len(rows)]."""
        return self._signs[:, rows], self._values[:, rows], self._levels[:, rows]

    def stops(self, rows: np.ndarray) -> np.ndarray:
        """Whether steps of the `rows` must end on the next of each event, [events, len(rows)]."""
        return self._stops(np.arange(len(self.actions))[:, None], self.counts[:, rows] + 1)

    def _stops(self, event: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Whether steps must end on events, the so many-th of their kind in their rows."""
        changes = np.array([action.apply is not None for action in self.actions])
        return changes[event] | (count >= self.last_counts[event])

    def put_back(self, rows: np.ndarray, signs: np.ndarray, values: np.ndarray, levels: np.ndarray) -> None:
        """The event functions of the `rows` after steps that somebody else has looked at."""
        self._set(rows, signs, values, levels)

    def begin(
        self, rows: np.ndarray, t: np.ndarray, y: Tensor, slope: Callable[[], Tensor], soon: np.ndarray
    ) -> np.ndarray:
        """Start watching `rows`; returns in which of them an event function is NaN."""
        values = self.values(rows, t, y)
        levels = self._rounding(rows, t, y, y.abs(), slope(), values)
        signs = np.sign(values)
        unsure = np.abs(values) <= levels
        if unsure.any():
            signs = np.where(unsure, np.sign(self._ahead(rows, t, y, slope(), soon)), signs)
        self._set(rows, signs, values, np.where(unsure, levels, 0.0))
        return _any_nan(values)

    def after(
        self,
        rows: np.ndarray,
        t: np.ndarray,
        states: tuple[Tensor, Tensor],
        slope: Callable[[], Tensor],
        moments: Moments,
        changed: np.ndarray,
        met: Met,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the signs anew after what happened at `t`.

        Args:
            rows: the rows.
            t: when.
            states: the states before it and after it.
            slope: gives the slopes there.
            moments: when to look ahead.
            changed: whether the state was changed, [rows].
            met: which events happened.

        Returns:
            In which rows an event function is NaN, and in which the events come so fast that rounding hides the next.
        """
        before, y = states
        fired = met.fired
        values = self.values(rows, t, y)
        signs, undefined = np.sign(values), _any_nan(values)
        hidden = np.zeros(len(rows), dtype=bool)
        levels = np.zeros(values.shape)
        if fired.any() or (values == 0.0).any():
            scale = torch.maximum(before.abs() if met.size is None else met.size, y.abs())
            levels = self._rounding(rows, t, y, scale, slope(), values)
            # A step adds up more than its ends show. What is left where it was made to end on an event tells how much,
            # and more of it is left by an iteration; where a function jumps, it is not small within the step.
            left = np.abs(self.values(rows, t, before))
            within = np.abs(met.within)
            adds_up = (left <= _OF_STEPS * levels) | (fired & (left <= _OF_ITERATIONS * within))
            levels = np.where(adds_up, np.maximum(levels, 2.0 * left), levels)
            # Nor does a short step from one event to the next forget what was left at the first.
            known = self._levels[:, rows]
            levels = np.where(within <= known, np.maximum(levels, known), levels)
            near = np.abs(values) <= levels
            # The function of an event that did not happen may be as near to zero, if another that did has the same.
            stays = ~fired & near & (left <= levels) & (self._signs[:, rows] != 0.0)
            # Where nothing was changed, the event may lie a little beyond, even far from zero if the function jumps.
            unsure = (near | (fired & ~changed)) & ~stays
            ahead, clear, bent = self._first_clear(rows, t, y, slope(), moments, values, levels)
            # What rounding hides however far one looks, is on the other side; or if that stays so, where it was before.
            expected = np.where(fired, np.where(changed, met.crossing, -met.crossing), np.sign(ahead))
            signs = np.where(unsure, np.where(clear, np.sign(ahead), expected), signs)
            signs = np.where(stays, self._signs[:, rows], signs)
            returning = fired & unsure & changed & ~(clear | bent) & ~np.isnan(moments.next)
            hidden = np.logical_or.reduce(returning & (ahead != values))
            levels = np.where(unsure, levels, 0.0)
        self._set(rows, signs, values, levels)
        return undefined, hidden

    def _first_clear(
        self,
        rows: np.ndarray,
        t: np.ndarray,
        y: Tensor,
        slope: Tensor,
        moments: Moments,
        values: np.ndarray,
        levels: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The event functions at the first of some moments at which they tell, and what they do.

        Returns:
            The functions there; where they tell, by exceeding the levels; and where they tell nothing: they depend on
            the state, and bend with time alone by as much as they change. The states were moved along their slopes, and
            may bend as much. A ball at rest on a table that moves does.
        """
        last = np.where(np.isnan(moments.next), moments.soon, moments.next)
        ahead, clear, bent = values, np.zeros(values.shape, dtype=bool), np.zeros(values.shape, dtype=bool)
        for part in (0.0, 1 / 3, 2 / 3, 1.0):
            moment = np.sign(last) * np.abs(moments.soon) ** (1 - part) * np.abs(last) ** part
            there, told = self._ahead(rows, t, y, slope, moment), clear | bent
            still, half = self.values(rows, t + moment, y), self.values(rows, t + 0.5 * moment, y)
            with np.errstate(invalid="ignore", over="ignore"):  # a function may be infinite where it is switched off
                bend = np.abs(still - 2.0 * half + values)
                bends = (bend > 0.25 * np.abs(there - values)) & (there != still)
            ahead = np.where(told, ahead, there)
            clear |= ~told & ~bends & (np.abs(there) > levels)
            bent |= ~told & bends & (bend > 8.0 * levels)
            if (clear | bent).all():
                break
        return ahead, clear, bent

    def _set(self, rows: np.ndarray, signs: np.ndarray, values: np.ndarray, levels: np.ndarray) -> None:
        self._signs[:, rows], self._values[:, rows], self._levels[:, rows] = signs, values, levels

    def _ahead(self, rows: np.ndarray, t: np.ndarray, y: Tensor, slope: Tensor, ahead: np.ndarray) -> np.ndarray:
        step = torch.from_numpy(ahead).to(y.device, y.dtype).unsqueeze(1)
        return self.values(rows, t + ahead, y + step * slope)

    def _rounding(
        self, rows: np.ndarray, t: np.ndarray, y: Tensor, scale: Tensor, slope: Tensor, values: np.ndarray
    ) -> np.ndarray:
        """What rounding may contribute to the event functions: their change with the last digits of state and time.

        `scale` is how large the elements of the state have been of late.
        """
        changes = self._changes(rows, t, y, 4 * scale, slope, values, 8)
        if (suspect := ~(changes < 0.5)).any():
            # A function that jumps there is not uncertain. If it is large instead, it changes with the digits.
            more = self._changes(rows, t, y, 64 * scale, slope, values, 128)
            changes[suspect & ~(more > 4 * changes)] = 0.0
        return np.maximum(_ROUNDING * changes.max(1), sys.float_info.min)

    def _changes(
        self, rows: np.ndarray, t: np.ndarray, y: Tensor, scale: Tensor, slope: Tensor, values: np.ndarray, ulps: int
    ) -> np.ndarray:
        """How much event functions change with the last digits of `scale`, and so many of time, [events, 4, rows]."""
        error = torch.finfo(y.dtype).eps * scale
        signs = torch.ones_like(error)
        signs[:, 1::2] = -1.0  # so that errors which cancel in one way do not in the other
        digits = ulps * torch.finfo(self._problem.real_dtype).eps * np.abs(t)
        moved = ulps * sys.float_info.epsilon * np.abs(t)  # functions see times of the state's precision, steps do not
        change = torch.from_numpy(moved).to(y.device, y.dtype).unsqueeze(1) * slope
        times = t, t, t + (digits - moved) + moved, t - (digits - moved) - moved
        states = y + error, y + signs * error, y + change, y - change
        others = self.values(rows, np.concatenate(times), torch.cat(states)).reshape(len(values), 4, len(t))
        with np.errstate(invalid="ignore"):
            return np.abs(others - values[:, None])

    def _at(
        self, event: int, rows: np.ndarray, steps: EventSteps, within: WithinSteps, theta: np.ndarray
    ) -> np.ndarray:
        """The event function at a fraction of each step."""
        y = within.at(torch.arange(len(rows), device=steps.y1.device), theta)
        time = self._problem.user_time(steps.t0 + theta * (steps.t1 - steps.t0))
        return _on_host(self._functions(rows)[event](time, y))

    def _locate(
        self, event: int, rows: np.ndarray, steps: EventSteps, within: WithinSteps, brackets: Brackets
    ) -> Crossings:
        """When the events are in the steps."""
        theta = np.ones(len(brackets.position))
        for places in rounds(brackets.position):  # functions take a row once at a time
            position, sign = brackets.position[places], brackets.sign[places]
            t0, length = steps.t0[position], steps.t1[position] - steps.t0[position]
            function = event_on(self._problem, self.actions[event], rows[position])
            select = self._problem.select(position)

            def signed(theta: np.ndarray, function=function, select=select, t0=t0, length=length, sign=sign):
                return sign * _on_host(function(self._problem.user_time(t0 + theta * length), within.at(select, theta)))

            spacing = 4 * np.spacing(np.maximum(np.abs(t0), np.abs(t0 + length)))
            low, high = brackets.thetas[:, places]
            value_low, value_high = sign * brackets.values[:, places]
            width = spacing / np.where(length != 0.0, np.abs(length), 1.0)
            theta[places] = find_roots(signed, low, high, value_low, value_high, width)
        where = brackets.position
        t = np.where(theta == 1.0, steps.t1[where], steps.t0[where] + theta * (steps.t1 - steps.t0)[where])
        no = np.zeros(len(theta), dtype=bool)
        return Crossings(where, np.full(len(theta), event), theta, t, brackets.sign, no)


class _Alike:
    """Events that are looked at at the same points within a step.

    Attributes:
        numbers: which of the events.
        events: the same, as an index.
        inside: the fractions of a step at which they are looked at between its ends.
        to_go: how much of the step is left there, and at its end, [checks + 1, 1].
    """

    def __init__(self, numbers: list[int], everything: bool, checks: int):
        self.numbers = numbers
        self.events: Any = slice(None) if everything else numbers
        fractions = np.arange(1, checks + 2) / (checks + 1)
        self.inside = tuple(fractions[:-1].tolist())
        self.to_go = 1.0 - fractions[:, None]


def _on_host(*values: Tensor) -> np.ndarray:
    """Values of an event function, each [rows, 1], as one array."""
    return read_rows(values[0] if len(values) == 1 else torch.stack([value.flatten() for value in values])).reshape(-1)


def _any_nan(values: np.ndarray) -> np.ndarray:
    """In which columns there is a NaN."""
    return np.logical_or.reduce(np.isnan(values))
