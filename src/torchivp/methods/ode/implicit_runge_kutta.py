"""Implicit Runge-Kutta methods: the one engine that reads their tableaus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import HERMITE, Interpolant, RowInterpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.mass import projection_of
from torchivp.methods.implicit.equations import StageEquations, combined
from torchivp.methods.implicit.linear import Origin, StageSolver, Systems, mapped
from torchivp.methods.implicit.newton import solve
from torchivp.methods.implicit.per_row import (
    Flags,
    Numbers,
    all_of,
    any_of,
    clipped,
    is_single,
    pick,
    pick_slopes,
    without,
)
from torchivp.methods.implicit.steps import (
    added,
    check_linear_solver,
    failures,
    newton_of,
    old_solver,
    recorded,
    tracked,
    without_overflow,
)
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import Check, FlatFunc, Memory, Method, Step, Work, derive, on_arrays
from torchivp.methods.ode.runge_kutta import ButcherTableau
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import read, read_rows

_MOST = 10
"""The largest number of iterations in a step that can be tried again shorter,"""

_MOST_FIXED = 100
"""and in one that cannot."""

_TRUST = 25
"""A Jacobian serves for so many steps of the size for which it was made: an iteration with one that is far off may seem
to converge."""

_GOOD = 0.3
"""A step grows, or shrinks after a failure, to where corrections shrink at this rate."""

_LEAST = 1e-4
"""Errors and rates are taken to be at least this where they are compared with those of other steps."""

_AGED = 0.05
"""A Jacobian with which corrections shrink more slowly than this, in more than two iterations, is made anew."""

_THIRD = (
    "implicit Runge-Kutta methods can be differentiated twice, not three times: use nested transforms such as "
    "torch.func.grad, which can, or an explicit method such as method='dopri5'"
)


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
        size: the sizes of their errors, in units of the tolerance.
        rate: the rates of convergence; NaN where they are not known.
        trusted: how far on the Jacobian may serve.
        lost: where the slopes are not finite, and so it stays.
        stale: where the Jacobian is so old that there shall be a new one.
        again: where a step from the same state was tried, and rejected.
        slopes: the slopes of the stages, [stages, rows, size].
        solver: the linear solver, or what it is made of.
        spare: one with the Jacobian at the start of the step, where a single row has made it for a longer one. That
            step then is what it would be without, as when it is taken again for a gradient, but costs less.
    """

    dt: Numbers
    size: Numbers
    rate: Numbers
    trusted: Numbers
    lost: Flags
    stale: Flags
    again: Flags
    slopes: Tensor
    solver: StageSolver | Origin
    spare: StageSolver | None = None

    @staticmethod
    def none(y0: Tensor, stages: int, single: bool) -> _LastStep:
        """Before the first step from `y0`, [rows, size]; of a `single` row, in Python's numbers."""
        rows, size = y0.shape
        unknown = math.nan if single else np.full(rows, math.nan)
        origin = Origin(y0.new_zeros(rows, 1, dtype=time_dtype(y0.device)), y0, unknown)
        no = unknown == 0.0
        return _LastStep(
            dt=unknown,
            size=unknown,
            rate=unknown,
            trusted=unknown,
            lost=no,
            stale=no,
            again=no,
            slopes=y0.new_zeros(stages, rows, size),
            solver=origin,
        )

    def map(self, function: Callable[..., Tensor], *others: _LastStep) -> _LastStep:
        steps, names = (self, *others), ("dt", "size", "rate", "trusted", "lost", "stale", "again")
        numbers: Any = {name: on_arrays(function, *(getattr(x, name) for x in steps)) for name in names}
        slopes = function(*(x.slopes.transpose(0, 1) for x in steps)).transpose(0, 1)
        return _LastStep(**numbers, slopes=slopes, solver=mapped(function, *(x.solver for x in steps)))


