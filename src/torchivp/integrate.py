"""The step loop: the only place where time moves."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Method, Step
from torchivp.problem import Problem
from torchivp.recording import Recorder
from torchivp.solution import Outcome, Stats, Status
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.first_step import first_step
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import Decision, History, PIDController

Controller = PIDController | ConstantSteps | GridSteps | OwnSteps
Change = Callable[[float, Tensor], Tensor]
"""`change(t, y)` returns the state, [1, size], with which the integration goes on from `t`."""


def check_controller(controller: Controller, method: type[Method]) -> Controller:
    """Check that the method can do what the controller needs.

    Raises:
        TypeError: it is no controller.
        ValueError: the controller needs an error estimate that the method does not have.
    """
    if not isinstance(controller, Controller):
        raise TypeError(f"controller must be a PIDController, ConstantSteps or GridSteps, got {controller!r}")
    if isinstance(controller, PIDController) and method.error_order is None:
        raise ValueError(
            f"{method.__name__} has no error estimate and takes fixed steps: pass step_size=0.01, or choose an "
            "adaptive method such as method='dopri5'"
        )
    if isinstance(controller, OwnSteps) != method.sizes_steps:
        raise ValueError(
            f"{method.__name__} sizes its steps itself: leave controller and step_size out"
            if method.sizes_steps
            else f"{method.__name__} does not size its steps itself, as OwnSteps() presumes: leave controller out"
        )
    if method.varies_order and not isinstance(controller, PIDController):
        raise ValueError(
            f"{method.__name__} chooses its step sizes together with its order, so they cannot be fixed: leave "
            "step_size out, or choose a method of fixed order such as method='implicit_adams'"
        )
    return controller


def check_max_steps(max_steps: int) -> int:
    """Check the limit on step attempts.

    Raises:
        ValueError: it is not a positive whole number.
    """
    if isinstance(max_steps, bool) or not isinstance(max_steps, numbers.Integral) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive whole number, got {max_steps!r}")
    return int(max_steps)


@dataclass(frozen=True)
class Integration:
    """All that determines the steps of a solve.

    Attributes:
        problem: the problem.
        method: the method, made for the problem's state.
        controller: what sizes the steps.
        norm: measures the error against the tolerance.
        max_steps: the largest number of step attempts.
        change: changes the state at each of `change_times`, which steps land on.
        change_times: in the order of integration, within the span.
        describe: names an element of the flat state, for messages.
    """

    problem: Problem
    method: Method
    controller: Controller
    norm: ErrorNorm
    max_steps: int
    describe: Callable[[int], str]
    change: Change | None = None
    change_times: Sequence[float] = ()

    def with_problem(self, problem: Problem) -> Integration:
        """The same integration of another statement of the same problem."""
        return replace(self, problem=problem)

    def run(self, recorders: Sequence[Recorder]) -> tuple[Status, Stats]:
        """Integrate from the start to the end, telling the recorders of every accepted step."""
        run = _Run(self, recorders)
        status = run.to_the_end()
        if status.ok and not isinstance(self.controller, PIDController) and not _finite(run.y):
            # A state that is not finite stays so. Fixed steps therefore look at the last state only, so that no
            # step waits for the device, and look for the first bad step if there is one.
            run = _Run(self, recorders, look_at_every_step=True)
            status = run.to_the_end()
        return status, Stats(self.problem.func.evaluations, run.accepted, run.rejected)

    def replay(
        self,
        times: Sequence[float],
        orders: Sequence[int | None],
        y: Tensor,
        carry: Any,
        recorders: Sequence[Recorder],
    ) -> Step:
        """Take the accepted steps that end at `times[1:]` again, from the state `y` at `times[0]`."""
        at, func = self.problem.times.at, self.problem.func
        step = None
        for (t0, t1), order in zip(pairwise(times), orders, strict=True):
            if order is not None:
                carry = self.method.at_order(carry, order)
            step = self.method.step(func, at(t0), at(t1), y, carry)
            for recorder in recorders:
                recorder.accept(self.method, func, step, t1)
            y, carry = step.y1, step.carry
        assert step is not None, "a stretch to replay has at least one step"
        return step


class _Run:
    """One pass of the loop: where it is, and what it has cost."""

    def __init__(self, plan: Integration, recorders: Sequence[Recorder], look_at_every_step: bool = False):
        self.plan = plan
        self.recorders = recorders
        self.look_at_every_step = look_at_every_step
        self.func = plan.problem.func
        self.times = plan.problem.times
        self.t = self.times.start
        self.y = plan.problem.y0
        self.carry: Any = None
        self.accepted = 0
        self.rejected = 0
        self.overflowed = False

    def to_the_end(self) -> Status:
        plan, times, controller = self.plan, self.times, self.plan.controller
        for recorder in self.recorders:
            recorder.start(self.t, self.y, None)
        if times.start == times.end:
            return self._success()
        clip = Clip(self._targets(), times.direction)
        h = self._first_size()
        if math.isnan(h):
            return self._non_finite(0.0)
        history = History()
        change_times = frozenset(plan.change_times)
        while not clip.done:
            t, y = self.t, self.y
            t1 = clip.step_end(t, h, stretch=not history.rejected)
            taken = abs(t1 - t)
            if taken == 0.0:
                return self._no_progress(h)
            if self.accepted + self.rejected >= plan.max_steps:
                return self._out_of_steps(taken)
            step = plan.method.step(self.func, times.at(t), times.at(t1), y, self.carry)
            if step.t1 is not t1 and plan.method.sizes_steps:
                t1 = float(step.t1)
            if isinstance(controller, PIDController):
                error = self._error(step)
                accept, next_h, new_history = self._adapt(controller, step, error, taken, h, history)
                if not accept:
                    self.rejected += 1
                    self.carry = step.retry
                    self.overflowed = not math.isfinite(error)
                    if stuck := self._stuck(step, error, taken, h, next_h):
                        return stuck
                    h, history = next_h, new_history
                    continue
                if self.overflowed and self._stands_still(step):
                    return self._non_finite(taken)
                # A step cut very short to land on a required time says nothing about the size of the next one.
                if taken > 0.1 * h or next_h > h:
                    h, history = next_h, new_history
            elif step.failure is not None:
                return self._not_converged(step)
            elif self.look_at_every_step and not _finite(step.y1):
                return self._non_finite(taken)
            self._accept(step, t1)
            if clip.reached(t1) and plan.change is not None and t1 in change_times:
                self.y, self.carry = plan.change(t1, self.y), None
        return self._success()

    def _error(self, step: Step) -> float:
        if step.failure is not None:
            return math.inf
        assert step.error is not None
        return self.plan.norm(step.error, step.y0, step.y1)

    def _adapt(
        self, controller: PIDController, step: Step, error: float, taken: float, h: float, history: History
    ) -> Decision:
        """Judge the step and size the next one; a method of varying order goes on at the order of the longest step."""
        order = self.plan.method.error_order if step.order is None else step.order
        assert order is not None
        decision = controller.adapt(error, taken, h, history, order)
        if not step.others:
            return decision
        best, best_order = decision, step.order
        for other, estimate in step.others:
            size = self.plan.norm(estimate, step.y0, step.y1)
            candidate = controller.adapt(size, taken, h, history, other)
            if candidate.h > best.h:
                best, best_order = candidate, other
        if best_order is not None and best_order != step.order:
            step.carry = self.plan.method.at_order(step.carry, best_order)
            step.retry = self.plan.method.at_order(step.retry, best_order)
        # Whatever another order promises, a step that is tried again must be shorter.
        longest = math.inf if decision.accept else controller.safety * taken
        return Decision(decision.accept, min(best.h, longest), best.history._replace(rejected=not decision.accept))

    def _accept(self, step: Step, t1: float) -> None:
        self.accepted += 1
        for recorder in self.recorders:
            recorder.accept(self.plan.method, self.func, step, t1)
        self.t, self.y, self.carry = t1, step.y1, step.carry
        self.overflowed = False

    def _targets(self) -> Sequence[float]:
        required = self.plan.controller.targets(self.times)
        if not self.plan.change_times:
            return required
        return sorted({*required, *self.plan.change_times}, reverse=self.times.direction < 0)

    def _first_size(self) -> float:
        controller = self.plan.controller
        if not isinstance(controller, PIDController):
            return math.inf
        h = controller.first_step
        if h is None:
            assert self.plan.method.error_order is not None
            t0 = self.plan.problem.time(self.times.at(self.t))
            f0 = self.func(t0, self.y)
            if not f0.requires_grad:
                f0 = f0.clone()  # func may use its memory again
            self.carry = self.plan.method.initial_carry(f0)
            span = self.times.end - self.times.start
            h = first_step(self.func, t0, self.y, f0, span, self.plan.norm, self.plan.method.error_order)
            if math.isnan(h):
                return h
            h = max(h, 16 * math.ulp(max(abs(self.times.start), abs(self.times.end))))
        return min(max(h, controller.min_step), controller.max_step)

    def _success(self) -> Status:
        sentence = f"reached t = {self.t:g} in {self.accepted} steps, {self.rejected} attempts rejected"
        return Status(Outcome.SUCCESS, sentence, self.t)

    def _out_of_steps(self, h: float) -> Status:
        sentence = (
            f"max_steps = {self.plan.max_steps} step attempts ({self.accepted} accepted, {self.rejected} rejected) "
            f"took the solution from t = {self.times.start:g} to t = {self.t:g} of {self.times.end:g}, where the step "
            f"size is {h:.3g}: raise max_steps or loosen rtol and atol; if the solution varies on a much longer time "
            "scale than the step size, the problem is stiff"
        )
        return Status(Outcome.MAX_STEPS, sentence, self.t)

    def _no_progress(self, h: float) -> Status:
        sentence = (
            f"step size underflow at t = {self.t:.9g}: a step of {h:.3g} is less than the spacing of numbers there, "
            f"{math.ulp(self.t):.3g}: give a larger first_step or max_step, or shift the origin of time"
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, self.t)

    def _not_converged(self, step: Step) -> Status:
        sentence = f"{step.failure}, in a step of {abs(float(step.t1) - self.t):.3g} from t = {self.t:.9g}"
        return Status(Outcome.NOT_CONVERGED, sentence, self.t)

    def _stands_still(self, step: Step) -> bool:
        """Whether a step did not change the state although its slope is not zero."""
        if not torch.equal(step.y0, step.y1):
            return False
        with torch.no_grad():
            return bool(self.func(self.plan.problem.time(self.t), step.y0.detach()).any())

    def _stuck(self, step: Step, error: float, taken: float, h: float, next_h: float) -> Status | None:
        """The end of the solve, if it makes no sense to try the rejected step again with the size `next_h`."""
        controller = self.plan.controller
        assert isinstance(controller, PIDController)
        too_small = next_h < 16 * math.ulp(self.t) or next_h < sys.float_info.min
        if not too_small and h > controller.min_step:
            return None
        if step.failure is not None:
            return self._not_converged(step)
        if not math.isfinite(error):
            return self._non_finite(taken) if not _finite(step.y1) else self._norm_undefined(error)
        assert step.error is not None
        scaled = self.plan.norm.scaled(step.error, step.y0.detach(), step.y1.detach()).abs()
        worst = self.plan.describe(int(scaled.argmax()))
        too_large = f"is still {error:.3g} times the tolerance, largest in {worst}"
        if not too_small:
            sentence = (
                f"the tolerance cannot be met at t = {self.t:.9g} with min_step = {controller.min_step:g}: the error "
                f"of a step of that size {too_large}: lower min_step, or loosen rtol and atol"
            )
            return Status(Outcome.TOLERANCE_NOT_MET, sentence, self.t)
        sentence = (
            f"step size underflow at t = {self.t:.9g}: the error of a step of {taken:.3g} {too_large}. The solution "
            "may be singular there, or func discontinuous; otherwise loosen rtol and atol" + self._precision()
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, self.t)

    def _norm_undefined(self, error: float) -> Status:
        sentence = (
            f"the error of a step from t = {self.t:.9g} is {error}, although the state is finite: func is not finite "
            "within the step, or norm is not"
        )
        return Status(Outcome.NON_FINITE, sentence, self.t)

    def _precision(self) -> str:
        eps = torch.finfo(self.y.dtype).eps
        tightest = float(torch.as_tensor(self.plan.norm.rtol).min())
        if tightest >= 10 * eps:
            return ""
        return f"; rtol = {tightest:g} is close to the rounding of {self.y.dtype}, {eps:.2g}: use y0.double()"

    def _non_finite(self, taken: float) -> Status:
        t, y = self.plan.problem.time(self.t), self.y.detach()
        with torch.no_grad():
            slope = self.func(t, y)
        if not _finite(y):
            where = f"the initial state is not finite: {self.plan.describe(_first_bad(y))} = {_bad_value(y)}"
        elif not _finite(slope):
            where = (
                f"func is not finite at t = {self.t:.9g}, where the state still is: the derivative of "
                f"{self.plan.describe(_first_bad(slope))} is {_bad_value(slope)}. Look for a division by zero, or a "
                "log or sqrt of a number that is not positive"
            )
        else:
            where = (
                f"the state is not finite after a step of {taken:.3g} from t = {self.t:.9g}, where state and "
                "derivative still are: the solution blows up, "
                + (
                    "or func is undefined just beyond"
                    if isinstance(self.plan.controller, PIDController)
                    else "or the step size is too large for a stable solution: try a smaller step_size, or an "
                    "adaptive method"
                )
            )
        return Status(Outcome.NON_FINITE, where, self.t)


def _finite(y: Tensor) -> bool:
    return bool(torch.isfinite(y).all())


def _first_bad(y: Tensor) -> int:
    return int((~torch.isfinite(y)).flatten().int().argmax())


def _bad_value(y: Tensor) -> str:
    return str(y.flatten()[_first_bad(y)].item())
