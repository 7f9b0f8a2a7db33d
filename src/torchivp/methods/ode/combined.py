"""Linear combinations of what a step remembers, with weights of its own in each row."""

from __future__ import annotations

import torch
from torch import Tensor

_SHORT = 256
"""Rows of up to this size are added up by one operation that keeps all partial sums."""


def combined(weights: Tensor, vectors: Tensor) -> Tensor:
    """The products of the matrices of the rows, [rows, m, n], with [rows, n, size].

    One term after the other, so that neither other rows nor vectors of weight zero change the rounding, which a product
    of matrices does not promise.
    """
    factors, vectors = weights.unsqueeze(3), vectors.unsqueeze(1)
    if vectors.shape[3] <= _SHORT:
        return (factors * vectors).cumsum(2).select(2, -1)
    (factor, vector), *others = zip(factors.unbind(2), vectors.unbind(2), strict=True)
    total = factor * vector
    for factor, vector in others:
        total = torch.addcmul(total, factor, vector)
    return total


def as_factor(dt: float | Tensor, y: Tensor) -> float | Tensor:
    """Sizes of steps as what multiplies slopes like the states `y`: those of rows, [rows, 1], in their precision."""
    return dt.to(y.device, y.dtype.to_real()) if isinstance(dt, Tensor) and dt.ndim else dt
