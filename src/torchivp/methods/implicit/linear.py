"""Linear systems with the Jacobians of the stage equations: which way they are solved, and solvers that factorise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchivp.mass import Projection, projection_of
from torchivp.methods.factorised import Factorised
from torchivp.methods.implicit.dense import Decoupled, factorised_stages
from torchivp.methods.implicit.equations import StageEquations
from torchivp.methods.implicit.krylov import KrylovStageSolver
from torchivp.methods.implicit.per_row import Flags, Numbers, all_of, any_of, column, pick
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
        if sparsity is None:
            return factorised_stages(self.a, jacobians, dt, projection)
        return factorised_blocks(self.a, sparsity, jacobians, dt, projection)


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
