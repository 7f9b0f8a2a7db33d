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
    """The `x` with `product(x) = right`, of the shape of `right`, its residual within `tolerance` relative to `right`.

    If that is not reached, the best found. Saad and Schultz, "GMRES: a generalized minimal residual algorithm for
    solving nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    x = torch.zeros_like(right)
    residual = right
    first = size = float(torch.linalg.vector_norm(right))
    for _ in range(_CYCLES):
        if not size > tolerance * first or not np.isfinite(size):
            break
        x = x + _cycle(product, residual, size, tolerance * first)
        residual = right - product(x)
        before, size = size, float(torch.linalg.vector_norm(residual))
        if size > 0.9 * before:
            break  # rounding, or no progress
    return x


def _cycle(product: Callable[[Tensor], Tensor], residual: Tensor, size: float, enough: float) -> Tensor:
    """The correction that minimises the residual over a Krylov space, built up until that is `enough`."""
    steps = min(_RESTART, residual.numel())
    basis = residual.new_zeros(steps + 1, residual.numel())
    basis[0] = residual.reshape(-1) / size
    # The matrix on the space, and the rotations that make it triangular.
    triangle, rotations = np.zeros((steps, steps)), np.eye(steps + 1)
    found = 0
    for k in range(1, steps + 1):
        column = _next_vector(basis, k, product(basis[k - 1].reshape(residual.shape)).reshape(-1))
        below = column[k]
        column = rotations[: k + 1, : k + 1] @ column
        length = np.hypot(column[k - 1], column[k])
        if not np.isfinite(length) or length == 0.0:
            break
        cosine, sine = column[k - 1] / length, column[k] / length
        rotations[k - 1 : k + 1] = np.array([[cosine, sine], [-sine, cosine]]) @ rotations[k - 1 : k + 1]
        triangle[: k - 1, k - 1], triangle[k - 1, k - 1] = column[: k - 1], length
        found = k
        if abs(rotations[k, 0]) * size <= enough or below == 0.0:
            break
    weights = np.linalg.solve(triangle[:found, :found], rotations[:found, 0] * size)
    return torch.mv(basis[:found].T, residual.new_tensor(weights)).reshape(residual.shape)


def _next_vector(basis: Tensor, k: int, vector: Tensor) -> np.ndarray:
    """Make `vector` orthogonal to the first `k` of the basis, and the next one of it; returns the coefficients."""
    done = basis[:k]
    total = torch.mv(done, vector)
    vector = vector - torch.mv(done.T, total)
    again = torch.mv(done, vector)  # what rounding left: "twice is enough"
    vector = vector - torch.mv(done.T, again)
    coefficients = torch.cat((total + again, torch.linalg.vector_norm(vector).reshape(1))).tolist()
    if coefficients[-1] > 0.0:
        basis[k] = vector / coefficients[-1]
    return np.array(coefficients)
