"""What a fit says of differences between trajectories: omegas, the values of each trajectory, their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.quantities import Quantity
from torchivp.fitting.random_effects.maximise import MarginalMaximum
from torchivp.fitting.random_effects.modes import Floats
from torchivp.fitting.results.uncertainty import Evidence, Uncertainty, fisher_uncertainty

if TYPE_CHECKING:
    from torchivp.fitting.results.result import Estimate

_95 = 1.959963984540054


@dataclass(frozen=True)
class RandomEffects:
    """How trajectories differ.

    Attributes:
        names: what differs, q names.
        omega: the standard deviations between trajectories, on the scales of estimation, [q].
        eta: the most likely effects of each trajectory: how far its values are from those of the population, on the
            scales of estimation, [n_trajectories, q].
        values: the values of each trajectory, [n_trajectories, q].
        covariances: of the effects of each trajectory given the data and the population, [n_trajectories, q, q].
        shrinkage: one minus the standard deviation of the effects over omega, [q]: near 0 where the data of a
            trajectory determine its value, near 1 where it is hardly more than that of the population (R. M. Savic and
            M. O. Karlsson, "Importance of shrinkage in empirical Bayes estimates for diagnostics", AAPS Journal 11
            (2009)).
        freedom: the degrees of freedom that the effects use up: none where omega is zero, one for each where the data
            of a trajectory determine it.
        covariance: of all that was estimated on the scale of estimation: the free quantities, the logarithms of omega,
            those of the sizes of the noise, [n, n].
    """

    names: list[str]
    omega: Floats
    eta: Floats
    values: Floats
    covariances: Floats
    shrinkage: Floats
    freedom: float
    covariance: Floats


def marginal_uncertainty(marginal: MarginalMaximum, free: list[Quantity], n_groups: int) -> Uncertainty:
    """The uncertainty of theta, in the population and in each trajectory.

    That of the population is the inverse of the Hessian of the approximate marginal likelihood. That of a trajectory
    adds the spread of its effects given the population, and how the effects move with the population: R. E. Kass and
    D. Steffey, "Approximate Bayesian inference in conditionally independent hierarchical models (parametric empirical
    Bayes models)", Journal of the American Statistical Association 84 (1989). Intervals are those of the normal
    distribution.

    Args:
        marginal: the maximum.
        free: the free quantities, n.
        n_groups: the number of sizes of noise that the data have, to which prediction bands add theirs.
    """
    n = len(free)
    none = Evidence(np.zeros((1, n)), 0, False)
    rows = Evidence(_rows(marginal, n), 0, False)
    population = fisher_uncertainty([rows, *[none] * (n_groups - 1)], free, marginal.on_bound[:n])
    covariance, point = _covariance(marginal), marginal.point
    omega, entries = point.population.omega, marginal.effects.entries
    every = []
    for z, slopes, posterior in zip(point.modes.z, point.z_slopes, point.posterior, strict=True):
        moves = np.eye(n, len(covariance))
        moves[entries] += omega[:, None] * slopes
        moves[entries, n + np.arange(len(omega))] += omega * z
        own = moves @ covariance @ moves.T
        own[np.ix_(entries, entries)] += posterior * np.multiply.outer(omega, omega)
        parts = np.concatenate([own[None], np.zeros((n_groups - 1, n, n))])
        every.append(replace(population, parts=parts, warnings=[]))
    return replace(population, trajectories=tuple(every))


def _scaled(marginal: MarginalMaximum) -> tuple[Floats, Floats, Floats]:
    """Eigenvalues and vectors of the Hessian in typical changes, none of them negative; these changes."""
    scale = marginal.scale
    values, vectors = np.linalg.eigh(marginal.hessian * np.multiply.outer(scale, scale))
    return np.maximum(values, 0.0), vectors, scale


def _rows(marginal: MarginalMaximum, n_theta: int) -> Floats:
    """Rows whose cross product is the information about theta that is left when all else is estimated too."""
    values, vectors, scale = _scaled(marginal)
    roots = np.sqrt(values)[:, None] * vectors.T / scale
    of_theta, of_others = roots[:, :n_theta], roots[:, n_theta:]
    basis, singular, _ = np.linalg.svd(of_others, full_matrices=False)
    basis = basis[:, singular > 1e-10 * singular.max(initial=0.0)]
    return of_theta - basis @ (basis.T @ of_theta)


def _covariance(marginal: MarginalMaximum) -> Floats:
    """The covariance of all that was estimated, within the directions that the data determine, [n, n]."""
    values, vectors, scale = _scaled(marginal)
    sound = values > 1e-12 * values.max(initial=0.0)
    inverse = np.where(sound, 1 / np.where(sound, values, 1.0), 0.0)
    return (vectors * inverse) @ vectors.T * np.multiply.outer(scale, scale)


def random_effects(marginal: MarginalMaximum) -> RandomEffects:
    """How trajectories differ at the maximum."""
    point, effects = marginal.point, marginal.effects
    omega, eta = point.population.omega, point.modes.z * point.population.omega
    at = point.population.theta[effects.entries] + eta
    values = np.array([[q.from_scale(each) for q, each in zip(effects.quantities, row, strict=True)] for row in at])
    count = np.maximum(marginal.active.sum(0), 1)
    mean = eta.sum(0) / count
    spread = np.sqrt((np.where(marginal.active, eta - mean, 0.0) ** 2).sum(0) / count)
    return RandomEffects(
        effects.names,
        omega,
        eta,
        values,
        point.posterior * np.multiply.outer(omega, omega),
        1 - spread / omega,
        float(point.posterior[0].shape[0] * len(eta) - np.trace(point.posterior, axis1=1, axis2=2).sum()),
        _covariance(marginal),
    )


def omega_estimates(marginal: MarginalMaximum, found: RandomEffects) -> list[Estimate]:
    """The standard deviations between trajectories, estimated on the log scale."""
    estimates = []
    first = len(marginal.point.population.theta)
    for k, (quantity, shrinkage) in enumerate(zip(marginal.effects.quantities, found.shrinkage.tolist(), strict=True)):
        of = quantity.name if quantity.scale == "linear" else f"{quantity.scale} {quantity.name}"
        meaning = f"standard deviation of {of} between trajectories; shrinkage {shrinkage:.0%}"
        unit = quantity.unit if quantity.scale == "linear" else ""
        estimates.append(
            _on_log_scale(f"omega({quantity.name})", "random", found.omega[k], first + k, marginal, unit, meaning)
        )
    return estimates


def size_estimates(marginal: MarginalMaximum, names: list[str], meanings: list[str]) -> list[Estimate]:
    """The sizes of the noise, estimated on the log scale."""
    sizes = marginal.point.population.sizes
    first = len(marginal.point.x) - len(sizes)
    return [
        _on_log_scale(name, "sigma", sizes[k], first + k, marginal, "", meaning)
        for k, (name, meaning) in enumerate(zip(names, meanings, strict=True))
    ]


def individual_estimates(
    marginal: MarginalMaximum, found: RandomEffects, uncertainty: Uncertainty, trajectories: list[str]
) -> list[Estimate]:
    """The values of each trajectory, with intervals on the scale of estimation."""
    from torchivp.fitting.results.result import Estimate

    estimates = []
    for k, (j, quantity) in enumerate(zip(marginal.effects.entries, marginal.effects.quantities, strict=True)):
        for i in np.flatnonzero(marginal.active[:, k]).tolist():
            own = uncertainty.of(i)
            along = np.eye(len(own.magnitudes))[j]
            named = replace(quantity, name=f"{quantity.name}[{trajectories[i]}]", kind="derived", prior=None)
            value, error, reach = float(found.values[i, k]), float(own.standard_errors()[j]), float(own.reach(along))
            estimates.append(replace(Estimate.build(named, value, error, reach), free=False))
    return estimates


def omega_warnings(marginal: MarginalMaximum) -> list[str]:
    """Which omegas have gone to zero, or to infinity, in words."""
    first = len(marginal.point.population.theta)
    warnings = []
    for k, quantity in enumerate(marginal.effects.quantities):
        name = quantity.name
        if not marginal.on_bound[first + k]:
            continue
        if marginal.point.population.omega[k] < quantity.magnitude:
            warnings.append(f"the data show no differences between trajectories in {name}: leave it out of random")
        else:
            warnings.append(
                f"the differences between trajectories in {name} grow without bound: the data say little about its "
                f"values, so hold it, or give its population a prior"
            )
    return warnings


def _on_log_scale(
    name: str, kind: str, value: float, j: int, marginal: MarginalMaximum, unit: str, meaning: str
) -> Estimate:
    """The estimate of a positive number whose logarithm is entry j of x."""
    from torchivp.fitting.results.result import Estimate

    held: NDArray[np.bool_] = marginal.on_bound
    error = np.nan if held[j] else float(np.sqrt(_covariance(marginal)[j, j]))
    lower, upper = (float(value * np.exp(side * _95 * error)) for side in (-1, 1))
    return Estimate(
        name=name,
        kind=kind,  # pyright: ignore[reportArgumentType]
        value=float(value),
        standard_error=float(value) * error,
        scale="log",
        scale_error=error,
        lower=lower,
        upper=upper,
        free=True,
        unit=unit,
        description=meaning,
    )
