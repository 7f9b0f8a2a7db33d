"""The best place on constraints that hold a search back, by SLSQP with exact gradients.

The ordinary search takes what violates a constraint for what cannot be solved, and ends somewhere at it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space
from scipy.optimize import minimize

from torchivp.fitting.constraints import margins
from torchivp.fitting.priors import prior_residuals
from torchivp.fitting.searching.descent import AT_REST, Goal
from torchivp.fitting.searching.optimise import ON_BOUND, Likelihood, Minimum, Search, explained

Floats = NDArray[np.float64]

_HOPE = 1e-4  # of the logarithm of the likelihood beyond a constraint, below which the search is not held back
_INSIDE = 1e-9  # how far from a constraint the search stays, relative to the margin by a typical change,
_AT = 1e-6  # and how far a place may be that is at it
_SAME = 1e-9  # margins of trajectories whose slopes differ by less are one


@dataclass(frozen=True)
class OnConstraints:
    """A maximum of the likelihood within constraints, and those that hold it back.

    Attributes:
        likelihood: the maximum.
        normals: the slopes of the margins that are zero there, by theta, [m, n_free].
        active: these constraints in words.
    """

    likelihood: Likelihood
    normals: Floats
    active: tuple[str, ...] = ()


def onto_constraints(
    search: Search, likelihood: Likelihood, floor: Floats, held: NDArray[np.bool_] | None = None
) -> OnConstraints:
    """The best place within the constraints, where they hold the search back.

    It is one where the gradient is a sum of the normals of active constraints, with weights that are not negative.

    Args:
        search: which has ended.
        likelihood: where.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        held: which entries of theta stay where they are, [n_free].
    """
    misfit, quantities = search.misfit, search.misfit.quantities
    found, nothing = likelihood.minimum.found, np.zeros((0, len(quantities.free)))
    unmeasured = not all(each.margins for each in misfit.constraints)
    if not misfit.constraints or unmeasured or found is None or not found.jacobian.shape[1]:
        return OnConstraints(likelihood, nothing)
    ends = _Ends(search, floor, held)
    if ends.hope(likelihood, nothing) <= _HOPE:
        return OnConstraints(likelihood, nothing)
    better = ends.search_from(likelihood.minimum.theta)
    if better is None or not search.cost(better) <= search.cost(likelihood) + _HOPE:
        return OnConstraints(likelihood, nothing)
    normals, weights, names = ends.active(better)
    converged = ends.hope(better, normals) <= AT_REST
    kept = weights > 0
    best = replace(better, converged=converged, minimum=replace(better.minimum, converged=converged))
    told = tuple(dict.fromkeys(name for name, one in zip(names, kept, strict=True) if one))
    return OnConstraints(best, normals[kept], told)


class _Ends:
    """What is at the end of a search within constraints, in typical changes."""

    def __init__(self, search: Search, floor: Floats, held: NDArray[np.bool_] | None):
        self._search, self._floor, self._quantities = search, floor, search.misfit.quantities
        self._scale = self._quantities.magnitudes
        self._held = np.zeros(len(self._scale), dtype=bool) if held is None else held
        self._names = [each.expression.text for each in search.misfit.constraints for _ in each.margins]
        self._chosen: NDArray[np.intp] | None = None

    def _margins(self, theta: Floats) -> tuple[Floats, Floats, list[str]]:
        """The margins [m], their slopes by typical changes, and whose they are: of trajectories that differ in them."""
        values, slopes = margins(self._search.misfit.constraints, self._quantities, theta)
        slopes = np.where(self._held, 0.0, slopes * self._scale)
        if self._chosen is None:
            known = np.concatenate([values[:, None], slopes], 1)
            alike = np.round(known / np.maximum(np.abs(known).max(initial=0.0), 1e-300) / _SAME)
            count = len(values) // len(self._names)
            of = np.repeat(np.arange(len(self._names)), count)
            self._chosen = np.sort(np.unique(np.concatenate([of[:, None], alike], 1), axis=0, return_index=True)[1])
        count = len(values) // len(self._names)
        return values[self._chosen], slopes[self._chosen], [self._names[i // count] for i in self._chosen.tolist()]

    def search_from(self, theta: Floats) -> Likelihood | None:
        """Where SLSQP ends; None if the model cannot be solved there, or a constraint does not hold."""
        misfit, levels = copy.copy(self._search.misfit), self._search.levels
        misfit.constraints = []  # which it may pass on the way
        goal = Goal(replace(self._search, misfit=misfit), theta, self._floor)
        _, slopes, _ = self._margins(theta)
        sizes = np.maximum(np.linalg.norm(slopes, axis=1), 1e-300)
        lower, upper = (np.where(self._held, 0.0, end) for end in (goal.lower, goal.upper))

        def at(u: Floats) -> Floats:
            return np.clip(theta + self._scale * u, self._quantities.lower, self._quantities.upper)

        u = np.zeros(len(theta))
        for _ in range(3):  # where its line search gives up, it may go on with a new model of the curvature
            result = minimize(
                goal.value_and_gradient,
                u,
                jac=True,
                method="SLSQP",
                bounds=list(zip(lower, upper, strict=True)),
                constraints={
                    "type": "ineq",
                    "fun": lambda u: self._margins(at(u))[0] / sizes - _INSIDE,
                    "jac": lambda u: self._margins(at(u))[1] / sizes[:, None],
                },
                callback=lambda _: goal.report(),
                options={"maxiter": self._search.max_iterations, "ftol": 1e-11},
            )
            moved, u = np.abs(result.x - u).max(), result.x
            if moved < 1e-7:
                break
        end = at(u)
        found = self._search.misfit.predictions(end)
        if found is None or not levels.possible(found):
            return None
        noise = levels.estimate(found, self._floor)
        cost = float(np.sum(levels.least_squares(found, noise)[0] ** 2))
        return Likelihood(
            Minimum(end, cost, True, found), noise, levels.nll(found, noise), True, levels.at_floor(noise, self._floor)
        )

    def _linear(self, likelihood: Likelihood) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Residuals, their slopes by typical changes, and which entries neither are held nor want beyond a bound."""
        found, levels, quantities = likelihood.minimum.found, self._search.levels, self._quantities
        assert found is not None, "a finite likelihood has predictions"
        known, by_theta = prior_residuals(quantities, found.theta)
        slopes = levels.residual_jacobian(found, likelihood.sizes).reshape(-1, len(found.theta))
        values = np.concatenate([levels.least_squares(found, likelihood.sizes)[0].ravel(), known])
        jacobian = np.concatenate([slopes, by_theta]) * self._scale
        gradient = jacobian.T @ values
        low, high = (np.abs(found.theta - end) < ON_BOUND * self._scale for end in (quantities.lower, quantities.upper))
        free = ~self._held & ~((low & (gradient > 0)) | (high & (gradient < 0)))
        return values, jacobian, free

    def hope(self, likelihood: Likelihood, normals: Floats) -> float:
        """What a linear model hopes to gain of the logarithm of the likelihood along these constraints [m, n_free]."""
        values, jacobian, free = self._linear(likelihood)
        along = jacobian[:, free]
        if len(normals):
            along = along @ null_space((normals * self._scale)[:, free])
        return 0.5 * explained(along, values)

    def active(self, likelihood: Likelihood) -> tuple[Floats, Floats, list[str]]:
        """The slopes by theta of the margins that are zero, with what moving each would gain, and whose they are."""
        theta = likelihood.minimum.theta
        distances, slopes, names = self._margins(theta)
        near = np.flatnonzero(distances <= _AT * np.linalg.norm(slopes, axis=1))
        values, jacobian, free = self._linear(likelihood)
        gradient = jacobian.T @ values
        weights, *_ = np.linalg.lstsq(slopes[near][:, free].T, gradient[free], rcond=None)
        return slopes[near] / self._scale, np.asarray(weights, dtype=np.float64), [names[i] for i in near.tolist()]
