"""Dense linear systems of stages: one LU factorisation of all of them, or one for each mode of the coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.mass import Projection
from torchivp.methods.factorised import Factorised
from torchivp.methods.implicit.per_row import is_single

_LEAST_DECOUPLED, _LEAST_DECOUPLED_ROWS = 240, 40
"""The smallest system of several stages that is decoupled, of a single row and of rows: below, one factorisation of all
takes less time."""

_MOST_COUPLED = 1e3
"""The largest condition of the eigenvectors with which stages are decoupled."""


def factorised_stages(
    a: Tensor, jacobians: Tensor, dt: float | Tensor, projection: Projection | None
) -> Factorised | Decoupled:
    """The matrices `I - dt (a_ij J_i)` of stages, of which each row of blocks has its Jacobian, or all have one.

    Args:
        a: the coefficients, [stages, stages].
        jacobians: the Jacobians, [rows, stages or 1, size, size].
        dt: the sizes of the steps, [rows, 1], or of a single row.
        projection: what is before dy/dt, in place of each I.
    """
    least = _LEAST_DECOUPLED if is_single(dt) else _LEAST_DECOUPLED_ROWS
    pays = len(a) > 1 == jacobians.shape[1] and len(a) * jacobians.shape[2] >= least
    if pays and (modes := _modes(tuple(map(tuple, a.tolist())))):
        return Decoupled.of(modes, jacobians.squeeze(1), dt, _before_slopes(projection, 1, jacobians))
    return _factorised(a, jacobians, dt, _before_slopes(projection, len(a), jacobians))


def _before_slopes(projection: Projection | None, stages: int, like: Tensor) -> Tensor:
    """The matrix before the slopes of all stages."""
    if projection is None:
        return torch.eye(stages * like.shape[-1], dtype=like.dtype, device=like.device)
    return torch.block_diag(*[projection.differential.matrix] * stages)


def _factorised(a: Tensor, jacobians: Tensor, dt: float | Tensor, one: Tensor) -> Factorised:
    """The matrices with these Jacobians, [rows, stages or 1, size, size]; `dt` is [rows, 1], or of a single row.

    `one` is before the slopes of all stages.
    """
    rows, _, size, _ = jacobians.shape
    n = len(a) * size
    single = is_single(dt)
    scaled = a * -(dt.reshape(-1, 1, 1) if isinstance(dt, Tensor) else dt)
    # What is not finite must not reach the pivots. A row without a derivative is iterated as if it had none.
    blocks = (jacobians.unsqueeze(2) * scaled.unsqueeze(-1).unsqueeze(-1)).nan_to_num(0.0, 0.0, 0.0)
    shape = (n, n) if single else (rows, n, n)  # a single matrix takes less time than a batch of one
    matrix = blocks.permute(0, 1, 3, 2, 4).reshape(shape) + one
    return Factorised(matrix)


class Mode(NamedTuple):
    """An eigenvalue of the coefficients of stages, or one of a conjugate pair.

    Attributes:
        value: the eigenvalue, real or complex.
        left: what takes the slopes of the stages to their part in it.
        right: what makes slopes of the part, for a pair twice their real part.
    """

    value: complex
    left: Sequence[complex]
    right: Sequence[complex]


@cache
def _modes(a: Sequence[Sequence[float]]) -> Sequence[Mode]:
    """The modes of the coefficients; none if these cannot be decoupled without loss of precision."""
    values, right = np.linalg.eig(np.array(a))
    if np.linalg.cond(right) > _MOST_COUPLED:
        return ()
    left, modes = np.linalg.inv(right), []
    for i, value in enumerate(values.tolist()):
        if np.imag(value) == 0.0:
            # Real vectors, though the others are complex; numpy makes them so.
            modes.append(Mode(np.real(value), np.real(left[i]).tolist(), np.real(right[:, i]).tolist()))
        elif np.imag(value) > 0.0:
            modes.append(Mode(value, left[i].tolist(), (2 * right[:, i]).tolist()))
    return modes


@dataclass(frozen=True)
class Decoupled:
    """The matrices `I - dt a x J` of stages, one of the size of a state for each mode of `a`.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8.

    Attributes:
        modes: the modes.
        factors: `I - dt value J` for each of them.
    """

    modes: Sequence[Mode]
    factors: Sequence[Factorised]

    @staticmethod
    def of(modes: Sequence[Mode], jacobians: Tensor, dt: float | Tensor, one: Tensor) -> Decoupled:
        """With these Jacobians, [rows, size, size]; `dt` is [rows, 1], or of a single row.

        `one` is before the slopes of a stage.
        """
        scaled = jacobians * (dt.reshape(-1, 1, 1) if isinstance(dt, Tensor) else dt)
        scaled = (scaled.squeeze(0) if is_single(dt) else scaled).nan_to_num(0.0, 0.0, 0.0)
        return Decoupled(modes, [Factorised(one - mode.value * scaled) for mode in modes])

    def map(self, function: Callable[..., Tensor], *others: Decoupled) -> Decoupled:
        """What `function` makes of the factors."""
        each = zip(self.factors, *(other.factors for other in others), strict=True)
        return Decoupled(self.modes, [first.map(function, *rest) for first, *rest in each])

    def solve(self, right: Tensor) -> Tensor:
        """The inverses times `right`, [..., stages * size, 1]."""
        slopes = right.unflatten(-2, (len(self.modes[0].left), -1)).unbind(-3)
        parts = []
        for mode, factor in zip(self.modes, self.factors, strict=True):
            part = factor.solve(_sum(mode.left, slopes))
            parts.append([(weight * part).real if part.is_complex() else weight * part for weight in mode.right])
        return torch.cat([_sum([1.0] * len(each), each) for each in zip(*parts, strict=True)], -2)


def _sum(weights: Sequence[complex], terms: Sequence[Tensor]) -> Tensor:
    """The weighted sum, term by term: so a row does not depend on how many there are."""
    first, *others = (weight * term for weight, term in zip(weights, terms, strict=True))
    return sum(others, first)
