"""GMRES: linear systems of which only products with the matrix are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_RESTART = 40
"""How many vectors are held at once."""

_CYCLES = 10
"""How many times they may be built up; a system that is not solved by then needs a preconditioner."""


def gmres(product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float) -> Tensor:
    """The `x`, [rows, n], with `product(x) = right`: a system for each row, which `product` does not mix.

    Of a single row `x` and `right` may be [n], which is faster, as there are matrix products. The residual of a row is
    within `tolerance` relative to its `right`. If that is not reached, the best found. Saad and Schultz, "GMRES: a
    generalized minimal residual algorithm for solving nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7
    (1986).
    """
    x = torch.zeros_like(right)
    residual = right
    first = size = _sizes(right)
    going = np.full(len(size), True)
    for _ in range(_CYCLES):
        going &= (size > tolerance * first) & np.isfinite(size)
        if not going.any():
            break
        x = x + _cycle(product, residual, np.where(going, size, 0.0), tolerance * first)
        residual = right - product(x)
        before, size = size, _sizes(residual)
        going &= ~(size > 0.9 * before)  # else rounding, or no progress
    return x


def _cycle(product: Callable[[Tensor], Tensor], residual: Tensor, size: np.ndarray, enough: np.ndarray) -> Tensor:
    """The corrections that minimise the residuals over Krylov spaces, built up until these are `enough`.

    Rows whose residual has the size 0 get none.
    """
    rows, steps = len(size), min(_RESTART, residual.shape[-1])
    basis = residual.new_zeros(steps + 1, *residual.shape)
    going = size > 0.0
    basis[0] = _divided(residual, size)
    # The matrices on the spaces, and the rotations that make them triangular.
    triangle, rotations = np.zeros((rows, steps, steps)), np.tile(np.eye(steps + 1), (rows, 1, 1))
    found = np.zeros(rows, dtype=np.int64)
    for k in range(1, steps + 1):
        column = _next_vectors(basis, k, product(basis[k - 1]))
        below = column[:, k]
        column = (rotations[:, : k + 1, : k + 1] @ column[:, :, None])[:, :, 0]
        length = np.hypot(column[:, k - 1], column[:, k])
        going &= np.isfinite(length) & (length != 0.0)
        if not going.any():
            break
        cosine, sine = (np.where(going, x, y)[:, None] / np.where(going, length, 1.0)[:, None]
                        for x, y in ((column[:, k - 1], 1.0), (column[:, k], 0.0)))  # fmt: skip
        upper, lower = rotations[:, k - 1].copy(), rotations[:, k].copy()
        rotations[:, k - 1], rotations[:, k] = cosine * upper + sine * lower, cosine * lower - sine * upper
        triangle[:, : k - 1, k - 1], triangle[:, k - 1, k - 1] = column[:, : k - 1], length
        found[going] = k
        going &= ~((np.abs(rotations[:, k, 0]) * size <= enough) | (below == 0.0))
        if not going.any():
            break
    most = int(found.max())
    weights = np.zeros((most, rows))
    for row, n in enumerate(found):
        weights[:n, row] = np.linalg.solve(triangle[row, :n, :n], rotations[row, :n, 0] * size[row])
    return _combination(basis[:most], torch.from_numpy(weights).to(basis).view(most, *residual.shape[:-1]))


def _next_vectors(basis: Tensor, k: int, vector: Tensor) -> np.ndarray:
    """Make the vectors orthogonal to the first `k` of each basis, and the next ones of it; returns the coefficients."""
    done = basis[:k]
    total = _products(done, vector)
    vector = vector - _combination(done, total)
    again = _products(done, vector)  # what rounding left: "twice is enough"
    vector = vector - _combination(done, again)
    length = _sizes(vector)
    basis[k] = _divided(vector, np.where(np.isfinite(length), length, 0.0))
    coefficients = (total + again).view(k, -1).T.to("cpu", torch.float64).numpy()
    return np.concatenate((coefficients, length[:, None]), 1)


def _products(basis: Tensor, vector: Tensor) -> Tensor:
    """The scalar products of a vector with those of a basis, [k, n] with [n], or row by row."""
    # A matrix product may round by the number of rows.
    return torch.mv(basis, vector) if vector.ndim == 1 else (basis * vector).sum(2)


def _combination(basis: Tensor, weights: Tensor) -> Tensor:
    """The sum of the vectors of a basis times these weights, likewise."""
    return torch.mv(basis.T, weights) if weights.ndim == 1 else (weights.unsqueeze(2) * basis).sum(0)


def _divided(vectors: Tensor, size: np.ndarray) -> Tensor:
    """The vectors divided by these sizes; zero where the size is."""
    if vectors.ndim == 1:
        return vectors / size.item() if size > 0.0 else torch.zeros_like(vectors)
    column = torch.from_numpy(size).to(vectors).unsqueeze(1)
    return torch.where(column > 0.0, vectors / column, 0.0)


def _sizes(vectors: Tensor) -> np.ndarray:
    return torch.linalg.vector_norm(vectors, dim=-1).to("cpu", torch.float64).reshape(-1).numpy()
