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
        """The matrices' inverses times `right`, [rows, size, k]; differentiable with the matrices as constants."""
        found: Any = _Solve.apply(self._factors, False, right)
        return found


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
