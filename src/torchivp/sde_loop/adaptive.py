"""Steps whose size follows the error: each is taken once whole and once in halves, on the same path."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.noise.along import PathNoise
from torchivp.noise.increment import join
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.sde_loop.steps import Steps
from torchivp.solution import Outcome, SolveError, Status
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.pid import History, PIDController


@dataclass(frozen=True)
class AdaptiveSteps:
    """How to choose steps by their error.

    The error of a step is the difference between it and two steps of half the size. A step that is rejected is tried
    again on the same path, so that the choice of steps does not bias the noise.

    Attributes:
        controller: sizes the steps.
        norm: measures the error against the tolerance.
        strong_order: the order of the method.
        max_steps: the largest number of step attempts.
        landing: whether steps end on the outputs; if not, the states there are interpolated linearly.
    """

    controller: PIDController
    norm: ErrorNorm
    strong_order: float
    max_steps: int
    landing: bool

    def choose(self, integration: SDEIntegration, ts: Sequence[float]) -> Steps:
        """The accepted steps, in halves, from the first of the times `ts` to the last.

        Raises:
            SolveError: the last time was not reached.
        """
        with torch.no_grad():
            return _Search(self, integration, ts).run()


class _Search:
    """One search: where it is, and what it has cost."""

    def __init__(self, plan: AdaptiveSteps, integration: SDEIntegration, ts: Sequence[float]) -> None:
        assert isinstance(integration.noise, PathNoise), "only a path can be asked for steps of any size"
        self.plan = plan
        self.noise = integration.noise
        self.integration = integration
        self.ts = ts
        self.t = ts[0]
        self.y = integration.y0.detach()
        self.carry = integration.first_carry()
        self.times = [self.t]
        self.accepted = 0
        self.rejected = 0
        self.forced = 0

    def run(self) -> Steps:
        plan, ts = self.plan, self.ts
        direction = 1.0 if ts[-1] >= ts[0] else -1.0
        clip = Clip(ts[1:] if plan.landing else ts[-1:], direction)
        controller, history = plan.controller, History()
        h = controller.first_step
        assert h is not None, "the first step is always given"
        while not clip.done:
            t1 = self._rounded(clip.step_end(self.t, h, stretch=not history.rejected), h)
            taken = abs(t1 - self.t)
            middle = self.t + 0.5 * (t1 - self.t)
            if middle in (self.t, t1):
                raise SolveError(self._stuck(h))
            if self.accepted + self.rejected >= plan.max_steps:
                raise SolveError(self._out_of_steps(taken))
            try:
                error, y1, carry = self._try(middle, t1)
            except SolveError:  # of an implicit method whose equations were not solved
                error, y1, carry = math.inf, self.y, self.carry
            accept, next_h, next_history = controller.adapt(error, taken, h, history, plan.strong_order - 0.5)
            if not math.isfinite(error) and h <= controller.min_step:
                raise SolveError(self._not_finite(taken))
            # A step cut very short to land on a required time says nothing about the size of the next one.
            if not accept or taken > 0.1 * h or next_h > h:
                h, history = next_h, next_history
            if not accept:
                self.rejected += 1
                continue
            self.accepted += 1
            self.forced += error > 1.0
            self.times += [middle, t1]
            self.t, self.y, self.carry = t1, y1, carry
            clip.reached(t1)
        self._warn_of_forced()
        steps = Steps.through(self.times, [])
        steps.outputs = [(-1, 1.0), *(steps.place(t) for t in ts[1:])]
        return steps

    def _rounded(self, t1: float, h: float) -> float:
        """The end of a step moved, by a hundredth of its size `h` at most, to where the path is quick to ask.

        That is a multiple of the span over a power of two (see `BrownianInterval`). Times asked for stay.
        """
        if t1 in self.ts:
            return t1
        start, span = self.ts[0], abs(self.ts[-1] - self.ts[0])
        unit = span * 0.5 ** (math.ceil(math.log2(max(span / h, 1.0))) + 6)
        return start + round((t1 - start) / unit) * unit

    def _try(self, middle: float, t1: float) -> tuple[float, Tensor, object]:
        """The scaled error of a step to `t1`, and where its halves lead."""
        plan, start, halfway, end = self.integration, *map(self.integration.time, (self.t, middle, t1))
        first, second = self.noise.between(self.t, middle), self.noise.between(middle, t1)
        whole, _ = plan.method.step(plan.terms, start, end, self.y, join(first, second), self.carry)
        half, carry = plan.method.step(plan.terms, start, halfway, self.y, first, self.carry)
        y1, carry = plan.method.step(plan.terms, halfway, end, half, second, carry)
        return self.plan.norm(y1 - whole, self.y, y1), y1, carry

    def _warn_of_forced(self) -> None:
        if self.forced:
            warnings.warn(
                f"Hitting minimum allowed step size in adaptive time-stepping: {self.forced} of {self.accepted} steps, "
                f"of the size dt_min = {self.plan.controller.min_step:g}, do not meet the tolerances; loosen rtol and "
                "atol, or make dt_min smaller",
                stacklevel=5,
            )

    def _out_of_steps(self, taken: float) -> Status:
        sentence = (
            f"{self.plan.max_steps} step attempts ({self.accepted} accepted, {self.rejected} rejected) took the "
            f"solution from t = {self.ts[0]:g} to t = {self.t:g} of {self.ts[-1]:g}, where the step size is "
            f"{taken:.3g}: raise "
            "options={'max_num_steps': ...}, loosen rtol and atol, or choose a method of higher strong order "
            "(torchivp.sde_methods lists them)"
        )
        return Status(Outcome.MAX_STEPS, sentence, self.t)

    def _stuck(self, h: float) -> Status:
        sentence = (
            f"the step size fell to {h:.3g} at t = {self.t:.9g}, too small to move time: the tolerances cannot be met "
            "there; loosen rtol and atol, or raise dt_min"
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, self.t)

    def _not_finite(self, taken: float) -> Status:
        sentence = (
            f"drift or diffusion is not finite, or the solution grows beyond all bounds, at t = {self.t:.9g} even with "
            f"the smallest step, dt_min = {taken:.3g}"
        )
        return Status(Outcome.NON_FINITE, sentence, self.t)
