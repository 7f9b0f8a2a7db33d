"""The best place on constraints and bounds that hold a search back, by SLSQP with exact gradients.

The ordinary search takes what violates a constraint for what cannot be solved, and ends somewhere at it; and its steps
are cut short for all quantities where one meets a bound.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.priors import penalty
from torchivp.fitting.searching.descent import AT_REST, STEEP
from torchivp.fitting.searching.limits import Limits
from torchivp.fitting.searching.linear_model import gain_within, linear_residuals, normals_of_bounds
from torchivp.fitting.searching.optimise import Likelihood, Minimum, Search

Floats = NDArray[np.float64]

_HOPE = 1e-4  # of the logarithm of the likelihood beyond a constraint, below which the search is not held back
_THERE = 1e-8  # what a step may still gain where SLSQP need not go on
_ATTEMPTS = 5  # how often it goes on from where it ended


@dataclass(frozen=True)
class OnLimits:
    """A maximum of the likelihood within bounds and constraints, and the constraints that hold it back.

    Attributes:
        likelihood: the maximum.
        normals: the slopes of the margins that are zero there, by theta, [m, n_free].
        active: these constraints in words.
    """

    likelihood: Likelihood
    normals: Floats
    active: tuple[str, ...] = ()


def onto_limits(
    search: Search, likelihood: Likelihood, floor: Floats, held: NDArray[np.bool_] | None = None
) -> OnLimits:
    """The best place within bounds and constraints, where they hold the search back.

    It is one where the gradient is a sum of the normals of active constraints and bounds, with weights that are not
    negative.

    Args:
        search: which has ended.
        likelihood: where.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        held: which entries of theta stay where they are, [n_free].
    """
    limits, found = Limits(search.misfit, held), likelihood.minimum.found
    as_it_is = OnLimits(likelihood, np.zeros((0, len(likelihood.minimum.theta))))
    if not limits.searchable or found is None or not found.jacobian.shape[1]:
        return as_it_is
    on_bounds = normals_of_bounds(search.misfit.quantities, likelihood.minimum.theta)
    if _gain(search, likelihood, limits, on_bounds)[0] <= _HOPE:
        return as_it_is
    better = search_within(search, limits, likelihood.minimum.theta, floor)
    if better is None or not search.cost(better) <= search.cost(likelihood) + _HOPE:
        return as_it_is
    normals, names = limits.normals(better.minimum.theta)
    weights = _gain(search, better, limits, normals)[1]
    kept = [i for i, name in enumerate(names) if limits.is_constraint(name) and 0.5 * weights[i] ** 2 > _HOPE]
    return OnLimits(better, normals[kept] / limits.scale, tuple(dict.fromkeys(names[i] for i in kept)))


def _gain(search: Search, likelihood: Likelihood, limits: Limits, normals: Floats) -> tuple[float, Floats]:
    """What a step gains within what has these normals by typical changes, as `gain_within` says."""
    found = likelihood.minimum.found
    assert found is not None, "a finite likelihood has predictions"
    values, jacobian = linear_residuals(search.misfit, search.levels, found, likelihood.sizes)
    return gain_within(jacobian[:, limits.moved], values, normals[:, limits.moved])


def search_within(search: Search, limits: Limits, theta: Floats, floor: Floats) -> Likelihood | None:
    """Where SLSQP ends; None if the model cannot be solved there, or a constraint does not hold.

    Its coordinates are such that the linear model of the residuals is a sum of squares of them where the data say much,
    which is the curvature that it begins with.

    Args:
        search: what is maximised.
        limits: within which, and which entries of theta are moved.
        theta: where to start, [n_free].
        floor: the smallest sensible size of the noise of each observable, [n_observed].
    """
    levels, passing = search.levels, copy.copy(search.misfit)
    passing.constraints = []  # which it may pass on the way
    free = replace(search, misfit=passing)
    for attempts_left in reversed(range(_ATTEMPTS + 1)):
        found = passing.predictions(theta)
        if found is None or not levels.possible(found):
            return None
        noise, broken = levels.estimate(found, floor), limits.broken(theta)
        values, jacobian = linear_residuals(passing, levels, found, noise)
        jacobian, normals = jacobian[:, limits.moved], limits.normals(theta)[0][:, limits.moved]
        gain, _ = gain_within(jacobian, values, normals)
        if attempts_left and (broken or gain > _THERE):  # also from where its line search has given up
            theta = _further(free, limits, theta, floor, _round_directions(jacobian))
            continue
        search.iterations = free.iterations
        if broken:
            return None
        minimum = Minimum(theta, float(np.sum(values**2)), gain <= AT_REST, found)
        return Likelihood(minimum, noise, levels.nll(found, noise), gain <= AT_REST, levels.at_floor(noise, floor))
    raise AssertionError("the last attempt returns")


def _further(search: Search, limits: Limits, theta: Floats, floor: Floats, directions: Floats) -> Floats:
    """Where SLSQP ends, from theta on, in coordinates that have these directions."""
    misfit, levels = search.misfit, search.levels
    least = np.inf

    def objective(v: Floats) -> tuple[float, Floats]:
        """Minus the logarithm of the likelihood, at the likeliest sizes of the noise, on which no slope depends."""
        nonlocal least
        at = limits.at(theta, directions @ v)
        found = misfit.predictions(at)
        if found is None or not levels.possible(found):
            return least + STEEP * (1 + abs(least)), np.zeros(len(v))
        noise = levels.estimate(found, floor)
        values, jacobian = linear_residuals(misfit, levels, found, noise)
        value = levels.nll(found, noise) + penalty(misfit.quantities, at)
        least = min(least, value)
        search.report("maximum likelihood, within limits", found)
        return value, (values @ jacobian[:, limits.moved]) @ directions

    options = {"maxiter": search.max_iterations, "ftol": 1e-9}
    return limits.minimised(theta, objective, directions, options=options)


def _round_directions(jacobian: Floats) -> Floats:
    """Directions along which the linear model of residuals curves by one, or less where they hardly change, [n, n]."""
    _, singular, axes = np.linalg.svd(jacobian, full_matrices=len(jacobian) < jacobian.shape[1])
    stiffness = np.ones(len(axes))
    stiffness[: len(singular)] = np.maximum(singular, 1.0)
    return axes.T / stiffness
