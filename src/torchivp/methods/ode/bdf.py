"""Backward differentiation formulas of varying order: one nonlinear system a step, whatever the order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.dense import Interpolant, RowInterpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.methods.consistent import slopes_of
from torchivp.methods.implicit.equations import StageEquations
from torchivp.methods.implicit.linear import Origin, StageSolver, mapped
from torchivp.methods.implicit.newton import Solved, solve
from torchivp.methods.implicit.per_row import Flags, Numbers, is_single, without
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
from torchivp.methods.method import Check, FlatFunc, Memory, Method, Step, Work, on_arrays
from torchivp.methods.ode.combined import combined
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import moves, read_rows

_HIGHEST = 5
"""The highest order; those beyond 6 are not stable."""

_KEPT = _HIGHEST + 2
"""How many differences are kept, besides the state: enough to estimate the error at the next higher order."""

_KAPPA = np.array([0.0, -0.1850, -1 / 9, -0.0823, -0.0415, 0.0])
"""By the order, how much of the difference beyond it is added: the truncation error is smaller, at a little stability.

Shampine and Reichelt, table 1; the last one is 0 as the formula of order 5 is not stable enough.
"""

_GAMMA = np.cumsum([0.0, *(1 / i for i in range(1, _HIGHEST + 1))])
_ALPHA = (1 - _KAPPA) * _GAMMA
_ERROR = _KAPPA * _GAMMA + 1 / np.arange(1, _HIGHEST + 2)
"""By the order, the error of a step in units of the difference beyond it."""

_SAME = 1e-8
"""Steps whose sizes differ by no more than this, relatively, are of one size: rounding in their ends is in it."""

_LARGEST_WEIGHT = 1e6
"""Differences times powers of the ratio of step sizes up to this; beyond, rounding is magnified too much."""

_ENOUGH = 0.05
"""The error that Newton's iteration may leave, in units of the tolerance."""

_THIRD = (
    "bdf can be differentiated twice, not three times: use nested transforms such as torch.func.grad, which can, or an "
    "explicit method such as method='dopri5'"
)


def _rescaled() -> np.ndarray:
    """What differences for steps longer by a ratio are of those before, by powers of it: [6 powers, 5, 5].

    The polynomial of degree j through equidistant points, sampled at others. Its value at s steps back is the sum of
    the differences times binomial coefficients, polynomials of s; differences of these at the new points.
    """
    n = _HIGHEST + 1
    binomials = np.zeros((n, n))  # (-1)^i s (s - 1) ... (s - i + 1) / i! by powers of s: the weight of difference i
    binomials[0, 0] = 1.0
    for i in range(1, n):
        shifted = np.append(0.0, binomials[i - 1, :-1])
        binomials[i] = -(shifted - (i - 1) * binomials[i - 1]) / i
    points = np.arange(n)[:, None] ** np.arange(n)  # m^p: the new points are s = m ratio
    signs = np.array([[(-1) ** m * math.comb(j, m) for m in range(n)] for j in range(n)])
    return np.einsum("jm,mp,ip->pji", signs, points, binomials)[:, 1:, 1:]


def _onward() -> np.ndarray:
    """By the order, what a step makes of the state and its differences, which are of its size: [6 orders, 9, 8].

    The rows are the prediction, the differences after the step if it ends there, and what the equation of the step adds
    to the prediction.
    """
    table = np.zeros((_HIGHEST + 1, _KEPT + 2, _KEPT + 1))
    for k in range(1, _HIGHEST + 1):
        table[k] = np.eye(_KEPT + 2, _KEPT + 1)
        table[k, : k + 1, : k + 1] = np.triu(np.ones((k + 1, k + 1)))
        table[k, k + 1 : k + 3] = 0.0
        table[k, k + 2, k + 1] = -1.0
        table[k, -1, 1 : k + 1] = _GAMMA[1 : k + 1] / _ALPHA[k]
    return table


def _dense() -> list[list[float]]:
    """The polynomials of the differences in the fraction of a step, without the constant, which is zero."""
    polynomials = [np.array([0.0, 1.0])]
    product = np.polynomial.polynomial.polyfromroots([1.0])
    for j in range(2, _HIGHEST + 1):
        product = np.polynomial.polynomial.polymul(product, np.array([j - 2.0, 1.0])) / j
        polynomials.append(product)
    return [[*p[1:], *[0.0] * (_HIGHEST + 1 - len(p))] for p in polynomials]


class BDFCarry(NamedTuple):
    """What steps start from besides the states.

    Attributes:
        differences: of the states before, backward in steps of one size, of order 1 and more, [rows, 7, size], real.
        spacing: this size, signed, [rows, 1]; a tensor, as a gradient may flow through it.
        last: what else is remembered.
    """

    differences: Tensor
    spacing: Tensor
    last: _LastStep


