"""Newton's iteration for the stages of an implicit method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchivp.methods.ode.stage_equations import StageEquations
from torchivp.methods.ode.stage_solver import StageSolver
from torchivp.torch_func import read

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
        linearised: returns a linear solver with Jacobians at these slopes; of every stage if so told.
        size: the size of a change of slopes, as one of the state in units of the tolerance.
        is_rounding: whether a change of slopes is mere rounding, given the states of the stages, and whether
            the iteration has stalled.
        max_iters: the largest number of iterations.
    """

    linearised: Callable[[StageEquations, Tensor, bool], StageSolver]
    size: Callable[[Tensor], float]
    is_rounding: Callable[[Tensor, Tensor, bool], bool]
    max_iters: int


class Solved(NamedTuple):
    """How an iteration ended.

    Attributes:
        slopes: the slopes of the stages, [stages, size]; not finite if func is not.
        solver: the linear solver in use at the end.
        rate: by which factor a correction was smaller than the one before, with Jacobians made earlier; None if that
            was not seen, NaN if the slopes are not finite.
        tracked: whether a gradient flows through func.
        failure: why the slopes do not solve the equations; None if they do.
    """

    slopes: Tensor
    solver: StageSolver | None
    rate: float | None
    tracked: bool
    failure: str | None


def solve(
    newton: Newton, equations: StageEquations, guess: Tensor | None, solver: StageSolver | None, rate: float | None
) -> Solved:
    """Solve the equations, from a guess of the slopes if there is one.

    In turn, as long as the corrections shrink too slowly: with the linear solver of an earlier step, if there is one,
    and the rate of convergence seen with it; with a new one, from one Jacobian; with Jacobians at every stage, new ones
    in every iteration. Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8.
    """
    iteration = _NewtonIteration(newton, equations, equations.at_rest() if guess is None else guess)
    if solver is not None and iteration.with_old(solver, rate):
        return Solved(iteration.slopes, iteration.solver, iteration.rate, iteration.tracked, None)
    if iteration.with_one(newton.linearised(equations, iteration.slopes, False)) or iteration.with_exact():
        # How fast it converges with these Jacobians when they are older is not known.
        return Solved(iteration.slopes, iteration.solver, None, iteration.tracked, None)
    if not math.isfinite(iteration.size) and read((~torch.isfinite(equations.residual(equations.at_rest()))).any()):
        return Solved(torch.full_like(iteration.slopes, math.nan), None, math.nan, iteration.tracked, None)
    return Solved(iteration.slopes, None, None, iteration.tracked, iteration.failure())


class _NewtonIteration:
    """An iteration under way."""

    solver: StageSolver

    def __init__(self, newton: Newton, equations: StageEquations, guess: Tensor):
        self.newton = newton
        self.equations = equations
        self.slopes = guess
        self.count = 0
        self.size = math.inf
        self.rate: float | None = None
        self.tracked = False

    def with_old(self, solver: StageSolver, rate: float | None) -> bool:
        """Iterate with the linear solver of an earlier step, and the rate seen there; returns whether it converged."""
        self.solver = solver
        # Nothing is known of this step yet, but probably it converges about as fast as the last one.
        self.rate = None if rate is None else max(rate, _FASTEST) ** 0.8
        last = None
        while self.count < self.newton.max_iters:
            change = self._correct(last)
            if self._converged(change):
                return True
            if not math.isfinite(self.size) or (last is not None and self._iterations_left() > _PATIENCE):
                break
            last = self.size
        # Where the equations have several solutions, a guess that is not good may lead to a wrong one.
        self.slopes = self.equations.at_rest()
        return False

    def with_one(self, solver: StageSolver) -> bool:
        """Iterate with a new linear solver; returns whether it converged."""
        self.solver, self.rate, last = solver, None, None
        while self.count < self.newton.max_iters:
            change = self._correct(last)
            if self._converged(change):
                return True
            if not math.isfinite(self.size) or (self.rate is not None and self.rate > _SLOW):
                break
            last = self.size
        if not (math.isfinite(self.size) and self.rate is not None and self.rate < 1.0):
            self.slopes = self.equations.at_rest()
        return False

    def with_exact(self) -> bool:
        """Iterate with new Jacobians at all stages in every iteration, and damping; returns whether it converged."""
        self.rate, last = None, None
        while self.count < self.newton.max_iters:
            self.solver = self.newton.linearised(self.equations, self.slopes, True)
            change = self._correct(last, damped=True)
            if self._converged(change, exact=True):
                return True
            if not math.isfinite(self.size):
                break
            last = self.size
        return False

    def failure(self) -> str:
        """Why it did not converge."""
        if not math.isfinite(self.size):
            return (
                f"Newton's iteration diverged after {self.count} iterations (the correction is not finite): take "
                "smaller steps"
            )
        or_raise = ", or raise max_iters" if self.count >= self.newton.max_iters else ""
        return (
            f"Newton's iteration did not converge in {self.count} iterations (last correction {self.size:.3g} times "
            f"the tolerance): take smaller steps{or_raise}"
        )

    def _correct(self, last: float | None, damped: bool = False) -> Tensor:
        """Make the correction, and compare its size with the `last` one."""
        self.count += 1
        change = self._correction(self.slopes)
        self.size = self.newton.size(change)
        self.slopes = self.slopes + (self._damping(change) * change if damped else change)
        if last is not None:
            self.rate = self.size / last
        return change

    def _iterations_left(self) -> float:
        """How many more iterations are needed, if they go on as they did."""
        assert self.rate is not None
        if not self.rate < 1.0:
            return math.inf
        return math.log(_ENOUGH * (1.0 - self.rate) / self.size) / math.log(max(self.rate, _FASTEST))

    def _correction(self, slopes: Tensor) -> Tensor:
        residual = self.equations.residual(slopes)
        if residual.requires_grad:
            self.tracked, residual = True, residual.detach()
        return self.solver.solve(residual)

    def _damping(self, change: Tensor) -> float:
        """The fraction of the correction after which the same solver finds a smaller one; 1 if there is none.

        Deuflhard's natural monotonicity test: "Newton Methods for Nonlinear Problems" (2004), 3.3.
        """
        for fraction in _DAMPING:
            after = self.newton.size(self._correction(self.slopes + fraction * change))
            if after <= (1.0 - 0.5 * fraction) * self.size:
                return fraction
        return 1.0

    def _converged(self, change: Tensor, exact: bool = False) -> bool:
        size, rate = self.size, self.rate
        if size == 0.0 or (rate is not None and rate < 1.0 and rate / (1.0 - rate) * size <= _ENOUGH):
            return True
        if rate is None or not rate > _DOUBTFUL:
            return False
        # Corrections that do not shrink although they should: it may be rounding.
        stalled = exact and rate > _SLOW
        return (stalled and size <= _STALLED) or self.newton.is_rounding(
            change, self.equations.states(self.slopes), stalled
        )
