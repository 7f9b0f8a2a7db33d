"""What the engines of stochastic Runge-Kutta methods share: sums without zeros, and the times of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from torchivp.noise.increment import Increment

Rows = Sequence[Sequence[float]]
"""A matrix, row by row; rows may be of different lengths."""

Coefficients = tuple[tuple[int, float], ...]
"""Numbers of stages, each with its coefficient, which is not zero."""


def nonzero(coefficients: Sequence[float]) -> Coefficients:
    """The coefficients that are not zero, each with its place."""
    return tuple((i, float(c)) for i, c in enumerate(coefficients) if c != 0)


def lower_triangle(rows: Rows) -> np.ndarray:
    """Rows of increasing length as a square matrix with one row more, the first, of zeros."""
    matrix = np.zeros((len(rows) + 1, len(rows) + 1))
    for i, row in enumerate(rows, start=1):
        matrix[i, : len(row)] = row
    return matrix


def require(residuals: Sequence[float | np.ndarray], kind: str) -> None:
    """Check that coefficients satisfy their order conditions.

    Raises:
        ValueError: one of the `residuals` is not zero.
    """
    worst = max(float(np.max(np.abs(residual))) for residual in residuals)
    if not worst < 1e-11:
        raise ValueError(f"inconsistent coefficients of {kind}: an order condition is off by {worst:.1e}")


class StageTimes:
    """The times of the stages between `t0` and `t1`, each made once."""

    __slots__ = ("_known", "_t0", "_t1")

    def __init__(self, t0: Tensor, t1: Tensor) -> None:
        self._t0, self._t1 = t0, t1
        self._known = {0.0: t0, 1.0: t1}

    def __getitem__(self, c: float) -> Tensor:
        found = self._known.get(c)
        if found is None:
            found = self._known[c] = torch.lerp(self._t0, self._t1, c)
        return found


class Combination:
    """A fixed linear combination of the values of stages, up to a factor.

    Args:
        coefficients: one for each stage.

    Attributes:
        factor: what `of` must be multiplied by.
    """

    __slots__ = ("_first", "_others", "factor")

    def __init__(self, coefficients: Sequence[float]) -> None:
        (self._first, self.factor), *others = nonzero(coefficients)
        self._others = tuple((i, c / self.factor) for i, c in others)

    def of(self, values: Mapping[int, Tensor]) -> Tensor:
        """The combination of `values`, not to be modified, divided by `factor`."""
        total = values[self._first]
        for i, c in self._others:
            total = total.add(values[i], alpha=c)
        return total


def elementwise(g: Tensor) -> Tensor:
    """A diffusion that multiplies the path elementwise, [rows, size]: that of diagonal noise or of one channel."""
    return g if g.ndim == 2 else g.squeeze(2)


def space_time(noise: Increment) -> Tensor:
    """The area H of an increment, which it has if the method asked for it."""
    assert noise.H is not None, "the method's levy_area is what the path must provide"
    return noise.H
