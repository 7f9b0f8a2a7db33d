"""Steps whose size follows the error, chosen by a solve ahead of the one that is differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.noise.along import PathNoise
from torchivp.noise.increment import join
from torchivp.sde_loop.halving import HalvedSteps, Pace, Words
from torchivp.sde_loop.integrate import Run, SDEIntegration
from torchivp.sde_loop.steps import Steps
from torchivp.solution import SolveError

_WORDS = Words(
    subject="the solution",
    tolerances="rtol and atol",
    limit="options={'max_num_steps': ...}",
    faster=", or choose a method of higher strong order (torchivp.sde_methods lists them)",
    not_finite="drift or diffusion is not finite there, or the solution grows beyond all bounds",
)


@dataclass(frozen=True)
class AdaptiveSteps:
    """How to choose steps by their error.

    Attributes:
        pace: what the sizes of the steps depend on besides the error.
        norm: measures the error against the tolerance.
        landing: whether steps end on the outputs; if not, the states there are interpolated linearly.
    """

    pace: Pace
    norm: ErrorNorm
    landing: bool

    def choose(self, integration: SDEIntegration, ts: Sequence[float]) -> SDEIntegration:
        """The integration with the accepted steps, in halves, from the first of the times `ts` to the last.

        It has what the search found with it, so that a solve without a graph need not take the steps again.

        Raises:
            SolveError: the last time was not reached.
        """
        with torch.no_grad():
            search = _Search(self, integration, ts)
            search.walk()
        search.warn_of_forced()
        steps = Steps.through(search.times, search.places)
        return replace(integration, steps=steps, found=[Run(search.outputs, search.y, search.carry)])


class _Search(HalvedSteps[tuple[Tensor, Tensor, Any]]):
    """One search. What it reaches with a step is the state in the middle and at the end, and what the method carries.

    Attributes:
        times: the ends of the accepted steps, in halves.
        places: where the outputs lie among these.
        outputs: the states there.
        y: the state.
        carry: what the method carries with it.
    """

    def __init__(self, plan: AdaptiveSteps, integration: SDEIntegration, ts: Sequence[float]) -> None:
        assert isinstance(integration.noise, PathNoise), "only a path can be asked for steps of any size"
        super().__init__(ts, ts[1:] if plan.landing else ts[-1:], plan.pace, _WORDS)
        self.norm, self.noise, self.integration = plan.norm, integration.noise, integration
        self.y = integration.y0.detach()
        self.carry = integration.first_carry()
        self.times = [self.t]
        self.places, self.outputs = [(-1, 1.0)], [self.y]
        self._ts = ts
        self._sign = 1.0 if ts[-1] >= ts[0] else -1.0

    def attempt(self, middle: float, end: float) -> tuple[float, tuple[Tensor, Tensor, Any]]:
        integration, method = self.integration, self.integration.method
        t0, t_half, t1 = map(integration.time, (self.t, middle, end))
        first, second = self.noise.between(self.t, middle), self.noise.between(middle, end)
        try:
            whole, _ = method.step(integration.terms, t0, t1, self.y, join(first, second), self.carry)
            half, carry = method.step(integration.terms, t0, t_half, self.y, first, self.carry)
            y, carry = method.step(integration.terms, t_half, t1, half, second, carry)
        except SolveError:  # of an implicit method whose equations were not solved
            return math.inf, (self.y, self.y, self.carry)
        return self.norm(y - whole, self.y, y), (half, y, carry)

    def accept(self, middle: float, end: float, reached: tuple[Tensor, Tensor, Any], landed: bool) -> None:
        half, y, carry = reached
        self.times += [middle, end]
        self._record([self.y, half, y])
        self.y, self.carry = y, carry

    def _record(self, states: Sequence[Tensor]) -> None:
        """Record the outputs within a step, given the `states` at its start, middle and end."""
        while len(self.places) < len(self._ts):
            t = self._ts[len(self.places)]
            if (t - self.times[-1]) * self._sign > 0.0:
                break
            before = max(0, len(self.times) - 4)  # an output at the start of this step lies in the half step before it
            latest = Steps.through(self.times[before:], [])
            step, share = latest.place(t)
            i = step + len(states) - latest.count  # the number of the state at the end of this half step
            self.places.append((before + step, share))
            self.outputs.append(states[i] if share == 1.0 else torch.lerp(states[i - 1], states[i], share))
