"""The equations of implicit stages, `k_i = func(t_i, y + dt sum_j a_ij k_j)`, of every row.

With a projection P before dy/dt they are `P k_i = func(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torchivp.mass import Projection, projection_of
from torchivp.methods.implicit.per_row import Numbers, is_single
from torchivp.methods.method import FlatFunc


@dataclass(slots=True)
class StageEquations:
    """The equations of the stages that must be solved for together.

    Attributes:
        func: the right-hand side, of real states.
        times: the times of the stages, each [rows, 1], or 0-d if func takes one row so.
        start: the states at the starts of the steps, [rows, size].
        base: what the states of all stages have in common, [rows, size]: the start, and what the stages before add.
        a: the block of the tableau that belongs to the stages.
        dt: the sizes of the steps, [rows, 1]; of a single row a float, or 0-d.
        sizes: the same on the host.
        projection: what is before dy/dt.
    """

    func: FlatFunc
    times: Sequence[Tensor]
    start: Tensor
    base: Tensor
    a: Tensor
    dt: float | Tensor
    sizes: Numbers
    projection: Projection | None = field(init=False)
    _scaled: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        # All rows have the same coefficients, if there is one row or one coefficient.
        self.projection = projection_of(self.func)
        self._scaled = self.a * self.dt if len(self.times) == 1 or is_single(self.dt) else None

    def detached(self) -> StageEquations:
        """The same without history."""
        dt = self.dt.detach() if isinstance(self.dt, Tensor) else self.dt
        times = [t.detach() for t in self.times]
        return replace(self, times=times, start=self.start.detach(), base=self.base.detach(), dt=dt)

    def states(self, slopes: Tensor) -> Sequence[Tensor]:
        """The states of the stages, each [rows, size], of these slopes, [stages, rows, size]."""
        if self._scaled is None:
            return combined(self.base, self.a, slopes, self.dt)
        if len(self.times) == 1:
            return (torch.addcmul(self.base, slopes.squeeze(0), self._scaled),)
        return torch.addmm(self.base, self._scaled, slopes.squeeze(1)).split(1)

    def at_rest(self) -> Tensor:
        """The slopes with which the states of the stages are those at the starts of the steps."""
        if self.base is self.start:
            return self.start.new_zeros(1, *self.start.shape).expand(len(self.a), -1, -1)
        assert self._scaled is not None  # as what is solved for after other stages is a single one
        return ((self.start - self.base) / self._scaled).unsqueeze(0)

    def residual(self, slopes: Tensor) -> Tensor:
        """By how much `func` differs from these slopes, [stages, rows, size], or from what a projection leaves."""
        left = slopes
        if self.projection is not None:
            left = self.projection.differential.times(slopes, is_single(self.dt))
        if len(self.times) == 1:
            (y,) = self.states(slopes)
            return self.func(self.times[0], y) - left
        # The difference at once, stage by stage: func may use its memory again.
        each = zip(self.times, self.states(slopes), left.unbind(), strict=True)
        return torch.stack([self.func(t, y) - k for t, y, k in each])


def combined(base: Tensor, coefficients: Tensor, slopes: Tensor, dt: float | Tensor) -> Sequence[Tensor]:
    """`base + dt sum_j a_j slopes_j` for each row a of coefficients, [m, n]; the slopes are [n, rows, size].

    Row after row: the product of a matrix with many columns may round by their number, that of one row does not.
    """
    if is_single(dt):
        states = torch.addmm(base, coefficients * dt, slopes.squeeze(1))
        return (states,) if len(coefficients) == 1 else states.split(1)
    flat, columns = base.reshape(1, base.numel()), (slopes * dt).reshape(len(slopes), base.numel())
    return [torch.addmm(flat, a, columns).view_as(base) for a in coefficients.split(1)]