class _Filter(NamedTuple):
    """The inverse of `I - dt g J` by the solver of a block of stages, with a real eigenvalue g of its coefficients.

    Attributes:
        vector: the eigenvector, [stages, 1, 1].
        place: which of its elements is one.
    """

    vector: Tensor
    place: int

    @staticmethod
    def of(a: np.ndarray, like: Tensor) -> _Filter:
        """Of the coefficients `a`, [stages, stages]."""
        values, vectors = np.linalg.eig(a)
        vector = np.real(vectors[:, np.argmin(abs(np.imag(values)))])
        place = int(np.argmax(abs(vector)))
        return _Filter(torch.as_tensor(vector / vector[place]).to(like).view(-1, 1, 1), place)

    def __call__(self, solver: StageSolver, x: Tensor) -> Tensor:
        return solver.solve(self.vector * x)[self.place]


class _Span(NamedTuple):
    """What steps lead over.

    Attributes:
        times: the times of the stages, [stages, rows, 1]; of a single row [stages].
        start: the times where they start, [rows, 1], or 0-d.
        dt: the sizes of the steps, [rows, 1]; of a single row a float, or 0-d.
        sizes: the same on the host.
    """

    times: Tensor
    start: Tensor
    dt: float | Tensor
    sizes: Numbers

    def detached(self) -> _Span:
        """The same without history."""
        dt = self.dt.detach() if isinstance(self.dt, Tensor) else self.dt
        return _Span(self.times.detach(), self.start.detach(), dt, self.sizes)


class _StepSolved(NamedTuple):
    """How the stages of a step were solved.

    Attributes:
        slopes: the slopes of the stages, [stages, rows, size].
        last: what the next step remembers.
        retry: what the same step remembers if it is tried again.
        tracked: whether a gradient flows through func.
        failure: why rows have no slopes.
        work: what it has cost.
        rate: the slowest rate of convergence that was seen.
    """

    slopes: Tensor
    last: _LastStep
    retry: _LastStep
    tracked: bool
    failure: dict[int, str]
    work: Work
    rate: Numbers = 0.0


@dataclass(frozen=True, slots=True)
class _Block:
    """Stages that are found together.

    Attributes:
        first: the first of them.
        stop: the one after the last.
        before: their coefficients of the stages before them, [stages, first]; None if there are none.
        guess: what combines the slopes of the stages before it to a guess of that of a single stage, in adaptive steps.
        own: the linear systems with their coefficients of each other; None for an explicit stage.
        precise: the same, solved to rounding.
    """

    first: int
    stop: int
    before: Tensor | None
    guess: Sequence[float] | None
    own: Systems | None
    precise: Systems | None


def _extents(a: np.ndarray) -> list[tuple[int, int]]:
    """The first stage of each block and the one after the last.

    Stage by stage if that is possible and one matrix serves all of them; otherwise all stages are one block, but for
    a first one that is the slope at the start.
    """
    stages = len(a)
    on_diagonal = np.unique(np.diag(a))
    if np.any(np.triu(a, 1)) or len(on_diagonal[on_diagonal != 0]) > 1:
        return [(0, stages)] if a[0].any() or a[:, 0].any() else [(0, 1), (1, stages)]
    return [(i, i + 1) for i in range(stages)]


def _extrapolating(nodes: Sequence[float]) -> Sequence[float]:
    """The least weights that find the value at the last node from the others, for polynomials of degree 2, or less."""
    degree = min(2, len(set(nodes[:-1])) - 1)
    powers = np.vander(np.array(nodes, dtype=np.float64), degree + 1)
    return (powers[-1] @ np.linalg.pinv(powers[:-1])).tolist()


