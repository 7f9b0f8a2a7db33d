"""Implicit Runge-Kutta methods: the one engine that reads their tableaus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import HERMITE, Interpolant, RowInterpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.methods.implicit.equations import StageEquations, combined, on_host
from torchivp.methods.implicit.linear import LINEAR_SOLVERS, Origin, StageSolver, Systems, mapped
from torchivp.methods.implicit.newton import Newton, solve, why_not
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import Check, FlatFunc, Memory, Method, Step, on_arrays
from torchivp.methods.ode.runge_kutta import ButcherTableau
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import any_dual, derivative_depth, inside_transform, read_rows

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
    """What steps start from besides the states.

    Attributes:
        slope: `func` at the starts of the steps, [rows, size], as real numbers; None if it is not known.
        last: what Newton's iteration remembers.
    """

    slope: Tensor | None
    last: _LastStep


@dataclass(frozen=True, slots=True)
class _LastStep(Memory):
    """What the iteration of the next step starts from. No gradient flows through it.

    Attributes:
        dt: the sizes of the steps, [rows]; NaN where there was none.
        rate: the rates of convergence, likewise; NaN where they are not known.
        lost: where the slopes are not finite, and so it stays.
        slopes: the slopes of the stages, [rows, stages, size].
        solver: the linear solver, or what it is made of.
    """

    dt: np.ndarray
    rate: np.ndarray
    lost: np.ndarray
    slopes: Tensor
    solver: StageSolver | Origin

    @staticmethod
    def none(y0: Tensor, stages: int, single: bool) -> _LastStep:
        """Before the first step from `y0`, [rows, size]; of a `single` row, arrays are NumPy's scalars."""
        rows, size = y0.shape
        unknown = np.full(rows, math.nan)
        unknown = unknown[0] if single else unknown
        slopes = y0.new_zeros(rows, stages, size)
        origin = Origin(slopes.new_zeros(rows, 1, dtype=time_dtype(y0.device)), y0, unknown)
        return _LastStep(unknown, unknown, unknown == 0.0, slopes, origin)

    def map(self, function: Callable[..., Tensor], *others: _LastStep) -> _LastStep:
        steps = (self, *others)
        dt, rate, lost = (on_arrays(function, *(getattr(x, name) for x in steps)) for name in ("dt", "rate", "lost"))
        slopes = function(*(x.slopes for x in steps))
        return _LastStep(dt, rate, lost, slopes, mapped(function, *(x.solver for x in steps)))


