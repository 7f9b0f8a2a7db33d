"""What the Adams methods of fixed steps share: their order, their start and their dense output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import Interpolant
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Check, FlatFunc, Method, Step
from torchivp.methods.ode.extrapolated_midpoint import extrapolated_midpoint
from torchivp.methods.ode.past_slopes import PastSlopes, first_slope, with_current
from torchivp.methods.ode.slope_polynomial import Array, SlopePolynomials, integrals, weighted
from torchivp.times import time_scalar

_LARGEST_WEIGHTS = 1e4
"""Where a step is much longer than one before it, weights of opposite signs are so large that they magnify rounding."""


class FixedStepAdams(Method):
    """The engine of the Adams methods of fixed order on steps of any sizes.

    The coefficients fit the times at which the past steps ended. Until there are enough of these, and where a step is
    very much longer than one before it, steps are taken by the extrapolated midpoint rule, of the same order or one
    more.

    Attributes:
        max_order: the order, once there are enough past steps.
    """

    error_order = None
    max_order: ClassVar[int] = 4
    options: ClassVar[Mapping[str, Check]] = {"max_order": partial(check_whole_number, smallest=1, largest=12)}

    def __init_subclass__(cls) -> None:
        cls.order = cls.max_order

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._norm = norm.of_equations()

    def initial_carry(self, f0: Tensor) -> Tensor:
        return f0

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: PastSlopes | Tensor | None
    ) -> Step:
        past = first_slope(t0, carry) if isinstance(carry, Tensor) else carry
        past = with_current(past, func, t0, y0, self._real_dtype, self.max_order)
        dt = t1 - t0
        nodes = past.nodes(t0, t1)
        explicit = integrals(nodes[1:])
        if len(past.times) < self.slopes_needed or abs(explicit).sum() > _LARGEST_WEIGHTS:
            y1 = extrapolated_midpoint(func, t0, dt, y0, past.slopes[:1], self.max_order, self._real_dtype)
            stages = None
        else:
            predicted = weighted(y0, dt * explicit, past.slopes)
            y1, used, slopes = self.correct(func, t1, dt, y0, predicted, nodes, past.slopes)
            stages = (torch.as_tensor(used), slopes)
        return Step(t0, t1, y0, y1, None, past._replace(current=False), past, stages)

    @property
    @abstractmethod
    def slopes_needed(self) -> int:
        """How many past slopes a step needs, that at its start included."""

    @abstractmethod
    def correct(
        self,
        func: FlatFunc,
        t1: float | Tensor,
        dt: float | Tensor,
        y0: Tensor,
        predicted: Tensor,
        nodes: Array,
        slopes: Tensor,
    ) -> tuple[Tensor, Array, Tensor]:
        """The state at `t1`, `predicted` by the explicit method; then the nodes of its polynomial and the slopes there.

        `nodes` are the end of the step and the times of the past `slopes`, in units of the step from its start.
        """

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        nodes, slopes = self._inside_a_start(func, step) if step.stages is None else step.stages
        b = SlopePolynomials(nodes, slopes.device, chord=step.stages is None)
        return Interpolant(step.t0, step.t1, step.y0, slopes, b)

    def _inside_a_start(self, func: FlatFunc, step: Step) -> tuple[Tensor, Tensor]:
        """Nodes in a step taken by the extrapolated midpoint rule, and the slopes there, that of the chord in front."""
        f0, dt = step.retry.slopes[:1], step.t1 - step.t0
        step.carry = with_current(step.carry, func, step.t1, step.y1, self._real_dtype, self.max_order)
        count = max(self.max_order - 1, 2)
        slopes = [(step.y1 - step.y0) / dt, f0]
        for i in range(1, count - 1):
            h = dt * (i / (count - 1))
            y = extrapolated_midpoint(func, step.t0, h, step.y0, f0, self.max_order, self._real_dtype)
            slope = func(time_scalar(step.t0 + h, self._real_dtype, y.device), y)
            slopes.append(slope if slope.requires_grad else slope.clone())  # func may use its memory again
        slopes.append(step.carry.slopes[:1])
        return torch.linspace(0.0, 1.0, count, dtype=torch.float64), torch.cat(slopes)
