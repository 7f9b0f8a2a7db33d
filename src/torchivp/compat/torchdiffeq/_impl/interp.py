"""A polynomial of degree 4 through both ends and the middle of a step, with the slopes at the ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_QUARTIC = (
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0, 0.0),
    (-11.0, -5.0, 16.0, -4.0, 1.0),
    (18.0, 14.0, -32.0, 5.0, -3.0),
    (-8.0, -8.0, 16.0, -2.0, 2.0),
)
"""The coefficients of 1, x, ..., x^4 in terms of both ends, the middle, and the slopes at both ends."""


def _interp_fit(y0: Tensor, y1: Tensor, y_mid: Tensor, f0: Tensor, f1: Tensor, dt: Tensor) -> list[Tensor]:
    """The coefficients of the polynomial, the constant first."""
    data = torch.stack([y0, y1, y_mid, dt * f0, dt * f1])
    return list(torch.tensordot(data.new_tensor(_QUARTIC), data, dims=1))


def _interp_evaluate(coefficients: Sequence[Tensor], t0: Tensor, t1: Tensor, t: Tensor) -> Tensor:
    """The polynomial in `(t - t0) / (t1 - t0)`, for a `t` between `t0` and `t1`."""
    assert t0 <= t <= t1, f"t = {t} lies outside the step from {t0} to {t1}"
    x = ((t - t0) / (t1 - t0)).to(coefficients[0].dtype)
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value
