"""The most likely effects of every trajectory, given the population: all trajectories as rows of one solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.random_effects.effects import Effects

Floats = NDArray[np.float64]

_SETTLED = 1e-13  # what a step may still gain of a log density when it is not taken any more
_ROUNDING = 1e-9  # by how much a log density may seem to get worse, relative to its size
_MOST_STEPS = 60
_SOUND = 0.1  # how positive second derivatives must be, in units of those of the effects alone, to step with them
_FIRST_DAMPING, _LEAST_DAMPING = 0.1, 1e-3  # of the steps, relative to the curvature


@dataclass(frozen=True)
class Population:
    """What all trajectories have in common.

    Attributes:
        theta: the free quantities, those of the population where they are random, [n_free].
        omega: the standard deviations of the random ones, on their scales of estimation, [q].
        sizes: those of the noise that are estimated, [n_sizes].
    """

    theta: Floats
    omega: Floats
    sizes: Floats


@dataclass(frozen=True)
class Modes:
    """The most likely effects.

    Attributes:
        z: the effects in units of omega, [n_trajectories, q].
        found: the predictions there, with their Jacobian by theta.
    """

    z: Floats
    found: Predictions


@dataclass(frozen=True)
class Joint:
    """The joint density of data and effects, trajectory by trajectory.

    The derivatives of a prediction by the effect of a quantity are those by its entry of theta, since the sum of both
    is what the trajectory is solved with.

    Attributes:
        misfit: model and data, without shifts.
        levels: the noise.
        effects: which quantities differ.
    """

    misfit: Misfit
    levels: Levels
    effects: Effects

    @property
    def n_trajectories(self) -> int:
        """How many trajectories there are."""
        return len(self.misfit.data.trajectories)

    def shifted(self, population: Population, z: Floats) -> Misfit:
        """The misfit with the effects `z`."""
        return self.misfit.shifted(self.effects.shifts(z * population.omega, len(population.theta)))

    def predictions(self, population: Population, z: Floats) -> Predictions | None:
        """The predictions with the effects `z`; None if there are none that data can have."""
        found = self.shifted(population, z).predictions(population.theta)
        return found if found is not None and self.levels.possible(found) else None

    def by_trajectory(self, found: Predictions, each: Floats) -> Floats:
        """The sums over the values of each trajectory, [n_trajectories, ...], of numbers [n, ...]."""
        sums = np.zeros((self.n_trajectories, *each.shape[1:]))
        np.add.at(sums, found.measured.trajectory, each)
        return sums

    def gradient(self, found: Predictions, sizes: Floats) -> Floats:
        """The derivatives of minus the log density of the data by the effects, [n_trajectories, q]."""
        residuals, slopes = self.levels.least_squares(found, sizes)
        jacobian = found.jacobian[:, self.effects.entries]
        return self.by_trajectory(found, (residuals * slopes).sum(0)[:, None] * jacobian)

    def information(self, found: Predictions, weights: Floats) -> Floats:
        """The products of the Jacobian by the effects with itself, each value weighed, [n_trajectories, q, q]."""
        jacobian = found.jacobian[:, self.effects.entries]
        return self.by_trajectory(found, weights[:, None, None] * jacobian[:, :, None] * jacobian[:, None, :])

    def modes(
        self, population: Population, z: Floats, hessian: Floats | None = None, settled: float = _SETTLED
    ) -> Modes | None:
        """The effects of each trajectory at which its joint density is greatest.

        By the method of Levenberg and Marquardt, each trajectory with its own damping: D. W. Marquardt, "An algorithm
        for least-squares estimation of nonlinear parameters", Journal of the Society for Industrial and Applied
        Mathematics 11 (1963).

        Args:
            population: what is given.
            z: where to start, in units of omega, [n_trajectories, q].
            hessian: the second derivatives of minus the log density of the data by the effects at a place nearby,
                [n_trajectories, q, q], with which fewer steps are needed than with those of Gauss and Newton.
            settled: what a step may still gain of a log density when it is not taken any more.

        Returns:
            The modes; None if the model cannot be solved there, nor at the values of the population.
        """
        found = self.predictions(population, z)
        if found is None:
            z = np.zeros_like(z)
            found = self.predictions(population, z)
        if found is None:
            return None
        cost, damping = self._cost(population, z, found), np.zeros(len(z))
        for _ in range(_MOST_STEPS):
            step, gain = self._step(population, z, found, damping, hessian)
            moved = gain > settled
            if not moved.any():
                break
            trial = np.where(moved[:, None], z + step, z)
            there = self.predictions(population, trial)
            if there is None:
                damping = np.where(moved, np.maximum(10 * damping, _FIRST_DAMPING), damping)
                continue
            new = self._cost(population, trial, there)
            better = moved & (new <= cost + _ROUNDING * (1 + np.abs(cost)))
            z, cost = np.where(better[:, None], trial, z), np.where(better, new, cost)
            found = _either(better, there, found)
            less = np.where(damping > _LEAST_DAMPING, 0.1 * damping, 0.0)
            damping = np.where(better, less, np.where(moved, np.maximum(10 * damping, _FIRST_DAMPING), damping))
        return Modes(z, found)

    def _cost(self, population: Population, z: Floats, found: Predictions) -> Floats:
        """Minus the log density of the data and effects of each trajectory, but for a constant, [n_trajectories]."""
        residuals, _ = self.levels.least_squares(found, population.sizes)
        return self.by_trajectory(found, 0.5 * (residuals**2).sum(0)) + 0.5 * (z**2).sum(1)

    def _step(
        self, population: Population, z: Floats, found: Predictions, damping: Floats, hessian: Floats | None
    ) -> tuple[Floats, Floats]:
        """A step of each trajectory, [n_trajectories, q], and what it gains in a linear model, [n_trajectories]."""
        _, slopes = self.levels.least_squares(found, population.sizes)
        units, diagonal = np.multiply.outer(population.omega, population.omega), np.eye(len(population.omega))
        curvature = self.information(found, (slopes**2).sum(0)) * units + diagonal
        if hessian is not None:
            exact = 0.5 * (hessian + np.swapaxes(hessian, 1, 2)) * units + diagonal
            sound = (damping == 0) & (np.linalg.eigvalsh(exact)[:, 0] > _SOUND)
            curvature = np.where(sound[:, None, None], exact, curvature)
        gradient = self.gradient(found, population.sizes) * population.omega + z
        damped = curvature * (1 + damping[:, None, None] * diagonal)
        step = -np.asarray(np.linalg.solve(damped, gradient[..., None])[..., 0], dtype=np.float64)
        return step, -0.5 * (gradient * step).sum(1)


def _either(chosen: NDArray[np.bool_], first: Predictions, second: Predictions) -> Predictions:
    """The first predictions for the trajectories that are chosen, the second ones for the others."""
    rows = chosen[first.measured.trajectory]
    return replace(
        second,
        values=np.where(rows, first.values, second.values),
        jacobian=np.where(rows[:, None], first.jacobian, second.jacobian),
    )
