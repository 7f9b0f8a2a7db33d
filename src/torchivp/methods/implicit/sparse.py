"""Sparse linear systems, by SciPy's LU factorisation, SuperLU, of each row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from torchivp.mass import Projection
from torchivp.sparsity import Sparsity


class SparseFactorised:
    """The LU factorisation of square matrices with entries at some places, without history.

    What `Factorised` is for matrices without structure. On the CPU, and not within transforms of torch.func.

    Args:
        sparsity: the places.
        values: the entries there, [rows, n].
    """

    def __init__(self, sparsity: Sparsity, values: Tensor) -> None:
        self._factors = [_factorise(sparsity, row) for row in values.detach().numpy()]

    def map(self, function: Callable[..., Tensor], *others: SparseFactorised) -> SparseFactorised:
        """What `function`, which chooses among rows, makes of the rows."""
        every, places = [], []
        for one in (self, *others):
            places.append(torch.arange(len(every), len(every) + len(one._factors)))
            every += one._factors
        made = copy.copy(self)
        made._factors = [every[i] for i in function(*places).tolist()]
        return made

    def solve(self, right: Tensor) -> Tensor:
        """The matrices' inverses times `right`, [rows, size, k], or [size, k] of a single row.

        Differentiable with the matrices as constants.
        """
        found: Any = _Solve.apply(self._factors, False, right if right.ndim == 3 else right.unsqueeze(0))
        return found.view_as(right)


def factorised_blocks(
    a: Tensor, sparsity: Sparsity, jacobians: Tensor, dt: float | Tensor, projection: Projection | None
) -> SparseFactorised:
    """The matrices `I - dt (a_ij J_i)` of stages, of which each row of blocks has its Jacobian, or all have one.

    Args:
        a: the coefficients, [stages, stages].
        sparsity: where the Jacobians have entries.
        jacobians: the entries, [rows, stages or 1, n].
        dt: the sizes of the steps, [rows, 1], or of a single row.
        projection: what is in place of I, diagonal.
    """
    stages, rows = len(a), len(jacobians)
    scaled = a * -(dt.reshape(-1, 1, 1) if isinstance(dt, Tensor) else dt)
    # A row without a derivative is iterated as if it had none.
    blocks = (jacobians.unsqueeze(2) * scaled.unsqueeze(-1)).nan_to_num(0.0, 0.0, 0.0)
    one = blocks.new_zeros(stages, stages, blocks.shape[3])
    diagonal = one.new_ones(sparsity.size) if projection is None else projection.differential.diagonal
    assert diagonal is not None
    one[torch.arange(stages), torch.arange(stages)] = one.new_zeros(blocks.shape[3]).index_copy(
        0, sparsity.on_diagonal, diagonal
    )
    places = sparsity if stages == 1 else sparsity.repeated(stages)
    return SparseFactorised(places, (blocks + one).reshape(rows, -1))


def _factorise(sparsity: Sparsity, values: np.ndarray) -> Any:
    """The factors of one matrix; None for one that is singular or not finite, whose solutions are not finite either."""
    places = sparsity.rows.numpy(), sparsity.columns.numpy()
    matrix = scipy.sparse.csc_array((values, places), shape=(sparsity.size, sparsity.size))
    if not np.isfinite(values).all():
        return None
    try:
        return scipy.sparse.linalg.splu(matrix)
    except RuntimeError:  # exactly singular
        return None


class _Solve(torch.autograd.Function):
    """The solutions as functions of the right-hand sides, whose gradients solve the transposed systems."""

    @staticmethod
    def forward(factors: Sequence[Any], transposed: bool, right: Tensor) -> Tensor:
        solutions = [
            np.full(row.shape, np.nan, row.dtype) if lu is None else lu.solve(row, trans="H" if transposed else "N")
            for lu, row in zip(factors, right.detach().numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(solutions)) if solutions else right.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factors, ctx.transposed, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, _Solve.apply(ctx.factors, not ctx.transposed, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Solve.apply(ctx.factors, ctx.transposed, tangents[-1])
