"""Error control of the steps of implicit Runge-Kutta methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.implicit.equations import combined
from torchivp.methods.implicit.linear import StageSolver
from torchivp.methods.implicit.per_row import Flags, Numbers, any_of, clipped, pick, pick_slopes
from torchivp.methods.ode.implicit_stages import Stages

_GOOD = 0.3
"""A step grows, or shrinks after a failure, to where corrections shrink at this rate."""

_LEAST = 1e-4
"""Errors and rates are taken to be at least this where they are compared with those of other steps."""


class _Filter(NamedTuple):
    """The inverse of `I - dt g J` by the solver of a block of stages, with a real eigenvalue g of its coefficients.

    Attributes:
        vector: the eigenvector, [stages, 1, 1].
        place: which of its elements is one.
    """

    vector: Tensor
    place: int

    @staticmethod
    def of(a: np.ndarray, like: Tensor) -> _Filter:
        """Of the coefficients `a`, [stages, stages]."""
        values, vectors = np.linalg.eig(a)
        vector = np.real(vectors[:, np.argmin(abs(np.imag(values)))])
        place = int(np.argmax(abs(vector)))
        return _Filter(torch.as_tensor(vector / vector[place]).to(like).view(-1, 1, 1), place)

    def __call__(self, solver: StageSolver, x: Tensor) -> Tensor:
        return solver.solve(self.vector * x)[self.place]


class ErrorControl:
    """How large the error of a step is, and how much longer the next one may be.

    Args:
        order: the order of the error estimate.
        stages: the coefficients, with those of an embedded method.
        filters: whether the matrix of the linear systems filters the estimate.
    """

    def __init__(self, order: int, stages: Stages, filters: bool):
        assert stages.error is not None
        self._order = order
        self._b = stages.error
        self._of_start = float(self._b[0, 0]) if stages.blocks[0].own is None else 0.0
        self._filter = None
        if filters:
            self._filter = _Filter.of(stages.matrix[stages.solved, stages.solved], stages.a)

    def difference(self, slopes: Tensor, dt: float | Tensor) -> Tensor:
        """The difference to the embedded method, [rows, size]."""
        return combined(torch.zeros_like(slopes[0]), self._b, slopes, dt)[0]

    def filtered(
        self,
        raw: Tensor,
        solver: StageSolver,
        dt: float | Tensor,
        again: Flags,
        size_of: Callable[[Tensor], Numbers],
        change_of_slope: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The difference to the embedded method, damped by the filter where the problem is stiff, if there is one.

        Where it is too large nevertheless in a step that is tried `again`, it is damped twice: in fast transients the
        slope at the start spoils it (Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8).

        Args:
            raw: the difference.
            solver: that of the linear systems.
            dt: the sizes of the steps.
            again: which of them are tried again.
            size_of: the sizes of errors in units of the tolerance.
            change_of_slope: by how much the slope at the start changes with the state there.
        """
        if self._filter is None:
            return raw
        error = self._filter(solver, raw)
        if self._of_start and any_of(again):
            large = again & (size_of(error) > 1.0)
            if any_of(large):
                second = self._filter(solver, raw + change_of_slope(error) * (self._of_start * dt))
                error = pick_slopes(large, second.unsqueeze(0), error.unsqueeze(0)).squeeze(0)
        return error

    def growth(
        self, size: Numbers, ratio: Numbers, before: Numbers, rate: Numbers, failed: Collection[int]
    ) -> tuple[Numbers, Numbers]:
        """The sizes of the errors, and by which factor the next step may be longer.

        So that its error is not too large if it goes on to change as it did (Gustafsson, "Control-theoretic techniques
        for stepsize selection in implicit Runge-Kutta methods", ACM TOMS 20 (1994)), and Newton's iteration, whose rate
        of convergence grows with the step, does not fail.

        Args:
            size: the sizes of the errors in units of the tolerance.
            ratio: by how much the steps are longer than those before.
            before: the sizes of the errors of those.
            rate: the slowest rate of convergence that was seen.
            failed: the places of the rows whose iteration has failed.
        """
        size = clipped(size, _LEAST, 1.0 / _LEAST)
        by_error = abs(ratio) * (before / (size * size)) ** (1.0 / (self._order + 1))
        by_rate = _GOOD / clipped(rate, _LEAST, math.inf)
        by_error, most = clipped(0.9 * by_error, 0.2, math.inf), clipped(by_rate, 1.0, math.inf)
        factor = pick(by_error < most, by_error, most)  # not known in the first step
        in_vain = bool(failed)
        if not isinstance(size, float):
            in_vain = np.zeros(len(size), dtype=bool)
            in_vain[list(failed)] = True
        factor = pick(size <= 1.0, factor, math.inf)
        return size, pick(in_vain, clipped(by_rate, 0.1, 0.5), factor)
