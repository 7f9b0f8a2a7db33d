"""Linear systems whose matrix serves many right-hand sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Factorised:
    """The LU factorisation of square matrices, [..., n, n], without history.

    Not `torch.linalg.lu_solve`: where a vmap over the right-hand sides is within one over the matrices, as in a
    Jacobian for each entry of a batch, torch 2.13 permutes by the wrong pivots and says nothing; so does the forward
    derivative of `torch.linalg.solve`. Two triangular solves take no longer.
    """

    def __init__(self, matrix: Tensor) -> None:
        # Unchecked, which saves waiting for the device: a singular matrix gives solutions that are not finite.
        self._lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        self._order = torch.lu_unpack(self._lu, pivots, unpack_data=False)[0].mT

    def map(self, function: Callable[..., Tensor], *others: Factorised) -> Factorised:
        """What `function` makes of the factors."""
        made = copy.copy(self)
        made._lu = function(self._lu, *(other._lu for other in others))
        made._order = function(self._order, *(other._order for other in others))
        return made

    def solve(self, right: Tensor) -> Tensor:
        """The matrices' inverses times `right`, [..., n, k]; differentiable with the matrices as constants."""
        return _solution(self._lu, self._order, right, False)

    def solve_for(self, matrix: Tensor, right: Tensor) -> Tensor:
        """The same as a function of the matrices too: `matrix` has the values that were factorised, and a history."""
        found: Any = _Solve.apply(self._lu, self._order, matrix, right, False)
        return found


def _solution(lu: Tensor, order: Tensor, right: Tensor, transposed: bool) -> Tensor:
    if transposed:
        half = torch.linalg.solve_triangular(lu.mT, right, upper=False)
        return order.mT @ torch.linalg.solve_triangular(lu.mT, half, upper=True, unitriangular=True)
    half = torch.linalg.solve_triangular(lu, order @ right, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(lu, half, upper=True)


class _Solve(torch.autograd.Function):
    """The solution of linear systems, whose derivatives of every order are solutions with the same factors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(lu: Tensor, order: Tensor, matrix: Tensor, right: Tensor, transposed: bool) -> Tensor:
        return _solution(lu, order, right, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        lu, order, matrix, _, ctx.transposed = inputs
        ctx.save_for_backward(lu, order, matrix, output)
        ctx.save_for_forward(lu, order, matrix, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        lu, order, matrix, solution = ctx.saved_tensors
        right: Any = _Solve.apply(lu, order, matrix, grads[0], not ctx.transposed)
        outer = solution @ right.mT if ctx.transposed else right @ solution.mT
        return None, None, -outer, right, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        lu, order, matrix, solution = ctx.saved_tensors
        _, _, of_matrix, right, _ = tangents
        if of_matrix is not None:
            change = (of_matrix.mT if ctx.transposed else of_matrix) @ solution
            right = -change if right is None else right - change
        return _Solve.apply(lu, order, matrix, right, ctx.transposed)
