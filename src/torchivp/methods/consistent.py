"""Equations with a singular mass matrix: consistent states, and their slopes.

With a projection P before dy/dt and Q = I - P, the equations are P dy/dt = P func and 0 = Q func. A state is consistent
if it solves the second ones. They determine Q y if their derivative by it is regular: then the index is one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from torchivp.mass import Projection, projection_of
from torchivp.methods.factorised import Factorised
from torchivp.methods.jacobian import derivatives, jacobians
from torchivp.methods.method import FlatFunc
from torchivp.torch_func import derivative_depth, derivatives_enabled, inside_transform, moves, read_rows

_MOST = 50
"""The largest number of Newton iterations."""

_DAMPING = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)
"""The fractions of a correction to try."""

_CORRECTIONS = 2
"""How many times a consistent state can be differentiated, but for nested transforms of torch.func."""

_ROUNDING = 16
"""Residuals and corrections below so many rounding errors are none."""

_SINGULAR = 1e3
"""A matrix is singular if its smallest singular value is below so many rounding errors of the largest."""

_HIGHER_INDEX = (
    "the equations without a derivative do not determine the rest of the state: their derivative by it is singular, as "
    "far as autograd sees. The index of the problem is higher than one: differentiate these equations by time and "
    "insert the others, until each has an element of the state of its own to determine"
)
_NO_SOLUTION = (
    "Newton's iteration finds no state at which the equations without a derivative hold: start nearer to one, in the "
    "elements that mass does not multiply"
)


def slopes_of(func: FlatFunc) -> FlatFunc:
    """dy/dt of the equations whose right-hand side is `func`, at consistent states: `func` itself where that is it."""
    projection = projection_of(func)
    return func if projection is None else partial(_slopes, func, projection)


def _slopes(func: FlatFunc, projection: Projection, t: Tensor, y: Tensor) -> Tensor:
    """The slopes of consistent states, which stay consistent: Q (df/dy dy/dt + df/dt) = 0."""
    recorded = inside_transform() or (derivatives_enabled() and moves(func(t, y)))
    found, single = derivatives(func, t, y, recorded), _is_single(t)
    matrix = _matrix(projection, found.jacobian, -1.0, single)
    right = projection.differential.times(found.slope, single)
    if found.by_time is not None:
        right = right + projection.algebraic.times(found.by_time, single)
    factors = Factorised(matrix.detach())
    right = right.unsqueeze(2)
    return (factors.solve_for(matrix, right) if recorded else factors.solve(right)).squeeze(2)


def _matrix(projection: Projection, jacobian: Tensor, sign: float, single: bool) -> Tensor:
    """P plus or minus Q J, [rows, n, n]."""
    return projection.differential.matrix + sign * projection.algebraic.times(jacobian.mT, single).mT


def _is_single(t: Tensor) -> bool:
    return t.ndim == 0


def consistent(func: FlatFunc, t: Tensor, y: Tensor) -> tuple[Tensor, dict[int, str]]:
    """The states next to `y`, [rows, size], at which no equation without a derivative is violated.

    The part that the mass matrix multiplies stays what it is, the other is found by Newton's iteration. As functions of
    all that they depend on.

    Returns:
        The states, NaN where there are none, and why there are none, by the place of the row.
    """
    projection = projection_of(func)
    if projection is None:
        return y, {}
    single = _is_single(t)
    with torch.no_grad():
        search = _Search(func, projection, t.detach(), y.detach(), single)
        found, why = search.run()
    if inside_transform() or (derivatives_enabled() and (moves(y) or moves(t) or moves(func(t, y)))):
        found = y + (found - y.detach())
        factors = search.factors(found.detach(), by_autograd=True)
        for _ in range(_CORRECTIONS + derivative_depth()):
            change = search.solve(factors, func(t, found))
            found = found - (change - change.detach())
    return found, why


class _Search:
    """Newton's iteration for the algebraic parts of the states of rows, each on its own."""

    def __init__(self, func: FlatFunc, projection: Projection, t: Tensor, y: Tensor, single: bool):
        self._func, self._projection, self._t, self._y, self._single = func, projection, t, y, single
        self._eps = torch.finfo(y.dtype).eps

    def run(self) -> tuple[Tensor, dict[int, str]]:
        """The states, and why there are none."""
        y, why = self._y, dict[int, str]()
        left = near = np.ones(len(y), dtype=bool)
        for n in range(_MOST):
            value, jacobian = self._func(self._t, y).clone(), jacobians(self._func, self._t, y)
            singular, reason = left & self._is_singular(jacobian), _NO_SOLUTION if n else _HIGHER_INDEX
            why |= dict.fromkeys(np.flatnonzero(singular).tolist(), reason)
            factors = self._factorised(jacobian)
            change, size = self.solve(factors, value), y.abs()
            residual = self._projection.algebraic.times(value, self._single).abs()
            solved = _all(residual <= _ROUNDING * self._eps * self._terms(jacobian, size))
            left = left & ~(singular | solved | _all(change.abs() <= _ROUNDING * self._eps * size))
            near = _all(change.abs() <= self._eps**0.5 * size)
            if not left.any():
                break
            damping = torch.from_numpy(self._damped(y, change, factors, left)).to(y).unsqueeze(1)
            y = torch.where(damping > 0.0, y - damping * change, y)
        why |= dict.fromkeys(np.flatnonzero(left & ~near).tolist(), _NO_SOLUTION)
        if why:
            y = y.index_fill(0, torch.tensor(list(why), device=y.device), torch.nan)
        return y, why

    def _terms(self, jacobian: Tensor, size: Tensor) -> Tensor:
        """About how large the terms are that make up the residuals."""
        terms = (jacobian.abs() * size.unsqueeze(1)).sum(2)
        algebraic = self._projection.algebraic
        if algebraic.diagonal is not None:
            return algebraic.times(terms, self._single)
        return (algebraic.matrix.abs() * terms.unsqueeze(1)).sum(2)

    def _damped(self, y: Tensor, change: Tensor, factors: Factorised, left: np.ndarray) -> np.ndarray:
        """The parts of the corrections after which the same matrix finds smaller ones, [rows]; zero in rows not `left`.

        Deuflhard's natural monotonicity test: "Newton Methods for Nonlinear Problems" (2004), 3.3.
        """
        before, going, damping = _norm(change), left, np.zeros(len(y))
        for fraction in _DAMPING:
            damping = np.where(going, fraction, damping)
            after = _norm(self.solve(factors, self._func(self._t, y - fraction * change)))
            going = going & ~(after <= (1.0 - 0.5 * fraction) * before)
            if not going.any():
                break
        return damping

    def _is_singular(self, jacobian: Tensor) -> np.ndarray:
        """Whether the algebraic equations do not determine the algebraic part, [rows]."""
        null = self._projection.null
        of_all = null.mT @ jacobian.nan_to_num(0.0, 0.0, 0.0)
        matrix, least = of_all @ null, _SINGULAR * self._eps
        empty = (matrix.abs().amax(2) <= least * of_all.abs().amax(2)).any(1)
        matrix = matrix / _scale(matrix, 2)
        values = torch.linalg.svdvals(matrix / _scale(matrix, 1))
        return (read_rows(empty) > 0.0) | (read_rows(values[:, -1] / values[:, 0]) <= least)

    def factors(self, y: Tensor, by_autograd: bool = False) -> Factorised:
        """The matrix of the corrections at these states."""
        return self._factorised(jacobians(self._func, self._t, y, by_autograd))

    def _factorised(self, jacobian: Tensor) -> Factorised:
        """P + Q J Q, whose inverse takes Q func to the corrections."""
        algebraic, single = self._projection.algebraic, self._single
        inner = algebraic.times(jacobian.nan_to_num(0.0, 0.0, 0.0), single)
        return Factorised(_matrix(self._projection, inner, 1.0, single))

    def solve(self, factors: Factorised, value: Tensor) -> Tensor:
        """By how much states are to be corrected where func has this value; differentiable."""
        return factors.solve(self._projection.algebraic.times(value, self._single).unsqueeze(2)).squeeze(2)


def _all(flags: Tensor) -> np.ndarray:
    """In which rows all are true."""
    return read_rows((~flags).any(1)) == 0.0


def _norm(x: Tensor) -> np.ndarray:
    """The Euclidean norms of the rows."""
    return read_rows(torch.linalg.vector_norm(x, dim=1))


def _scale(matrix: Tensor, dim: int) -> Tensor:
    """The largest entries along a dimension, one where all are zero."""
    largest = matrix.abs().amax(dim, keepdim=True)
    return torch.where(largest == 0.0, 1.0, largest)
