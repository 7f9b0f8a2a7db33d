"""Laplace's approximation of the marginal likelihood, with its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.predictions import Predictions
from torchivp.fitting.priors import prior_residuals
from torchivp.fitting.random_effects.modes import Floats, Joint, Modes, Population

_STEP = 1e-3  # of the differences by quantities, in typical changes
_SIZE_STEP = 1e-4  # of those by logarithms of sizes, which need no solves


@dataclass(frozen=True)
class Point:
    """The approximation at one place `x`: the free quantities, the logarithms of omega, those of the sizes.

    Attributes:
        x: the place, [n].
        value: minus the logarithm of the marginal likelihood.
        penalty: what priors add to it.
        gradient: the derivatives of the sum of both by x, [n].
        population: what x stands for.
        modes: the most likely effects there.
        z_slopes: their derivatives by x, [n_trajectories, q, n].
        hessian: the second derivatives of minus the log density of the data by the effects, [n_trajectories, q, q].
        posterior: their covariances given the data and the population, in units of omega, [n_trajectories, q, q].
    """

    x: Floats
    value: float
    penalty: float
    gradient: Floats
    population: Population
    modes: Modes
    z_slopes: Floats
    hessian: Floats
    posterior: Floats


@dataclass(frozen=True)
class _Local:
    """What the effects of each trajectory feel at one place.

    Attributes:
        gradient: the derivatives of minus the log density of the data by the effects, [n_trajectories, q].
        half: half the logarithm of the determinant of `curvature`, [n_trajectories].
        curvature: of minus the log joint density by effects in units of omega, expected, [n_trajectories, q, q].
    """

    gradient: Floats
    half: Floats
    curvature: Floats


class LaplaceApproximation:
    """Minus the logarithm of the marginal likelihood, the effects integrated out.

    The integral over the effects of a trajectory is that of a normal density about their most likely values. Its
    curvature is the Fisher information there, which is that of Gauss and Newton for normal noise: J' W J + 1/omega^2,
    J being the derivatives of the predictions. So the second derivatives of the model do not enter. Sources: R.
    Wolfinger, "Laplace's approximation for nonlinear mixed models", Biometrika 80 (1993); J. C. Pinheiro and D. M.
    Bates, "Approximations to the log-likelihood function in the nonlinear mixed-effects model", Journal of
    Computational and Graphical Statistics 4 (1995). For a model that is linear in the effects, with normal noise, it is
    exact.

    The gradient is that of the approximation, the effects being moved along: by the implicit function theorem, whose
    second derivatives of the joint density are central differences of exact first ones.

    Args:
        joint: the joint density of data and effects.
    """

    def __init__(self, joint: Joint):
        self.joint = joint
        self.n_theta = len(joint.misfit.quantities.free)
        self.n_effects = len(joint.effects.entries)
        self.n_sizes = len(joint.levels.names)

    def place(self, population: Population) -> Floats:
        """The place of a population, [n]."""
        return np.concatenate([population.theta, np.log(population.omega), np.log(population.sizes)])

    def population(self, x: Floats) -> Population:
        """What a place stands for."""
        theta, omega, sizes = np.split(x, [self.n_theta, self.n_theta + self.n_effects])
        return Population(theta, np.exp(omega), np.exp(sizes))

    @cached_property
    def touched(self) -> NDArray[np.bool_]:
        """Which trajectories each entry of theta has to do with, [n_trajectories, n_theta]."""
        quantities = self.joint.misfit.quantities
        return (quantities.locals_and_slopes(quantities.theta())[1] != 0).any(1)

    @cached_property
    def _directions(self) -> list[list[int]]:
        """The entries of theta, those together that have no trajectory in common: differences by these are one."""
        groups: list[list[int]] = []
        for j in range(self.n_theta):
            own = self.touched[:, j]
            free = (g for g in groups if not (self.touched[:, g].any(1) & own).any())
            group = next(free, None)
            if group is None:
                groups.append([j])
            else:
                group.append(j)
        return groups

    def near(self, x: Floats, point: Point) -> Point | None:
        """The approximation at a place near another one."""
        return self.at(x, point.modes.z + point.z_slopes @ (x - point.x), point.hessian)

    def at(self, x: Floats, z: Floats, hessian: Floats | None = None) -> Point | None:
        """The approximation at a place.

        Args:
            x: the place, [n].
            z: where to look for the effects, in units of omega, [n_trajectories, q].
            hessian: as of `Joint.modes`.

        Returns:
            It; None if the model cannot be solved there.
        """
        population = self.population(x)
        modes = self.joint.modes(population, z, hessian)
        if modes is None:
            return None
        local = self._local(modes.found, population)
        found = self._solve_around(population, modes)
        if found is None:
            return None
        known, slopes = prior_residuals(self.joint.misfit.quantities, population.theta)
        nll = self.joint.levels.nll(modes.found, population.sizes)
        value = nll + 0.5 * float(np.sum(modes.z**2)) + float(local.half.sum())
        posterior = np.asarray(np.linalg.inv(local.curvature), dtype=np.float64)
        by_theta = self._by_theta(found)
        gradient, z_slopes = self._slopes(population, modes, local, posterior, by_theta)
        gradient[: self.n_theta] += known @ slopes
        penalty, hessian = 0.5 * float(known @ known), by_theta[0][:, :, self.joint.effects.entries]
        return Point(x, value, penalty, gradient, population, modes, z_slopes, hessian, posterior)

    def _local(self, found: Predictions, population: Population, sizes: Floats | None = None) -> _Local:
        sizes, omega = population.sizes if sizes is None else sizes, population.omega
        weights = self.joint.levels.weights(found, sizes) ** 2
        curvature = self.joint.information(found, weights) * np.multiply.outer(omega, omega) + np.eye(len(omega))
        return _Local(self.joint.gradient(found, sizes), 0.5 * np.linalg.slogdet(curvature)[1], curvature)

    def _solve_around(self, population: Population, modes: Modes) -> list[tuple[_Local, _Local]] | None:
        """What the effects feel a step ahead and one behind in each direction of theta, they themselves staying."""
        quantities = self.joint.misfit.quantities
        steps = np.zeros((len(self._directions), self.n_theta))
        for step, group in zip(steps, self._directions, strict=True):
            step[group] = _STEP * quantities.magnitudes[group]
        thetas = population.theta + np.concatenate([steps, -steps])
        shifted = self.joint.shifted(population, modes.z)
        every = [
            found if found is not None and self.joint.levels.possible(found) else None
            for found in shifted.predictions_at(thetas, derivatives=True)
        ]
        local = [self._local(found, population) for found in every if found is not None]
        if len(local) < len(every):
            return None
        return list(zip(local[: len(steps)], local[len(steps) :], strict=True))

    def _by_theta(self, around: list[tuple[_Local, _Local]]) -> tuple[Floats, Floats]:
        """The derivatives by theta of the gradient, [n_trajectories, q, n_theta], and of the half log determinant."""
        magnitudes = self.joint.misfit.quantities.magnitudes
        mixed = np.zeros((self.joint.n_trajectories, self.n_effects, self.n_theta))
        half = np.zeros((self.joint.n_trajectories, self.n_theta))
        for group, (ahead, behind) in zip(self._directions, around, strict=True):
            for j in group:
                width, own = 2 * _STEP * magnitudes[j], self.touched[:, j]
                mixed[own, :, j] = ((ahead.gradient - behind.gradient) / width)[own]
                half[own, j] = ((ahead.half - behind.half) / width)[own]
        return mixed, half

    def _by_sizes(self, population: Population, found: Predictions) -> tuple[Floats, Floats, Floats]:
        """Derivatives by the log sizes: of the log density of the data, the gradient, the half log determinant."""
        levels, count = self.joint.levels, self.joint.n_trajectories
        direct = np.zeros(self.n_sizes)
        mixed, half = np.zeros((count, self.n_effects, self.n_sizes)), np.zeros((count, self.n_sizes))
        for k in range(self.n_sizes):
            factor = np.ones(self.n_sizes)
            factor[k] = np.exp(_SIZE_STEP)
            more, fewer = population.sizes * factor, population.sizes / factor
            ahead, behind = (self._local(found, population, sizes) for sizes in (more, fewer))
            direct[k] = np.sum(levels.each_nll(found, more) - levels.each_nll(found, fewer)) / (2 * _SIZE_STEP)
            mixed[..., k] = (ahead.gradient - behind.gradient) / (2 * _SIZE_STEP)
            half[:, k] = (ahead.half - behind.half) / (2 * _SIZE_STEP)
        return direct, mixed, half

    def _slopes(
        self,
        population: Population,
        modes: Modes,
        local: _Local,
        posterior: Floats,
        by_theta: tuple[Floats, Floats],
    ) -> tuple[Floats, Floats]:
        """The gradient of the approximation, [n], and the derivatives of the modes, [n_trajectories, q, n]."""
        entries, omega, eta = self.joint.effects.entries, population.omega, modes.z * population.omega
        mixed_theta, half_theta = by_theta
        direct_sizes, mixed_sizes, half_sizes = self._by_sizes(population, modes.found)
        hessian = mixed_theta[:, :, entries]  # of the data, by effects
        residuals, slopes = self.joint.levels.least_squares(modes.found, population.sizes)
        direct_theta = (residuals * slopes).sum(0) @ modes.found.jacobian
        # A log omega moves the effects, z staying as it is, and it stands in the determinant.
        direct_omega = (local.gradient * eta).sum(0)
        mixed_omega = hessian * eta[:, None, :] + local.gradient[:, :, None] * np.eye(self.n_effects)
        half_omega = 1 - np.diagonal(posterior, axis1=1, axis2=2) + half_theta[:, entries] * eta
        direct = np.concatenate([direct_theta, direct_omega, direct_sizes])
        mixed = omega[:, None] * np.concatenate([mixed_theta, mixed_omega, mixed_sizes], -1)
        half = np.concatenate([half_theta, half_omega, half_sizes], -1)
        exact = omega[:, None] * hessian * omega + np.eye(self.n_effects)
        z_slopes = -np.asarray(np.linalg.solve(0.5 * (exact + np.swapaxes(exact, 1, 2)), mixed), dtype=np.float64)
        by_z = half_theta[:, entries] * omega
        return direct + (half + np.einsum("iq,iqn->in", by_z, z_slopes)).sum(0), z_slopes
