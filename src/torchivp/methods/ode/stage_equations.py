"""The equations of implicit stages, `k_i = func(t_i, y + dt sum_j a_ij k_j)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc


@dataclass(slots=True)
class StageEquations:
    """The equations of the stages that must be solved for together.

    Attributes:
        func: the right-hand side, of a real state.
        times: the times of the stages.
        start: the state at the start of the step, [1, size].
        base: what the states of all stages have in common, [1, size]: the start, and what the stages before add to it.
        a: the block of the tableau that belongs to the stages.
        dt: the size of the step.
    """

    func: FlatFunc
    times: Sequence[Tensor]
    start: Tensor
    base: Tensor
    a: Tensor
    dt: float | Tensor
    _scaled: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._scaled = self.a * self.dt

    def states(self, slopes: Tensor) -> Tensor:
        """The states of the stages, [stages, size], of these slopes."""
        return torch.addmm(self.base, self._scaled, slopes)

    def at_rest(self) -> Tensor:
        """The slopes with which the states of the stages are that at the start of the step."""
        if self.base is self.start:
            return self.start.new_zeros(1, self.start.shape[1]).expand(len(self.a), -1)
        return torch.linalg.solve(self._scaled, (self.start - self.base).expand(len(self.a), -1))

    def residual(self, slopes: Tensor) -> Tensor:
        """By how much `func` differs from these slopes, [stages, size]."""
        states = self.states(slopes)
        if len(self.times) == 1:
            return self.func(self.times[0], states) - slopes
        # The difference at once, stage by stage: func may use its memory again.
        each = zip(self.times, states.split(1), slopes.split(1), strict=True)
        return torch.cat([self.func(t, y) - k for t, y, k in each])
