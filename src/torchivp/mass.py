"""Constant mass matrices: `M dy/dt = func(t, y)`, as functions with no matrix, or with a projection, before dy/dt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from torchivp.state import StateLayout
from torchivp.torch_func import is_dual

_ROUNDING = 10
"""Singular values are zero below this multiple of the size and the rounding error of a matrix whose entries are about
one,"""

_IN_DOUBT = 1e5
"""and below so many times as much nobody knows whether they should be."""

_EXAMPLE = "write mass=torch.diag(torch.tensor([1.0, 1.0, 0.0])), with a zero for each algebraic equation"


class ConstantMatrix(NamedTuple):
    """A matrix that multiplies the states of rows.

    Attributes:
        matrix: [n, n].
        diagonal: its diagonal, [n], if it has nothing else.
    """

    matrix: Tensor
    diagonal: Tensor | None

    @staticmethod
    def of(matrix: Tensor) -> ConstantMatrix:
        """With its diagonal, if it has nothing else."""
        diagonal = torch.diagonal(matrix)
        return ConstantMatrix(matrix, diagonal if torch.equal(torch.diag(diagonal), matrix) else None)

    def times(self, x: Tensor, single: bool) -> Tensor:
        """The products with vectors, [..., n], which are of a `single` row or of several.

        Of several column after column: what a product of matrices does to a row may depend on how many there are.
        """
        if self.diagonal is not None:
            return x * self.diagonal
        if single:
            return x @ self.matrix.mT
        first, *others = self.matrix.mT.unbind()
        total = x[..., :1] * first
        for j, column in enumerate(others, start=1):
            total = torch.addcmul(total, x[..., j : j + 1], column)
        return total


class Projection(NamedTuple):
    """What a singular mass matrix leaves before dy/dt, symmetric: the part of it that the equations determine.

    Attributes:
        differential: onto this part, along the other.
        algebraic: onto the other, which the equations without a derivative determine.
        null: the basis of the other, [n, m], orthonormal.
    """

    differential: ConstantMatrix
    algebraic: ConstantMatrix
    null: Tensor


def projection_of(func: Callable[..., Any]) -> Projection | None:
    """What is before dy/dt in the equations whose right-hand side is `func`; None for nothing."""
    return getattr(func, "projection", None)


@dataclass(frozen=True, eq=False)
class Mass:
    """A mass matrix M, and what the right-hand side is multiplied by so that nothing or a projection is left of it.

    With M = U S V^T that is V (S_1^-1 U_1^T; U_2^T), if those with 1 belong to the singular values that are not zero:
    V_1 V_1^T dy/dt remains. Of a regular M it is the inverse.

    Attributes:
        factor: what func is multiplied by.
        projection: what is left before dy/dt; None for nothing.
        tracked: the matrix itself, if it requires a gradient.
    """

    factor: ConstantMatrix
    projection: Projection | None
    tracked: Tensor | None

    @staticmethod
    def of(given: Any, layout: StateLayout) -> Mass:
        """The matrix that a user gave for states of this layout.

        Raises:
            TypeError: it is no real matrix.
            ValueError: it is of the wrong size or not finite, or its rank is in doubt.
        """
        matrix = _checked(given, layout)
        exact = matrix.detach().double().cpu()
        factor, projection = _taken_apart(exact, torch.finfo(matrix.dtype).eps)

        def laid_out(x: Tensor) -> Tensor:
            return x.to(layout.device, layout.dtype)

        if projection is not None:
            differential, algebraic = (ConstantMatrix.of(laid_out(x.matrix)) for x in projection[:2])
            projection = Projection(differential, algebraic, laid_out(projection.null))
        tracked = laid_out(matrix) if matrix.requires_grad else None
        return Mass(ConstantMatrix.of(laid_out(factor)), projection, tracked)

    def derivative(self, layout: StateLayout, value: Any) -> Tensor:
        """What `func` returned, checked, as [rows, size], and multiplied."""
        slopes = layout.checked_derivative(value)
        factor = self.factor
        if self.tracked is not None and torch.is_grad_enabled():
            factor = ConstantMatrix(torch.linalg.inv(self.tracked), None)
        return factor.times(slopes, not layout.lead)

    def jacobian(self, layout: StateLayout, value: Any) -> Tensor:
        """What `jac` returned, checked, as [rows, size, size], and multiplied."""
        return self.factor.times(layout.checked_jacobian(value).mT, not layout.lead).mT


def _checked(given: Any, layout: StateLayout) -> Tensor:
    """The matrix as a tensor of floating point numbers."""
    if isinstance(given, np.ndarray | list | tuple):
        given = torch.as_tensor(np.asarray(given))
    if not isinstance(given, Tensor) or given.is_complex() or given.dtype == torch.bool:
        kind = f"a tensor of {given.dtype}" if isinstance(given, Tensor) else repr(given)
        raise TypeError(f"mass must be a constant matrix of real numbers, got {kind}: {_EXAMPLE}")
    if _functorch.is_functorch_wrapped_tensor(given) or is_dual(given):
        raise ValueError(
            "mass must be an ordinary tensor, not one that a transform of torch.func or forward mode follows: its "
            "values decide how the problem is solved. Divide by it in func: torch.linalg.solve(M, f)"
        )
    matrix = given.to_dense() if given.is_floating_point() else given.to_dense().double()
    if tuple(matrix.shape) != (layout.size, layout.size):
        raise ValueError(
            f"mass must be of shape {(layout.size, layout.size)}, a row for each equation and a column for each "
            f"element of the flattened state (of a row of a batch), got {tuple(matrix.shape)}: {_EXAMPLE}"
        )
    if not bool(torch.isfinite(matrix.detach()).all()):
        raise ValueError("mass is not finite: look for NaN or infinity among its entries")
    return matrix


def _taken_apart(matrix: Tensor, eps: float) -> tuple[Tensor, Projection | None]:
    """What the right-hand side is multiplied by, and what is left of a `matrix` with such rounding errors.

    Raises:
        ValueError: the rank is in doubt.
    """
    size, diagonal = len(matrix), torch.diagonal(matrix)
    one = torch.eye(size, dtype=matrix.dtype)
    if torch.equal(torch.diag(diagonal), matrix):
        none = diagonal == 0.0
        factor = torch.diag(torch.where(none, 1.0, 1.0 / torch.where(none, 1.0, diagonal)))
        null = one[:, none]
    else:
        scale = _largest(matrix, 1)
        rows = matrix / scale
        values = torch.linalg.svdvals(rows / _largest(rows, 0))
        least = _ROUNDING * size * eps
        doubtful = values[(values > least * values[0]) & (values <= _IN_DOUBT * least * values[0])]
        if len(doubtful):
            raise ValueError(
                f"mass is nearly singular: scaled, its singular values range from {values[0].item():.3g} to "
                f"{doubtful[-1].item():.3g}, and nobody knows whether that is a zero with rounding errors. Make exact "
                "zeros of what shall be zero, or choose other units for the equations or the state"
            )
        rank = int((values > least * values[0]).sum())
        if rank == size:
            return torch.linalg.inv(matrix), None
        left, values, right = torch.linalg.svd(rows)
        inverse = torch.cat((1.0 / values[:rank], values.new_ones(size - rank)))
        factor, null = (right.mT * inverse) @ left.mT / scale.mT, right[rank:].mT
    if not null.shape[1]:
        return factor, None
    algebraic = null @ null.mT
    return factor, Projection(ConstantMatrix.of(one - algebraic), ConstantMatrix.of(algebraic), null)


def _largest(matrix: Tensor, dim: int) -> Tensor:
    """The largest entry of each row or column, by which it is scaled; one where there is none but zeros."""
    largest = matrix.abs().amax(dim, keepdim=True)
    return torch.where(largest == 0.0, 1.0, largest)