@dataclass(frozen=True, slots=True)
class _LastStep(Memory):
    """What no gradient flows through.

    Attributes:
        order: the orders of the steps to come, [rows].
        equal: how many steps of the same size and order there were, [rows].
        spacing: the sizes of steps that the differences are for, [rows].
        rate: the rates of convergence of Newton's iteration; NaN where they are not known.
        fresh: where the Jacobian is one of this very step, that is to be tried again.
        solver: the linear solver, or what it is made of.
    """

    order: np.ndarray
    equal: np.ndarray
    spacing: np.ndarray
    rate: Numbers
    fresh: Flags
    solver: StageSolver | Origin

    @staticmethod
    def none(y: Tensor, single: bool) -> _LastStep:
        """Before the first step from `y`, [rows, size], real, with slopes for differences: they are for steps of 1."""
        rows, one = len(y), np.ones(len(y), dtype=np.int64)
        unknown = math.nan if single else np.full(rows, math.nan)
        origin = Origin(y.new_zeros(rows, 1), y, unknown)
        return _LastStep(one, 0 * one, np.ones(rows), unknown, unknown == 0.0, origin)

    def map(self, function: Callable[..., Tensor], *others: _LastStep) -> _LastStep:
        steps = (self, *others)
        names = ("order", "equal", "spacing", "rate", "fresh")
        order, equal, spacing, rate, fresh = (on_arrays(function, *(getattr(x, n) for x in steps)) for n in names)
        return _LastStep(order, equal, spacing, rate, fresh, mapped(function, *(x.solver for x in steps)))


