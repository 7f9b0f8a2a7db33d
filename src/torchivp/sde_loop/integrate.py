"""The loop over the steps of an SDE: the only place where its time moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.increment import Increment
from torchivp.noise.source import Noise
from torchivp.sde.terms import Terms
from torchivp.sde_loop.steps import Steps
from torchivp.torch_func import may_be_tracked


class Run(NamedTuple):
    """What all steps of a solve lead to: the states at the outputs, the last state, and what the method carries."""

    outputs: list[Tensor]
    y: Tensor
    carry: Any


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
        found: what the steps lead to, if a search for them has found it; the first run without a graph takes it.
    """

    terms: Terms
    method: SDEMethod
    y0: Tensor
    carry: Any
    steps: Steps
    noise: Noise
    time_dtype: torch.dtype
    found: list[Run] = field(default_factory=list, repr=False, compare=False)

    def restated(self, terms: Terms, y0: Tensor, carry: Any) -> SDEIntegration:
        """The same integration of other terms from another start."""
        return replace(self, terms=terms, y0=y0, carry=carry, found=[])

    def run(self) -> Run:
        """Take all steps, unless they were taken before and no derivative of them is wanted."""
        if self.found and not torch.is_grad_enabled() and not may_be_tracked():
            return self.found.pop()
        carry = self.first_carry()
        outputs: list[Tensor] = [self.y0]
        y, carry = self.advance(self.y0, carry, 0, self.steps.count, outputs)
        return Run(outputs, y, carry)

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
        asked, method, terms = self.steps.outputs, self.method, self.terms
        due = asked[len(outputs)][0] if len(outputs) < len(asked) else -1
        while first < last:
            increments, moments = self.increments(first, last)
            for i, noise in enumerate(increments):
                y0 = y
                y, carry = method.step(terms, moments[i], moments[i + 1], y0, noise, carry)
                while due == first + i:
                    share = asked[len(outputs)][1]
                    outputs.append(y if share == 1.0 else torch.lerp(y0, y, share))
                    due = asked[len(outputs)][0] if len(outputs) < len(asked) else -1
            first += len(increments)
        return y, carry

    def increments(self, first: int, last: int) -> tuple[list[Increment], list[Tensor]]:
        """The increments of the steps `first` to `last - 1`, or to the end of the block of `first` if that is earlier.

        With them the times of their ends, after that of the start of the first.
        """
        block = first // self.noise.block
        begin = block * self.noise.block
        times = self.steps.times(begin, min(begin + self.noise.block, self.steps.count))
        found = self.noise.steps(block, times)[first - begin : last - begin]
        return found, self.times(times[first - begin : first - begin + len(found) + 1])

    def time(self, t: float) -> Tensor:
        """The time `t` as drift and diffusion receive it."""
        return torch.scalar_tensor(t, dtype=self.time_dtype, device=self.y0.device)

    def times(self, times: Sequence[float]) -> list[Tensor]:
        """The `times` as drift and diffusion receive them."""
        return list(torch.tensor(times, dtype=self.time_dtype, device=self.y0.device).unbind())
