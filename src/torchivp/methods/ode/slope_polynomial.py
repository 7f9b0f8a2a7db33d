"""The polynomial through slopes at given times, integrated: where the coefficients of multistep methods come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from torchivp.copies import ValuesTravel
from torchivp.dense import Interpolant, RowInterpolant, as_time_tensor
from torchivp.methods.method import Step, choice
from torchivp.methods.ode.combined import as_factor, combined
from torchivp.times import time_dtype

Array = Any
"""A NumPy array, or a tensor if a gradient flows through time: `library` is NumPy for one and torch for the other."""

# Seven points integrate the polynomials of the highest order in use, of degree 12, exactly.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(7)
_POINTS, _WEIGHTS = (_POINTS + 1.0) / 2.0, _WEIGHTS / 2.0


def integrals(nodes: Array) -> tuple[Array, Array]:
    """Weights of slopes at `nodes`, [rows, n]: integrals over [0, 1] of polynomials through them, [rows, n, n].

    The first are those of the polynomials through the nodes 0 to k. The others are by how much they differ, for k > 0,
    from those through the nodes 1 to k: multiples of divided differences, in which node 0 has the whole weight that it
    has in the first.

    The integral is the sum of those of the terms of Newton's interpolation formula, each with the divided difference of
    the nodes 0 to j. Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", III.5.
    """
    terms = _newton_terms(nodes)
    return terms.cumsum(1), terms * (terms[:, :, :1].cumsum(1) / terms[:, :, :1])


def _newton_terms(nodes: Array) -> Array:
    means = _means(_like(_POINTS, nodes)[:, None] - nodes[..., None, :])
    return means[..., None] * _divided_differences(nodes)


def scaled_differences(nodes: Array, count: np.ndarray) -> Array:
    """What makes of slopes at `nodes`, [rows, n], those that `SlopePolynomials` weighs, [rows, n, n].

    The first `count` nodes of each row are used.
    """
    used = np.arange(nodes.shape[1]) < count[:, None]
    scales = _scales(nodes).cumprod(-1) / _scales(nodes) * _like(used, nodes)
    return scales[..., None] * _divided_differences(nodes)


def _scales(nodes: Array) -> Array:
    """Bounds of the distances from `nodes` to all of the step."""
    return 1.0 + abs(nodes if isinstance(nodes, np.ndarray) else nodes.detach())


def _means(factors: Array) -> Array:
    """The means, over the points, of 1, f_0, f_0 f_1, ... of the factors, [..., points, n], but the last: [..., n]."""
    one = 0.0 * factors[..., :1] + 1.0
    products = library(factors).concatenate((one, factors[..., :-1].cumprod(-1)), -1)
    return (_like(_WEIGHTS, factors)[:, None] * products).sum(-2)


def _divided_differences(nodes: Array) -> Array:
    """Row j makes the divided difference of nodes 0 to j from the values at all nodes, [..., n, n]."""
    one_on_diagonal, lower = (_like(matrix, nodes) for matrix in _eye_and_lower(nodes.shape[-1]))
    gaps = nodes[..., None, :] - nodes[..., None] + one_on_diagonal
    return lower / gaps.cumprod(-2)


@cache
def _eye_and_lower(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(n), np.tri(n)


def library(nodes: Array) -> Any:
    """What computes with it."""
    return np if isinstance(nodes, np.ndarray) else torch


def _like(values: np.ndarray, nodes: Array) -> Array:
    return values if isinstance(nodes, np.ndarray) else torch.as_tensor(values, dtype=nodes.dtype, device=nodes.device)


def in_rows(values: Array, places: np.ndarray) -> Array:
    """Of each row of `values`, [rows, n, ...], the entries at its places, [rows, m]."""
    if len(places) == 1:
        return values[:, places[0]]
    rows = np.arange(len(places))[:, None]
    if isinstance(values, np.ndarray):
        return values[rows, places]
    return values[torch.from_numpy(rows), torch.from_numpy(places)]


class SlopePolynomials(ValuesTravel):
    """Polynomials b_j(theta), zero at theta = 0, that weigh the scaled divided differences of slopes at nodes of rows.

    Their sum is the polynomial through the slopes, integrated from 0 to theta.

    Args:
        nodes: in units of the step, [rows, n], in the dtype of time.
        power: the exponent of one polynomial more, a power of theta, behind the others; None for none.
    """

    def __init__(self, nodes: Tensor, power: int | None):
        self._nodes = nodes
        self._power = power

    def __call__(self, theta: Sequence[float | Tensor]) -> Tensor:
        """The values of a single row at each `theta`, [len(theta), number of polynomials]."""
        return self._at(self._nodes, as_time_tensor(theta, self._nodes.device).unsqueeze(1))

    def of_rows(self, rows: Tensor, theta: np.ndarray | Tensor) -> Sequence[Tensor]:
        """The values of each polynomial at a `theta` of each of the `rows`."""
        return self._at(self._nodes[rows], torch.as_tensor(theta).to(self._nodes).unsqueeze(1)).unbind(1)

    def _at(self, nodes: Tensor, theta: Tensor) -> Tensor:
        points = (theta * _like(_POINTS, nodes)).unsqueeze(-1)
        nodes = nodes.unsqueeze(-2)
        values = theta * _means((points - nodes) / _scales(nodes))
        return values if self._power is None else torch.cat((values, theta**self._power), 1)


class SlopesWithin(NamedTuple):
    """The solutions within steps: the integrals of polynomials through slopes.

    Attributes:
        nodes: where the slopes are, in units of the step, [rows, n], in the dtype of time.
        differences: divided differences of the slopes, scaled, [rows, n, size].
        rest: what leads to the ends of the steps besides, [rows, size], times a power of the fraction of the step; None
            for nothing.
        power: its exponent.
    """

    nodes: Tensor
    differences: Tensor
    rest: Tensor | None = None
    power: int | None = None

    @staticmethod
    def through(nodes: Array, count: np.ndarray, slopes: Tensor) -> SlopesWithin:
        """Through the `slopes`, [rows, n, size], at the first `count` of the `nodes` in each row."""
        weights = torch.as_tensor(scaled_differences(nodes, count)).to(slopes.device, slopes.dtype)
        places = torch.as_tensor(nodes).to(slopes.device, time_dtype(slopes.device))
        return SlopesWithin(places, combined(weights, slopes))

    def passing_through(self, chord: Tensor) -> SlopesWithin:
        """The same with a multiple of theta^(n + 1) added, so that the ends are those that the `chord` leads to."""
        rows, n, _ = self.differences.shape
        at_end = SlopePolynomials(self.nodes, None).of_rows(torch.arange(rows), np.ones(rows))
        for weight, difference in zip(at_end, self.differences.unbind(1), strict=True):
            chord = chord - weight.to(chord.dtype).unsqueeze(1) * difference
        return self._replace(rest=chord, power=n + 1)

    def in_rows_else(self, rows: np.ndarray, other: SlopesWithin) -> SlopesWithin:
        """These in the `rows`, the others, which have no rest, elsewhere."""
        assert self.rest is not None
        more = other.nodes.shape[1] - self.nodes.shape[1]
        # Nothing is weighed by what is put behind.
        nodes, others = (pad(x.nodes, (0, max(n, 0))) for x, n in ((self, more), (other, -more)))
        mine, theirs = (pad(x.differences, (0, 0, 0, max(n, 0))) for x, n in ((self, more), (other, -more)))
        choose = choice(rows)
        rest = choose(self.rest, torch.zeros_like(self.rest))
        return SlopesWithin(choose(nodes, others), choose(mine, theirs), rest, self.power)

    def of_one_row(self, step: Step) -> Interpolant:
        """Within the step of a single row."""
        return Interpolant(step.t0, step.t1, step.y0, self._weighed()[0], SlopePolynomials(self.nodes, self.power))

    def of_rows(self, step: Step) -> RowInterpolant:
        """Within a step of rows."""
        dt = torch.as_tensor(as_factor(step.t1 - step.t0, step.y0))
        increments = self._weighed() * dt.unsqueeze(2)
        flat = increments.transpose(0, 1).reshape(increments.shape[1], step.y0.numel())
        return RowInterpolant(step.y0, flat, SlopePolynomials(self.nodes, self.power))

    def _weighed(self) -> Tensor:
        return self.differences if self.rest is None else torch.cat((self.differences, self.rest.unsqueeze(1)), 1)