class BDF(Method):
    """Backward differentiation formulas of varying order 1 to 5, adaptive, for stiff problems, large ones above all.

    Each step solves one nonlinear system of the size of the state, whatever its order, by a simplified Newton
    iteration; Jacobians and their factorisations serve many steps. Formulas for steps of equal size, with the term
    that makes the truncation error smaller (NDF); where the size changes, the past is interpolated. Orders 1 and 2 are
    L-stable, the others in a wedge about the negative real axis: for lightly damped oscillations, whose eigenvalues lie
    near the imaginary axis, take `max_order=2` or a Runge-Kutta method.

    Shampine and Reichelt, "The MATLAB ODE Suite", SIAM J. Sci. Comput. 18 (1997). Dense output: the polynomial through
    the last states, of the order of the step.

    Options: `max_order`, the highest order, 1 to 5; `max_iters`, the largest number of Newton iterations of a step;
    `linear_solver` and `preconditioner`, as for the implicit Runge-Kutta methods.
    """

    references = ("ShampineReichelt1997",)
    order = _HIGHEST
    error_order = 1
    varies_order = True
    rows_keep_carry = True
    uses_jacobian = True
    takes_mass = True
    iterates_anew = True
    controller_options: ClassVar[Mapping[str, float]] = {"safety": 0.75, "factor_max": 4.0, "dead_band": 1.2}
    max_order: ClassVar[int] = _HIGHEST
    max_iters: ClassVar[int] = 10
    linear_solver: ClassVar[str] = "auto"
    preconditioner: ClassVar[Preconditioner | None] = None
    options: ClassVar[Mapping[str, Check]] = {
        "max_order": partial(check_whole_number, smallest=1, largest=_HIGHEST),
        "max_iters": partial(check_whole_number, smallest=1),
        "linear_solver": check_linear_solver,
        "preconditioner": Preconditioner.check,
    }

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        dtype, device = y0.dtype.to_real(), y0.device
        self._real_dtype = real_dtype
        self._complex = y0.is_complex()
        self._given, self._norm = norm, without_overflow(norm, dtype)
        self._a = torch.ones(1, 1, dtype=dtype, device=device)
        systems = systems_of(y0, self.linear_solver, self.preconditioner)
        self._systems, self._precise = systems(self._a, 1e-3), systems(self._a, 1e3 * torch.finfo(dtype).eps)
        self._rescaled = torch.tensor(_rescaled(), dtype=time_dtype(device), device=device)
        self._onward = torch.tensor(_onward(), dtype=dtype, device=device)
        places = torch.arange(1, _KEPT + 1)
        added = places <= torch.arange(_HIGHEST + 1).unsqueeze(1) + 2
        # By the order, to which differences the one beyond the order is added.
        self._added = added.to(device, dtype).unsqueeze(2)
        self._dense_b = StepPolynomials(_dense(), device)

    def initial_carry(self, f0: Tensor) -> BDFCarry:
        return self._begin(to_real(f0), single=False)

    def _begin(self, slope: Tensor, single: bool) -> BDFCarry:
        """What the first step starts from, at order 1."""
        differences = torch.cat((slope.unsqueeze(1), slope.new_zeros(len(slope), _KEPT - 1, slope.shape[1])), 1)
        spacing = slope.new_ones(len(slope), 1, dtype=time_dtype(slope.device))
        return BDFCarry(differences, spacing, _LastStep.none(slope.detach(), single))

    def carry_to_keep(self, carry: BDFCarry | None) -> BDFCarry | None:
        return carry and carry._replace(last=replace(carry.last, solver=carry.last.solver.origin))

    def at_order(self, carry: BDFCarry | None, order: int | np.ndarray) -> BDFCarry | None:
        if carry is None:
            return carry
        last = carry.last
        order = np.where(np.equal(order, 0), last.order, order)
        return carry._replace(last=replace(last, order=order, equal=np.where(last.order == order, last.equal, 0)))

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: BDFCarry | None) -> Step:
        if carry is not None and not isinstance(carry.last.rate, float):  # an initial one, that of rows
            carry = carry._replace(last=_LastStep.none(carry.differences[:, 0].detach(), single=True))
        start, end = (time_scalar(t, self._rescaled.dtype, self._a.device) for t in (t0, t1))
        return self._step(func, (start, end), t1 - t0, y0, carry).of_one_row(t0, t1)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: BDFCarry | None, norm: ErrorNorm
    ) -> Step:
        if norm is not self._given:
            self._given, self._norm = norm, without_overflow(norm, self._a.dtype)
        return self._step(func, (t0, t1), t1 - t0, y0, carry)

    def _step(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], dt: float | Tensor, y0: Tensor, carry: BDFCarry | None
    ) -> Step:
        """A step of every row, or of a single one, whose size `dt` is a float or 0-d."""
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        if carry is None:  # func may use its memory again
            slope = slopes_of(real_func)(ends[0].to(self._real_dtype), real_y0).clone()
            carry = self._begin(slope, is_single(dt))
        sizes = read_rows(dt.reshape(-1)) if isinstance(dt, Tensor) else np.array([dt])
        with np.errstate(all="ignore"):
            past, ratio = _at_size(carry.last, sizes)
        order = past.order
        differences = self._at_ratio(carry, order, ratio, dt)
        known = torch.cat((real_y0.unsqueeze(1), differences), 1)
        parts = combined(self._onward[torch.from_numpy(order)], known)
        predicted, after, known = parts[:, 0], parts[:, 1:-1], parts[:, -1]
        numbers, times = sizes / _ALPHA[order], [ends[1].to(self._real_dtype)]
        if isinstance(dt, Tensor) and dt.ndim:
            factor = dt.to(real_y0.dtype) / _column(_ALPHA[order], real_y0)
        else:
            factor, numbers = dt / float(_ALPHA[order[0]]), float(numbers[0])
        equations = StageEquations(real_func, times, real_y0, predicted - known, self._a, factor, numbers)
        found, work = self._solve(equations, y0, known, past)
        slopes = found.slopes
        if found.tracked or tracked((real_y0, predicted, known, *times, slopes)):
            slopes = differentiable_twice(_THIRD, recorded(self._precise, equations, slopes.detach()))
        beyond = slopes.squeeze(0) * factor - known
        y1, failure = predicted + beyond, failures(found, self.max_iters)
        if failure:
            failed = torch.tensor(list(failure), device=y1.device)
            y1 = y1.index_copy(0, failed, real_y0.index_select(0, failed))
        after = after + self._added[torch.from_numpy(order)] * beyond.unsqueeze(1)
        equal = past.equal + 1
        following = _LastStep(order, equal, sizes, found.rate, without(False, found.failed), found.solver)
        again = replace(carry.last, order=order, equal=np.minimum(carry.last.equal, past.equal), rate=found.rate)
        again = replace(again, fresh=past.fresh | found.renewed, solver=found.solver)
        spacing = dt.reshape(-1, 1) if isinstance(dt, Tensor) else carry.spacing.new_full((1, 1), dt)
        return Step(
            *ends,
            y0,
            self._as_state(y1),
            self._as_state(beyond.detach() * self._constants(_ERROR[order], y1)),
            BDFCarry(after, spacing, following),
            carry._replace(last=again),
            (after, order),
            order,
            self._others(after.detach(), order, equal > order, found.failed),
            equal <= order,
            failure or None,
            work,
        )

    def _solve(self, equations: StageEquations, y0: Tensor, known: Tensor, past: _LastStep) -> tuple[Solved, Work]:
        """The slopes at the ends of the steps, [1, rows, size], without history, and what they have cost."""
        equations = equations.detached()
        numbers, factor = equations.sizes, equations.dt
        newton = newton_of(self._norm, y0.detach(), numbers, max_iters=self.max_iters, enough=_ENOUGH, patient=False)
        if isinstance(factor, Tensor):  # a row that is through takes steps of size zero
            factor = torch.where(factor == 0.0, 1.0, factor)
        guess = known.detach() / factor
        with np.errstate(all="ignore"):
            old, refactorised = old_solver(self._systems, equations, past.solver)
            waiting, no = numbers != 0.0, without(False, past.fresh)
            found = solve(newton, self._systems, equations, guess.unsqueeze(0), waiting, old, past.rate, past.fresh, no)
            return found, added(found.work, refactorised)

    def radius(self, step: Step) -> Tensor:
        """About the spectral radii of the Jacobians that a step was made with, [rows]; NaN where they are not known."""
        solver = step.carry.last.solver
        return step.y0.new_full((len(step.y0),), math.nan).real if isinstance(solver, Origin) else solver.radius()

    def _at_ratio(self, carry: BDFCarry, order: np.ndarray, ratio: np.ndarray, dt: float | Tensor) -> Tensor:
        """The differences for steps of these sizes, longer than those before by the `ratio`: [rows, 7, size]."""
        moving = dt if isinstance(dt, Tensor) and moves(dt) else None
        changed = np.flatnonzero((ratio != 1.0) | (moving is not None))
        if not len(changed):
            return carry.differences
        where = torch.from_numpy(changed)
        longer = torch.from_numpy(ratio[changed]).to(self._rescaled).view(-1, 1, 1)
        if moving is not None:
            moved = (moving.reshape(-1, 1) / carry.spacing).unsqueeze(2)[where]
            longer = longer + (moved - moved.detach())
        weights = self._rescaled[-1]
        for of_power in self._rescaled.flip(0)[1:]:
            weights = weights * longer + of_power
        before = carry.differences[where, :_HIGHEST]
        used = _up_to(order[changed], before)
        after = combined(weights.to(before.dtype), torch.where(used, before, 0.0))
        after = torch.cat((torch.where(used, after, before), carry.differences[where, _HIGHEST:]), 1)
        return after if len(changed) == len(ratio) else carry.differences.index_put((where,), after)

    def _others(
        self, after: Tensor, order: np.ndarray, settled: np.ndarray, failed: Flags
    ) -> list[tuple[np.ndarray, Tensor]]:
        """The orders next to those of the steps, each with the error it would have had.

        After steps of one size and order, as their differences of higher order are not known before.
        """
        others, settled = [], without(settled, np.atleast_1d(failed))
        for other in (order - 1, order + 1):
            offered = np.where(settled & (other <= self.max_order), other, 0)
            if offered.any():
                place = np.clip(other, 1, _HIGHEST)
                difference = after[torch.arange(len(order)), torch.from_numpy(place)]
                others.append((offered, self._as_state(difference * self._constants(_ERROR[place], difference))))
        return others

    def _constants(self, numbers: np.ndarray, like: Tensor) -> float | Tensor:
        return float(numbers[0]) if len(numbers) == 1 else _column(numbers, like)

    def _as_state(self, y: Tensor) -> Tensor:
        return to_complex(y) if self._complex else y

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        increments = self._increments(step).squeeze(1)
        return Interpolant(step.t0, step.t1, step.y0, increments / (step.t1 - step.t0), self._dense_b)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        increments = self._increments(step)
        return RowInterpolant(step.y0, increments.reshape(len(increments), step.y0.numel()), self._dense_b)

    def _increments(self, step: Step) -> Tensor:
        """The differences up to the orders of the steps, [5, rows, size]."""
        after, order = step.stages
        used = torch.where(_up_to(order, after), after[:, :_HIGHEST], 0.0)
        return torch.stack([self._as_state(difference) for difference in used.unbind(1)])


def _at_size(last: _LastStep, sizes: np.ndarray) -> tuple[_LastStep, np.ndarray]:
    """What is remembered, for steps of these sizes, and by how much longer they are than those before."""
    ratio = np.where(sizes == 0.0, 0.0, sizes / last.spacing)
    same = np.abs(ratio - 1.0) <= _SAME
    if same.all():
        return last, np.ones_like(ratio)
    ratio = np.where(same, 1.0, ratio)
    highest = np.log(_LARGEST_WEIGHT) / np.log(np.maximum(ratio, 2.0))
    order = np.minimum(last.order, np.maximum(highest, 1.0).astype(np.int64))
    return replace(last, order=order, equal=np.where(same & (order == last.order), last.equal, 0)), ratio


def _column(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(like.device, like.dtype.to_real()).unsqueeze(1)


def _up_to(order: np.ndarray, like: Tensor) -> Tensor:
    """Which of the first five differences are of the orders of the steps or lower, [rows, 5, 1]."""
    return torch.from_numpy(np.arange(1, _HIGHEST + 1) <= order[:, None]).to(like.device).unsqueeze(2)
