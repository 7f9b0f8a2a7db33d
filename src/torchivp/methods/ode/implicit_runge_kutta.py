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
from torchivp.methods.implicit.equations import StageEquations, combined
from torchivp.methods.implicit.linear import LINEAR_SOLVERS, Origin, StageSolver, Systems, mapped
from torchivp.methods.implicit.newton import Newton, Solved, solve, why_not
from torchivp.methods.implicit.per_row import Flags, Numbers, all_of, any_of, is_single, pick, without
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import Check, FlatFunc, Memory, Method, Step, on_arrays
from torchivp.methods.ode.runge_kutta import ButcherTableau
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import any_dual, derivative_depth, inside_transform, read, read_rows

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
        dt: the sizes of the steps; NaN where there was none.
        rate: the rates of convergence; NaN where they are not known.
        lost: where the slopes are not finite, and so it stays.
        slopes: the slopes of the stages, [stages, rows, size].
        solver: the linear solver, or what it is made of.
    """

    dt: Numbers
    rate: Numbers
    lost: Flags
    slopes: Tensor
    solver: StageSolver | Origin

    @staticmethod
    def none(y0: Tensor, stages: int, single: bool) -> _LastStep:
        """Before the first step from `y0`, [rows, size]; of a `single` row, in Python's numbers."""
        rows, size = y0.shape
        unknown = math.nan if single else np.full(rows, math.nan)
        origin = Origin(y0.new_zeros(rows, 1, dtype=time_dtype(y0.device)), y0, unknown)
        return _LastStep(unknown, unknown, unknown == 0.0, y0.new_zeros(stages, rows, size), origin)

    def map(self, function: Callable[..., Tensor], *others: _LastStep) -> _LastStep:
        steps = (self, *others)
        dt, rate, lost = (on_arrays(function, *(getattr(x, name) for x in steps)) for name in ("dt", "rate", "lost"))
        slopes = function(*(x.slopes.transpose(0, 1) for x in steps)).transpose(0, 1)
        return _LastStep(dt, rate, lost, slopes, mapped(function, *(x.solver for x in steps)))


