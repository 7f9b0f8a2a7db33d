"""Implicit Runge-Kutta methods: the one engine that reads their tableaus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import Interpolant, RowInterpolant
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
    is_single,
    pick,
    without,
)
from torchivp.methods.implicit.preconditioner import Preconditioner
from torchivp.methods.implicit.steps import (
    added,
    check_linear_solver,
    failures,
    newton_of,
    old_solver,
    recorded,
    systems_of,
    tracked,
    without_overflow,
)
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import Check, FlatFunc, Memory, Method, Step, Work, derive, on_arrays
from torchivp.methods.ode.implicit_error import ErrorControl
from torchivp.methods.ode.implicit_stages import Block, Stages
from torchivp.methods.ode.tableau import ButcherTableau
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.split import summands_of
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import read, read_rows

_MOST = 10
"""The largest number of iterations in a step that can be tried again shorter,"""

_MOST_FIXED = 100
"""and in one that cannot."""

_TRUST = 25
"""A Jacobian serves for so many steps of the size for which it was made: an iteration with one that is far off may seem
to converge."""

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
        origin = Origin(y0.new_zeros(rows, 1), y0, unknown)
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


class _Scheme(NamedTuple):
    """How the steps of a right-hand side are taken.

    Attributes:
        functions: the parts that it is the sum of, on real states: itself, or the implicit one and the explicit one.
        stages: the coefficients.
        control: the error control; None in fixed steps.
    """

    functions: Sequence[FlatFunc]
    stages: Stages
    control: ErrorControl | None


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
        preconditioner: for GMRES, what solves the linear systems of a stage about: a function `(t, y, h, r)` that
            returns x with `(I - h J) x = r`, about, J the Jacobian of func at t and y (of the implicit one of a pair;
            with a mass matrix, of what it leaves of func). It is linear in r. `t` and h are [rows, 1], y, r and x
            [rows, n], of the flattened states, of the rows under way. Gradients need its transpose, which autograd
            finds in what it computes in torch; otherwise it is taken to be symmetric.
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
    preconditioner: ClassVar[Preconditioner | None] = None
    options: ClassVar[Mapping[str, Check]] = {
        "max_iters": partial(check_whole_number, smallest=1),
        "linear_solver": check_linear_solver,
        "preconditioner": Preconditioner.check,
    }

    def __init_subclass__(cls) -> None:
        if "tableau" in cls.__dict__:
            tableau = cls.tableau
            cls.order, cls.error_order = tableau.order, tableau.error_order
            # The last stage, which solves all equations, ends the step, and the slope at the start has no part in it.
            a, b = tableau.matrix, np.array(tableau.b)
            used = a[0].any() or not (a[:, 0].any() or b[0])
            cls.splits = tableau.a_explicit is not None
            cls.takes_mass = bool(used and (a[-1] == b).all() and tableau.dense is not None)

    @classmethod
    def at_steps(cls, fixed: bool, rows: int = 1) -> type[Self]:
        order = None if fixed else cls.tableau.error_order
        return cls if cls.error_order == order else derive(cls, error_order=order)

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._given, self._norm = norm, without_overflow(norm, y0.dtype.to_real())
        self._complex = y0.is_complex()
        self._like = y0.real.new_empty(0)
        self._systems = systems_of(y0, self.linear_solver, self.preconditioner)
        self._whole = self._laid_out(split=False)

    @cached_property
    def _split(self) -> tuple[Stages, ErrorControl | None]:
        return self._laid_out(split=True)

    def _laid_out(self, split: bool) -> tuple[Stages, ErrorControl | None]:
        """The coefficients, and the error control if steps are adaptive."""
        stages = Stages(self.tableau, split, self._systems, self._like)
        order = self.error_order
        return stages, None if order is None else ErrorControl(order, stages, self.filters_error)

    def initial_carry(self, f0: Tensor) -> ImplicitCarry:
        slope = to_real(f0)
        last = _LastStep.none(slope, len(self.tableau.c), single=False)
        return ImplicitCarry(slope if self._whole[0].needs_slope else None, last)

    def carry_to_keep(self, carry: ImplicitCarry | None) -> ImplicitCarry | None:
        if carry is None:
            return None
        slope = carry.slope if self._whole[0].hands_on_slope else None
        return ImplicitCarry(slope, replace(carry.last, solver=carry.last.solver.origin))

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        if carry is not None and not isinstance(carry.last.dt, float):  # an initial one, that of rows
            carry = carry._replace(last=_LastStep.none(carry.last.slopes[-1], len(self.tableau.c), single=True))
        step = self._step(func, self._scalars(t0, t1), t1 - t0, y0, carry)
        step.t0, step.t1 = t0, t1
        return step

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: ImplicitCarry | None, norm: ErrorNorm
    ) -> Step:
        if norm is not self._given:
            self._given, self._norm = norm, without_overflow(norm, self._like.dtype)
        return self._step(func, (t0, t1), t1 - t0, y0, carry)

    def _step(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], dt: float | Tensor, y0: Tensor, carry: ImplicitCarry | None
    ) -> Step:
        """A step of every row, or of a single one, whose size `dt` is a float or 0-d."""
        scheme, real_y0 = self._scheme(func), to_real(y0)
        slope, last = carry or (None, _LastStep.none(real_y0.detach(), len(self.tableau.c), is_single(dt)))
        handed = slope = slope if scheme.stages.needs_slope else None  # what is known is that of the sum of all parts
        if slope is None and scheme.stages.needs_slope:
            handed = slope = self._slope(scheme.functions[0], ends[0], real_y0)
        elif slope is not None and (projection := projection_of(scheme.functions[0])) is not None:
            slope = projection.differential.times(slope, is_single(dt))
        if isinstance(dt, Tensor):
            sizes = read_rows(dt.squeeze(1)) if dt.ndim else read(dt)
            dt = dt.to(real_y0.dtype)
        else:
            sizes = dt
        span = _Span(scheme.stages.times(*ends).to(self._real_dtype), ends[0].to(self._real_dtype), dt, sizes)
        with np.errstate(all="ignore"):
            solved = self._solve(scheme, span.detached(), y0.detach(), slope, last)
        slopes = solved.slopes
        if solved.tracked or tracked((span.times, y0, slope, slopes)):
            slopes = self._recorded(scheme, span, real_y0, slope, slopes.detach())
        (y1,) = combined(real_y0, scheme.stages.b, slopes, span.dt)
        if solved.failure:
            failed = torch.tensor(list(solved.failure), device=y1.device)
            y1 = y1.index_copy(0, failed, real_y0.index_select(0, failed))
        y1 = to_complex(y1) if self._complex else y1
        last_step, error, growth = solved.last, None, math.inf
        if scheme.control is not None:
            with torch.no_grad(), np.errstate(all="ignore"):
                error, size, growth = self._error(scheme, scheme.control, span.detached(), y0, y1, solved, last)
                last_step = replace(last_step, size=size)
        after = ImplicitCarry(slopes[-1] if scheme.stages.hands_on_slope else None, last_step)
        retry = ImplicitCarry(handed, solved.retry)
        failure, stages = solved.failure or None, (slope, slopes)
        return Step(*ends, y0, y1, error, after, retry, stages, failure=failure, work=solved.work, growth=growth)

    def _scheme(self, func: FlatFunc) -> _Scheme:
        """How steps of `func` are taken, on real states."""
        parts = summands_of(func) if self.splits else None
        functions, laid_out = ((func,), self._whole) if parts is None else (parts[::-1], self._split)
        return _Scheme([on_real_pairs(f) for f in functions] if self._complex else functions, *laid_out)

    def _solve(self, scheme: _Scheme, span: _Span, y0: Tensor, slope: Tensor | None, last: _LastStep) -> _StepSolved:
        """The slopes of all stages, without history."""
        lost, failure, flows, work = last.lost, {}, False, Work()
        stages, fixed = scheme.stages, scheme.control is None
        if all_of(lost):
            nowhere = to_real(y0).new_full((stages.count, *last.slopes.shape[1:]), math.nan)
            return _StepSolved(nowhere, last, last, flows, failure, work)
        most = self.max_iters or (_MOST_FIXED if fixed else _MOST)
        options = (
            {"max_iters": most} if fixed else {"max_iters": most, "enough": self.newton_tolerance, "patient": False}
        )
        newton = newton_of(self._norm, y0, span.sizes, **options)
        rate, solver, waiting = last.rate, last.solver, without(True, lost)
        y0, times, known = to_real(y0), span.times.unbind(), None
        length, trusted = abs(span.sizes), last.trusted
        ratio = span.sizes / pick(last.dt == 0.0, math.nan, last.dt)
        # Fixed steps take their time to find out by themselves whether a Jacobian is too old.
        trust, aged = (math.inf, math.inf) if fixed else (_TRUST, _AGED)
        fresh, stale, slow = without(False, lost), last.stale | (length > trusted), without(False, lost)
        slowest = 0.0
        for block in stages.blocks:
            func, base = scheme.functions[block.part], self._base(block, y0, known, span.dt)
            if block.own is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
                flows, slopes = flows or slopes.requires_grad, slopes.detach()
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.own.a, span.dt, span.sizes)
                old, refactorised = old_solver(block.own, equations, solver)
                guess = stages.guess(block, known, last.slopes, ratio, not fixed)
                renew = None if fixed else self._renewal(block.own, equations, span.start, last.spare)
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
                known = y0.new_full((stages.count, *y0.shape), math.nan)
                break
        assert known is not None
        no, single = without(False, lost), isinstance(span.sizes, float)
        after = replace(last, dt=span.sizes, rate=rate, trusted=trusted - length, lost=lost, stale=slow, again=no)
        after = replace(after, slopes=known.detach()[stages.kept], solver=solver, spare=None)
        spare = last.spare if isinstance(solver, Origin) or not (single and fresh) else solver
        retry = replace(last, again=lost | True, spare=spare)
        if single and fresh and last.spare is not None:
            work = work._replace(jacobians=work.jacobians - 1)
        return _StepSolved(known, after, retry, flows, failure, work, slowest)

    def _renewal(
        self, systems: Systems, equations: StageEquations, start: Tensor, spare: StageSolver | None
    ) -> Callable[[], StageSolver]:
        """What makes a linear solver with a new Jacobian: that of the start of a step that may be tried again."""
        return partial(systems.at_start, equations, start) if spare is None else partial(spare.at_size, equations.sizes)

    def _error(
        self,
        scheme: _Scheme,
        control: ErrorControl,
        span: _Span,
        y0: Tensor,
        y1: Tensor,
        solved: _StepSolved,
        last: _LastStep,
    ) -> tuple[Tensor, Numbers, Numbers]:
        """The estimates of the errors, [rows, size], their sizes, and by which factor the next step may be longer."""
        func, slopes, solver = scheme.functions[0], solved.slopes.detach(), solved.last.solver
        single, ends = isinstance(span.sizes, float), (y0.detach(), y1.detach())

        def size_of(error: Tensor) -> Numbers:
            error = self._as_state(error)
            return self._given(error, *ends) if single else self._given.rows(error, *ends)

        def change_of_slope(error: Tensor) -> Tensor:
            return self._slope(func, span.start, to_real(ends[0]) + error) - slopes[0]

        error = control.difference(slopes, span.dt)
        if (projection := projection_of(func)) is not None:
            error = projection.differential.times(error, is_single(span.dt))
        if not isinstance(solver, Origin):
            error = control.filtered(error, solver, span.dt, last.again, size_of, change_of_slope)
        ratio, failed = span.sizes / last.dt, solved.failure
        return self._as_state(error), *control.growth(size_of(error), ratio, last.size, solved.rate, failed)

    def _recorded(self, scheme: _Scheme, span: _Span, y0: Tensor, slope: Tensor | None, solved: Tensor) -> Tensor:
        """The `solved` slopes as functions of all that they depend on: their values stay what they are."""
        times, known = span.times.unbind(), None
        for block in scheme.stages.blocks:
            func, base = scheme.functions[block.part], self._base(block, y0, known, span.dt)
            if block.precise is None:
                slopes = self._explicit(func, times[block.first], base, slope if known is None else None)
            else:
                here = times[block.first : block.stop]
                equations = StageEquations(func, here, y0, base, block.precise.a, span.dt, span.sizes)
                slopes = recorded(block.precise, equations, solved[block.first : block.stop])
            known = slopes if known is None else torch.cat((known, slopes))
        assert known is not None
        return differentiable_twice(_THIRD, known)

    def _base(self, block: Block, y0: Tensor, known: Tensor | None, dt: float | Tensor) -> Tensor:
        """What the states of the stages of a block have in common."""
        # All rows of the block are alike where there is something before it: it is a single stage.
        return y0 if known is None or block.before is None else combined(y0, block.before, known, dt)[0]

    def _explicit(self, func: FlatFunc, t: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        """The slope of an explicit stage, [1, rows, size], which is `slope` if that is known."""
        return (func(t, y).clone() if slope is None else slope).unsqueeze(0)  # func may use its memory again

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        slopes = self._dense_slopes(func, step, *self._scalars(step.t0, step.t1))
        return Interpolant(step.t0, step.t1, step.y0, slopes.squeeze(1), self._scheme(func).stages.dense)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        t0, t1, y0 = step.t0, step.t1, step.y0
        assert isinstance(t0, Tensor) and isinstance(t1, Tensor)
        increments = self._dense_slopes(func, step, t0, t1) * (t1 - t0).to(self._like.dtype)
        return RowInterpolant(y0, increments.reshape(len(increments), y0.numel()), self._scheme(func).stages.dense)

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
        chord = (step.y1 - step.y0) / (t1 - t0).to(self._like.dtype)
        return torch.stack((chord, *self._as_state(torch.stack((slope, step.carry.slope)))))

    def _scalars(self, t0: float | Tensor, t1: float | Tensor) -> tuple[Tensor, Tensor]:
        """The ends of a step of a single row as tensors."""
        device = self._like.device
        return time_scalar(t0, time_dtype(device), device), time_scalar(t1, time_dtype(device), device)

    def _as_state(self, slopes: Tensor) -> Tensor:
        return torch.view_as_complex(slopes.unflatten(-1, (-1, 2)).contiguous()) if self._complex else slopes

    def _slope(self, func: FlatFunc, t: Tensor, y: Tensor) -> Tensor:
        return to_real(func(t.to(self._real_dtype), y)).clone()
