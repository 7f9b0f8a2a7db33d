"""Linear systems of stages by GMRES, which needs products with the Jacobians only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from torchivp.mass import Projection
from torchivp.methods.implicit.equations import combined
from torchivp.methods.implicit.gmres import gmres
from torchivp.methods.implicit.per_row import Numbers, column, is_single
from torchivp.methods.jacobian import Linearisation

if TYPE_CHECKING:
    from torchivp.methods.implicit.linear import Origin, Systems


class KrylovStageSolver:
    """By GMRES, which needs products with the Jacobians only.

    Args:
        systems: what kind they are.
        origin: what they are made of.
        linearisations: of func at every stage, or at one that serves all.
        dt: the sizes of the steps, [rows, 1], or of a single row.
        projection: what is before dy/dt.
    """

    def __init__(
        self,
        systems: Systems,
        origin: Origin,
        linearisations: Sequence[Linearisation],
        dt: float | Tensor,
        projection: Projection | None,
    ):
        self.systems = systems
        self.origin = origin
        stages = len(systems.a)
        self._linearisations = linearisations
        self._each = linearisations if len(linearisations) == stages else [linearisations[0]] * stages
        self._dt = dt
        self._projection = projection

    def at_size(self, dt: Numbers) -> KrylovStageSolver:
        middle, origin = self._linearisations[len(self._linearisations) // 2], self.origin.at_size(dt)
        return KrylovStageSolver(self.systems, origin, [middle], column(dt, self.origin.y), self._projection)

    def product(self, x: Tensor) -> Tensor:
        """The matrices times `x`, [rows, stages * size], or [stages * size] of a single row."""
        by_stage = self._by_stage(x)
        inner = combined(torch.zeros_like(by_stage[0]), self.systems.a, by_stage, self._dt)
        return self._before_slopes(x) - self._by_row([j.times(v) for j, v in zip(self._each, inner, strict=True)])

    def transposed_product(self, x: Tensor) -> Tensor:
        """The transposes of the matrices times `x`."""
        each = zip(self._each, self._by_stage(x).unbind(), strict=True)
        pulled = torch.stack([j.transposed_times(v) for j, v in each])
        inner = combined(torch.zeros_like(pulled[0]), self.systems.a.T, pulled, self._dt)
        return self._before_slopes(x) - self._by_row(inner)

    def _before_slopes(self, x: Tensor) -> Tensor:
        """The matrix before dy/dt, symmetric, times `x`."""
        if self._projection is None:
            return x
        return self._by_row(self._projection.differential.times(self._by_stage(x), x.ndim == 1).unbind())

    def _preconditioned(self, by: Callable[..., Tensor], x: Tensor) -> Tensor:
        """About the solutions of the systems with the diagonal blocks of the matrices."""
        t, y = self.origin.t.reshape(-1, 1), self.origin.y
        dt = torch.as_tensor(self._dt, dtype=y.dtype, device=y.device).reshape(-1, 1)
        diagonal = torch.diagonal(self.systems.a).unbind()
        each = zip(diagonal, self._by_stage(x).unbind(), strict=True)
        return self._by_row([by(t, y, a * dt, r) for a, r in each])

    def _by_stage(self, x: Tensor) -> Tensor:
        if x.ndim == 1:
            return x.view(len(self.systems.a), 1, -1)
        return x.unflatten(1, (len(self.systems.a), -1)).transpose(0, 1)

    def _by_row(self, stages: Sequence[Tensor]) -> Tensor:
        rows = torch.cat(tuple(stages), 1)
        return rows.squeeze(0) if is_single(self._dt) else rows

    def radius(self) -> Tensor:
        return self._linearisations[0].radius()

    def solve(self, residual: Tensor) -> Tensor:
        right, by = self._by_row(residual.unbind()), self.systems.preconditioner
        operator, transposed = _Operator(self.product), _Operator(self.transposed_product)
        if by is not None:
            operator = _Operator(self.product, partial(self._preconditioned, by))
            transposed = _Operator(self.transposed_product, partial(self._preconditioned, by.transposed))
        found: Any = _KrylovSolve.apply(operator, transposed, self.systems.tolerance, right)
        return self._by_stage(found)


class _Operator(NamedTuple):
    """Matrices of which products are known.

    Attributes:
        product: the matrices times vectors.
        preconditioned: about their inverses times vectors.
    """

    product: Callable[[Tensor], Tensor]
    preconditioned: Callable[[Tensor], Tensor] | None = None

    def solve(self, right: Tensor, tolerance: float) -> Tensor:
        """Their inverses times `right`, so that the residual is within the relative tolerance."""
        if self.preconditioned is None:
            return gmres(self.product, right, tolerance)
        inner = self.preconditioned
        return inner(gmres(lambda x: self.product(inner(x)), right, tolerance))


class _KrylovSolve(torch.autograd.Function):
    """The solution as a function of the right-hand side, whose gradient solves the transposed system."""

    @staticmethod
    def forward(operator: _Operator, transposed: _Operator, tolerance: float, right: Tensor) -> Tensor:
        return operator.solve(right, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.transposed, ctx.tolerance, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, _KrylovSolve.apply(ctx.transposed, ctx.operator, ctx.tolerance, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _KrylovSolve.apply(ctx.operator, ctx.transposed, ctx.tolerance, tangents[-1])
