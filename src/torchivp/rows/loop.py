"""The step loop for rows: where their times move, each its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.failures import Failures, is_finite
from torchivp.integrate import Controller
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import Method, Step, Work
from torchivp.record import ChangeRecord, Firing
from torchivp.rows.changes import (
    all_scheduled,
    apply_firing,
    changes_state,
    changing,
    finite_rows,
    function_on,
    groups,
    scheduled,
)
from torchivp.rows.landing import Start, take_to_events
from torchivp.rows.problem import RowProblem, single_problem
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.rows.steps import Chosen, Stepper, TakenSteps, carry_to_keep, make_stepper
from torchivp.rows.targets import RowTargets
from torchivp.rows.watch import Crossings, Located, Moments, RowWatch
from torchivp.solution import Outcome, Stats, Status
from torchivp.stepsize.first_step import first_steps
from torchivp.stepsize.pid import PIDController, RowHistory
from torchivp.torch_func import without_derivatives

_DROP = 8
"""Rows that are through are dropped when there is one in so many."""

_ZENO = 64
"""Events nearer than this to each other, in spacings of the numbers there, accumulate."""

_AT_ONCE = 1e6
"""Events are at about the same time that come so many times faster than the ones before."""


@dataclass(frozen=True)
class RowIntegration:
    """All that determines the steps of the rows.

    Attributes:
        problem: the problem.
        method: the method.
        controller: what sizes the steps.
        norm: measures the errors against the tolerance.
        max_steps: the largest number of step attempts of a row.
        describe: names an element of a row's flat state, for messages.
    """

    problem: RowProblem
    method: type[Method]
    controller: Controller
    norm: ErrorNorm
    max_steps: int
    describe: Callable[[int], str]

    def make_method(self) -> Method:
        """The method, made for one row or for many."""
        like = self.problem.y0.detach()[:1]
        if not len(like):
            like = self.problem.y0.new_zeros(1, self.problem.y0.shape[1])
        return self.method(like, self.problem.real_dtype, self.norm)

    def run(
        self, outputs: RowOutputs, trail: RowTrail, method: Method | None = None
    ) -> tuple[list[Status], list[Stats]]:
        """Integrate every row from its start to its end; how each ended, and what it cost.

        `method` stands in for `make_method()`.
        """
        method = method or self.make_method()
        with without_derivatives(), np.errstate(over="ignore"):  # on the way to an infinite end
            loop = RowLoop(self, outputs, trail, method)
            ended = loop.to_the_end()
            if not loop.looks_at_every_step and not loop.is_finite():
                # A state that is not finite stays so. Fixed steps therefore look at the last states only, so that no
                # step waits for the device, and look for the first bad step of each row if there is one.
                ended = RowLoop(self, outputs, trail, method, looks_at_every_step=True).to_the_end()
            return ended


@dataclass
class _Active:
    """Rows under way: an entry for each of them in every array.

    Attributes:
        index: the number of the row.
        t: where it is.
        h: the size proposed for its next step.
        last: the scaled error of its last accepted step.
        before_last: that of the one before.
        rejected: whether its last try was rejected.
        overflowed: whether that was because the error was not finite.
        anew: when its state was last changed by an event, or its start.
        since: how long after the one before, or infinite.
        done: whether it has arrived.
        gone: whether it has ended on the way.
    """

    index: np.ndarray
    t: np.ndarray
    h: np.ndarray
    last: np.ndarray
    before_last: np.ndarray
    rejected: np.ndarray
    overflowed: np.ndarray
    anew: np.ndarray
    since: np.ndarray
    done: np.ndarray
    gone: np.ndarray

    @staticmethod
    def begin(start: np.ndarray) -> _Active:
        rows = len(start)
        no = np.zeros(rows, dtype=bool)
        return _Active(
            index=np.arange(rows),
            t=start.copy(),
            h=np.full(rows, np.inf),
            last=np.ones(rows),
            before_last=np.ones(rows),
            rejected=no.copy(),
            overflowed=no.copy(),
            anew=start.copy(),
            since=np.full(rows, np.inf),
            done=no.copy(),
            gone=no.copy(),
        )

    def take(self, keep: np.ndarray) -> _Active:
        return _Active(*(getattr(self, entry.name)[keep] for entry in fields(self)))


Reason = Callable[[int, Failures], Status]
"""Why the row at a position among the active ones cannot go on."""


class RowLoop:
    """One pass of the loop.

    Attributes:
        looks_at_every_step: whether fixed steps ask the device whether the states are finite.
    """

    def __init__(
        self,
        plan: RowIntegration,
        outputs: RowOutputs,
        trail: RowTrail,
        method: Method,
        looks_at_every_step: bool = False,
    ):
        self.plan = plan
        self.problem = plan.problem
        self.outputs = outputs
        self.trail = trail
        rows, times, actions = self.problem.rows, self.problem.times, self.problem.actions
        self.direction = times.direction
        self.endless = bool(np.isinf(times.end).any())
        span = np.abs(times.end - times.start)
        # Steps get nowhere below the spacing of numbers at t, or for the span to go.
        of_span = np.where(np.isinf(span), 0.0, sys.float_info.epsilon**2 * span)
        self.smallest = np.maximum(of_span, sys.float_info.min)
        self.targets = RowTargets(plan.controller, times, all_scheduled(self.problem))
        self.watch = RowWatch(self.problem) if any(action.g is not None for action in actions) else None
        self.has_schedule = any(action.times is not None for action in actions)
        adaptive = isinstance(plan.controller, PIDController)
        self.looks_at_every_step = looks_at_every_step or adaptive or bool(actions)
        self.unseen: list[Tensor] = []
        self.status: list[Status | None] = [None] * rows
        self.rejected = np.zeros(rows, dtype=np.int64)
        self.evaluations = np.zeros(rows, dtype=np.int64)
        self.work = np.zeros((rows, len(Work._fields)), dtype=np.int64)
        self.iterations = 0
        self.active = _Active.begin(times.start)
        self.places = np.arange(rows)
        # Most steps are accepted in all rows, and then arrays need not be asked.
        self.some_through = False
        self.some_rejected = False
        self.some_overflowed = False
        self.y = self.problem.y0.detach()
        self.carry: Any = None
        self.method = method
        self.stepper = make_stepper(self.problem, self.method, plan.norm, self.active.index)

    def to_the_end(self) -> tuple[list[Status], list[Stats]]:
        self.outputs.begin()
        self.trail.begin(self.y, self.outputs.next)
        if self.problem.rows:
            self._begin()
        self._iterate_to_the_end()
        counts = zip(self.evaluations.tolist(), self.trail.steps.tolist(), self.rejected.tolist(), strict=True)
        work = [Work(*of_row)._asdict() for of_row in self.work.tolist()]
        assert None not in self.status
        stats = [Stats(*count, **of_row) for count, of_row in zip(counts, work, strict=True)]
        return [status for status in self.status if status], stats

    def _iterate_to_the_end(self) -> None:
        while len(self.active.index):
            self._iterate()

    def is_finite(self) -> bool:
        """Whether the last states are that nobody has looked at."""
        return not self.unseen or bool(torch.stack(self.unseen).all())

    def _begin(self) -> None:
        active = self.active
        if self.has_schedule and any(firings := scheduled(self.problem, active.index, active.t)):
            everything = np.arange(len(active.index))
            self.y = self._change(everything, active.t.copy(), self.y, firings)
        self.outputs.end(active.index, active.t.copy(), self.y)
        self._fail(~finite_rows(self.y), self._not_finite(active, self.y, np.zeros(len(active.t))))
        active.done |= active.t == self.problem.times.end[active.index]
        self.some_through |= bool(active.done.any())
        if self._drop():
            self._first_sizes()
        if self.watch is not None and len(self.active.index):
            self._begin_to_watch(self.watch)

    def _begin_to_watch(self, watch: RowWatch) -> None:
        active = self.active
        everything = np.arange(len(active.index))
        soon = self._moments(everything, None).soon
        undefined = watch.begin(active.index, active.t, self.y, lambda: self.stepper.slopes(active.t, self.y), soon)
        self._fail(undefined, lambda i, _: self._undefined_event(i))
        self._drop()

    def _first_sizes(self) -> None:
        controller, active, y = self.plan.controller, self.active, self.y
        if not isinstance(controller, PIDController):
            return
        if controller.first_step is not None:
            active.h[:] = controller.first_step
        else:
            slopes = self.stepper.slopes(active.t, y).clone()  # func may use its memory again
            self.carry = self.stepper.method.initial_carry(slopes)
            order, span = self.method.error_order, self.problem.times.end[active.index] - active.t
            assert order is not None
            h = first_steps(self.stepper.slopes, active.t, y, slopes, span, self.stepper.norm, order)
            active.h = np.maximum(h, self._smallest_steps())
            self._fail(np.isnan(h), self._not_finite(active, y, np.zeros(len(h))))
        active.h = np.minimum(np.maximum(active.h, controller.min_step), controller.max_step)
        self._drop()

    def _iterate(self) -> None:
        active, stepper, y0 = self.active, self.stepper, self.y
        t1 = self.targets.step_end(active.index, active.t, active.h, active.rejected if self.some_rejected else None)
        if self.some_through:
            t1 = np.where(active.done, active.t, t1)
        taken = np.abs(t1 - active.t)
        self._stop_those_that_cannot_step(taken)
        if self.some_through and active.gone.any():
            self._drop()
            return
        self.iterations += 1
        steps = stepper.step(active.t, t1, y0, self.carry)
        if steps.t1 is not t1:  # the method ends steps before
            taken = np.abs(steps.t1 - active.t)
        accept = self._judge(steps, taken)
        if self.some_through:
            accept &= ~(active.done | active.gone)
        located, plain = None, accept
        if self.watch is not None and np.count_nonzero(accept):
            located = self.watch.look(active.index, steps, None if _all(accept) else accept)
        if located is not None:
            self._fail(accept & located.undefined, lambda i, _: self._undefined_event(i))
            accept &= ~active.gone
            plain = accept & np.isnan(located.t)
        retry = steps.step.retry
        if np.count_nonzero(plain):
            self._accept(steps, plain, located)
        else:
            self.carry = retry
        if located is not None and (landing := accept & ~plain).any():
            where = np.flatnonzero(landing)
            self._land(steps, where, located, where, (y0, retry))
        self._drop()

    def _stop_those_that_cannot_step(self, taken: np.ndarray) -> None:
        active = self.active
        if np.count_nonzero(taken) < len(taken):
            still = (taken == 0.0) & ~active.done
            self._fail(still, lambda i, failures: failures.no_progress(float(active.t[i]), active.h[i]))
        if self.endless and isinstance(self.plan.controller, PIDController):
            self._fail(np.isinf(taken), lambda i, failures: failures.out_of_time(float(active.t[i])))
        if self.iterations < self.plan.max_steps:
            return
        attempts = self.trail.steps[active.index] + self.rejected[active.index]
        tired = (attempts >= self.plan.max_steps) & ~active.done

        def out_of_steps(i: int, failures: Failures) -> Status:
            counts = f"{self.trail.steps[active.index[i]]} accepted, {self.rejected[active.index[i]]} rejected"
            endless = bool(np.isinf(self.problem.times.end[active.index[i]]))
            return failures.out_of_steps(float(active.t[i]), taken[i], self.plan.max_steps, counts, endless)

        self._fail(tired, out_of_steps)

    def _judge(self, steps: TakenSteps, taken: np.ndarray) -> np.ndarray:
        """Which steps to accept; sizes the next steps, and stops the rows that cannot go on."""
        active, controller = self.active, self.plan.controller
        if not isinstance(controller, PIDController):
            return self._judge_fixed(steps, taken)
        errors = self.stepper.errors(steps)
        history = RowHistory(active.last, active.before_last, active.rejected)
        accept, next_h, remembered = self.stepper.judge(controller, steps, errors, active.h, history)
        everything = _all(accept)
        if not everything:
            self._reject(steps, errors, taken, next_h, ~accept & ~active.done)
        elif self.some_overflowed:
            self._stop_those_standing_still(steps, accept & active.overflowed, taken)
            active.overflowed &= ~accept
            self.some_overflowed = False
        # A step cut very short to land on a required time says nothing about the size of the next one.
        update = (taken > 0.1 * active.h) | (next_h > active.h)
        if everything and _all(update):
            active.before_last, active.last, active.h = active.last, remembered, next_h
            if self.some_rejected:
                active.rejected, self.some_rejected = ~accept, False
        else:
            update |= ~accept
            learn = update & accept
            active.before_last = np.where(learn, active.last, active.before_last)
            active.last = np.where(learn, remembered, active.last)
            active.rejected = np.where(update, ~accept, active.rejected)
            active.h = np.where(update, next_h, active.h)
            self.some_rejected = bool(active.rejected.any())
        return accept

    def _reject(
        self, steps: TakenSteps, errors: np.ndarray, taken: np.ndarray, next_h: np.ndarray, rejected: np.ndarray
    ) -> None:
        """Count the steps rejected, and stop the rows that it makes no sense to try again, or that stand still."""
        active = self.active
        self.rejected[active.index[rejected]] += 1
        self._stop_the_stuck(steps, errors, taken, next_h, rejected)
        suspects = active.overflowed & ~rejected
        if suspects.any():
            self._stop_those_standing_still(steps, suspects, taken)
        active.overflowed = rejected & ~np.isfinite(errors)
        self.some_overflowed = bool(active.overflowed.any())

    def _judge_fixed(self, steps: TakenSteps, taken: np.ndarray) -> np.ndarray:
        active, step = self.active, steps.step
        failed, finite = steps.failed & ~active.done, None
        if self.looks_at_every_step:
            finite = finite_rows(steps.y1) | active.done | failed
        if step.failure is not None:
            self._fail(failed, lambda i, failures: failures.not_converged(float(active.t[i]), steps.of(i)))
        if finite is not None:
            self._fail(~finite, self._not_finite(active, step.y0, taken))
            failed |= ~finite
        return ~failed

    def _stop_the_stuck(
        self, steps: TakenSteps, errors: np.ndarray, taken: np.ndarray, next_h: np.ndarray, rejected: np.ndarray
    ) -> None:
        """Stop the rows whose rejected step it makes no sense to try again with the sizes `next_h`."""
        active, controller = self.active, self.plan.controller
        assert isinstance(controller, PIDController)
        small = next_h < self._smallest_steps()

        def reason(i: int, failures: Failures) -> Status:
            step, t = steps.of(i), float(active.t[i])
            if step.failure is not None:
                return failures.not_converged(t, step)
            if not np.isfinite(errors[i]):
                undefined = is_finite(step.y1)
                return (
                    failures.norm_undefined(t, step, errors[i])
                    if undefined
                    else failures.non_finite(t, step.y0, taken[i])
                )
            if small[i]:
                return failures.underflow(t, step, errors[i], taken[i])
            return failures.tolerance_not_met(t, step, errors[i], controller.min_step)

        self._fail(rejected & (small | (active.h <= controller.min_step)), reason)

    def _smallest_steps(self) -> np.ndarray:
        """The sizes below which steps do not get anywhere."""
        return np.maximum(16 * np.spacing(np.abs(self.active.t)), self.smallest[self.active.index])

    def _stop_those_standing_still(self, steps: TakenSteps, suspects: np.ndarray, taken: np.ndarray) -> None:
        """Stop the rows whose step did not change the state although its slope is not zero."""
        same = suspects & (steps.step.y0 == steps.y1).all(1).cpu().numpy()
        if same.any():
            slopes = self.stepper.slopes(steps.t0, steps.step.y0)
            still = same & (slopes != 0).any(1).cpu().numpy()
            self._fail(still, self._not_finite(self.active, steps.step.y0, taken))

    def _accept(self, steps: TakenSteps, plain: np.ndarray, located: Located | None) -> None:
        """Go on from the ends of those steps in which there was no event that changes anything."""
        active = self.active
        if everything := _all(plain):
            where, index, t0, t1, within = self.places, active.index, steps.t0, steps.t1, steps.within
            orders = steps.orders
            y, carry = steps.y1, lambda: steps.step.carry
        else:
            where = np.flatnonzero(plain)
            index, t0, t1, select = active.index[where], steps.t0[where], steps.t1[where], self.problem.select(where)
            orders = None if steps.orders is None else steps.orders[where]
            y = torch.where(self.problem.select(plain).unsqueeze(1), steps.y1, self.y)
            within, carry = lambda: Chosen(steps.within(), select), lambda: self.stepper.choose_carry(steps.step, plain)
        self.outputs.step(index, t0, t1, within)
        self.y, self.carry = y, carry()  # to which an output may have added
        self.trail.step(index, t1, orders)
        active.t = t1 if everything else np.where(plain, steps.t1, active.t)
        if located is None and not self.has_schedule:
            self._keep(where, index, t1)
        else:
            self._accept_what_happened(steps, where, located)

    def _accept_what_happened(self, steps: TakenSteps, where: np.ndarray, located: Located | None) -> None:
        """The steps at the positions `where` were taken: report events in them, let happen what is scheduled."""
        index, t1 = self.active.index[where], steps.t1[where]
        happened = None
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
                happened = self.watch.fired(index, located, joins)
                firings = _joined(firings, self.watch, happened[0])
        self._go_on(where, t1, firings, happened)

    def _go_on(
        self,
        where: np.ndarray,
        t1: np.ndarray,
        firings: list[Firing],
        happened: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Rows at the positions `where` have come to `t1` by a step: let happen what does, and keep what is asked for.

        `firings` are empty where nothing happens at all; `happened` are the events there and the signs before them.
        """
        happens = np.array([bool(firing) for firing in firings], dtype=bool)
        if happens.any():
            events = None if happened is None else (happened[0][:, happens], happened[1][:, happens])
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
            places = dict(zip(where.tolist(), range(len(where)), strict=True))
            self._fail(bad, lambda i, _: _no_landing(active.t[i], steps.of(places[i])))
        failed[again] = True
        sound = np.flatnonzero(~failed)
        where, index, select, chosen = where[sound], index[sound], select[sound], problem.select(sound)
        t1 = steps.t1[sound]
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
        size = torch.maximum(steps.step.y0.abs(), steps.within().at_fraction(0.5).abs())[chosen]
        self._meet(where, t1, self.watch.fired(index, here, there), size)
        if earlier is not None and len(again):
            self._land(steps, again, earlier, where_again, begun, most - 1)

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

    def _meet(self, where: np.ndarray, t1: np.ndarray, events: tuple[np.ndarray, np.ndarray], size: Tensor) -> None:
        """Rows at the positions `where` have come to events by steps that end there: let them happen.

        Args:
            where: the positions of the rows.
            t1: when.
            events: which events happen and the signs before them, [events, rows].
            size: how large the elements of the states have been in the steps.
        """
        assert self.watch is not None
        active, problem, index, (fired, _) = self.active, self.problem, self.active.index[where], events
        firings = _joined(scheduled(problem, index, t1), self.watch, fired)
        since, last = np.abs(t1 - active.anew[where]), active.since[where]
        # Others that happen at about the same time are no sign that events come ever faster.
        since = np.where(self.watch.together(index, fired, _AT_ONCE * since < last), last, since)
        resolution = _ZENO * np.spacing(np.abs(t1))
        crowded = (since <= resolution) & (last <= _AT_ONCE * resolution)
        active.anew[where], active.since[where] = t1, since
        changed = changing(problem, firings)
        if isinstance(self.plan.controller, PIDController):
            # The next event may come as soon again.
            active.h[where] = np.minimum(active.h[where], np.where(changed & (since > 0.0), 2.0 * since, np.inf))
        hidden = self._let_happen(where, t1, firings, events, since, size)
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

    def _keep(self, where: np.ndarray, index: np.ndarray, t1: np.ndarray) -> None:
        """The rows `index`, at the positions `where`, go on from `t1`: keep what is asked for; is that the end?"""
        y, carry = self.y, carry_to_keep(self.method, self.carry)
        if len(where) < len(y):
            select = self.problem.select(where)
            y, carry = y.index_select(0, select), self.stepper.take_carry(carry, select)
        self.outputs.end(index, t1, y)
        self.trail.lay(index, y, self.outputs.next, carry)
        if (ended := self.targets.reached(index, t1)) is not None:
            self.active.done[where] |= ended
            self.some_through |= bool(ended.any())

    def _let_happen(
        self,
        where: np.ndarray,
        t1: np.ndarray,
        firings: list[Firing],
        events: tuple[np.ndarray, np.ndarray] | None = None,
        since: np.ndarray | None = None,
        size: Tensor | None = None,
    ) -> np.ndarray:
        """Something happens to rows that are at `t1`: change their states and go on.

        Args:
            where: the positions of the rows.
            t1: when.
            firings: what happens.
            events: which events happen and the signs before them, [events, rows].
            since: how long after the last event.
            size: how large the elements of the states have been in the steps to it.

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
                slopes.append(slopes_of(function_on(problem, index))(problem.user_time(t1), y).clone())
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
            none = np.zeros((len(self.watch.numbers), len(where)))
            fired, crossing = (none > 0.0, none) if events is None else events
            undefined = np.zeros(len(active.index), dtype=bool)
            size = torch.maximum(before.abs() if size is None else size, y.abs())
            undefined[where], hidden = self.watch.after(
                index, t1, (before, y), size, new_slopes, self._moments(where, since), (fired, crossing, changed)
            )
            self._fail(undefined, lambda i, _: self._undefined_event(i))
        self._keep(where, index, t1)
        return hidden

    def _moments(self, where: np.ndarray, since: np.ndarray | None) -> Moments:
        """When to look ahead in rows at which something has happened, the last event having been `since` ago."""
        active = self.active
        to_go = np.abs(self.problem.times.end[active.index[where]] - active.t[where])
        soon = 1e-4 * np.minimum(active.h[where], to_go)
        upcoming = np.full(len(where), np.nan)
        if since is not None:
            soon = np.minimum(soon, np.where(since > 0.0, 1e-2 * since, np.inf))
            upcoming = 0.5 * since
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

    def _fail(self, failed: np.ndarray, reason: Reason) -> None:
        """Rows cannot go on: say why."""
        if not failed.any():
            return
        for i in np.flatnonzero(failed & ~self.active.gone):
            row = int(self.active.index[i])
            problem = single_problem(self.problem, row, self.y[i : i + 1])
            norm = self.plan.norm.take(self.problem.select(np.array([row])))
            adaptive = isinstance(self.plan.controller, PIDController)
            self.status[row] = reason(int(i), Failures(problem, norm, self.plan.describe, adaptive))
            self.active.gone[i] = self.some_through = True

    def _not_finite(self, active: _Active, y: Tensor, taken: np.ndarray) -> Reason:
        return lambda i, failures: failures.non_finite(float(active.t[i]), y[i : i + 1], float(taken[i]))

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

    def _drop(self) -> bool:
        """Drop the rows that are through, when it pays; returns whether there are any under way."""
        active = self.active
        if not self.some_through:
            return bool(len(active.index))
        through = active.done | active.gone
        count = np.count_nonzero(through)
        if active.gone.any() or count * _DROP >= len(through) or count == len(through):
            arrived = active.done & ~active.gone
            rows = active.index[arrived]
            lists = (x.tolist() for x in (rows, active.t[arrived], self.trail.steps[rows], self.rejected[rows]))
            for row, t, accepted, rejected in zip(*lists, strict=True):
                sentence = f"reached t = {t:g} in {accepted} steps, {rejected} attempts rejected"
                self.status[row] = Status(Outcome.SUCCESS, sentence, t)
            self.evaluations[active.index] += self.stepper.func.evaluations
            self.work[active.index] += self.stepper.work
            last = self.y[self.problem.select(through)]
            self.outputs.finish(active.index[through], active.t[through], last)
            if not self.looks_at_every_step:
                self.unseen.append(torch.isfinite(last).all())
            keep = np.flatnonzero(~through)
            self.active, self.places, self.some_through = active.take(keep), np.arange(len(keep)), False
            select = self.problem.select(keep)
            self.y, self.carry = self.y.index_select(0, select), self.stepper.take_carry(self.carry, select)
            if len(keep):
                self.stepper = make_stepper(self.problem, self.method, self.plan.norm, self.active.index)
        return bool(len(self.active.index))


def _all(which: np.ndarray) -> bool:
    """Whether all are true: for small arrays much faster than `which.all()`."""
    return np.count_nonzero(which) == len(which)


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
        f"events accumulate at t = {t:.9g}: the next comes within the spacing of numbers there, so that the solution "
        "cannot go on in this way. End it before with max_count=, or let apply bring the state to rest"
    )
    return Status(Outcome.ZENO, sentence, t)
