"""The loop over the steps of an SDE: the only place where its time moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.along import PathNoise
from torchivp.noise.grid import GridNoise
from torchivp.sde.terms import Terms
from torchivp.sde_loop.steps import Steps

Noise = GridNoise | PathNoise


@dataclass(frozen=True)
class SDEIntegration:
    """All that determines the steps of a solve.

    Attributes:
        terms: drift and diffusion.
        method: takes the steps.
        y0: the initial state, [rows, size].
        carry: what the first step starts from besides; None for what the method makes of the initial state.
        steps: the steps, and where the outputs lie among them.
        noise: the increments of the path.
        time_dtype: the dtype of the times that drift and diffusion receive.
    """

    terms: Terms
    method: SDEMethod
    y0: Tensor
    carry: Any
    steps: Steps
    noise: Noise
    time_dtype: torch.dtype

    def restated(self, terms: Terms, y0: Tensor, carry: Any) -> SDEIntegration:
        """The same integration of other terms from another start."""
        return replace(self, terms=terms, y0=y0, carry=carry)

    def run(self) -> tuple[list[Tensor], Tensor, Any]:
        """Take all steps; returns the states at the outputs, the last state and what the method carries with it."""
        carry = self.first_carry()
        outputs: list[Tensor] = [self.y0]
        y, carry = self.advance(self.y0, carry, 0, self.steps.count, outputs)
        return outputs, y, carry

    def first_carry(self) -> Any:
        """What the first step starts from besides the initial state."""
        if self.carry is not None:
            return self.carry
        return self.method.start(self.terms, self.time(self.steps.times(0, 0)[0]), self.y0)

    def advance(self, y: Tensor, carry: Any, first: int, last: int, outputs: list[Tensor]) -> tuple[Tensor, Any]:
        """Take the steps `first` to `last - 1`, and append the states at the outputs within them.

        `outputs` holds as many states as there are outputs before; the caller may leave out earlier ones with
        placeholders.
        """
        asked, count = self.steps.outputs, self.steps.count
        method, terms, length = self.method, self.terms, self.noise.block
        due = asked[len(outputs)][0] if len(outputs) < len(asked) else -1
        while first < last:
            block = first // length
            begin, end = block * length, min((block + 1) * length, count)
            times = self.steps.times(begin, end)
            increments = self.noise.steps(block, times)
            moments = self.times(times)
            for i in range(first - begin, min(end, last) - begin):
                y0 = y
                y, carry = method.step(terms, moments[i], moments[i + 1], y0, increments[i], carry)
                while due == begin + i:
                    share = asked[len(outputs)][1]
                    outputs.append(y if share == 1.0 else torch.lerp(y0, y, share))
                    due = asked[len(outputs)][0] if len(outputs) < len(asked) else -1
            first = end
        return y, carry

    def increments(self, first: int, last: int) -> tuple[list[Any], list[Tensor]]:
        """The increments of the steps `first` to `last - 1`, of one block, and the times of their ends."""
        length = self.noise.block
        block = first // length
        begin, end = block * length, min((block + 1) * length, self.steps.count)
        times = self.steps.times(begin, end)
        found = self.noise.steps(block, times)
        return list(found[first - begin : last - begin]), self.times(times[first - begin : last - begin + 1])

    def time(self, t: float) -> Tensor:
        """The time `t` as drift and diffusion receive it."""
        return torch.scalar_tensor(t, dtype=self.time_dtype, device=self.y0.device)

    def times(self, times: Sequence[float]) -> list[Tensor]:
        """The `times` as drift and diffusion receive them."""
        return list(torch.tensor(times, dtype=self.time_dtype, device=self.y0.device).unbind())
