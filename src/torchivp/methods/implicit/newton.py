"""Newton's iteration for the equations of implicit methods, every row on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.implicit.equations import StageEquations
from torchivp.methods.implicit.linear import Origin, StageSolver, Systems, merged
from torchivp.methods.implicit.per_row import (
    Flags,
    Numbers,
    all_of,
    any_of,
    clipped,
    pick,
    pick_slopes,
    without,
)
from torchivp.methods.method import Work
from torchivp.torch_func import read_rows

_ENOUGH = 1e-3
"""The error that may remain in fixed steps, in units of the tolerance: the errors of many steps add up."""

_PATIENCE = 5
"""How many more iterations with the Jacobians of an earlier step take as long as making new ones."""

_BEFORE_SHORTER = 8
"""How many more iterations with new Jacobians take as long as a shorter step."""

_DOUBTFUL = 0.2
"""Corrections shrink more slowly than this: it is worth looking whether they are rounding."""

_SLOW = 0.5
"""Corrections shrink more slowly than this: each stage needs its own Jacobian, in every iteration."""

_STALLED = 0.1
"""Corrections of this size, in units of the tolerance, that do not shrink any more are rounding in `func`."""

_DAMPING = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)
"""The fractions of a correction to try."""

_FASTEST = 1e-6
"""The least that the rate of convergence is taken to be before it is seen: func may change at any time,"""

_FASTEST_ALGEBRAIC = 0.2
"""and with algebraic equations, whose corrections with an old Jacobian do not converge faster in shorter steps."""


class Newton(NamedTuple):
    """What an iteration needs besides the equations.

    Attributes:
        size: the sizes of changes of slopes, [stages, rows, size], as those of the states in units of the tolerance.
        is_rounding: called with a change of the slopes, the states of the stages and in which rows the iteration has
            stalled; in which rows the change is mere rounding.
        max_iters: the largest number of iterations.
        enough: the error that may remain, in units of the tolerance.
        patient: whether to try Jacobians at every stage and in every iteration before giving up; steps of adaptive
            methods are rather tried again shorter. What is not patient goes on from the guess where Jacobians are new.
    """

    size: Callable[[Tensor], Numbers]
    is_rounding: Callable[[Tensor, Sequence[Tensor], Flags], Flags]
    max_iters: int
    enough: float = _ENOUGH
    patient: bool = True


class Solved(NamedTuple):
    """How an iteration ended.

    Attributes:
        slopes: the slopes of the stages, [stages, rows, size]; NaN where func is not finite.
        solver: the linear solver in use at the end, or what it is made of.
        rate: by which factor a correction was smaller than the one before, with Jacobians made earlier; NaN where that
            was not seen.
        tracked: whether a gradient flows through func.
        lost: where func is not finite, so that there is no solution.
        failed: where the slopes do not solve the equations.
        size: the sizes of the last corrections.
        iterations: how many there were.
        renewed: where there is a new Jacobian for all stages.
        work: what it has cost.
    """

    slopes: Tensor
    solver: StageSolver | Origin
    rate: Numbers
    tracked: bool
    lost: Flags
    failed: Flags
    size: Numbers
    iterations: Numbers
    renewed: Flags
    work: Work


def solve(
    newton: Newton,
    systems: Systems,
    equations: StageEquations,
    guess: Tensor,
    waiting: Flags,
    solver: StageSolver | None,
    rate: Numbers,
    fresh: Flags = False,
    stale: Flags = False,
    renew: Callable[[], StageSolver] | None = None,
) -> Solved:
    """Solve the equations of the rows that are `waiting`, from a guess of the slopes.

    Where the Jacobian of the old solver is `fresh`, of this very step, an impatient iteration makes no other; where it
    is `stale`, it is not tried. `renew` makes the new solver; None for one from a Jacobian at the guess.

    In turn, in those rows in which the corrections shrink too slowly: with the linear solver of an earlier step, if
    there is one, and the rate of convergence seen with it; with a new one, from one Jacobian; with Jacobians at every
    stage, new ones in every iteration. Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8. What
    happens to a row does not depend on the others, which wait for it.
    """
    iteration = _NewtonIteration(newton, systems, equations, guess)
    seen: StageSolver | Origin | None = solver
    left, renewed = waiting, without(False, waiting)
    if solver is not None:
        known = without(solver.origin.known, stale)
        left = iteration.with_old(waiting & known, solver, rate) | without(waiting, known)
    rate = iteration.rate
    renewed = left if newton.patient else without(left, fresh)
    if any_of(renewed):
        new = systems.at(equations, iteration.slopes, False) if renew is None else renew()
        seen = merged(renewed, new, solver)
        # How fast it converges with these Jacobians when they are older is not known.
        rate = pick(renewed, math.nan, rate)
        left = without(left, renewed) | iteration.with_one(renewed, new)
        if newton.patient and any_of(left):
            left, seen = iteration.with_exact(left, seen)
        elif not newton.patient:
            rate = pick(renewed, iteration.rate, rate)
    slopes, lost = iteration.slopes, without(left, iteration.size < math.inf)
    if any_of(lost):
        lost = lost & _undefined_at_rest(equations)
        slopes = pick_slopes(without(True, lost), slopes, math.nan)
    assert seen is not None
    failed = without(left, lost)
    size, count = iteration.size, iteration.count
    return Solved(slopes, seen, rate, iteration.tracked, lost, failed, size, count, renewed, iteration.work())


def _undefined_at_rest(equations: StageEquations) -> Flags:
    """Where func is not finite at the start of the step either."""
    residual = equations.residual(equations.at_rest())
    undefined = read_rows((~torch.isfinite(residual)).any(2).any(0)) > 0.0
    return bool(undefined[0]) if isinstance(equations.sizes, float) else undefined


def why_not(size: float, count: int, max_iters: int) -> str:
    """Why an iteration did not converge whose last correction, the one of this number, has this size."""
    if not np.isfinite(size):
        return (
            f"Newton's iteration diverged after {count} iterations (the correction is not finite): take smaller steps"
        )
    or_raise = ", or raise max_iters" if count >= max_iters else ""
    return (
        f"Newton's iteration did not converge in {count} iterations (last correction {size:.3g} times the tolerance): "
        f"take smaller steps{or_raise}"
    )


class _NewtonIteration:
    """An iteration under way."""

    count: Numbers
    size: Numbers
    rate: Numbers

    def __init__(self, newton: Newton, systems: Systems, equations: StageEquations, guess: Tensor):
        self.newton = newton
        self.systems = systems
        self.equations = equations
        self.slopes = self.guess = guess
        self.count, self.size, self.rate = 0, math.inf, math.nan
        self.jacobians = self.factorisations = self.solves = 0
        self.tracked = False

    def work(self) -> Work:
        """What it has cost so far."""
        return Work(self.jacobians, self.factorisations, self.solves, self.count)

    def with_old(self, waiting: Flags, solver: StageSolver, rate: Numbers) -> Flags:
        """Iterate with the linear solver of an earlier step, and the rate seen there; returns where it is in vain."""
        # Nothing is known of this step yet, but probably it converges about as fast as the last one.
        least = _FASTEST if self.equations.projection is None else _FASTEST_ALGEBRAIC
        self.rate = clipped(rate, least, 1.0) ** 0.8
        left = self._until(waiting, solver, lambda: self._soon_enough(_PATIENCE))
        # Where the equations have several solutions, a guess that is not good may lead to a wrong one.
        self._restart(left)
        return left

    def with_one(self, waiting: Flags, solver: StageSolver) -> Flags:
        """Iterate with a new linear solver; returns where it is in vain."""
        self._made(waiting, 1)
        self.rate = pick(waiting, math.nan, self.rate)
        if not self.newton.patient:
            return self._until(waiting, solver, lambda: self._soon_enough(_BEFORE_SHORTER))
        left = self._until(waiting, solver, lambda: self.rate <= _SLOW)
        self._restart(without(left, (self.size < math.inf) & (self.rate < 1.0)))
        return left

    def with_exact(self, waiting: Flags, seen: StageSolver | Origin) -> tuple[Flags, StageSolver | Origin]:
        """Iterate with new Jacobians at all stages in every iteration, and damping; returns where it is in vain.

        And the last linear solver of these rows, that `seen` of the others.
        """
        self.rate = pick(waiting, math.nan, self.rate)
        left, last, going = waiting, None, waiting & (self.count < self.newton.max_iters)
        while any_of(going):
            solver = self.systems.at(self.equations, self.slopes, True)
            self._made(going, len(self.equations.times))
            seen = merged(going, solver, seen)
            change = self._correct(going, solver, last, damped=True)
            left = without(left, going & self._converged(change, going, exact=True))
            last = self.size
            going = left & (self.size < math.inf) & (self.count < self.newton.max_iters)
        return left, seen

    def _until(self, waiting: Flags, solver: StageSolver, on_its_way: Callable[[], Flags]) -> Flags:
        """Iterate until every row has converged, or is not `on_its_way` to that; returns where it has not."""
        left, last, going = waiting, None, waiting & (self.count < self.newton.max_iters)
        while any_of(going):
            change = self._correct(going, solver, last)
            converged = going & self._converged(change, going)
            left, going = without(left, converged), without(going, converged)
            going = going & (self.count < self.newton.max_iters)
            going = going & (self.size < math.inf if last is None else on_its_way())
            last = self.size
        return left

    def _restart(self, rows: Flags) -> None:
        if any_of(rows):
            start = self.equations.at_rest() if self.newton.patient else self.guess
            self.slopes = pick_slopes(rows, start, self.slopes)

    def _made(self, rows: Flags, jacobians: int) -> None:
        """Count a new matrix in some rows, made of so many Jacobians."""
        self.jacobians = self.jacobians + jacobians * pick(rows, 1, 0)
        self.factorisations = self.factorisations + pick(rows, 1, 0)

    def _correct(self, going: Flags, solver: StageSolver, last: Numbers | None, damped: bool = False) -> Tensor:
        """Make the corrections, and compare their sizes with the `last` ones."""
        change = self._correction(self.slopes, solver)
        size = self.newton.size(change)
        step = self._damped(going, change, size, solver) if damped else change
        self.slopes = pick_slopes(going, self.slopes + step, self.slopes)
        if all_of(going):
            self.size = size
            self.rate = self.rate if last is None else size / last
        else:
            self.size = pick(going, size, self.size)
            self.rate = self.rate if last is None else pick(going, size / last, self.rate)
        self.count = self.count + pick(going, 1, 0)
        self.solves = self.solves + pick(going, 1, 0)
        return change

    def _soon_enough(self, more: int) -> Flags:
        """Whether so many more iterations are enough, if they go on as they did."""
        return clipped(self.rate, _FASTEST, 1.0) ** more * self.size <= self.newton.enough * (1.0 - self.rate)

    def _correction(self, slopes: Tensor, solver: StageSolver) -> Tensor:
        residual = self.equations.residual(slopes)
        if residual.requires_grad:
            self.tracked, residual = True, residual.detach()
        return solver.solve(residual)

    def _damped(self, going: Flags, change: Tensor, size: Numbers, solver: StageSolver) -> Tensor:
        """The parts of the corrections after which the same solver finds smaller ones; all of it if there is none.

        Deuflhard's natural monotonicity test: "Newton Methods for Nonlinear Problems" (2004), 3.3.
        """
        damping, found = pick(going, 1.0, 1.0), without(True, going)
        for fraction in _DAMPING:
            after = self.newton.size(self._correction(self.slopes + fraction * change, solver))
            self.solves = self.solves + pick(without(going, found), 1, 0)
            better = without(after <= (1.0 - 0.5 * fraction) * size, found)
            damping, found = pick(better, fraction, damping), found | better
            if all_of(found):
                break
        return change * (damping if isinstance(damping, float) else torch.from_numpy(damping).to(change).view(1, -1, 1))

    def _converged(self, change: Tensor, going: Flags, exact: bool = False) -> Flags:
        size, rate = self.size, self.rate
        converged = (size == 0.0) | (rate * size <= self.newton.enough * (1.0 - rate))
        doubtful = without(going & (rate > _DOUBTFUL), converged)
        if any_of(doubtful):
            # Corrections that do not shrink although they should: it may be rounding.
            stalled = (rate > _SLOW) & exact
            rounding = self.newton.is_rounding(change, self.equations.states(self.slopes), stalled)
            converged = converged | (doubtful & ((stalled & (size <= _STALLED)) | rounding))
        return converged