class ImplicitRungeKutta(Method):
    """The engine of the implicit Runge-Kutta methods. A method is a subclass with a `tableau`.

    Newton's iteration finds the slopes of the stages, those of diagonally implicit methods stage by stage, to a
    thousandth of the tolerances `rtol` and `atol`, or in adaptive steps to `newton_tolerance`. Jacobians, by autograd,
    and their factorisations serve as many iterations and steps as they can. Where autograd sees nothing, as in NumPy's
    functions, Jacobians are zero, and only short steps converge. An adaptive step whose iteration converges slowly is
    tried again shorter; one of fixed size has Jacobians at all stages and in every iteration then.

    Gradients are those of the exact slopes, by the implicit function theorem, and can be differentiated once more, not
    twice; by nested transforms of torch.func, any number of times.

    Attributes:
        max_iters: the largest number of Newton iterations for the stages that are solved for together; None for 100 in
            fixed steps, and 10 in adaptive ones, which are rather tried again shorter.
        linear_solver: "dense" factorises the matrix of the linear systems, "krylov" (GMRES) needs products of vectors
            with the Jacobian only; "auto" chooses by the size of the system.
        filters_error: whether the matrix of the linear systems filters the estimate of the error, for embedded methods
            that are not stable where the solution decays fast.
        newton_tolerance: the error that Newton's iteration may leave in an adaptive step, in units of the tolerance.
    """

    tableau: ClassVar[ButcherTableau]
    error_order = None
    filters_error: ClassVar[bool] = False
    newton_tolerance: ClassVar[float] = 0.1
    controller_options: ClassVar[Mapping[str, float]] = {"dead_band": 1.2}
    rows_keep_carry = True
    uses_jacobian = True
    max_iters: ClassVar[int | None] = None
    linear_solver: ClassVar[str] = "auto"
    options: ClassVar[Mapping[str, Check]] = {
        "max_iters": partial(check_whole_number, smallest=1),
        "linear_solver": check_linear_solver,
    }

    def __init_subclass__(cls) -> None:
        if "tableau" in cls.__dict__:
            tableau = cls.tableau
            cls.order, cls.error_order = tableau.order, tableau.error_order
            # The last stage, which solves all equations, ends the step, and the slope at the start has no part in it.
            a, b = tableau.matrix, np.array(tableau.b)
            used = a[0].any() or not (a[:, 0].any() or b[0])
            cls.takes_mass = bool(used and (a[-1] == b).all() and tableau.dense is not None)

    @classmethod
    def at_steps(cls, fixed: bool) -> type[Self]:
        order = None if fixed else cls.tableau.error_order
        return cls if cls.error_order == order else derive(cls, error_order=order)

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        tableau, dtype, device = self.tableau, y0.dtype.to_real(), y0.device
        a = tableau.matrix
        self._real_dtype = real_dtype
        self._given, self._norm = norm, without_overflow(norm, dtype)
        self._complex = y0.is_complex()
        self._a = torch.tensor(a, dtype=dtype, device=device)
        self._b = torch.tensor([tableau.b], dtype=dtype, device=device)
        self._c = torch.tensor(tableau.c, dtype=time_dtype(device), device=device)
        self._blocks = [self._block(i, j) for i, j in _extents(a)]
        # Known from the step before it, or evaluated; for dense output by cubics when that is asked for, if not known.
        self._needs_slope = self._blocks[0].own is None or (tableau.fsal and tableau.dense is None)
        self._hands_on_slope = tableau.fsal and self._needs_slope
        self._collocated = slice(self._blocks[-1].first, len(tableau.c))
        self._to_powers = np.linalg.pinv(np.vander(tableau.c[self._collocated], increasing=True))
        self._next_slopes = self._extrapolation(1.0)
        if self.error_order is not None:
            self._error_b = torch.tensor([tableau.b_embedded], dtype=dtype, device=device) - self._b
            self._error_of_start = float(self._error_b[0, 0]) if self._blocks[0].own is None else 0.0
            self._filter = _Filter.of(a[self._collocated, self._collocated], self._a) if self.filters_error else None
        self._dense_b = StepPolynomials(tableau.dense.b if tableau.dense else HERMITE, device)

    def _block(self, first: int, stop: int) -> _Block:
        a = self._a[first:stop, first:stop]
        kinds = [Systems(self.linear_solver, a, tolerance) for tolerance in (1e-3, 1e3 * torch.finfo(a.dtype).eps)]
        own, precise = kinds if a.any() else (None, None)
        before = self._a[first:stop, :first]
        guess = _extrapolating(self.tableau.c[:stop]) if 0 < first == stop - 1 else None
        return _Block(first, stop, before if before.any() else None, guess, own, precise)

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
            self._given, self._norm = norm, without_overflow(norm, self._a.dtype)
        return self._step(func, (t0, t1), t1 - t0, y0, carry)

    def _step(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], dt: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        """A step of every row, or of a single one, whose size `dt` is a float or 0-d."""
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        slope, last = carry or (None, _LastStep.none(real_y0.detach(), len(self.tableau.c), is_single(dt)))
        handed = slope
        if slope is None and self._needs_slope:
            handed = slope = self._slope(real_func, ends[0], real_y0)
        elif slope is not None and (projection := projection_of(real_func)) is not None:
            slope = projection.differential.times(slope, is_single(dt))
        if isinstance(dt, Tensor):
            sizes = read_rows(dt.squeeze(1)) if dt.ndim else read(dt)
            dt = dt.to(real_y0.dtype)
        else:
            sizes = dt
        span = _Span(self._stage_times(*ends), ends[0].to(self._real_dtype), dt, sizes)
        with np.errstate(all="ignore"):
            solved = self._solve(real_func, span.detached(), y0.detach(), slope, last)
        slopes = solved.slopes
        if solved.tracked or tracked((span.times, y0, slope, slopes)):
            slopes = self._recorded(real_func, span, real_y0, slope, slopes.detach())
        (y1,) = combined(real_y0, self._b, slopes, span.dt)
        if solved.failure:
            failed = torch.tensor(list(solved.failure), device=y1.device)
            y1 = y1.index_copy(0, failed, real_y0.index_select(0, failed))
        y1 = to_complex(y1) if self._complex else y1
        last_step, error, growth = solved.last, None, math.inf
        if self.error_order is not None:
            with torch.no_grad(), np.errstate(all="ignore"):
                states = y0.detach(), y1.detach()
                error = self._error(real_func, ends[0], span.detached(), states, solved, last)
                size, growth = self._growth(error, states, span.sizes, solved, last)
                last_step = replace(last_step, size=size)
        after = ImplicitCarry(slopes[-1] if self._hands_on_slope else None, last_step)
        retry = ImplicitCarry(handed, solved.retry)
        failure, stages = solved.failure or None, (slope, slopes)
        return Step(*ends, y0, y1, error, after, retry, stages, failure=failure, work=solved.work, growth=growth)

    def _solve(self, func: FlatFunc, span: _Span, y0: Tensor, slope: Tensor | None, last: _LastStep) -> _StepSolved:
        """The slopes of all stages, without history."""
        lost, failure, flows, work = last.lost, {}, False, Work()
        if all_of(lost):
            return _StepSolved(last.slopes, last, last, flows, failure, work)
        fixed = self.error_order is None
        most = self.max_iters or (_MOST_FIXED if fixed else _MOST)
        options = (
            {"max_iters": most} if fixed else {"max_iters": most, "enough": self.newton_tolerance, "patient": False}
        )
        newton = newton_of(self._norm, y0, span.sizes, **options)
        rate, solver, waiting = last.rate, last.solver, without(True, lost)
        y0, times, known = to_real(y0), span.times.unbind(), None
        length, trusted = abs(span.sizes), last.trusted
        # Fixed steps take their time to find out by themselves whether a Jacobian is too old.
        trust, aged = (math.inf, math.inf) if self.error_order is None else (_TRUST, _AGED)
        fresh, stale, slow = without(False, lost), last.stale | (length > trusted), without(False, lost)
        slowest = 0.0
        for block in self._blocks:
            base = self._base(block, y0, known, span.dt)
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
                flows, slopes = flows or slopes.requires_grad, slopes.detach()
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.own.a, span.dt, span.sizes)
                old, refactorised = old_solver(block.own, equations, solver)
                guess = self._guess(block, known, last, span.sizes)
                renew = self._renewal(block.own, equations, span.start, last.spare)
                found = solve(newton, block.own, equations, guess, waiting, old, rate, fresh, stale, renew)
                slopes, solver, rate, flows = found.slopes, found.solver, found.rate, flows or found.tracked
                work = added(work, found.work, refactorised)
                fresh, stale = fresh | found.renewed, without(stale, found.renewed)
                trusted = pick(found.renewed, trust * length, trusted)
                seen = pick(found.iterations > 1, found.rate, 0.0)
                slowest = pick(seen > slowest, seen, slowest)
                slow = slow | ((found.iterations > 2) & (rate > aged))
                if any_of(found.failed):
                    failure.update(failures(found, most))
                lost, waiting = lost | found.lost, without(waiting, found.lost | found.failed)
            known = slopes if known is None else torch.cat((known, slopes))
            if not any_of(waiting):
                known = y0.new_full((len(self._c), *y0.shape), math.nan)
                break
        assert known is not None
        no, single = without(False, lost), isinstance(span.sizes, float)
        after = replace(last, dt=span.sizes, rate=rate, trusted=trusted - length, lost=lost, stale=slow, again=no)
        after = replace(after, slopes=known.detach(), solver=solver, spare=None)
        spare = last.spare if isinstance(solver, Origin) or not (single and fresh) else solver
        retry = replace(last, again=lost | True, spare=spare)
        if single and fresh and last.spare is not None:
            work = work._replace(jacobians=work.jacobians - 1)
        return _StepSolved(known, after, retry, flows, failure, work, slowest)

    def _renewal(
        self, systems: Systems, equations: StageEquations, start: Tensor, spare: StageSolver | None
    ) -> Callable[[], StageSolver] | None:
        """What makes a linear solver with a new Jacobian: that of the start of a step that may be tried again."""
        if self.error_order is None:
            return None
        return partial(systems.at_start, equations, start) if spare is None else partial(spare.at_size, equations.sizes)

    def _error(
        self,
        func: FlatFunc,
        t0: Tensor,
        span: _Span,
        ends: tuple[Tensor, Tensor],
        solved: _StepSolved,
        last: _LastStep,
    ) -> Tensor:
        """The estimate of the error of a step between these states, [rows, size], without history.

        It is the difference to the embedded method, which a filter may damp where the problem is stiff. Where it is too
        large nevertheless in a step that is tried again, it is damped twice: in fast transients the slope at the start
        spoils it (Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8).
        """
        slopes, solver = solved.slopes.detach(), solved.last.solver
        (raw,) = combined(torch.zeros_like(slopes[0]), self._error_b, slopes, span.dt)
        if (projection := projection_of(func)) is not None:
            raw = projection.differential.times(raw, is_single(span.dt))
        if self._filter is None or isinstance(solver, Origin):
            return self._as_state(raw)
        error = self._filter(solver, raw)
        if self._error_of_start and any_of(last.again):
            large = last.again & (self._size_of(self._as_state(error), ends, span.sizes) > 1.0)
            if any_of(large):
                moved = self._slope(func, t0, to_real(ends[0]) + error)
                second = self._filter(solver, raw + (moved - slopes[0]) * (self._error_of_start * span.dt))
                error = pick_slopes(large, second.unsqueeze(0), error.unsqueeze(0)).squeeze(0)
        return self._as_state(error)

    def _growth(
        self, error: Tensor, ends: tuple[Tensor, Tensor], sizes: Numbers, solved: _StepSolved, last: _LastStep
    ) -> tuple[Numbers, Numbers]:
        """The sizes of the errors, and by which factor the next step may be longer.

        So that its error is not too large if it goes on to change as it did (Gustafsson, "Control-theoretic techniques
        for stepsize selection in implicit Runge-Kutta methods", ACM TOMS 20 (1994)), and Newton's iteration, whose rate
        of convergence grows with the step, does not fail.
        """
        assert self.error_order is not None
        size = clipped(self._size_of(error, ends, sizes), _LEAST, 1.0 / _LEAST)
        by_error = abs(sizes / last.dt) * (last.size / (size * size)) ** (1.0 / (self.error_order + 1))
        by_rate = _GOOD / clipped(solved.rate, _LEAST, math.inf)
        by_error, most = clipped(0.9 * by_error, 0.2, math.inf), clipped(by_rate, 1.0, math.inf)
        factor = pick(by_error < most, by_error, most)  # not known in the first step
        failed = bool(solved.failure)
        if not isinstance(sizes, float):
            failed = np.zeros(len(sizes), dtype=bool)
            failed[list(solved.failure)] = True
        factor = pick(size <= 1.0, factor, math.inf)
        return size, pick(failed, clipped(by_rate, 0.1, 0.5), factor)

    def _size_of(self, error: Tensor, ends: tuple[Tensor, Tensor], sizes: Numbers) -> Numbers:
        """The sizes of errors in units of the tolerance."""
        return self._given(error, *ends) if isinstance(sizes, float) else self._given.rows(error, *ends)

    def _recorded(self, func: FlatFunc, span: _Span, y0: Tensor, slope: Tensor | None, solved: Tensor) -> Tensor:
        """The `solved` slopes as functions of all that they depend on: their values stay what they are."""
        times, known = span.times.unbind(), None
        for block in self._blocks:
            base = self._base(block, y0, known, span.dt)
            if block.precise is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.precise.a, span.dt, span.sizes)
                slopes = recorded(block.precise, equations, solved[block.first : block.stop])
            known = slopes if known is None else torch.cat((known, slopes))
        assert known is not None
        return differentiable_twice(_THIRD, known)

    def _base(self, block: _Block, y0: Tensor, known: Tensor | None, dt: float | Tensor) -> Tensor:
        """What the states of the stages of a block have in common."""
        # All rows of the block are alike where there is something before it: it is a single stage.
        return y0 if known is None or block.before is None else combined(y0, block.before, known, dt)[0]

    def _explicit(self, func: FlatFunc, t: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        """The slope of an explicit stage, [1, rows, size], which is `slope` if that is known."""
        return (func(t, y).clone() if slope is None else slope).unsqueeze(0)  # func may use its memory again

    def _guess(self, block: _Block, known: Tensor | None, last: _LastStep, dt: Numbers) -> Tensor:
        """The slopes that the iteration starts from: those of the last step, extrapolated, or of the last stage."""
        if block.stop - block.first == 1 < len(self.tableau.c):
            known = last.slopes if known is None else known
            if block.guess is None or self.error_order is None:
                return known[-1:]
            first, *others = (weight * slopes for weight, slopes in zip(block.guess, known.split(1), strict=True))
            return sum(others, first)
        ratio = dt / pick(last.dt == 0.0, math.nan, last.dt)
        far = abs(ratio - 1.0) >= 0.01
        weights = self._extrapolation(pick(far, ratio, 1.0)) if any_of(far) else self._next_slopes
        slopes = last.slopes[self._collocated]
        if isinstance(dt, float):
            return torch.mm(weights[0], slopes.squeeze(1)).unsqueeze(1)
        # One after the other: what a matrix product does to a row may depend on how many there are.
        first, *others = (weights.permute(2, 1, 0).unsqueeze(3) * slopes.unsqueeze(1)).unbind()
        return sum(others, first)

    def _extrapolation(self, ratio: Numbers) -> Tensor:
        """What extrapolates the slopes of a step to those of the next, longer by `ratio`, [rows, stages, stages].

        By their polynomial.
        """
        nodes = np.array(self.tableau.c[self._collocated], dtype=np.float64)
        powers = (1.0 + np.reshape(ratio, (-1, 1)) * nodes)[:, :, None] ** np.arange(len(nodes))
        return torch.as_tensor(powers @ self._to_powers).to(self._a)

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
        return torch.view_as_complex(slopes.unflatten(-1, (-1, 2)).contiguous()) if self._complex else slopes

    def _slope(self, func: FlatFunc, t: Tensor, y: Tensor) -> Tensor:
        return to_real(func(t.to(self._real_dtype), y)).clone()
