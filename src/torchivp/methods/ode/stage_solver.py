"""Linear systems with the Jacobian of the stage equations: by LU factorisation, or by products with it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from torchivp.methods.factorised import Factorised
from torchivp.methods.jacobian import Linearisation, jacobian
from torchivp.methods.method import FlatFunc
from torchivp.methods.ode.gmres import gmres
from torchivp.methods.ode.stage_equations import StageEquations
from torchivp.torch_func import inside_transform

LINEAR_SOLVERS = ("auto", "dense", "krylov")

_LARGEST_DENSE = 2000
"""The largest system that "auto" factorises: beyond, the matrix has more than 32 MB, and its factorisation takes a
second of one core, as long as hundreds of products."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a linear solver is made of besides func: enough to make it again, in the memory of a few states.

    Attributes:
        kind: "dense" or "krylov".
        points: the times and states at which the Jacobians are taken: every stage, or one that serves all.
        a: the block of the tableau.
        dt: the size of the step.
        tolerance: the residual that a Krylov method leaves, relative to that at the start.
    """

    kind: str
    points: Sequence[tuple[Tensor, Tensor]]
    a: Tensor
    dt: float
    tolerance: float

    def solver(self, func: FlatFunc) -> StageSolver:
        """The linear solver."""
        if self.kind == "dense":
            return DenseStageSolver(torch.stack([jacobian(func, t, y) for t, y in self.points]), self)
        return KrylovStageSolver([Linearisation(func, t, y) for t, y in self.points], self)


class StageSolver(Protocol):
    """Solves linear systems with the matrix `I - dt (a_ij J_i)`, J_i the Jacobian of func at the stage i."""

    @property
    def origin(self) -> Origin:
        """What it is made of."""
        ...

    def at_size(self, dt: float) -> StageSolver:
        """The same Jacobians, for steps of the size `dt`."""
        ...

    def solve(self, residual: Tensor) -> Tensor:
        """The change of the slopes that makes the residual vanish; differentiable with the matrix as a constant."""
        ...


class DenseStageSolver:
    """By LU factorisation.

    Args:
        jacobians: the Jacobians at the points of the origin, [stages or 1, size, size].
        origin: what it is made of.
    """

    def __init__(self, jacobians: Tensor, origin: Origin):
        self.origin = origin
        self._jacobians = jacobians
        a = origin.a
        blocks = jacobians.unsqueeze(1) * (a * -origin.dt).unsqueeze(-1).unsqueeze(-1)
        rows = a.shape[0] * jacobians.shape[1]
        matrix = blocks.permute(0, 2, 1, 3).reshape(rows, rows)
        matrix = matrix + torch.eye(rows, dtype=a.dtype, device=a.device)
        self._factorised = Factorised(matrix)

    def at_size(self, dt: float) -> DenseStageSolver:
        # A size that is almost the same only slows the iteration, if it does.
        near = abs(dt - self.origin.dt) <= 0.01 * abs(dt)
        return self if near else DenseStageSolver(self._jacobians, replace(self.origin, dt=dt))

    def solve(self, residual: Tensor) -> Tensor:
        return self._factorised.solve(residual.reshape(-1, 1)).view_as(residual)


class KrylovStageSolver:
    """By GMRES, which needs products with the Jacobians only.

    Args:
        linearisations: of func at the points of the origin.
        origin: what it is made of.
    """

    def __init__(self, linearisations: Sequence[Linearisation], origin: Origin):
        self.origin = origin
        stages = len(origin.a)
        self._linearisations = linearisations
        self._each = linearisations if len(linearisations) == stages else [linearisations[0]] * stages
        self._matrix = origin.a * origin.dt

    def at_size(self, dt: float) -> KrylovStageSolver:
        return self if dt == self.origin.dt else KrylovStageSolver(self._linearisations, replace(self.origin, dt=dt))

    def product(self, x: Tensor) -> Tensor:
        """The matrix times `x`, [stages, size]."""
        inner = torch.mm(self._matrix, x).split(1)
        return x - torch.cat([j.times(v) for j, v in zip(self._each, inner, strict=True)])

    def transposed_product(self, x: Tensor) -> Tensor:
        """The transpose of the matrix times `x`, [stages, size]."""
        pulled = torch.cat([j.transposed_times(v) for j, v in zip(self._each, x.split(1), strict=True)])
        return x - torch.mm(self._matrix.T, pulled)

    def solve(self, residual: Tensor) -> Tensor:
        solution = _KrylovSolve.apply(self.product, self.transposed_product, self.origin.tolerance, residual)
        assert isinstance(solution, Tensor)
        return solution


class _KrylovSolve(torch.autograd.Function):
    """The solution as a function of the right-hand side, whose gradient solves the transposed system."""

    @staticmethod
    def forward(
        product: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor], tolerance: float, right: Tensor
    ) -> Tensor:
        return gmres(product, right, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.product, ctx.transposed, ctx.tolerance, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, _KrylovSolve.apply(ctx.transposed, ctx.product, ctx.tolerance, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _KrylovSolve.apply(ctx.product, ctx.transposed, ctx.tolerance, tangents[-1])


def linearised(
    kind: str, equations: StageEquations, slopes: Tensor, places: Sequence[int], tolerance: float
) -> StageSolver:
    """A solver with the Jacobians at the stages `places`, where these are the slopes.

    Args:
        kind: one of LINEAR_SOLVERS.
        equations: the equations of the stages.
        slopes: of the stages.
        places: one stage, whose Jacobian then serves all, or every stage.
        tolerance: the residual that a Krylov method leaves, relative to that at the start.

    Raises:
        RuntimeError: a Krylov method was asked for, and a function transform is at work.
    """
    func, dt, states = equations.func, equations.dt, equations.states(slopes)
    dt = dt.item() if isinstance(dt, Tensor) else dt
    points = [(equations.times[i], states[i : i + 1]) for i in places]
    if kind == "auto":
        kind = "dense" if slopes.numel() <= _LARGEST_DENSE or inside_transform() else "krylov"
    if kind == "krylov" and inside_transform():
        raise RuntimeError(
            "linear_solver='krylov' does not work within transforms of torch.func such as vmap: use 'dense'"
        )
    return Origin(kind, points, equations.a, dt, tolerance).solver(func)
