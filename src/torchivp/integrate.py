"""The step loop: the only place where time moves."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchivp.callbacks import Callbacks
from torchivp.error_norm import ErrorNorm
from torchivp.events.sign_change import EventFunction
from torchivp.events.watch import Landing, Watch
from torchivp.failures import Failures, is_finite
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import FlatFunc, Method, Step, Work
from torchivp.problem import Problem
from torchivp.recording import Recorder
from torchivp.solution import Outcome, SolveError, Stats, Status, failure_class
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.first_step import first_step
from torchivp.stepsize.order import size_next_step
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import History, PIDController
from torchivp.stepsize.stops import Stops, merge
from torchivp.times import time_value
from torchivp.torch_func import read

Controller = PIDController | ConstantSteps | GridSteps | OwnSteps
Change = Callable[[Tensor], Tensor]
"""Returns the state, [1, size], with which the integration goes on in place of the one it is given."""


def check_controller(controller: Controller, method: type[Method]) -> Controller:
    """Check that the method can do what the controller needs.

    Raises:
        TypeError: it is no controller.
        ValueError: the controller needs an error estimate that the method does not have, or wants to size the steps
            of a method that sizes its own.
    """
    if not isinstance(controller, Controller):
        raise TypeError(f"controller must be a PIDController, ConstantSteps or GridSteps, got {controller!r}")
    if isinstance(controller, OwnSteps) != method.sizes_steps:
        raise ValueError(
            f"{method.__name__} sizes its steps itself: leave controller and step_size out"
            if method.sizes_steps
            else f"{method.__name__} does not size its steps itself, as OwnSteps() presumes: leave controller out"
        )
    if isinstance(controller, PIDController) and method.error_order is None:
        raise ValueError(
            f"{method.__name__} has no error estimate and takes fixed steps: pass step_size=0.01, or choose an "
            "adaptive method such as method='dopri5'"
        )
    if method.varies_order and not isinstance(controller, PIDController):
        raise ValueError(
            f"{method.__name__} chooses its step sizes together with its order, so they cannot be fixed: leave "
            "step_size out, or choose a method of fixed order such as method='implicit_adams', for stiff problems "
            "'radauIIA5'"
        )
    return controller


def at_steps(method: type[Method], controller: Controller, rows: int = 1) -> type[Method]:
    """The method as it takes the steps of a controller, of so many rows at the start."""
    return method.at_steps(not isinstance(controller, PIDController), rows)


def check_norm(norm: ErrorNorm, controller: Controller, whose: str = "") -> ErrorNorm:
    """Check that steps sized by their error may have one; `whose` tolerances they are, for the message.

    Raises:
        ValueError: both tolerances are zero.
    """
    if isinstance(controller, PIDController) and norm.tolerates_nothing:
        raise ValueError(f"{whose}rtol and atol are both 0, which no step can meet: pass rtol=1e-6 or atol=1e-9")
    return norm


@dataclass(frozen=True)
class Integration:
    """All that determines the steps of a solve.

    Attributes:
        problem: the problem.
        method: the method, made for the problem's state.
        controller: what sizes the steps.
        norm: measures the error against the tolerance.
        max_steps: the largest number of step attempts.
        describe: names an element of the flat state, for messages.
        stops: further times that steps end on, and where func jumps.
        changes: what changes the state, by the time, within the span, at which it does.
        event: what ends the solve before the end of the span.
        callbacks: what is told of every step.
        failure: what is raised if a solve fails, forward or backward.
        remedy: what to do about a tensor that func uses and that gradients do not reach, for messages.
    """

    problem: Problem
    method: Method
    controller: Controller
    norm: ErrorNorm
    max_steps: int
    describe: Callable[[int], str]
    stops: Stops = field(default_factory=Stops)
    changes: Mapping[float, Change] = field(default_factory=dict)
    event: EventFunction | None = None
    callbacks: Callbacks | None = None
    failure: type[SolveError] = field(default_factory=failure_class)
    remedy: str = (
        "Pass it to func through args=(tensor,), or name it in params=(tensor,) with all others that need a gradient, "
        "or use gradient='direct', with a method other than scipy_solver"
    )

    def with_problem(self, problem: Problem) -> Integration:
        """The same integration of another statement of the same problem."""
        return replace(self, problem=problem)

    def run(self, recorders: Sequence[Recorder]) -> tuple[Status, Stats]:
        """Integrate from the start to the end, telling the recorders of every accepted step."""
        loop = _StepLoop(self, recorders)
        status = loop.to_the_end()
        if status.ok and not isinstance(self.controller, PIDController) and not is_finite(loop.y):
            # A state that is not finite stays so. Fixed steps therefore look at the last state only, so that no
            # step waits for the device, and look for the first bad step if there is one.
            loop = _StepLoop(replace(self, callbacks=None), recorders, look_at_every_step=True)
            status = loop.to_the_end()
        counts = self.problem.func.evaluations, loop.accepted, loop.rejected
        return status, Stats(*counts, **loop.work._asdict())

    def function_within(self, t0: float, t1: float) -> FlatFunc:
        """The right-hand side for a step: where it jumps at an end of the step, its values on the step's side."""
        return self.stops.function(self.problem.func, t0, t1, self.problem.time)

    def onward(self, t: float, y: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """The state and the carry with which to go on after a step that ended at `t` with these."""
        if t in self.changes:
            return self.changes[t](y), None
        return y, None if t in self.stops.jump_times else carry

    def targets(self) -> Iterable[float]:
        """The times that a step must end on, in order; the last is the end of the span."""
        required, times = self.controller.targets(self.problem.times), self.problem.times
        others = sorted({*self.stops.within(times), *self.changes}, reverse=times.direction < 0)
        return merge(required, others, times.direction) if others else required


class _StepLoop:
    """One pass of the loop: where it is, and what it has cost."""

    def __init__(self, plan: Integration, recorders: Sequence[Recorder], look_at_every_step: bool = False):
        self.plan = plan
        self.recorders = recorders
        self.look_at_every_step = look_at_every_step
        self.times = plan.problem.times
        self.adapts = isinstance(plan.controller, PIDController)
        self.failures = Failures(plan.problem, plan.norm, plan.describe, self.adapts)
        self.watch: Watch | None = None
        self.t = self.times.start
        self.y = plan.problem.y0
        self.carry: Any = None
        self.h = math.inf
        self.history = History()
        self.accepted = 0
        self.rejected = 0
        self.work = Work()
        self.overflowed = False

    def to_the_end(self) -> Status:
        plan, times, method = self.plan, self.times, self.plan.method
        told, jumps, moving = plan.callbacks is not None, plan.stops.avoid_ends, times.tensor is not None
        for recorder in self.recorders:
            recorder.start(self.t, self.y, None)
        if plan.event is not None:
            self.watch = Watch(plan.event, plan.problem, self.t, self.y)
            if math.isnan(self.watch.value):
                sentence = f"the event function is not finite at the start, t = {self.t:.9g}"
                return Status(Outcome.NON_FINITE, sentence, self.t)
            if not self.watch.value > 0.0:
                return self._event_at(self.t)
        if times.start == times.end:
            return self._success()
        longest = plan.controller.max_step if isinstance(plan.controller, PIDController) else math.inf
        clip = Clip(plan.targets(), times.direction, longest)
        self.h = self._first_size()
        if math.isnan(self.h):
            return self.failures.non_finite(self.t, self.y, 0.0)
        while not clip.done:
            t1 = clip.step_end(self.t, self.h, stretch=not self.history.rejected)
            taken = abs(t1 - self.t)
            if math.isinf(t1) and self.adapts:
                return self.failures.out_of_time(self.t)
            if taken == 0.0:
                return self.failures.no_progress(self.t, self.h)
            if self.accepted + self.rejected >= plan.max_steps:
                return self._out_of_steps(taken)
            func = plan.function_within(self.t, t1) if jumps else plan.problem.func
            if told:
                self._call("step", taken)
            ends = (times.at(self.t), times.at(t1)) if moving else (self.t, t1)
            step = method.step(func, *ends, self.y, self.carry)
            if step.work is not None:
                self.work = Work(*(count + more for count, more in zip(self.work, step.work, strict=True)))
            if step.t1 is not ends[1]:  # the method ends steps before
                t1 = time_value(step.t1)
                taken = abs(t1 - self.t)
            accept, failure = self._judge(step, taken)
            if failure is not None:
                return failure
            if not accept:
                if told:
                    self._call("reject", taken)
                continue
            if self.watch is not None and (landing := self.watch.look(plan, func, step, self.t, t1)) is not None:
                return self._land(func, landing)
            if told:
                self._call("accept", taken)
            self._accept(func, step, t1)
            clip.reached(t1)
        return self._success()

    def _judge(self, step: Step, taken: float) -> tuple[bool, Status | None]:
        """Whether to accept the step, and why the solve cannot go on if it cannot; sizes the next step."""
        if not self.adapts:
            if step.failure is not None:
                return False, self.failures.not_converged(self.t, step)
            if self.look_at_every_step and not is_finite(step.y1):
                return False, self.failures.non_finite(self.t, self.y, taken)
            return True, None
        controller = self.plan.controller
        assert isinstance(controller, PIDController)
        error = math.inf if step.failure is not None else self._error(step)
        accept, next_h, history = size_next_step(
            controller, self.plan.method, self.plan.norm, step, error, taken, self.h, self.history
        )
        if not accept:
            self.rejected += 1
            self.carry = step.retry
            self.overflowed = not math.isfinite(error)
            if (failure := self._stuck(step, error, taken, next_h)) is not None:
                return False, failure
        elif self.overflowed and self._stands_still(step):
            return False, self.failures.non_finite(self.t, self.y, taken)
        # A step cut very short to land on a required time says nothing about the size of the next one.
        if not accept or taken > 0.1 * self.h or next_h > self.h:
            self.h, self.history = next_h, history
        return accept, None

    def _error(self, step: Step) -> float:
        assert step.error is not None
        return self.plan.norm(step.error, step.y0, step.y1)

    def _accept(self, func: FlatFunc, step: Step, t1: float) -> None:
        self.accepted += 1
        for recorder in self.recorders:
            recorder.accept(self.plan.method, func, step, t1)
        self.t = t1
        self.y, self.carry = self.plan.onward(t1, step.y1, step.carry)
        self.overflowed = False

    def _land(self, func: FlatFunc, landing: Landing) -> Status:
        """Take the step that ends at the event, and stop there."""
        if landing.failure is not None:
            return Status(Outcome.NON_FINITE, landing.failure, self.t)
        assert landing.step is not None
        if landing.step.failure is not None:
            return self.failures.not_converged(self.t, landing.step)
        self._call("accept", abs(landing.t - self.t))
        self._accept(func, landing.step, landing.t)
        return self._event_at(landing.t)

    def _call(self, which: str, taken: float) -> None:
        callbacks = self.plan.callbacks
        if callbacks is not None:
            callbacks.call(getattr(callbacks, which), self.t, self.y, taken)

    def _first_size(self) -> float:
        controller = self.plan.controller
        if not isinstance(controller, PIDController):
            return math.inf
        h = controller.first_step
        if h is None:
            assert self.plan.method.error_order is not None
            func = slopes_of(self.plan.function_within(self.t, self.times.end))
            t0 = self.plan.problem.time(self.times.at(self.t))
            f0 = func(t0, self.y)
            if not f0.requires_grad:
                f0 = f0.clone()  # func may use its memory again
            self.carry = self.plan.method.initial_carry(f0)
            span = self.times.end - self.times.start
            h = first_step(func, t0, self.y, f0, span, self.plan.norm, self.plan.method.error_order)
            if math.isnan(h):
                return h
            h = max(h, self._smallest_step())
        return min(max(h, controller.min_step), controller.max_step)

    def _success(self) -> Status:
        sentence = f"reached t = {self.t:g} in {self.accepted} steps, {self.rejected} attempts rejected"
        return Status(Outcome.SUCCESS, sentence, self.t)

    def _event_at(self, t: float) -> Status:
        return Status(Outcome.EVENT, f"event at t = {t:.9g}, after {self.accepted} steps", t)

    def _out_of_steps(self, taken: float) -> Status:
        counts = f"{self.accepted} accepted, {self.rejected} rejected"
        return self.failures.out_of_steps(self.t, taken, self.plan.max_steps, counts, self.watch is not None)

    def _stands_still(self, step: Step) -> bool:
        """Whether a step did not change the state although its slope is not zero."""
        if read((step.y0 != step.y1).any()):
            return False
        with torch.no_grad():
            slope = slopes_of(self.plan.problem.func)(self.plan.problem.time(self.t), step.y0.detach())
            return bool(read(slope.any()))

    def _smallest_step(self) -> float:
        """The size below which steps do not get anywhere: for the spacing of numbers at t, or for the span to go."""
        span = abs(self.times.end - self.times.start)
        of_span = sys.float_info.epsilon**2 * span if math.isfinite(span) else 0.0
        return max(16 * math.ulp(self.t), of_span, sys.float_info.min)

    def _stuck(self, step: Step, error: float, taken: float, next_h: float) -> Status | None:
        """The end of the solve, if it makes no sense to try the rejected step again with the size `next_h`."""
        controller = self.plan.controller
        assert isinstance(controller, PIDController)
        too_small = next_h < self._smallest_step()
        if not too_small and self.h > controller.min_step:
            return None
        if step.failure is not None:
            return self.failures.not_converged(self.t, step)
        if not math.isfinite(error):
            finite = is_finite(step.y1)
            return self.failures.norm_undefined(self.t, step, error) if finite else self._blow_up(taken)
        if too_small:
            return self.failures.underflow(self.t, step, error, taken)
        return self.failures.tolerance_not_met(self.t, step, error, controller.min_step)

    def _blow_up(self, taken: float) -> Status:
        return self.failures.non_finite(self.t, self.y, taken)