class _Span(NamedTuple):
    """What steps lead over.

    Attributes:
        times: the times of the stages, [stages, rows, 1]; of a single row [stages].
        dt: the sizes of the steps, [rows, 1]; of a single row a float, or 0-d.
        sizes: the same on the host.
    """

    times: Tensor
    dt: float | Tensor
    sizes: Numbers

    def detached(self) -> _Span:
        """The same without history."""
        dt = self.dt.detach() if isinstance(self.dt, Tensor) else self.dt
        return _Span(self.times.detach(), dt, self.sizes)


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
    uses_jacobian = True
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
        self._hands_on_slope = tableau.fsal and self._needs_slope
        self._next_slopes = self._extrapolation(1.0)
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
        slope = carry.slope if self._hands_on_slope else None
        return ImplicitCarry(slope, replace(carry.last, solver=carry.last.solver.origin))

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        if carry is not None and not isinstance(carry.last.dt, float):  # an initial one, that of rows
            carry = carry._replace(last=_LastStep.none(carry.last.slopes[-1], len(self.tableau.c), single=True))
        start, end = (time_scalar(t, self._c.dtype, self._c.device) for t in (t0, t1))
        step = self._step(func, (start, end), t1 - t0, y0, carry)
        step.t0, step.t1 = t0, t1
        return step

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: ImplicitCarry | None, norm: ErrorNorm
    ) -> Step:
        if norm is not self._given:
            self._given, self._norm = norm, _without_overflow(norm, self._a.dtype)
        return self._step(func, (t0, t1), t1 - t0, y0, carry)

    def _step(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], dt: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        """A step of every row, or of a single one, whose size `dt` is a float or 0-d."""
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        slope, last = carry or (None, _LastStep.none(real_y0.detach(), len(self.tableau.c), is_single(dt)))
        if slope is None and self._needs_slope:
            slope = self._slope(real_func, ends[0], real_y0)
        if isinstance(dt, Tensor):
            sizes = read_rows(dt.squeeze(1)) if dt.ndim else read(dt)
            span = _Span(self._stage_times(*ends), dt.to(real_y0.dtype), sizes)
        else:
            span = _Span(self._stage_times(*ends), dt, dt)
        with np.errstate(all="ignore"):
            solved = self._solve(real_func, span.detached(), y0.detach(), slope, last)
        slopes = solved.slopes
        if solved.tracked or self._tracked((span.times, y0, slope, slopes)):
            slopes = self._recorded(real_func, span, real_y0, slope, slopes.detach())
        (y1,) = combined(real_y0, self._b, slopes, span.dt)
        if solved.failure:
            failed = torch.tensor(list(solved.failure), device=y1.device)
            y1 = y1.index_copy(0, failed, real_y0.index_select(0, failed))
        after = ImplicitCarry(slopes[-1] if self._hands_on_slope else None, solved.last)
        y1 = to_complex(y1) if self._complex else y1
        before = ImplicitCarry(slope, last)
        return Step(*ends, y0, y1, None, after, before, (slope, slopes), failure=solved.failure or None)

    def _tracked(self, sources: Sequence[Tensor | None]) -> bool:
        """Whether a gradient flows through one of these."""
        tensors = [x for x in sources if x is not None]
        return (
            inside_transform()
            or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
            or any_dual(tensors)
        )

    def _solve(self, func: FlatFunc, span: _Span, y0: Tensor, slope: Tensor | None, last: _LastStep) -> _StepSolved:
        """The slopes of all stages, without history."""
        lost, failure, tracked = last.lost, {}, False
        if all_of(lost):
            return _StepSolved(last.slopes, last, tracked, failure)
        newton, rate, solver, waiting = self._newton(y0, span.sizes), last.rate, last.solver, without(True, lost)
        y0, times, known = to_real(y0), span.times.unbind(), None
        for block in self._blocks:
            base = self._base(block, y0, known, span.dt)
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
                tracked, slopes = tracked or slopes.requires_grad, slopes.detach()
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.own.a, span.dt, span.sizes)
                old = self._old_solver(block.own, equations, solver)
                found = solve(newton, block.own, equations, self._guess(known, last, span.sizes), waiting, old, rate)
                slopes, solver, rate, tracked = found.slopes, found.solver, found.rate, tracked or found.tracked
                if any_of(found.failed):
                    failure.update(self._failures(found))
                lost, waiting = lost | found.lost, without(waiting, found.lost | found.failed)
            known = slopes if known is None else torch.cat((known, slopes))
            if not any_of(waiting):
                known = y0.new_full((len(self._c), *y0.shape), math.nan)
                break
        assert known is not None
        return _StepSolved(known, _LastStep(span.sizes, rate, lost, known.detach(), solver), tracked, failure)

    def _failures(self, found: Solved) -> dict[int, str]:
        """Why rows have no solution, by their places."""
        failed, sizes, counts = (np.atleast_1d(x) for x in (found.failed, found.size, found.iterations))
        return {i: why_not(float(sizes[i]), int(counts[i]), self.max_iters) for i in np.flatnonzero(failed).tolist()}

    def _old_solver(
        self, systems: Systems, equations: StageEquations, solver: StageSolver | Origin
    ) -> StageSolver | None:
        """A linear solver with the Jacobians of the last step, or of the last stage; None if no row has any."""
        if isinstance(solver, Origin):
            if not any_of(solver.known):
                return None
            solver = systems.again(equations, solver)
        return solver.at_size(equations.sizes)

    def _recorded(self, func: FlatFunc, span: _Span, y0: Tensor, slope: Tensor | None, solved: Tensor) -> Tensor:
        """The `solved` slopes as functions of all that they depend on: their values stay what they are.

        That is, constants, and recorded Newton corrections with their values taken away. Their matrix M is constant
        too, the exact Jacobian of the residual F at these slopes. Each correction makes one more derivative right: if e
        is the error of the slopes k when what they depend on moves by d, and e = O(d^n), then the next error is
        e - M^-1 (F(k) - F(k - e)) = M^-1 (M - F' + O(e)) e, and F' = M + O(d), so it is O(d^(n + 1)).
        """
        times, known = span.times.unbind(), None
        for block in self._blocks:
            base = self._base(block, y0, known, span.dt)
            if block.precise is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.precise.a, span.dt, span.sizes)
                slopes = solved[block.first : block.stop]
                solver = block.precise.at(equations, slopes, True)
                for _ in range(_CORRECTIONS + derivative_depth()):
                    change = solver.solve(equations.residual(slopes))
                    slopes = slopes + (change - change.detach())
            known = slopes if known is None else torch.cat((known, slopes))
        assert known is not None
        return differentiable_twice(_THIRD, known)

    def _base(self, block: _Block, y0: Tensor, known: Tensor | None, dt: float | Tensor) -> Tensor:
        """What the states of the stages of a block have in common."""
        # All rows of the block are alike where there is something before it: it is a single stage.
        return y0 if known is None else combined(y0, block.before, known, dt)[0]

    def _explicit(self, func: FlatFunc, t: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        """The slope of an explicit stage, [1, rows, size], which is `slope` if that is known."""
        return (func(t, y).clone() if slope is None else slope).unsqueeze(0)  # func may use its memory again

    def _newton(self, y0: Tensor, dt: Numbers) -> Newton:
        """What Newton's iteration needs in steps of these sizes."""
        length, tolerated = abs(dt), self._norm.tolerated(y0)
        measure = self._norm.size if isinstance(dt, float) else self._norm.sizes

        def size(stages: Tensor) -> Numbers:
            if self._complex:
                stages = torch.view_as_complex(stages.unflatten(2, (-1, 2)))
            # The largest of the stages, element by element.
            largest = stages.squeeze(0) if stages.shape[0] == 1 else torch.linalg.vector_norm(stages, torch.inf, 0)
            return measure(largest / tolerated)

        def is_rounding(change: Tensor, states: Sequence[Tensor], stalled: Flags) -> Flags:
            rounding, stages = 16 * self._eps, torch.stack(tuple(states))
            # Element by element, as tolerances are; if that does not help, rounding spreads from the largest element.
            found = length * size(change) <= rounding * size(stages)
            if any_of(without(stalled, found)):
                largest = [read_rows(x.abs().amax((0, 2))) for x in (change, stages)]
                spread = length * largest[0] <= rounding * largest[1]
                found = found | stalled & (bool(spread[0]) if isinstance(dt, float) else spread)
            return found

        return Newton(lambda change: length * size(change), is_rounding, self.max_iters)

    def _guess(self, known: Tensor | None, last: _LastStep, dt: Numbers) -> Tensor:
        """The slopes that the iteration starts from: those of the last step, extrapolated, or of the last stage."""
        if len(self._blocks) > 1:
            return (last.slopes if known is None else known)[-1:]
        ratio = dt / pick(last.dt == 0.0, math.nan, last.dt)
        far = abs(ratio - 1.0) >= 0.01
        weights = self._extrapolation(pick(far, ratio, 1.0)) if any_of(far) else self._next_slopes
        if isinstance(dt, float):
            return torch.mm(weights[0], last.slopes.squeeze(1)).unsqueeze(1)
        # One after the other: what a matrix product does to a row may depend on how many there are.
        first, *others = (weights.permute(2, 1, 0).unsqueeze(3) * last.slopes.unsqueeze(1)).unbind()
        return sum(others, first)

    def _extrapolation(self, ratio: Numbers) -> Tensor:
        """What extrapolates the slopes of a step to those of the next, longer by `ratio`, [rows, stages, stages].

        By their polynomial.
        """
        nodes = np.array(self.tableau.c, dtype=np.float64)
        powers = (1.0 + np.reshape(ratio, (-1, 1)) * nodes)[:, :, None] ** np.arange(len(nodes))
        return torch.as_tensor(powers @ np.linalg.pinv(np.vander(nodes, increasing=True))).to(self._a)

    def _stage_times(self, t0: Tensor, t1: Tensor) -> Tensor:
        """The times of the stages, [stages] or [stages, rows, 1], in the dtype that `func` receives.

        A node c = 1 gives `t1` exactly.
        """
        c = self._c.view(-1, 1, 1) if t0.ndim else self._c
        return torch.lerp(t0, t1, c).to(self._real_dtype)

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
