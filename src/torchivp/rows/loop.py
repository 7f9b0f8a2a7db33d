"""The step loop for rows: where their times move, each its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchivp.failures import Failures, is_finite
from torchivp.methods.method import Method, Work
from torchivp.rows.changes import all_scheduled, finite_rows
from torchivp.rows.problem import single_problem
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.rows.steps import Chosen, TakenSteps, carry_to_keep, make_stepper
from torchivp.rows.targets import RowTargets
from torchivp.solution import Outcome, Stats, Status
from torchivp.stepsize.first_step import first_steps
from torchivp.stepsize.pid import PIDController, RowHistory

if TYPE_CHECKING:
    from torchivp.rows.integration import RowIntegration

_DROP = 8
"""Rows that are through are dropped when there is one in so many."""


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
        rows, times = self.problem.rows, self.problem.times
        self.direction = times.direction
        self.endless = bool(np.isinf(times.end).any())
        span = np.abs(times.end - times.start)
        # Steps get nowhere below the spacing of numbers at t, or for the span to go.
        of_span = np.where(np.isinf(span), 0.0, sys.float_info.epsilon**2 * span)
        self.smallest = np.maximum(of_span, sys.float_info.min)
        self.targets = RowTargets(plan.controller, times, all_scheduled(self.problem))
        adaptive = isinstance(plan.controller, PIDController)
        self.looks_at_every_step = looks_at_every_step or adaptive
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
        self.outputs.end(active.index, active.t.copy(), self.y)
        self._fail(~finite_rows(self.y), self._not_finite(active, self.y, np.zeros(len(active.t))))
        active.done |= active.t == self.problem.times.end[active.index]
        self.some_through |= bool(active.done.any())
        if self._drop():
            self._first_sizes()

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
        active = self.active
        t1 = self.targets.step_end(active.index, active.t, active.h, active.rejected if self.some_rejected else None)
        if self.some_through:
            t1 = np.where(active.done, active.t, t1)
        taken = np.abs(t1 - active.t)
        self._stop_those_that_cannot_step(taken)
        if self.some_through and active.gone.any():
            self._drop()
            return
        self.iterations += 1
        if self.plan.callbacks is not None:
            self._tell("step", np.flatnonzero(~(active.done | active.gone)), t1)
        steps = self.stepper.step(active.t, t1, self.y, self.carry)
        if steps.t1 is not t1:  # the method ends steps before
            taken = np.abs(steps.t1 - active.t)
        accept = self._judge(steps, taken)
        if self.some_through:
            accept &= ~(active.done | active.gone)
        self._go_on_from(steps, accept)
        self._drop()

    def _go_on_from(self, steps: TakenSteps, accept: np.ndarray) -> None:
        """Go on from the ends of the steps to accept, and try the others again."""
        if np.count_nonzero(accept):
            self._keep(*self._accept(steps, accept))
        else:
            self.carry = steps.step.retry

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
        if self.plan.callbacks is not None:
            self._tell("reject", np.flatnonzero(rejected), steps.t1)
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

    def _accept(self, steps: TakenSteps, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Accept some of the steps; returns the positions and the numbers of the rows, and their times."""
        active = self.active
        if self.plan.callbacks is not None:
            self._tell("accept", np.flatnonzero(plain), steps.t1)
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
        return where, index, t1

    def _tell(self, which: str, where: np.ndarray, t1: np.ndarray) -> None:
        """Tell of the steps of the rows at the positions `where` from where they are; `t1` are the ends of all."""
        callbacks = self.plan.callbacks
        if callbacks is None or not len(where):
            return
        rows, t, y = self.problem.select(self.active.index[where]), self.active.t[where], self.y
        if len(where) < len(y):
            y = y.index_select(0, self.problem.select(where))
        callbacks.call_of_rows(getattr(callbacks, which), rows, t, y, np.abs(t1[where] - t))

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
