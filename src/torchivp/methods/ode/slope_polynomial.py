"""The polynomial through slopes at given times, integrated: where the coefficients of multistep methods come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.copies import ValuesTravel
from torchivp.dense import as_time_tensor
from torchivp.times import time_dtype

Array = Any
"""A NumPy array, or a tensor if a gradient flows through time: `_library` is NumPy for one and torch for the other."""

# Seven points integrate the polynomials of the highest order in use, of degree 12, exactly.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(7)
_POINTS, _WEIGHTS = (_POINTS + 1.0) / 2.0, _WEIGHTS / 2.0


def integrals(nodes: Array) -> Array:
    """Weights of the slopes at `nodes`, [n]: their sum is the integral over [0, 1] of the polynomial through them."""
    return newton_terms(nodes).sum(0)


def newton_terms(nodes: Array) -> Array:
    """The terms of `integrals`, [n, n]: the sum of the first k rows belongs to the first k nodes alone.

    Row j integrates the term of Newton's interpolation formula with the divided difference of nodes 0 to j. Source:
    Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", III.5.
    """
    return _newton_integrals(nodes, _like(_POINTS, nodes))[:, None] * _divided_differences(nodes)


def _newton_integrals(nodes: Array, s: Array) -> Array:
    """The means, over points `s` of shape [..., q], of 1, (s - x_0), (s - x_0)(s - x_1), ..., [..., n]."""
    xp = _library(nodes)
    factors = s[..., None] - nodes[:-1]
    products = xp.concatenate((xp.ones_like(s[..., None]), xp.cumprod(factors, -1)), -1)
    return (_like(_WEIGHTS, nodes)[:, None] * products).sum(-2)


def _divided_differences(nodes: Array) -> Array:
    """Row j makes the divided difference of nodes 0 to j from the values at all nodes, [n, n]."""
    one_on_diagonal, lower = (_like(matrix, nodes) for matrix in _eye_and_lower(len(nodes)))
    gaps = nodes - nodes[:, None] + one_on_diagonal
    return lower / _library(nodes).cumprod(gaps, 0)


@cache
def _eye_and_lower(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(n), np.tri(n)


def _library(nodes: Array) -> Any:
    return np if isinstance(nodes, np.ndarray) else torch


def _like(values: np.ndarray, nodes: Array) -> Array:
    return values if isinstance(nodes, np.ndarray) else torch.as_tensor(values, dtype=nodes.dtype, device=nodes.device)


def weighted(y0: Tensor, weights: Array, slopes: Tensor) -> Tensor:
    """`y0 + sum_j weights_j slopes_j`."""
    if not isinstance(weights, Tensor):
        weights = torch.from_numpy(weights)
    return torch.addmm(y0, weights.to(y0.device, y0.dtype)[None], slopes)


class SlopePolynomials(ValuesTravel):
    """Weights b_j(theta) of the slopes at `nodes`: the polynomial through them, integrated from 0 to theta.

    Args:
        nodes: in units of the step, [n], float64.
        device: where they are evaluated.
        chord: whether there is one weight more, in front, for the slope of the chord: a multiple of theta^(n+1) is
            added, so that the polynomial passes through the end of the step.
    """

    def __init__(self, nodes: Tensor, device: torch.device, chord: bool = False):
        self._nodes = nodes.to(device, time_dtype(device))
        self._chord = chord

    def __call__(self, theta: Sequence[float | Tensor]) -> Tensor:
        """The values at each `theta`, [len(theta), number of weights]."""
        column = as_time_tensor(theta, self._nodes.device).unsqueeze(1)
        if not self._chord:
            return self._integrals(column)
        power = column ** (len(self._nodes) + 1)
        at_end = self._integrals(torch.ones_like(column[:1]))
        return torch.cat((power, self._integrals(column) - power * at_end), 1)

    def _integrals(self, theta: Tensor) -> Tensor:
        """From 0 to each `theta`, [T, 1]."""
        means = _newton_integrals(self._nodes, theta * _like(_POINTS, self._nodes))
        return torch.mm(theta * means, _divided_differences(self._nodes))
