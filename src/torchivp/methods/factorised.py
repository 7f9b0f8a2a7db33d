"""Linear systems whose matrix serves many right-hand sides."""

from __future__ import annotations

import copy
from collections.abc import Callable

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
        half = torch.linalg.solve_triangular(self._lu, self._order @ right, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self._lu, half, upper=True)
