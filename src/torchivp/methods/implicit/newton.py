"""Newton's iteration for the equations of implicit methods, every row on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.implicit.equations import StageEquations
from torchivp.methods.implicit.linear import Origin, StageSolver, Systems, merged
from torchivp.torch_func import read_rows

_ENOUGH = 1e-3
"""The error that may remain, in units of the tolerance: the errors of many steps add up."""

_PATIENCE = 5
"""How many more iterations with the Jacobians of an earlier step take as long as making new ones."""

_DOUBTFUL = 0.2
"""Corrections shrink more slowly than this: it is worth looking whether they are rounding."""

_SLOW = 0.5
"""Corrections shrink more slowly than this: each stage needs its own Jacobian, in every iteration."""

_STALLED = 0.1
"""Corrections of this size, in units of the tolerance, that do not shrink any more are rounding in `func`."""

_DAMPING = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)
"""The fractions of a correction to try."""

_FASTEST = 1e-6
"""The least that the rate of convergence is taken to be before it is seen: func may change at any time."""


class Newton(NamedTuple):
    """What an iteration needs besides the equations.

    Attributes:
        systems: makes the linear solvers.
        size: the sizes of changes of slopes, [stages, rows, size], as those of the states in units of the tolerance,
            [rows].
        is_rounding: called with a change of the slopes, the states of the stages and in which rows the iteration has
            stalled; in which rows the change is mere rounding.
        max_iters: the largest number of iterations.
    """

    systems: Systems
    size: Callable[[Tensor], np.ndarray]
    is_rounding: Callable[[Tensor, Sequence[Tensor], np.ndarray], np.ndarray]
    max_iters: int


class Solved(NamedTuple):
    """How an iteration ended.

    Attributes:
        slopes: the slopes of the stages, [stages, rows, size]; NaN where func is not finite.
        solver: the linear solver in use at the end, or what it is made of.
        rate: by which factor a correction was smaller than the one before, with Jacobians made earlier, [rows]; NaN
            where that was not seen.
        tracked: whether a gradient flows through func.
        lost: where func is not finite, so that there is no solution, [rows].
        failed: where the slopes do not solve the equations, [rows].
        size: the sizes of the last corrections, [rows],
        iterations: and how many there were.
    """

    slopes: Tensor
    solver: StageSolver | Origin
    rate: np.ndarray
    tracked: bool
    lost: np.ndarray
    failed: np.ndarray
    size: np.ndarray
    iterations: np.ndarray


def solve(
    newton: Newton,
    equations: StageEquations,
    guess: Tensor,
    waiting: np.ndarray,
    solver: StageSolver | None,
    rate: np.ndarray,
) -> Solved:
    """Solve the equations of the rows that are `waiting`, from a guess of the slopes.

    In turn, in those rows in which the corrections shrink too slowly: with the linear solver of an earlier step, if
    there is one, and the rate of convergence seen with it; with a new one, from one Jacobian; with Jacobians at every
    stage, new ones in every iteration. Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8. What
    happens to a row does not depend on the others, which wait for it. NumPy must not warn of what is not finite.
    """
    iteration = _NewtonIteration(newton, equations, guess)
    seen: StageSolver | Origin | None = solver
    left = waiting
    if solver is not None:
        none = np.isnan(solver.origin.dt)
        left = iteration.with_old(waiting & ~none, solver, rate) | (waiting & none)
    rate = iteration.rate
    if np.count_nonzero(left):
        new = newton.systems.at(equations, iteration.slopes, False)
        seen = merged(left, new, solver)
        # How fast it converges with these Jacobians when they are older is not known.
        rate = np.where(left, np.nan, rate)[()]
        left = iteration.with_one(left, new)
        if np.count_nonzero(left):
            left, seen = iteration.with_exact(left, seen)
    lost, slopes = left & ~np.isfinite(iteration.size), iteration.slopes
    if np.count_nonzero(lost):
        residual = equations.residual(equations.at_rest())
        lost = lost & (read_rows((~torch.isfinite(residual)).any(2).any(0)) > 0.0)
        slopes = slopes.masked_fill(_mask(lost, slopes), torch.nan)
    assert seen is not None
    return Solved(slopes, seen, rate, iteration.tracked, lost, left & ~lost, iteration.size, iteration.count)


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
    """An iteration under way; arrays have an entry for each row, or are NumPy's scalars, which are fast, for one."""

    count: Any
    size: Any
    rate: Any

    def __init__(self, newton: Newton, equations: StageEquations, guess: Tensor):
        self.newton = newton
        self.equations = equations
        self.slopes = guess
        self.count, self.size, self.rate = 0, np.inf, np.nan
        self.tracked = False

    def with_old(self, waiting: np.ndarray, solver: StageSolver, rate: np.ndarray) -> np.ndarray:
        """Iterate with the linear solver of an earlier step, and the rate seen there; returns where it is in vain."""
        # Nothing is known of this step yet, but probably it converges about as fast as the last one.
        self.rate = np.maximum(rate, _FASTEST) ** 0.8
        left = self._until(waiting, solver, self._takes_too_long)
        # Where the equations have several solutions, a guess that is not good may lead to a wrong one.
        self._restart(left)
        return left

    def with_one(self, waiting: np.ndarray, solver: StageSolver) -> np.ndarray:
        """Iterate with a new linear solver; returns where it is in vain."""
        self.rate = np.where(waiting, np.nan, self.rate)
        left = self._until(waiting, solver, lambda: ~(self.rate <= _SLOW))
        self._restart(left & ~(np.isfinite(self.size) & (self.rate < 1.0)))
        return left

    def with_exact(self, waiting: np.ndarray, seen: StageSolver | Origin) -> tuple[np.ndarray, StageSolver | Origin]:
        """Iterate with new Jacobians at all stages in every iteration, and damping; returns where it is in vain.

        And the last linear solver of these rows, that `seen` of the others.
        """
        self.rate = np.where(waiting, np.nan, self.rate)
        going, last = waiting & (self.count < self.newton.max_iters), None
        left = waiting
        while np.count_nonzero(going):
            solver = self.newton.systems.at(self.equations, self.slopes, True)
            seen = merged(going, solver, seen)
            change = self._correct(going, solver, last, damped=True)
            left = left & ~(going & self._converged(change, going, exact=True))
            last = self.size
            going = left & np.isfinite(self.size) & (self.count < self.newton.max_iters)
        return left, seen

    def _until(self, waiting: np.ndarray, solver: StageSolver, in_vain: Callable[[], np.ndarray]) -> np.ndarray:
        """Iterate until every row has converged, or it is in vain; returns where it is."""
        left, last = waiting, None
        going = waiting & (self.count < self.newton.max_iters)
        while np.count_nonzero(going):  # which is faster than any() where there is one row
            change = self._correct(going, solver, last)
            converged = self._converged(change, going)
            left = left & ~(going & converged)
            going = going & ~converged & (self.count < self.newton.max_iters)
            going = going & (np.isfinite(self.size) if last is None else ~in_vain())
            last = self.size
        return left

    def _restart(self, rows: np.ndarray) -> None:
        if np.count_nonzero(rows):
            self.slopes = torch.where(_mask(rows, self.slopes), self.equations.at_rest(), self.slopes)

    def _correct(self, going: np.ndarray, solver: StageSolver, last: np.ndarray | None, damped: bool = False) -> Tensor:
        """Make the corrections, and compare their sizes with the `last` ones."""
        change = self._correction(self.slopes, solver)
        size = self.newton.size(change)
        step = change * self._damping(going, change, size, solver) if damped else change
        if np.count_nonzero(going) == going.size:
            self.slopes, self.size = self.slopes + step, size
            self.count = self.count + 1
            self.rate = self.rate if last is None else size / last
        else:
            self.slopes = torch.where(_mask(going, step), self.slopes + step, self.slopes)
            self.size = np.where(going, size, self.size)
            self.count = self.count + np.where(going, 1, 0)
            self.rate = self.rate if last is None else np.where(going, size / last, self.rate)
        return change

    def _takes_too_long(self) -> np.ndarray:
        """Whether that many more iterations are not enough, if they go on as they did."""
        shrunk = np.maximum(self.rate, _FASTEST) ** _PATIENCE
        return ~(shrunk * self.size <= _ENOUGH * (1.0 - self.rate))

    def _correction(self, slopes: Tensor, solver: StageSolver) -> Tensor:
        residual = self.equations.residual(slopes)
        if residual.requires_grad:
            self.tracked, residual = True, residual.detach()
        return solver.solve(residual)

    def _damping(self, going: np.ndarray, change: Tensor, size: np.ndarray, solver: StageSolver) -> Tensor:
        """The fractions of the corrections after which the same solver finds smaller ones; 1 if there is none.

        Deuflhard's natural monotonicity test: "Newton Methods for Nonlinear Problems" (2004), 3.3.
        """
        damping, found = np.ones(size.shape), ~going
        for fraction in _DAMPING:
            after = self.newton.size(self._correction(self.slopes + fraction * change, solver))
            better = ~found & (after <= (1.0 - 0.5 * fraction) * size)
            damping[better] = fraction
            found = found | better
            if found.all():
                break
        return torch.from_numpy(damping).to(change).view(1, -1, 1)

    def _converged(self, change: Tensor, going: np.ndarray, exact: bool = False) -> np.ndarray:
        size, rate = self.size, self.rate
        converged = (size == 0.0) | ((rate < 1.0) & (rate / (1.0 - rate) * size <= _ENOUGH))
        doubtful = going & ~converged & (rate > _DOUBTFUL)
        if np.count_nonzero(doubtful):
            # Corrections that do not shrink although they should: it may be rounding.
            stalled = (rate > _SLOW) & exact
            rounding = self.newton.is_rounding(change, self.equations.states(self.slopes), stalled)
            converged = converged | (doubtful & ((stalled & (size <= _STALLED)) | rounding))
        return converged


def _mask(rows: np.ndarray, like: Tensor) -> Tensor:
    """Of stages, [stages, rows, size]."""
    return torch.as_tensor(rows).to(like.device).view(1, -1, 1)
