"""What the Adams methods of fixed steps share: their order, their start and their dense output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import Interpolant, RowInterpolant
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Check, FlatFunc, Method, Step, choice
from torchivp.methods.ode.combined import as_factor, combined
from torchivp.methods.ode.extrapolated_midpoint import extrapolated_midpoint
from torchivp.methods.ode.past_slopes import Grid, PastSlopes, with_current
from torchivp.methods.ode.slope_polynomial import Array, SlopesWithin, in_rows, integrals
from torchivp.times import time_scalar
from torchivp.torch_func import read_rows

_LARGEST_WEIGHTS = 1e4
"""Where a step is much longer than one before it, weights of opposite signs are so large that they magnify rounding."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """Steps of a multistep method.

    Attributes:
        y: the states at their ends.
        nodes: those of the polynomials that were integrated, in units of the step, [rows, n].
        count: how many of them belong to each row.
        slopes: [rows, n, size].
    """

    y: Tensor
    nodes: Any
    count: np.ndarray
    slopes: Tensor


class FixedStepAdams(Method):
    """The engine of the Adams methods of fixed order on steps of any sizes.

    The coefficients fit the times at which the past steps ended. Until there are enough of these, and where a step is
    very much longer than one before it, steps are taken by the extrapolated midpoint rule, of the same order or one
    more.

    Attributes:
        max_order: the order, once there are enough past steps.
    """

    error_order = None
    rows_keep_carry = True
    max_order: ClassVar[int] = 4
    options: ClassVar[Mapping[str, Check]] = {"max_order": partial(check_whole_number, smallest=1, largest=12)}

    def __init_subclass__(cls) -> None:
        cls.order = cls.max_order

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._norm = norm

    def initial_carry(self, f0: Tensor) -> PastSlopes:
        return PastSlopes.none(f0, self.max_order)

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: PastSlopes | None
    ) -> Step:
        return self._step(func, t0, t1, y0, carry, self._norm)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: PastSlopes | None, norm: ErrorNorm
    ) -> Step:
        return self._step(func, t0, t1, y0, carry, norm)

    def _step(
        self,
        func: FlatFunc,
        t0: float | Tensor,
        t1: float | Tensor,
        y0: Tensor,
        carry: PastSlopes | None,
        norm: ErrorNorm,
    ) -> Step:
        """A step of every row, or of a single one, whose times are floats or 0-d."""
        past, known = with_current(carry, func, t0, y0, self._real_dtype, self.max_order)
        grid, dt = past.grid(t0, t1), t1 - t0
        implicit, differences = integrals(grid.nodes)
        explicit = in_rows(implicit - differences, grid.count[:, None])[:, :, 1:]
        sizes = abs(explicit).cumsum(2)[:, 0, -1]
        sizes = sizes if isinstance(sizes, np.ndarray) else read_rows(sizes)
        starts = (grid.count < self.slopes_needed) | (sizes > _LARGEST_WEIGHTS)
        y1, corrected = y0, None
        # Rows that do not step in this way or in that one take steps of size zero.
        started = np.count_nonzero(starts)
        if started:
            own = among(starts, dt, 0.0 * dt)
            y1 = extrapolated_midpoint(func, t0, own, y0, known[:, 0], self.max_order, self._real_dtype)
        if started < len(starts):
            grid = grid.only(~starts)
            predicted = y0 + combined(grid.weights(explicit, y0), known).squeeze(1)
            corrected = self.correct(func, among(~starts, t1, t0), y0, predicted, grid, implicit, known, norm)
            y1 = among(~starts, corrected.y, y1)
        return Step(t0, t1, y0, y1, None, past.after(t0, known), past, (starts, corrected))

    @property
    @abstractmethod
    def slopes_needed(self) -> int:
        """How many past slopes a step needs, that at its start included."""

    @abstractmethod
    def correct(
        self,
        func: FlatFunc,
        t1: float | Tensor,
        y0: Tensor,
        predicted: Tensor,
        grid: Grid,
        implicit: Array,
        slopes: Tensor,
        norm: ErrorNorm,
    ) -> Corrected:
        """The steps to `t1`, `predicted` by the explicit method from the past `slopes`, [rows, n, size].

        `implicit` are the weights of the implicit methods of all orders, [rows, n + 1, n + 1].
        """

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        return self._within(func, step).of_one_row(step)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        return self._within(func, step).of_rows(step)

    def _within(self, func: FlatFunc, step: Step) -> SlopesWithin:
        starts, corrected = step.stages
        if corrected is None:
            return self._inside_a_start(func, step, starts)
        within = SlopesWithin.through(corrected.nodes, corrected.count, corrected.slopes)
        return self._inside_a_start(func, step, starts).in_rows_else(starts, within) if starts.any() else within

    def _inside_a_start(self, func: FlatFunc, step: Step, starts: np.ndarray) -> SlopesWithin:
        """The solutions within steps of the extrapolated midpoint rule; nothing moves in the other rows."""
        y0, dt, f0 = step.y0, step.t1 - step.t0, step.retry.current
        t1, y1 = among(starts, step.t1, step.t0), among(starts, step.y1, y0)
        own, units = among(starts, dt, 0.0 * dt), among(starts, dt, 0.0 * dt + 1.0)
        nodes = np.linspace(0.0, 1.0, max(self.max_order - 1, 2))
        slopes = [f0]
        for node in nodes[1:-1]:
            y = extrapolated_midpoint(func, step.t0, own * node, y0, f0, self.max_order, self._real_dtype)
            slope = func(time_scalar(step.t0 + own * node, self._real_dtype, y.device), y)
            slopes.append(slope if slope.requires_grad else slope.clone())  # func may use its memory again
        slopes.append(func(time_scalar(t1, self._real_dtype, y0.device), y1))
        rows, count = len(y0), np.full(len(y0), len(nodes))
        within = SlopesWithin.through(np.tile(nodes, (rows, 1)), count, torch.stack(slopes, 1))
        return within.passing_through((y1 - y0) / as_factor(units, y0))


def among(rows: np.ndarray, one: Any, other: Any) -> Any:
    """`one` in these rows, the other elsewhere."""
    return one if np.count_nonzero(rows) == len(rows) else choice(rows)(one, other)
