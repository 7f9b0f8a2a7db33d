"""The way back of the adjoint equations of an SDE, on steps whose size follows the error."""

from __future__ import annotations

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.gradients.sde_adjoint_steps import Shared, State
from torchivp.gradients.sde_adjoint_way import WayBack
from torchivp.gradients.sde_inputs import SDEInputs
from torchivp.noise.along import PathNoise
from torchivp.noise.increment import join
from torchivp.sde_loop.halving import HalvedSteps, Pace, Words

_WORDS = Words(
    subject="the adjoint",
    tolerances="adjoint_rtol and adjoint_atol",
    limit="adjoint_options={'max_num_steps': ...}",
    faster="",
    not_finite="the way back may be unstable; use sdeint with gradient='checkpointed'",
)


class AdaptiveWayBack(WayBack):
    """The backward solve on steps of its own, which land on the outputs.

    Args:
        inputs: what is differentiated.
        method: the name of the method that takes the steps.
        end: the last state.
        states: the states at the outputs.
        grad: the gradient of these.
        pace: what the sizes of the steps depend on besides the error.
        rtol: relative tolerance, for the state and for its gradient.
        atol: absolute tolerance, likewise.
    """

    def __init__(
        self,
        inputs: SDEInputs,
        method: str,
        end: Tensor,
        states: Tensor,
        grad: Tensor,
        pace: Pace,
        rtol: float,
        atol: float,
    ) -> None:
        super().__init__(inputs, method, end, states, grad)
        size = end.shape[1]
        self.norm = ErrorNorm(rtol, atol, [slice(0, size), slice(size, 2 * size)], end.dtype)
        self.pace = pace

    def go_back(self) -> None:
        ts = [self._moment(*output) for output in reversed(self.integration.steps.outputs)]
        if len(ts) == 1:
            return
        walk = _Walk(self, ts)
        walk.walk()
        walk.warn_of_forced()

    def land(self, k: int) -> None:
        """The solve is at the output `k`."""
        if self.integration.steps.outputs[k][1] == 1.0:
            self.compare(k)
            self.y = self.states[k]
        self.a = self.a + self.grads[k]

    def _moment(self, step: int, share: float) -> float:
        """The time of an output."""
        if step < 0:
            return self.integration.steps.times(0, 0)[0]
        begin, end = self.integration.steps.times(step, step + 1)
        return end if share == 1.0 else begin + share * (end - begin)


class _Walk(HalvedSteps[tuple[State, Shared]]):
    """The walk of a backward solve. What it reaches with a step is the state, and what the step contributes.

    Args:
        way: the backward solve.
        ts: the times of the outputs, the last one first.
    """

    def __init__(self, way: AdaptiveWayBack, ts: list[float]) -> None:
        super().__init__(ts, ts[1:], way.pace, _WORDS)
        noise = way.integration.noise
        assert isinstance(noise, PathNoise), "only a path can be asked for steps of any size"
        self.way, self.noise = way, noise
        self.left = len(ts) - 1
        way.land(self.left)

    def attempt(self, middle: float, end: float) -> tuple[float, tuple[State, Shared]]:
        way = self.way
        t0, t_half, t1 = map(way.integration.time, (end, middle, self.t))
        first, second = self.noise.between(end, middle), self.noise.between(middle, self.t)
        whole, _ = way.take(t0, t1, join(first, second))
        half, shared = way.take(t_half, t1, second)
        state, others = way.take(t0, t_half, first, *half)
        after, before = torch.cat(state, dim=1), torch.cat((way.y, way.a), dim=1)
        return way.norm(after - torch.cat(whole, dim=1), before, after), (state, [*shared, *others])

    def accept(self, middle: float, end: float, reached: tuple[State, Shared], landed: bool) -> None:
        way = self.way
        (way.y, way.a), shared = reached
        way.add(shared)
        if landed:
            self.left -= 1
            if self.left > 0:  # the gradient of the first output is added at the very end
                way.land(self.left)
