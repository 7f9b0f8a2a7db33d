"""Linear systems with the Jacobians of the stage equations: by LU factorisation, or by products with them alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.mass import Projection, projection_of
from torchivp.methods.factorised import Factorised
from torchivp.methods.implicit.equations import StageEquations, combined
from torchivp.methods.implicit.gmres import gmres
from torchivp.methods.implicit.per_row import Flags, Numbers, all_of, any_of, column, is_single, pick
from torchivp.methods.implicit.preconditioner import Preconditioner
from torchivp.methods.implicit.sparse import SparseFactorised, factorised_blocks
from torchivp.methods.jacobian import Linearisation, jacobians, sparse_jacobians, sparsity_of, spectral_bound
from torchivp.methods.method import FlatFunc, Memory, choice, on_arrays
from torchivp.sparsity import Sparsity
from torchivp.torch_func import inside_transform

LINEAR_SOLVERS = ("auto", "dense", "sparse", "krylov")

LARGEST_DENSE = 2000
"""The largest system that "auto" factorises: beyond, the matrix has more than 32 MB, and its factorisation takes a
second of one core, as long as hundreds of products."""

_LEAST_DECOUPLED, _LEAST_DECOUPLED_ROWS = 240, 40
"""The smallest system of several stages that is decoupled, of a single row and of rows: below, one factorisation of all
takes less time."""

_MOST_COUPLED = 1e3
"""The largest condition of the eigenvectors with which stages are decoupled."""


@dataclass(frozen=True, slots=True)
class Origin(Memory):
    """What the linear systems of the rows are made of besides func: enough to make them again, in little memory.

    Attributes:
        t: where the Jacobian that serves all stages is taken: times [rows, 1],
        y: and states [rows, size].
        dt: the sizes of the steps that the systems are for; infinite where it is of no step, as the Jacobians at all
            stages were used there; NaN where there is no Jacobian yet.
    """

    t: Tensor
    y: Tensor
    dt: Numbers

    def map(self, function: Callable[..., Tensor], *others: Origin) -> Origin:
        t, y = (function(*(getattr(x, name) for x in (self, *others))) for name in ("t", "y"))
        return Origin(t, y, on_arrays(function, self.dt, *(other.dt for other in others)))

    @property
    def origin(self) -> Origin:
        """That of a linear solver, and its own."""
        return self

    @property
    def known(self) -> Flags:
        """Where there is a Jacobian."""
        return self.dt == self.dt

    def at_size(self, dt: Numbers) -> Origin:
        """The same for steps of the sizes `dt`; where there is no Jacobian, there is none."""
        return Origin(self.t, self.y, pick(self.known, dt, self.dt))


@dataclass(frozen=True, slots=True)
class Systems:
    """What all linear systems of a method have in common.

    Attributes:
        kind: "dense", "sparse", "krylov" or, by the size of the system and what is known of it, "auto".
        a: the block of the tableau.
        tolerance: the residual that a Krylov method leaves, relative to that at the start.
        preconditioner: what solves the systems of each stage about, for a Krylov method.
    """

    kind: str
    a: Tensor
    tolerance: float = 1e-3
    preconditioner: Preconditioner | None = None

    def at(self, equations: StageEquations, slopes: Tensor, exact: bool, by_autograd: bool = False) -> StageSolver:
        """A solver with the Jacobian of every stage if `exact`, else with that of a stage in the middle.

        `by_autograd` says not to ask the user for it.

        Raises:
            RuntimeError: a Krylov method was asked for, and a function transform is at work.
        """
        states, middle = equations.states(slopes), len(equations.times) // 2
        points = list(zip(equations.times, states, strict=True))
        if not exact:
            points = points[middle : middle + 1]
        sizes = equations.sizes * (math.inf if len(points) > 1 else 1.0)
        origin = Origin(equations.times[middle].detach(), states[middle].detach(), sizes)
        dt = equations.dt.detach() if isinstance(equations.dt, Tensor) else equations.dt
        return self._made(equations.func, points, origin, dt, by_autograd)

    def at_start(self, equations: StageEquations, t: Tensor) -> StageSolver:
        """A solver with the Jacobian at the start of the step, whose time is `t`."""
        origin = Origin(t, equations.start, equations.sizes)
        return self._made(equations.func, [(t, equations.start)], origin, equations.dt)

    def again(self, equations: StageEquations, origin: Origin) -> StageSolver:
        """The solver that has this origin; where there is none, anything that can be made."""
        if not all_of(origin.known):
            choose = choice(origin.known)
            points = choose(origin.t, equations.times[0]), choose(origin.y, equations.start)
            origin = Origin(*points, origin.dt)
        dt = column(pick(abs(origin.dt) < math.inf, origin.dt, 1.0), origin.y)
        return self._made(equations.func, [(origin.t, origin.y)], origin, dt)

    def _made(
        self,
        func: FlatFunc,
        points: Sequence[tuple[Tensor, Tensor]],
        origin: Origin,
        dt: float | Tensor,
        by_autograd: bool = False,
    ) -> StageSolver:
        kind, sparsity, middle = self._kind(func, origin.y), sparsity_of(func), len(points) // 2
        projection = projection_of(func)
        if kind == "krylov":
            if projection is not None and self.preconditioner is not None:
                raise ValueError(
                    "preconditioner is for systems with the matrix I - h J, and a singular mass puts another in the "
                    "place of I: leave preconditioner out, or solve dense or sparse systems"
                )
            return KrylovStageSolver(self, origin, [Linearisation(func, t, y) for t, y in points], dt, projection)
        if kind == "sparse" and sparsity is not None:
            found = torch.stack([sparse_jacobians(func, sparsity, t, y, by_autograd) for t, y in points], 1)
        else:
            sparsity, found = None, torch.stack([jacobians(func, t, y, by_autograd) for t, y in points], 1)
        factorised = self.factorised(found, dt, sparsity, projection)
        return DirectStageSolver(self, origin, sparsity, projection, found[:, middle], factorised)

    def _kind(self, func: FlatFunc, y: Tensor) -> str:
        """How the systems are solved.

        Raises:
            RuntimeError: a way was asked for that is not open here.
        """
        sparsity = sparsity_of(func)
        if inside_transform():
            if self.kind in ("sparse", "krylov"):
                raise RuntimeError(
                    f"linear_solver={self.kind!r} does not work within transforms of torch.func such as vmap: use "
                    "'dense'"
                )
            return "dense"
        if self.kind == "sparse" and (sparsity is None or y.device.type != "cpu"):
            raise RuntimeError(
                "linear_solver='sparse' factorises, on the CPU, matrices of which it knows where they have entries: "
                "pass jac_sparsity= to solve_ivp, or use 'krylov'"
            )
        if self.kind != "auto":
            return self.kind
        if sparsity is not None and sparsity.pays:
            return "sparse"
        return "dense" if len(self.a) * y.shape[1] <= LARGEST_DENSE else "krylov"

    def factorised(
        self, jacobians: Tensor, dt: float | Tensor, sparsity: Sparsity | None, projection: Projection | None
    ) -> Factorised | Decoupled | SparseFactorised:
        """The matrices with these Jacobians, [rows, stages or 1, ...]; `dt` is [rows, 1], or of a single row."""
        if projection is not None and isinstance(dt, Tensor):  # a row that is through takes steps of size zero
            dt = torch.where(dt == 0.0, 1.0, dt)
        if sparsity is not None:
            return factorised_blocks(self.a, sparsity, jacobians, dt, projection)
        least = _LEAST_DECOUPLED if is_single(dt) else _LEAST_DECOUPLED_ROWS
        pays = len(self.a) > 1 == jacobians.shape[1] and len(self.a) * jacobians.shape[2] >= least
        if pays and (modes := _modes(tuple(map(tuple, self.a.tolist())))):
            return Decoupled.of(modes, jacobians.squeeze(1), dt, _before_slopes(projection, 1, jacobians))
        return _factorised(self.a, jacobians, dt, _before_slopes(projection, len(self.a), jacobians))


class StageSolver(Protocol):
    """Solves linear systems with the matrices `I - dt (a_ij J_i)` of every row, J_i the Jacobian at the stage i.

    With a projection before dy/dt, this in place of each I.
    """

    @property
    def origin(self) -> Origin:
        """What it is made of."""
        ...

    def at_size(self, dt: Numbers) -> StageSolver:
        """The same Jacobians, one for all stages, for steps of the sizes `dt`."""
        ...

    def radius(self) -> Tensor:
        """About the spectral radii of the Jacobians, or bounds of them, [rows]."""
        ...

    def solve(self, residual: Tensor) -> Tensor:
        """The changes of the slopes, [stages, rows, size], that make the residuals vanish.

        Differentiable with the matrices as constants.
        """
        ...


def _before_slopes(projection: Projection | None, stages: int, like: Tensor) -> Tensor:
    """The matrix before the slopes of all stages."""
    if projection is None:
        return torch.eye(stages * like.shape[-1], dtype=like.dtype, device=like.device)
    return torch.block_diag(*[projection.differential.matrix] * stages)


def _factorised(a: Tensor, jacobians: Tensor, dt: float | Tensor, one: Tensor) -> Factorised:
    """The matrices with these Jacobians, [rows, stages or 1, size, size]; `dt` is [rows, 1], or of a single row.

    `one` is before the slopes of all stages.
    """
    rows, _, size, _ = jacobians.shape
    n = len(a) * size
    single = is_single(dt)
    scaled = a * -(dt.reshape(-1, 1, 1) if isinstance(dt, Tensor) else dt)
    # What is not finite must not reach the pivots. A row without a derivative is iterated as if it had none.
    blocks = (jacobians.unsqueeze(2) * scaled.unsqueeze(-1).unsqueeze(-1)).nan_to_num(0.0, 0.0, 0.0)
    shape = (n, n) if single else (rows, n, n)  # a single matrix takes less time than a batch of one
    matrix = blocks.permute(0, 1, 3, 2, 4).reshape(shape) + one
    return Factorised(matrix)


class Mode(NamedTuple):
    """An eigenvalue of the coefficients of stages, or one of a conjugate pair.

    Attributes:
        value: the eigenvalue, real or complex.
        left: what takes the slopes of the stages to their part in it.
        right: what makes slopes of the part, for a pair twice their real part.
    """

    value: complex
    left: Sequence[complex]
    right: Sequence[complex]


@cache
def _modes(a: Sequence[Sequence[float]]) -> Sequence[Mode]:
    """The modes of the coefficients; none if these cannot be decoupled without loss of precision."""
    values, right = np.linalg.eig(np.array(a))
    if np.linalg.cond(right) > _MOST_COUPLED:
        return ()
    left, modes = np.linalg.inv(right), []
    for i, value in enumerate(values.tolist()):
        if np.imag(value) == 0.0:
            # Real vectors, though the others are complex; numpy makes them so.
            modes.append(Mode(np.real(value), np.real(left[i]).tolist(), np.real(right[:, i]).tolist()))
        elif np.imag(value) > 0.0:
            modes.append(Mode(value, left[i].tolist(), (2 * right[:, i]).tolist()))
    return modes


@dataclass(frozen=True)
class Decoupled:
    """The matrices `I - dt a x J` of stages, one of the size of a state for each mode of `a`.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8.

    Attributes:
        modes: the modes.
        factors: `I - dt value J` for each of them.
    """

    modes: Sequence[Mode]
    factors: Sequence[Factorised]

    @staticmethod
    def of(modes: Sequence[Mode], jacobians: Tensor, dt: float | Tensor, one: Tensor) -> Decoupled:
        """With these Jacobians, [rows, size, size]; `dt` is [rows, 1], or of a single row.

        `one` is before the slopes of a stage.
        """
        scaled = jacobians * (dt.reshape(-1, 1, 1) if isinstance(dt, Tensor) else dt)
        scaled = (scaled.squeeze(0) if is_single(dt) else scaled).nan_to_num(0.0, 0.0, 0.0)
        return Decoupled(modes, [Factorised(one - mode.value * scaled) for mode in modes])

    def map(self, function: Callable[..., Tensor], *others: Decoupled) -> Decoupled:
        """What `function` makes of the factors."""
        each = zip(self.factors, *(other.factors for other in others), strict=True)
        return Decoupled(self.modes, [first.map(function, *rest) for first, *rest in each])

    def solve(self, right: Tensor) -> Tensor:
        """The inverses times `right`, [..., stages * size, 1]."""
        slopes = right.unflatten(-2, (len(self.modes[0].left), -1)).unbind(-3)
        parts = []
        for mode, factor in zip(self.modes, self.factors, strict=True):
            part = factor.solve(_sum(mode.left, slopes))
            parts.append([(weight * part).real if part.is_complex() else weight * part for weight in mode.right])
        return torch.cat([_sum([1.0] * len(each), each) for each in zip(*parts, strict=True)], -2)


def _sum(weights: Sequence[complex], terms: Sequence[Tensor]) -> Tensor:
    """The weighted sum, term by term: so a row does not depend on how many there are."""
    first, *others = (weight * term for weight, term in zip(weights, terms, strict=True))
    return sum(others, first)


class DirectStageSolver(Memory):
    """By LU factorisation.

    Args:
        systems: what kind they are.
        origin: what they are made of.
        sparsity: where the Jacobian has entries; None for a dense one.
        projection: what is before dy/dt.
        jacobian: the Jacobian that may serve all stages, [rows, size, size], or its entries, [rows, n].
        factorised: the matrices.
    """

    def __init__(
        self,
        systems: Systems,
        origin: Origin,
        sparsity: Sparsity | None,
        projection: Projection | None,
        jacobian: Tensor,
        factorised: Factorised | Decoupled | SparseFactorised,
    ):
        self.systems = systems
        self.origin = origin
        self._sparsity = sparsity
        self._projection = projection
        self._jacobian = jacobian
        self._factorised = factorised

    def map(self, function: Callable[..., Tensor], *others: DirectStageSolver) -> DirectStageSolver:
        return self._with(
            self.origin.map(function, *(other.origin for other in others)),
            function(self._jacobian, *(other._jacobian for other in others)),
            self._factorised.map(function, *(other._factorised for other in others)),  # pyright: ignore[reportArgumentType]
        )

    def _with(
        self, origin: Origin, jacobian: Tensor, factorised: Factorised | Decoupled | SparseFactorised
    ) -> DirectStageSolver:
        return DirectStageSolver(self.systems, origin, self._sparsity, self._projection, jacobian, factorised)

    @property
    def kind(self) -> type:
        """How the matrices are factorised."""
        return type(self._factorised)

    def at_size(self, dt: Numbers) -> DirectStageSolver:
        # A size that is almost the same only slows the iteration, if it does.
        near = (abs(dt - self.origin.dt) <= 0.01 * abs(dt)) | (dt == 0.0)
        if all_of(near):
            return self
        jacobians, length = self._jacobian.unsqueeze(1), column(dt, self._jacobian)
        factorised = self.systems.factorised(jacobians, length, self._sparsity, self._projection)
        other = self._with(self.origin.at_size(dt), self._jacobian, factorised)
        return self.map(choice(near), other) if any_of(near) else other

    def radius(self) -> Tensor:
        if self._sparsity is None:
            return spectral_bound(self._jacobian)
        sizes = self._jacobian.detach().abs()
        sums = [sizes.new_zeros(len(sizes), self._sparsity.size).index_add(1, x, sizes) for x in self._sparsity.places]
        return torch.minimum(*(x.amax(1) for x in sums))

    def solve(self, residual: Tensor) -> Tensor:
        stages, rows, size = residual.shape
        if isinstance(self.origin.dt, float):
            return self._factorised.solve(residual.reshape(-1, 1)).view_as(residual)
        right = residual.transpose(0, 1).reshape(rows, stages * size, 1)
        return self._factorised.solve(right).view(rows, stages, size).transpose(0, 1)


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


def merged(mask: Flags, one: StageSolver, other: StageSolver | Origin | None) -> StageSolver | Origin:
    """`one` for the rows of the mask, the other for the others."""
    if other is None or all_of(mask):
        return one
    return mapped(choice(mask), one, other)


def mapped(function: Callable[..., Tensor], *solvers: StageSolver | Origin) -> StageSolver | Origin:
    """What `function` makes of solvers, tensor by tensor: of their factors, if all have such; else of their origins."""
    dense = [solver for solver in solvers if isinstance(solver, DirectStageSolver)]
    if len(dense) == len(solvers) and len({solver.kind for solver in dense}) == 1:
        return dense[0].map(function, *dense[1:])
    origins = [solver.origin for solver in solvers]
    return origins[0].map(function, *origins[1:])
