"""Implicit Runge-Kutta methods: the one engine that reads their tableaus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import HERMITE, Interpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import Check, FlatFunc, Method, Step
from torchivp.methods.ode.newton import Newton, Solved, solve
from torchivp.methods.ode.runge_kutta import ButcherTableau
from torchivp.methods.ode.stage_equations import StageEquations
from torchivp.methods.ode.stage_solver import LINEAR_SOLVERS, Origin, StageSolver, linearised
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import any_dual, derivative_depth, inside_transform, read

_CORRECTIONS = 2
"""How many times a solve can be differentiated, but for nested transforms of torch.func; see `_recorded`."""

_THIRD = (
    "implicit Runge-Kutta methods can be differentiated twice, not three times: use nested transforms such as "
    "torch.func.grad, which can, or an explicit method such as method='dopri5'"
)


def _check_linear_solver(name: str, value: Any) -> str:
    if value not in LINEAR_SOLVERS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, LINEAR_SOLVERS))}, got {value!r}")
    return value


def _without_overflow(norm: ErrorNorm, dtype: torch.dtype) -> ErrorNorm:
    """The norm of stage equations: with tolerances not so small that the squares of scaled corrections overflow.

    Without an absolute tolerance there is none where the state is zero; but corrections may be large there.
    """
    norm, least = norm.of_equations(), torch.finfo(dtype).tiny ** 0.4
    norm.atol = norm.atol.clamp(min=least) if isinstance(norm.atol, Tensor) else max(norm.atol, least)
    return norm


class ImplicitCarry(NamedTuple):
    """What a step starts from besides the state.

    Attributes:
        slope: `func` at the start of the step, as real numbers; None if it is not known.
        last: the last step; None at the start. No tensor to those who look for tensors in a carry: it only helps
            Newton's iteration, and no gradient flows through it.
    """

    slope: Tensor | None
    last: _LastStep | None


@dataclass(frozen=True, slots=True)
class _LastStep:
    """What the iteration of the next step starts from.

    Attributes:
        dt: the size of the step.
        slopes: the slopes of the stages, [stages, size].
        solver: the linear solver, or what it is made of.
        rate: the rate of convergence.
    """

    dt: float
    slopes: Tensor
    solver: StageSolver | Origin | None
    rate: float | None


@dataclass(frozen=True, slots=True)
class _Block:
    """Stages that are found together.

    Attributes:
        first: the first of them.
        stop: the one after the last.
        before: their coefficients of the stages before them, [stages, first].
        own: their coefficients of each other; None for an explicit stage.
    """

    first: int
    stop: int
    before: Tensor
    own: Tensor | None


def _extents(a: np.ndarray) -> list[tuple[int, int]]:
    """The first stage of each block and the one after the last.

    Stage by stage if that is possible and one matrix serves all of them; otherwise all stages are one block.
    """
    stages = len(a)
    on_diagonal = np.unique(np.diag(a))
    if np.any(np.triu(a, 1)) or len(on_diagonal[on_diagonal != 0]) > 1:
        return [(0, stages)]
    return [(i, i + 1) for i in range(stages)]


class ImplicitRungeKutta(Method):
    """The engine of the implicit Runge-Kutta methods. A method is a subclass with a `tableau`.

    Newton's iteration finds the slopes of the stages, those of diagonally implicit methods stage by stage, to a
    thousandth of the tolerances `rtol` and `atol`. Jacobians, by autograd, and their factorisations serve as many
    iterations and steps as they can. Where autograd sees nothing, as in NumPy's functions, Jacobians are zero, and only
    short steps converge.

    Gradients are those of the exact slopes, by the implicit function theorem, and can be differentiated once more, not
    twice; by nested transforms of torch.func, any number of times.

    Attributes:
        max_iters: the largest number of Newton iterations for the stages that are solved for together.
        linear_solver: "dense" factorises the matrix of the linear systems, "krylov" (GMRES) needs products of vectors
            with the Jacobian only; "auto" chooses by the size of the system.
    """

    tableau: ClassVar[ButcherTableau]
    error_order = None
    max_iters: ClassVar[int] = 100
    linear_solver: ClassVar[str] = "auto"
    options: ClassVar[Mapping[str, Check]] = {
        "max_iters": partial(check_whole_number, smallest=1),
        "linear_solver": _check_linear_solver,
    }

    def __init_subclass__(cls) -> None:
        if "tableau" in cls.__dict__:
            cls.order = cls.tableau.order

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        tableau, dtype, device = self.tableau, y0.dtype.to_real(), y0.device
        a = tableau.matrix
        self._real_dtype = real_dtype
        self._norm = _without_overflow(norm, dtype)
        self._eps = torch.finfo(dtype).eps
        self._complex = y0.is_complex()
        self._a = torch.tensor(a, dtype=dtype, device=device)
        self._b = torch.tensor([tableau.b], dtype=dtype, device=device)
        self._c = torch.tensor(tableau.c, dtype=time_dtype(device), device=device)
        self._blocks = [
            _Block(i, j, self._a[i:j, :i], self._a[i:j, i:j] if a[i:j, i:j].any() else None) for i, j in _extents(a)
        ]
        self._next_slopes = self._extrapolation(1.0)
        self._dense_b = StepPolynomials(tableau.dense.b if tableau.dense else HERMITE, device)

    def initial_carry(self, f0: Tensor) -> ImplicitCarry:
        return ImplicitCarry(to_real(f0), None)

    def carry_to_keep(self, carry: ImplicitCarry | None) -> ImplicitCarry | None:
        last = None if carry is None else carry.last
        if carry is None or last is None or last.solver is None or isinstance(last.solver, Origin):
            return carry
        return carry._replace(last=replace(last, solver=last.solver.origin))

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        start, end = (t.item() if isinstance(t, Tensor) else t for t in (t0, t1))
        slope, last = carry or (None, None)
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        solved = self._solve(real_func, start, end, y0.detach(), slope, last)
        if solved.failure is not None:
            return Step(t0, t1, y0, y0, None, None, carry, None, failure=solved.failure)
        slopes = solved.slopes
        if solved.tracked or self._tracked((t0, t1, y0, slope, slopes)):
            slopes = self._recorded(real_func, t0, t1, real_y0, slope, slopes.detach())
        y1 = torch.addmm(real_y0, self._b * (t1 - t0), slopes)
        done = _LastStep(end - start, solved.slopes.detach(), solved.solver, solved.rate)
        after = ImplicitCarry(slopes[-1:] if self.tableau.fsal else None, done)
        return Step(t0, t1, y0, to_complex(y1) if self._complex else y1, None, after, carry, (slope, slopes))

    def _tracked(self, sources: Sequence[float | Tensor | None]) -> bool:
        """Whether a gradient flows through one of these."""
        tensors = [x for x in sources if isinstance(x, Tensor)]
        return (
            inside_transform()
            or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
            or any_dual(tensors)
        )

    def _solve(
        self, func: FlatFunc, t0: float, t1: float, y0: Tensor, slope: Tensor | None, last: _LastStep | None
    ) -> Solved:
        """The slopes of all stages, without history."""
        if last is not None and last.rate is not None and math.isnan(last.rate):  # and so it stays
            return Solved(last.slopes, None, last.rate, False, None)
        dt, times, newton = t1 - t0, self._stage_times(t0, t1), self._newton(y0, t1 - t0)
        y0 = to_real(y0)
        rate, solver, tracked = None, None, False
        if last is not None and last.solver is not None:
            made = last.solver.solver(func) if isinstance(last.solver, Origin) else last.solver
            rate, solver = last.rate, made.at_size(dt)
        known = y0[:0]
        for block in self._blocks:
            base = torch.addmm(y0, block.before * dt, known) if block.first else y0
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if block.first == 0 else None)
                tracked, slopes = tracked or slopes.requires_grad, slopes.detach()
            else:
                equations = StageEquations(func, times[block.first : block.stop], y0, base, block.own, dt)
                found = solve(newton, equations, self._guess(known, last, dt), solver, rate)
                slopes, solver, rate, tracked = found.slopes, found.solver, found.rate, tracked or found.tracked
                if found.failure is not None:
                    return found
            known = torch.cat((known, slopes)) if block.first else slopes
        return Solved(known, solver, rate, tracked, None)

    def _recorded(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, slope: Tensor | None, solved: Tensor
    ) -> Tensor:
        """The `solved` slopes as functions of all that they depend on: their values stay what they are.

        That is, constants, and recorded Newton corrections with their values taken away. Their matrix M is constant
        too, the exact Jacobian of the residual F at these slopes. Each correction makes one more derivative right: if e
        is the error of the slopes k when what they depend on moves by d, and e = O(d^n), then the next error is
        e - M^-1 (F(k) - F(k - e)) = M^-1 (M - F' + O(e)) e, and F' = M + O(d), so it is O(d^(n + 1)).
        """
        dt, times = t1 - t0, self._stage_times(t0, t1)
        known = y0[:0]
        for block in self._blocks:
            base = torch.addmm(y0, block.before * dt, known) if block.first else y0
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if block.first == 0 else None)
            else:
                equations = StageEquations(func, times[block.first : block.stop], y0, base, block.own, dt)
                slopes = solved[block.first : block.stop]
                solver = self._linearised(equations, slopes, True, 1e3 * self._eps)
                for _ in range(_CORRECTIONS + derivative_depth()):
                    change = solver.solve(equations.residual(slopes))
                    slopes = slopes + (change - change.detach())
            known = torch.cat((known, slopes)) if block.first else slopes
        return differentiable_twice(_THIRD, known)

    def _explicit(self, func: FlatFunc, t: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        """The slope of an explicit stage, which is `slope` if that is known."""
        return func(t, y).clone() if slope is None else slope  # func may use its memory again

    def _newton(self, y0: Tensor, dt: float) -> Newton:
        """What Newton's iteration needs in a step."""

        def size(rows: Tensor) -> float:
            rows = to_complex(rows) if self._complex else rows
            if len(rows) > 1:  # the largest of the stages, element by element
                rows = torch.linalg.vector_norm(rows, torch.inf, dim=0, keepdim=True)
            return self._norm(rows, y0, y0)

        def is_rounding(change: Tensor, states: Tensor, stalled: bool) -> bool:
            rounding = 16 * self._eps
            # Element by element, as tolerances are; if that does not help, rounding spreads from the largest element.
            return abs(dt) * size(change) <= rounding * size(states) or (
                stalled and abs(dt) * read(change.abs().amax()) <= rounding * read(states.abs().amax())
            )

        return Newton(self._linearised, lambda change: abs(dt) * size(change), is_rounding, self.max_iters)

    def _linearised(
        self, equations: StageEquations, slopes: Tensor, exact: bool, tolerance: float = 1e-3
    ) -> StageSolver:
        """A linear solver with the Jacobian of every stage if `exact`, else with that of a stage in the middle."""
        stages = len(equations.times)
        places = range(stages) if exact else [stages // 2]
        return linearised(self.linear_solver, equations, slopes, places, tolerance)

    def _guess(self, known: Tensor, last: _LastStep | None, dt: float) -> Tensor | None:
        """The slopes that the iteration starts from: those of the last step, extrapolated, or of the last stage."""
        if len(self._blocks) > 1 and len(known):
            return known[-1:]
        if last is None:
            return None
        if len(self._blocks) > 1:
            return last.slopes[-1:]
        ratio = dt / last.dt
        return torch.mm(self._next_slopes if abs(ratio - 1.0) < 0.01 else self._extrapolation(ratio), last.slopes)

    def _extrapolation(self, ratio: float) -> Tensor:
        """What extrapolates the slopes of a step to those of the next, longer by `ratio`, by their polynomial."""
        nodes = np.array(self.tableau.c, dtype=np.float64)
        powers = np.vander(1.0 + ratio * nodes, len(nodes), increasing=True)
        return torch.as_tensor(powers @ np.linalg.pinv(np.vander(nodes, increasing=True))).to(self._a)

    def _stage_times(self, t0: float | Tensor, t1: float | Tensor) -> Sequence[Tensor]:
        """The times of the stages, in the dtype that `func` receives. A node c = 1 gives `t1` exactly."""
        start, end = (time_scalar(t, self._c.dtype, self._c.device) for t in (t0, t1))
        return torch.lerp(start, end, self._c).to(self._real_dtype).unbind()

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        slope, slopes = step.stages
        if self.tableau.dense is None:
            slopes = self._hermite_slopes(func, step, slope)
        elif self._complex:
            slopes = to_complex(slopes)
        return Interpolant(step.t0, step.t1, step.y0, slopes, self._dense_b)

    def _hermite_slopes(self, func: FlatFunc, step: Step, slope: Tensor | None) -> Tensor:
        """The slope of the chord and those at both ends of the step."""
        if slope is None:
            slope = self._slope(func, step.t0, step.y0)
        if step.carry.slope is None:
            step.carry = step.carry._replace(slope=self._slope(func, step.t1, step.y1))
        ends = torch.cat((slope, step.carry.slope))
        chord = (step.y1 - step.y0) / (step.t1 - step.t0)
        return torch.cat((chord, to_complex(ends) if self._complex else ends))

    def _slope(self, func: FlatFunc, t: float | Tensor, y: Tensor) -> Tensor:
        return to_real(func(time_scalar(t, self._real_dtype, y.device), y)).clone()
