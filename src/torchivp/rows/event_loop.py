"""The step loop for rows to which something happens: events and schedules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import Method, Step
from torchivp.record import ChangeRecord, Firing
from torchivp.rows.changes import (
    apply_firing,
    changes_state,
    changing,
    finite_rows,
    function_after,
    groups,
    scheduled,
)
from torchivp.rows.crossings import Crossings, Located, Met, Moments
from torchivp.rows.landing import Start, take_to_events
from torchivp.rows.loop import RowLoop
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.rows.steps import Chosen, Stepper, TakenSteps, make_stepper
from torchivp.rows.watch import RowWatch
from torchivp.solution import Outcome, Status
from torchivp.stepsize.pid import PIDController

if TYPE_CHECKING:
    from torchivp.rows.integration import RowIntegration

_ZENO = 64
"""Events nearer than this to each other, in spacings of the numbers there, accumulate."""

_AT_ONCE = 1e6
"""Events are at about the same time that come so many times faster than the ones before."""


class EventLoop(RowLoop):
    """A pass of the loop with events, schedules, or both.

    Attributes:
        watch: what looks for events; None if there are schedules alone.
        has_schedule: whether anything is scheduled.
    """

    def __init__(self, plan: RowIntegration, outputs: RowOutputs, trail: RowTrail, method: Method):
        super().__init__(plan, outputs, trail, method, looks_at_every_step=True)
        actions, start = self.problem.actions, self.problem.times.start
        self.watch = RowWatch(self.problem) if any(action.g is not None for action in actions) else None
        self.has_schedule = any(action.times is not None for action in actions)
        self._anew = start.copy()  # when the state of each row was last changed by an event, or its start
        self._since = np.full(len(start), np.inf)  # how long after the one before, or infinite

    def _begin(self) -> None:
        active = self.active
        if self.has_schedule and any(firings := scheduled(self.problem, active.index, active.t)):
            everything = np.arange(len(active.index))
            self.y = self._change(everything, active.t.copy(), self.y, firings)
        super()._begin()
        if self.watch is not None and len(self.active.index):
            self._begin_to_watch(self.watch)

    def _begin_to_watch(self, watch: RowWatch) -> None:
        active = self.active
        everything = np.arange(len(active.index))
        soon = self._moments(everything, np.full(len(everything), np.nan)).soon
        undefined = watch.begin(active.index, active.t, self.y, lambda: self.stepper.slopes(active.t, self.y), soon)
        self._fail(undefined, lambda i, _: self._undefined_event(i))
        self._drop()

    def _go_on_from(self, steps: TakenSteps, accept: np.ndarray) -> None:
        located, plain, begun = None, accept, (self.y, steps.step.retry)
        if self.watch is not None and np.count_nonzero(accept):
            everything = np.count_nonzero(accept) == len(accept)
            located = self.watch.look(self.active.index, steps, None if everything else accept)
        if located is not None:
            self._fail(accept & located.undefined, lambda i, _: self._undefined_event(i))
            accept &= ~self.active.gone
            plain = accept & np.isnan(located.t)
        if np.count_nonzero(plain):
            where, index, t1 = self._accept(steps, plain)
            if located is None and not self.has_schedule:
                self._keep(where, index, t1)
            else:
                self._happened(steps, where, located)
        else:
            self.carry = steps.step.retry
        if located is not None and (landing := accept & ~plain).any():
            where = np.flatnonzero(landing)
            self._land(steps, where, located, where, begun)

    def _happened(self, steps: TakenSteps, where: np.ndarray, located: Located | None) -> None:
        """The steps at the positions `where` were taken: report events in them, let happen what is scheduled."""
        index, t1 = self.active.index[where], steps.t1[where]
        met = None
        if located is not None and self.watch is not None:
            located = located.take(where)
            self.watch.go_on(index, located)
        firings = scheduled(self.problem, index, t1) if self.has_schedule else []
        happens = np.array([bool(firing) for firing in firings], dtype=bool)
        if located is not None and self.watch is not None and len(located.crossings):
            crossings = located.crossings
            joins = located.at(np.where(happens, t1, np.nan)) if happens.any() else np.zeros(len(crossings), bool)
            self._report(index, crossings.take(~joins), steps, where)
            if joins.any():
                met = self.watch.fired(index, located, joins)
                firings = _joined(firings, self.watch, met.fired)
        self._go_on(where, t1, firings, met)

    def _go_on(self, where: np.ndarray, t1: np.ndarray, firings: list[Firing], met: Met | None = None) -> None:
        """Rows at the positions `where` have come to `t1` by a step: let happen what does, and keep what is asked for.

        `firings` are empty where nothing happens at all; `met` are the events there, None for none.
        """
        happens = np.array([bool(firing) for firing in firings], dtype=bool)
        if happens.any():
            events = None if met is None else met.take(happens)
            self._let_happen(where[happens], t1[happens], [firing for firing in firings if firing], events)
            where, t1 = where[~happens], t1[~happens]
        if len(where):
            self._keep(where, self.active.index[where], t1)

    def _land(
        self,
        first: TakenSteps,
        places: np.ndarray,
        located: Located,
        where: np.ndarray,
        begun: tuple[Tensor, Any],
        most: int | None = None,
    ) -> None:
        """Take steps again, each up to its first event, and let it happen.

        Args:
            first: the steps.
            places: which of them.
            located: the events in all of them.
            where: the positions of their rows.
            begun: the states at their starts and what the method starts from, of all rows.
            most: how often they may be taken again in all; None for as often as there are events.
        """
        assert self.watch is not None
        active, problem, stepper, (y0, retry) = self.active, self.problem, self.stepper, begun
        index, select = active.index[where], problem.select(where)
        if len(where) < len(active.index):
            stepper = make_stepper(problem, self.method, self.plan.norm, index)
        carry, within = self.stepper.take_carry(retry, select), Chosen(first.within(), problem.select(places))
        start = Start(active.t[where], first.t1[places], y0[select], carry, within)
        located = located.take(places)
        steps = take_to_events(self.watch, stepper, start, located)
        if stepper is not self.stepper:
            self.evaluations[index] += stepper.func.evaluations
            self.work[index] += stepper.work
        most = len(self.watch.numbers) if most is None else most
        earlier = self._earlier(stepper, steps, located) if most > 1 else None
        again, where_again = np.zeros(0, dtype=np.int64), where
        if earlier is not None:
            is_earlier = ~np.isnan(earlier.t)
            again, where_again = np.flatnonzero(is_earlier), where[is_earlier]
        failed = ~finite_rows(steps.y1) | steps.failed
        failed[again] = False
        if failed.any():
            bad = np.zeros(len(active.index), dtype=bool)
            bad[where[failed]] = True
            number = dict(zip(where.tolist(), range(len(where)), strict=True))
            self._fail(bad, lambda i, _: _no_landing(active.t[i], steps.of(number[i])))
        failed[again] = True
        if not failed.all():
            self._arrive(stepper, steps, located, where, np.flatnonzero(~failed))
        if earlier is not None and len(again):
            self._land(steps, again, earlier, where_again, begun, most - 1)

    def _arrive(
        self, stepper: Stepper, steps: TakenSteps, located: Located, where: np.ndarray, sound: np.ndarray
    ) -> None:
        """Go on from steps that end on events, and let these happen.

        Args:
            stepper: what has taken the steps.
            steps: the steps.
            located: the events in them.
            where: the positions of their rows.
            sound: which of them are those to go on from, of which there must be some.
        """
        assert self.watch is not None
        active, problem, where = self.active, self.problem, where[sound]
        index, select, chosen, t1 = active.index[where], problem.select(where), problem.select(sound), steps.t1[sound]
        if self.plan.callbacks is not None:
            ends = active.t.copy()
            ends[where] = t1
            self._tell("accept", where, ends)
        self.outputs.step(index, steps.t0[sound], t1, lambda: Chosen(steps.within(), chosen))
        self.trail.step(index, t1, None if steps.orders is None else steps.orders[sound])
        active.t = active.t.copy()
        active.t[where] = t1
        self.y = self.y.index_copy(0, select, steps.y1[chosen])
        self.carry = self.stepper.put_carry(self.carry, select, stepper.take_carry(steps.step.carry, chosen))
        here = located.take(sound)
        there = here.at(here.t)
        if not there.all():
            self._report(index, self._on_the_way(here, there, stepper, steps, sound), steps, sound)
        y0, middle = steps.step.y0[chosen], steps.within().at_fractions((0.5,))[chosen]
        # The step ends on a number for its time: what the states change by until the next one is not known either.
        numbers = np.spacing(np.abs(t1)) / np.maximum(np.abs(t1 - steps.t0[sound]), sys.float_info.min)
        numbers = torch.from_numpy(2.0 * numbers / torch.finfo(y0.dtype).eps).to(y0.device).unsqueeze(1)
        change = torch.maximum((middle - y0).abs(), (steps.y1[chosen] - middle).abs())
        met = self.watch.fired(index, here, there)
        met.size = torch.maximum(torch.maximum(y0.abs(), middle.abs()), (numbers * change).to(y0.abs()))
        met.within = self.watch.values(index, 0.5 * (steps.t0[sound] + t1), middle)
        self._meet(where, t1, met)

    def _earlier(self, stepper: Stepper, steps: TakenSteps, located: Located) -> Located | None:
        """Events of other kinds in steps that were made to end on an event, if they must end before, on these.

        Two events may lie so near to each other that the interpolants of longer steps put them in the wrong order.
        """
        assert self.watch is not None
        crossings = located.crossings
        if not (crossings.stops & ~located.at(located.t)).any():
            return None
        found = self.watch.search(stepper.rows, steps)
        ahead = (steps.t1 - found.t) * self.direction[stepper.rows]
        with np.errstate(invalid="ignore"):
            before = (ahead > _ZENO * np.spacing(np.abs(steps.t1))) & (found.event != located.event)
        return replace(found, t=np.where(before & ~steps.failed, found.t, np.nan)) if before.any() else None

    def _meet(self, where: np.ndarray, t1: np.ndarray, met: Met) -> None:
        """Rows at the positions `where` have come to events, by steps that end at `t1`: let these happen."""
        assert self.watch is not None
        active, problem, index, fired = self.active, self.problem, self.active.index[where], met.fired
        firings = _joined(scheduled(problem, index, t1), self.watch, fired)
        since, last = np.abs(t1 - self._anew[index]), self._since[index]
        resolution = _ZENO * np.spacing(np.abs(t1))
        again = self.watch.again(index, fired) & (since <= resolution)
        # Others that happen at about the same time are no sign that events come ever faster.
        since = np.where(self.watch.together(index, fired, _AT_ONCE * since < last), last, since)
        crowded = again | ((since <= resolution) & (last <= _AT_ONCE * resolution))
        self._anew[index], self._since[index], met.since = t1, since, since
        changed = changing(problem, firings)
        if isinstance(self.plan.controller, PIDController):
            # The next event may come as soon again.
            active.h[where] = np.minimum(active.h[where], np.where(changed & (since > 0.0), 2.0 * since, np.inf))
        hidden = self._let_happen(where, t1, firings, met)
        last = fired & (self.watch.counts[:, index] >= self.watch.last_counts[:, None])
        ended, accumulated = np.zeros((2, len(active.index)), dtype=bool)
        ended[where[last.any(0)]], accumulated[where[crowded & changed | hidden]] = True, True
        by = dict(zip(where.tolist(), last.argmax(0).tolist(), strict=True))
        numbers = self.watch.numbers
        self._fail(ended, lambda i, _: self._event(i, numbers[by[i]]))
        self._fail(accumulated, lambda i, _: _zeno(float(active.t[i])))

    def _on_the_way(
        self, located: Located, there: np.ndarray, stepper: Stepper, steps: TakenSteps, sound: np.ndarray
    ) -> Crossings:
        """The events before the ends of steps that were taken again to end on an event.

        Args:
            located: the events in the steps at first, of the rows at the positions `sound`.
            there: which of these are those at the ends.
            stepper: what has taken the steps again.
            steps: the steps.
            sound: the rows that go on.
        """
        assert self.watch is not None
        first = located.crossings
        found = self.watch.search(stepper.rows, steps).take(sound).crossings
        # The event at the end of a step is not one on the way to it, on whichever side of the end it is found.
        most = np.full(located.ends.shape, np.inf)
        most[first.event[there], first.position[there]] = 0
        ahead = self.direction[stepper.rows[sound]][first.position]
        before = ~there & ((located.t[first.position] - first.t) * ahead > 0.0)
        np.add.at(most, (first.event[before], first.position[before]), 1)
        return found.take(~found.stops & (found.number() < most[found.event, found.position]))

    def _report(self, index: np.ndarray, crossings: Crossings, steps: TakenSteps, places: np.ndarray) -> None:
        """Put events on record at which nothing changes; `index` are the rows, `places` theirs among the steps."""
        assert self.watch is not None
        if not len(crossings):
            return
        self.watch.reported(index[crossings.position], crossings.event)
        y = steps.within().at(self.problem.select(places[crossings.position]), crossings.theta)
        self._note(index[crossings.position], crossings.event, crossings.t, crossings.theta, y)

    def _note(self, rows: np.ndarray, event: np.ndarray, t: np.ndarray, theta: np.ndarray, y: Tensor) -> None:
        """Put events of the `rows` on record, each in its last step, at which nothing changes."""
        assert self.watch is not None
        firings: list[Firing] = [((self.watch.numbers[number], -1),) for number in event]
        self.trail.changes.append(ChangeRecord(rows, self.trail.steps[rows], t, firings, y, y, theta))

    def _let_happen(
        self, where: np.ndarray, t1: np.ndarray, firings: list[Firing], met: Met | None = None
    ) -> np.ndarray:
        """Something happens to rows that are at `t1`: change their states and go on.

        Args:
            where: the positions of the rows.
            t1: when.
            firings: what happens.
            met: which events are among that; None for none.

        Returns:
            In which rows the events come so fast that rounding hides the next.
        """
        active, problem, index = self.active, self.problem, self.active.index[where]
        select = problem.select(where)
        before = self.y[select]
        y = self._change(where, t1, before, firings)
        self.y = self.y.index_copy(0, select, y)
        broken = np.zeros(len(active.index), dtype=bool)
        broken[where] = ~finite_rows(y)
        self._fail(broken, lambda i, _: _changed_to_nothing(float(active.t[i]), problem))
        changed = changing(problem, firings)
        slopes: list[Tensor] = []

        def new_slopes() -> Tensor:
            if not slopes:
                slopes.append(slopes_of(function_after(problem, index, t1))(problem.user_time(t1), y).clone())
                self.evaluations[index] += 1
            return slopes[0]

        if changed.any():
            active.last[where] = np.where(changed, 1.0, active.last[where])
            active.before_last[where] = np.where(changed, 1.0, active.before_last[where])
            if self.carry is not None:
                chosen = problem.select(np.flatnonzero(changed))
                carry = self.stepper.method.initial_carry(new_slopes()[chosen])
                self.carry = self.stepper.put_carry(self.carry, select[chosen], carry)
        hidden = np.zeros(len(where), dtype=bool)
        if self.watch is not None:
            met = self.watch.none(index) if met is None else met
            undefined, moments = np.zeros(len(active.index), dtype=bool), self._moments(where, met.since)
            undefined[where], hidden = self.watch.after(index, t1, (before, y), new_slopes, moments, changed, met)
            self._fail(undefined, lambda i, _: self._undefined_event(i))
        self._keep(where, index, t1)
        return hidden

    def _moments(self, where: np.ndarray, since: np.ndarray) -> Moments:
        """When to look ahead in rows at which something has happened, the last event having been `since` ago."""
        active = self.active
        to_go = np.abs(self.problem.times.end[active.index[where]] - active.t[where])
        soon = 1e-4 * np.minimum(active.h[where], to_go)
        soon, upcoming = np.minimum(soon, np.where(since > 0.0, 1e-2 * since, np.inf)), 0.5 * since
        soon = np.maximum(soon, 16 * np.spacing(np.abs(active.t[where])))
        direction = self.direction[active.index[where]]
        return Moments(soon * direction, upcoming * direction)

    def _change(self, where: np.ndarray, t1: np.ndarray, y: Tensor, firings: list[Firing]) -> Tensor:
        """The states after what happens at `t1` to the states `y`; all of it is put on record."""
        index, problem = self.active.index[where], self.problem
        happens = np.array([bool(firing) for firing in firings])
        index, t1, firings = index[happens], t1[happens], [firing for firing in firings if firing]
        there = problem.select(np.flatnonzero(happens))
        before = y[there]
        at_end = np.full(len(index), np.nan)
        y = y.clone()
        for firing, positions in groups(firings).items():
            if changes_state(problem, firing):
                select = problem.select(positions)
                rows, t = index[positions], t1[positions]
                self.outputs.before_change(rows, t, before[select])
                y[there[select]] = apply_firing(problem, firing, rows, problem.user_time(t), before[select])
        self.trail.changes.append(ChangeRecord(index, self.trail.steps[index], t1, firings, before, y[there], at_end))
        return y

    def _undefined_event(self, i: int) -> Status:
        t = float(self.active.t[i])
        sentence = (
            f"an event function is NaN in the step from t = {t:.9g}: let it be defined beyond its zero too, "
            "by torch.where for example"
        )
        return Status(Outcome.NON_FINITE, sentence, t)

    def _event(self, i: int, which: int) -> Status:
        t, count = float(self.active.t[i]), self.trail.steps[self.active.index[i]]
        return Status(Outcome.EVENT, f"events[{which}] ended the solve at t = {t:.9g}, after {count} steps", t)


def _joined(planned: Sequence[Firing], watch: RowWatch, fired: np.ndarray) -> list[Firing]:
    """What is scheduled in some rows together with the events there, [events, rows], in the order of the list."""
    kinds, kind_of = np.unique(fired.T, axis=0, return_inverse=True)
    events = [tuple((watch.numbers[event], -1) for event in np.flatnonzero(kind)) for kind in kinds]
    pairs = zip(kind_of.reshape(-1).tolist(), planned, strict=True)
    return [tuple(sorted((*events[kind], *then))) if then else events[kind] for kind, then in pairs]


def _no_landing(t: float, step: Step) -> Status:
    why = step.failure[0] if step.failure else "the state there is not finite"
    return Status(Outcome.NOT_CONVERGED, f"no step leads from t = {t:.9g} to the event after it: {why}", float(t))


def _changed_to_nothing(t: float, problem: RowProblem) -> Status:
    sentence = (
        f"apply changed the state at t = {t:.9g} to one that is not finite: look for a division by zero in it"
        + (", or lead to a state near which the equations without a derivative hold" if problem.func.projection else "")
    )
    return Status(Outcome.NON_FINITE, sentence, t)


def _zeno(t: float) -> Status:
    sentence = (
        f"events accumulate at t = {t:.9g}: the next comes within the spacing of numbers there, or before the event "
        "function has grown beyond its rounding error, so that the solution cannot go on in this way. End it before "
        "with max_count=, or let apply bring the state to rest; if events do not accumulate, solve in float64"
    )
    return Status(Outcome.ZENO, sentence, t)
