"""Linear systems whose matrix serves many right-hand sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchivp.torch_func import may_be_tracked


class Factorised:
    """The LU factorisation of square matrices, [..., n, n], without history."""

    def __init__(self, matrix: Tensor) -> None:
        # Unchecked, which saves waiting for the device: a singular matrix gives solutions that are not finite.
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(matrix)
        self._order = torch.lu_unpack(self._lu, self._pivots, unpack_data=False)[0].mT

    def map(self, function: Callable[..., Tensor], *others: Factorised) -> Factorised:
        """What `function` makes of the factors."""
        made = copy.copy(self)
        for name in ("_lu", "_pivots", "_order"):
            setattr(made, name, function(getattr(self, name), *(getattr(other, name) for other in others)))
        return made

    def solve(self, right: Tensor) -> Tensor:
        """The matrices' inverses times `right`, [..., n, k]; differentiable with the matrices as constants."""
        return _solution(self._lu, self._pivots, self._order, right, False)

    def solve_for(self, matrix: Tensor, right: Tensor) -> Tensor:
        """The same as a function of the matrices too: `matrix` has the values that were factorised, and a history."""
        found: Any = _Solve.apply(self._lu, self._pivots, self._order, matrix, right, False)
        return found


def _solution(lu: Tensor, pivots: Tensor, order: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """The solution, by `torch.linalg.lu_solve` where nothing is to be differentiated through it.

    Where a vmap over the right-hand sides is within one over the matrices, as in a Jacobian for each entry of a batch,
    torch 2.13 permutes by the wrong pivots in it and says nothing; so does the forward derivative of
    `torch.linalg.solve`. Two triangular solves do not, and take three times as long for many small matrices.
    """
    if not (right.requires_grad or may_be_tracked()) and not lu.is_complex():
        return torch.linalg.lu_solve(lu, pivots, right, adjoint=transposed)
    if transposed:
        half = torch.linalg.solve_triangular(lu.mT, right, upper=False)
        return order.mT @ torch.linalg.solve_triangular(lu.mT, half, upper=True, unitriangular=True)
    half = torch.linalg.solve_triangular(lu, order @ right, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(lu, half, upper=True)


class _Solve(torch.autograd.Function):
    """The solution of linear systems, whose derivatives of every order are solutions with the same factors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(lu: Tensor, pivots: Tensor, order: Tensor, matrix: Tensor, right: Tensor, transposed: bool) -> Tensor:
        return _solution(lu, pivots, order, right.detach(), transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *factors, matrix, _, ctx.transposed = inputs
        ctx.save_for_backward(*factors, matrix, output)
        ctx.save_for_forward(*factors, matrix, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *factors, matrix, solution = ctx.saved_tensors
        right: Any = _Solve.apply(*factors, matrix, grads[0], not ctx.transposed)
        outer = solution @ right.mT if ctx.transposed else right @ solution.mT
        return None, None, None, -outer, right, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *factors, matrix, solution = ctx.saved_tensors
        *_, of_matrix, right, _ = tangents
        if of_matrix is not None:
            change = (of_matrix.mT if ctx.transposed else of_matrix) @ solution
            right = -change if right is None else right - change
        return _Solve.apply(*factors, matrix, right, ctx.transposed)
