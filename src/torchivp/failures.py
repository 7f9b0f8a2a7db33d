"""Why a solve could not go on: a sentence that says what happened, where, and what to try."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Step
from torchivp.problem import Problem
from torchivp.solution import Outcome, Status
from torchivp.times import time_value
from torchivp.torch_func import entries, read


class Failures:
    """Makes the `Status` of a solve that ends early.

    Args:
        problem: the problem.
        norm: measures the error against the tolerance.
        describe: names an element of the flat state.
        adaptive: whether the step size is adapted to the error.
    """

    def __init__(self, problem: Problem, norm: ErrorNorm, describe: Callable[[int], str], adaptive: bool):
        self._problem = problem
        self._norm = norm
        self._describe = describe
        self._adaptive = adaptive

    def out_of_steps(self, t: float, taken: float, max_steps: int, counts: str, awaits_event: bool) -> Status:
        """Too many step attempts."""
        times = self._problem.times
        advice = (
            "no event has happened by then: does one happen at all? If so, raise max_steps "
            "(option max_num_steps of odeint) or loosen rtol and atol"
            if awaits_event
            else "raise max_steps (option max_num_steps of odeint) or loosen rtol and atol; if the solution varies on "
            "a much longer time scale than the step size, the problem is stiff"
            + (
                ": try method='rodas5p' or 'bdf'; 'auto' finds this out by itself if func computes in torch, where "
                "autograd sees how it depends on the state"
                if self._adaptive
                else ""
            )
        )
        sentence = (
            f"max_steps = {max_steps} step attempts ({counts}) took the solution from t = {times.start:g} to "
            f"t = {t:g} of {times.end:g}, where the step size is {taken:.3g}: {advice}"
        )
        return Status(Outcome.MAX_STEPS, sentence, t)

    def out_of_time(self, t: float) -> Status:
        """The next step would end beyond the largest number, in the search for an event."""
        sentence = (
            f"no event has happened by t = {t:.3g}, and the next step leads beyond the largest number that a time can "
            "be: does one happen at all? The event function has the same sign at the end of every step as at the start"
        )
        return Status(Outcome.NO_EVENT, sentence, t)

    def no_progress(self, t: float, h: float) -> Status:
        """A step too small to move time."""
        sentence = (
            f"step size underflow at t = {t:.9g}: a step of {h:.3g} is less than the spacing of numbers there, "
            f"{math.ulp(t):.3g}: give a larger first_step or max_step, or shift the origin of time"
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, t)

    def not_converged(self, t: float, step: Step) -> Status:
        """The method could not solve the equations of the step."""
        assert step.failure is not None
        (reason,) = step.failure.values()
        sentence = f"{reason}, in a step of {abs(time_value(step.t1) - t):.3g} from t = {t:.9g}"
        return Status(Outcome.NOT_CONVERGED, sentence, t)

    def tolerance_not_met(self, t: float, step: Step, error: float, min_step: float) -> Status:
        """The error is too large at the smallest step allowed."""
        sentence = (
            f"the tolerance cannot be met at t = {t:.9g} with min_step = {min_step:g}: the error of a step of that "
            f"size {self._too_large(step, error)}: lower min_step, or loosen rtol and atol"
        )
        return Status(Outcome.TOLERANCE_NOT_MET, sentence, t)

    def underflow(self, t: float, step: Step, error: float, taken: float) -> Status:
        """The error is too large at the smallest step possible."""
        sentence = (
            f"step size underflow at t = {t:.9g}: the error of a step of {taken:.3g} {self._too_large(step, error)}. "
            + (
                self._untolerated(step.y0, step.error)
                or "The solution may be singular there, or func discontinuous; otherwise loosen rtol and atol"
                + self._precision(step.y0)
            )
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, t)

    def norm_undefined(self, t: float, step: Step, error: float) -> Status:
        """The error of a step is not a number, although the state is."""
        sentence = f"the error of a step from t = {t:.9g} is {error}, although the state is finite: " + (
            self._untolerated(step.y0, step.error) or "func is not finite within the step, or norm is not"
        )
        return Status(Outcome.NON_FINITE, sentence, t)

    def non_finite(self, t: float, y: Tensor, taken: float) -> Status:
        """A step of the size `taken` from `(t, y)` led to a state that is not finite, or could not be begun."""
        start = y.detach()
        with torch.no_grad():
            change = self._problem.func(self._problem.time(t), start)
        y, slope = entries(start), entries(change)
        if not is_finite(y):
            where = f"the initial state is not finite: {self._describe(_first_bad(y))} = {_bad_value(y)}"
        elif not is_finite(slope):
            where = (
                f"func is not finite at t = {t:.9g}, where the state still is: the derivative of "
                f"{self._describe(_first_bad(slope))} is {_bad_value(slope)}. Look for a division by zero, or a "
                "log or sqrt of a number that is not positive"
            )
        elif untolerated := self._untolerated(start, change):
            where = f"no step can be taken from t = {t:.9g}: {untolerated}"
        else:
            where = (
                f"the state is not finite after a step of {taken:.3g} from t = {t:.9g}, where state and "
                "derivative still are: the solution blows up, "
                + (
                    "or func is undefined just beyond"
                    if self._adaptive
                    else "or func is undefined just beyond, or the step size is too large for a stable solution: try a "
                    "smaller step_size, or an adaptive method"
                )
            )
        return Status(Outcome.NON_FINITE, where, t)

    def _untolerated(self, y: Tensor, change: Tensor | None) -> str:
        """That no error is tolerated in an element of `y`, although there is a `change`; empty if there is none."""
        if not self._adaptive or change is None:
            return ""
        states = entries(y.detach())
        bad = self._norm.untolerated(states) & (entries(change) != 0)
        if not bad.any():
            return ""
        index = int(bad.flatten(0, -2).any(0).int().argmax())
        value = states[..., index][bad[..., index]][0].item()
        return f"{self._describe(index)} = {value:g} and atol = 0, so no error is tolerated there: pass atol > 0"

    def _too_large(self, step: Step, error: float) -> str:
        assert step.error is not None
        scaled = entries(self._norm.scaled(step.error, step.y0.detach(), step.y1.detach())).abs()
        worst = self._describe(int(scaled.flatten(0, 1).amax(0).argmax()))
        return f"is still {error:.3g} times the tolerance, largest in {worst}"

    def _precision(self, y: Tensor) -> str:
        eps = torch.finfo(y.dtype).eps
        rtol = self._norm.rtol
        tightest = float(rtol.min()) if isinstance(rtol, Tensor) else rtol
        if tightest >= 10 * eps:
            return ""
        return f"; rtol = {tightest:g} is close to the rounding of {y.dtype}, {eps:.2g}: " + (
            "raise it" if y.dtype in (torch.float64, torch.complex128) else "use y0.double()"
        )


def is_finite(y: Tensor) -> bool:
    """Whether all elements are."""
    return read((~torch.isfinite(y)).any()) == 0.0


def _first_bad(y: Tensor) -> int:
    """The number of the element that is not finite; of a batch, in any entry."""
    return int((~torch.isfinite(y)).flatten(0, -2).any(0).int().argmax())


def _bad_value(y: Tensor) -> str:
    column = y[..., _first_bad(y)]
    return str(column[~torch.isfinite(column)][0].item())