class _StepSolved(NamedTuple):
    """The slopes of the stages of a step, [stages, rows, size], what to remember, and why rows have none."""

    slopes: Tensor
    last: _LastStep
    tracked: bool
    failure: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Block:
    """Stages that are found together.

    Attributes:
        first: the first of them.
        stop: the one after the last.
        before: their coefficients of the stages before them, [stages, first].
        own: the linear systems with their coefficients of each other; None for an explicit stage.
        precise: the same, solved to rounding.
    """

    first: int
    stop: int
    before: Tensor
    own: Systems | None
    precise: Systems | None


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
    takes_rows = True
    rows_keep_carry = True
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
        self._given, self._norm = norm, _without_overflow(norm, dtype)
        self._eps = torch.finfo(dtype).eps
        self._complex = y0.is_complex()
        self._a = torch.tensor(a, dtype=dtype, device=device)
        self._b = torch.tensor([tableau.b], dtype=dtype, device=device)
        self._c = torch.tensor(tableau.c, dtype=time_dtype(device), device=device)
        self._blocks = [self._block(i, j) for i, j in _extents(a)]
        # Known from the step before it, or evaluated; for dense output by cubics when that is asked for, if not known.
        self._needs_slope = self._blocks[0].own is None or (tableau.fsal and tableau.dense is None)
        self._next_slopes = self._extrapolation(np.ones(1))
        self._dense_b = StepPolynomials(tableau.dense.b if tableau.dense else HERMITE, device)

    def _block(self, first: int, stop: int) -> _Block:
        a = self._a[first:stop, first:stop]
        kinds = [Systems(self.linear_solver, a, tolerance) for tolerance in (1e-3, 1e3 * self._eps)]
        own, precise = kinds if a.any() else (None, None)
        return _Block(first, stop, self._a[first:stop, :first], own, precise)

    def initial_carry(self, f0: Tensor) -> ImplicitCarry:
        slope = to_real(f0)
        last = _LastStep.none(slope, len(self.tableau.c), single=False)
        return ImplicitCarry(slope if self._needs_slope else None, last)

    def carry_to_keep(self, carry: ImplicitCarry | None) -> ImplicitCarry | None:
        if carry is None:
            return None
        slope = carry.slope if self._needs_slope else None
        return ImplicitCarry(slope, replace(carry.last, solver=carry.last.solver.origin))

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        start, end = (time_scalar(t, self._c.dtype, self._c.device) for t in (t0, t1))
        if carry is not None and np.ndim(carry.last.dt):  # an initial one, that of rows
            carry = carry._replace(last=_LastStep.none(carry.last.slopes[:, 0], len(self.tableau.c), single=True))
        step = self.step_rows(func, start, end, y0, carry, self._given)
        step.t0, step.t1 = t0, t1
        return step

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: ImplicitCarry | None, norm: ErrorNorm
    ) -> Step:
        if norm is not self._given:
            self._given, self._norm = norm, _without_overflow(norm, self._a.dtype)
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        slope, last = carry or (None, _LastStep.none(real_y0.detach(), len(self.tableau.c), t0.ndim == 0))
        if slope is None and self._needs_slope:
            slope = self._slope(real_func, t0, real_y0)
        with np.errstate(all="ignore"):
            solved = self._solve(real_func, t0.detach(), t1.detach(), y0.detach(), slope, last)
        slopes = solved.slopes
        if solved.tracked or self._tracked((t0, t1, y0, slope, slopes)):
            slopes = self._recorded(real_func, t0, t1, real_y0, slope, slopes.detach())
        dt = (t1 - t0).to(slopes.dtype)
        (y1,) = combined(real_y0, self._b, slopes, dt)
        if solved.failure:
            failed = torch.tensor(list(solved.failure), device=y1.device)
            y1 = y1.index_copy(0, failed, real_y0.index_select(0, failed))
        after = ImplicitCarry(slopes[-1] if self.tableau.fsal and self._needs_slope else None, solved.last)
        y1 = to_complex(y1) if self._complex else y1
        stages = (slope, slopes)
        return Step(t0, t1, y0, y1, None, after, ImplicitCarry(slope, last), stages, failure=solved.failure or None)

    def _tracked(self, sources: Sequence[Tensor | None]) -> bool:
        """Whether a gradient flows through one of these."""
        tensors = [x for x in sources if x is not None]
        return (
            inside_transform()
            or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
            or any_dual(tensors)
        )

    def _solve(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, slope: Tensor | None, last: _LastStep
    ) -> _StepSolved:
        """The slopes of all stages, without history."""
        dt = on_host(t1 - t0)
        lost, failure, tracked = last.lost, {}, False
        if np.count_nonzero(lost) == lost.size:
            return _StepSolved(last.slopes.transpose(0, 1), last, tracked, failure)
        newton_of, times = partial(self._newton, y0, dt), self._stage_times(t0, t1)
        y0 = to_real(y0)
        length, rate, solver = (t1 - t0).to(y0.dtype), last.rate, last.solver
        known, waiting = y0.new_zeros(0, *y0.shape), ~lost
        for block in self._blocks:
            base = self._base(block, y0, known, length)
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if block.first == 0 else None)
                tracked, slopes = tracked or slopes.requires_grad, slopes.detach()
            else:
                equations = StageEquations(func, times[block.first : block.stop], y0, base, block.own.a, length)
                old = self._old_solver(block.own, equations, solver, dt)
                found = solve(newton_of(block.own), equations, self._guess(known, last, dt), waiting, old, rate)
                slopes, solver, rate, tracked = found.slopes, found.solver, found.rate, tracked or found.tracked
                for row in np.flatnonzero(found.failed).tolist():
                    size, count = (np.ravel(x)[row].item() for x in (found.size, found.iterations))
                    failure[row] = why_not(size, count, self.max_iters)
                lost, waiting = lost | found.lost, waiting & ~found.lost & ~found.failed
            known = torch.cat((known, slopes)) if block.first else slopes
            if not np.count_nonzero(waiting):
                known = y0.new_full((len(self._c), *y0.shape), math.nan)
                break
        done = _LastStep(dt, rate, lost, known.detach().transpose(0, 1), solver)
        return _StepSolved(known, done, tracked, failure)

    def _old_solver(
        self, systems: Systems, equations: StageEquations, solver: StageSolver | Origin, dt: np.ndarray
    ) -> StageSolver | None:
        """A linear solver with the Jacobians of the last step, or of the last stage; None if no row has any."""
        if isinstance(solver, Origin):
            if np.isnan(solver.dt).all():
                return None
            solver = systems.again(equations, solver)
        return solver.at_size(dt)

    def _recorded(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, slope: Tensor | None, solved: Tensor
    ) -> Tensor:
        """The `solved` slopes as functions of all that they depend on: their values stay what they are.

        That is, constants, and recorded Newton corrections with their values taken away. Their matrix M is constant
        too, the exact Jacobian of the residual F at these slopes. Each correction makes one more derivative right: if e
        is the error of the slopes k when what they depend on moves by d, and e = O(d^n), then the next error is
        e - M^-1 (F(k) - F(k - e)) = M^-1 (M - F' + O(e)) e, and F' = M + O(d), so it is O(d^(n + 1)).
        """
        dt, times = (t1 - t0).to(y0.dtype), self._stage_times(t0, t1)
        known = y0.new_zeros(0, *y0.shape)
        for block in self._blocks:
            base = self._base(block, y0, known, dt)
            if block.precise is None:
                slopes = self._explicit(func, times[block.first], base, slope if block.first == 0 else None)
            else:
                equations = StageEquations(func, times[block.first : block.stop], y0, base, block.precise.a, dt)
                slopes = solved[block.first : block.stop]
                solver = block.precise.at(equations, slopes, True)
                for _ in range(_CORRECTIONS + derivative_depth()):
                    change = solver.solve(equations.residual(slopes))
                    slopes = slopes + (change - change.detach())
            known = torch.cat((known, slopes)) if block.first else slopes
        return differentiable_twice(_THIRD, known)

    def _base(self, block: _Block, y0: Tensor, known: Tensor, dt: Tensor) -> Tensor:
        """What the states of the stages of a block have in common."""
        # All rows of the block are alike where there is something before it: it is a single stage.
        return combined(y0, block.before, known, dt)[0] if block.first else y0

    def _explicit(self, func: FlatFunc, t: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        """The slope of an explicit stage, [1, rows, size], which is `slope` if that is known."""
        return (func(t, y).clone() if slope is None else slope).unsqueeze(0)  # func may use its memory again

    def _newton(self, y0: Tensor, dt: np.ndarray, systems: Systems) -> Newton:
        """What Newton's iteration needs in a step."""
        length = np.abs(dt)

        def size(stages: Tensor) -> Any:
            if self._complex:
                stages = torch.view_as_complex(stages.unflatten(2, (-1, 2)))
            # The largest of the stages, element by element.
            largest = stages[0] if len(stages) == 1 else stages.abs().amax(0)
            return self._norm.rows(largest, y0, y0) if np.ndim(dt) else np.float64(self._norm(largest, y0, y0))

        def is_rounding(change: Tensor, states: Sequence[Tensor], stalled: np.ndarray) -> np.ndarray:
            rounding, stages = 16 * self._eps, torch.stack(tuple(states))
            # Element by element, as tolerances are; if that does not help, rounding spreads from the largest element.
            found = length * size(change) <= rounding * size(stages)
            if np.count_nonzero(stalled & ~found):
                largest = [read_rows(x.abs().amax((0, 2))).reshape(dt.shape) for x in (change, stages)]
                found = found | stalled & (length * largest[0] <= rounding * largest[1])
            return found

        return Newton(systems, lambda change: length * size(change), is_rounding, self.max_iters)

    def _guess(self, known: Tensor, last: _LastStep, dt: np.ndarray) -> Tensor:
        """The slopes that the iteration starts from: those of the last step, extrapolated, or of the last stage."""
        if len(self._blocks) > 1:
            return known[-1:] if len(known) else last.slopes[:, -1].unsqueeze(0)
        ratio = dt / last.dt
        far = np.abs(ratio - 1.0) >= 0.01
        weights = self._extrapolation(np.where(far, ratio, 1.0)) if np.count_nonzero(far) else self._next_slopes
        if not np.ndim(dt):
            return torch.mm(weights[0], last.slopes[0]).unsqueeze(1)
        # One after the other: what a matrix product does to a row may depend on how many there are.
        first, *others = (weights.unsqueeze(3) * last.slopes.unsqueeze(1)).unbind(2)
        return sum(others, first).transpose(0, 1)

    def _extrapolation(self, ratio: np.ndarray) -> Tensor:
        """What extrapolates the slopes of a step to those of the next, longer by `ratio`, [rows, stages, stages].

        By their polynomial.
        """
        nodes = np.array(self.tableau.c, dtype=np.float64)
        powers = (1.0 + ratio.reshape(-1, 1) * nodes)[:, :, None] ** np.arange(len(nodes))
        return torch.as_tensor(powers @ np.linalg.pinv(np.vander(nodes, increasing=True))).to(self._a)

    def _stage_times(self, t0: Tensor, t1: Tensor) -> Sequence[Tensor]:
        """The times of the stages, in the dtype that `func` receives. A node c = 1 gives `t1` exactly."""
        c = self._c.view(-1, 1, 1) if t0.ndim else self._c
        return torch.lerp(t0, t1, c).to(self._real_dtype).unbind()

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        start, end = (time_scalar(t, self._c.dtype, self._c.device) for t in (step.t0, step.t1))
        slopes = self._dense_slopes(func, step, start, end)
        return Interpolant(step.t0, step.t1, step.y0, slopes.squeeze(1), self._dense_b)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        t0, t1, y0 = step.t0, step.t1, step.y0
        assert isinstance(t0, Tensor) and isinstance(t1, Tensor)
        increments = self._dense_slopes(func, step, t0, t1) * (t1 - t0).to(self._a.dtype)
        return RowInterpolant(y0, increments.reshape(len(increments), y0.numel()), self._dense_b)

    def _dense_slopes(self, func: FlatFunc, step: Step, t0: Tensor, t1: Tensor) -> Tensor:
        """The slopes whose polynomials are the solution within a step, [n, rows, size].

        Without others, the slope of the chord and those at both ends of the step.
        """
        slope, slopes = step.stages
        if self.tableau.dense is not None:
            return self._as_state(slopes)
        if slope is None:
            slope = self._slope(func, t0, step.y0)
        if step.carry.slope is None:
            step.carry = step.carry._replace(slope=self._slope(func, t1, step.y1))
        chord = (step.y1 - step.y0) / (t1 - t0).to(self._a.dtype)
        return torch.stack((chord, *self._as_state(torch.stack((slope, step.carry.slope)))))

    def _as_state(self, slopes: Tensor) -> Tensor:
        return torch.view_as_complex(slopes.unflatten(2, (-1, 2)).contiguous()) if self._complex else slopes

    def _slope(self, func: FlatFunc, t: Tensor, y: Tensor) -> Tensor:
        return to_real(func(t.to(self._real_dtype), y)).clone()
