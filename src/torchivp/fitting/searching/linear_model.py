"""The residuals as linear functions of what is free, at one place: what a step from there may still gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.priors import prior_residuals
from torchivp.fitting.quantities import Quantities

Floats = NDArray[np.float64]

ON_BOUND = 1e-6
"""A quantity this close to a bound, in typical changes, is on it."""

# A direction with a singular value this much smaller than the largest changes nothing,
_RANK = 1e-10
# and what this one is held by counts as no better determined than so.
_STIFF = 1e-7


def linear_residuals(misfit: Misfit, levels: Levels, found: Predictions, sizes: Floats) -> tuple[Floats, Floats]:
    """The residuals of data and priors at predictions, [m], and their derivatives by typical changes, [m, n_free].

    Args:
        misfit: which knows what is free, and the priors.
        levels: the noise.
        found: the predictions with their Jacobian.
        sizes: those of the noise.
    """
    known, by_theta = prior_residuals(misfit.quantities, found.theta)
    slopes = levels.residual_jacobian(found, sizes).reshape(-1, len(found.theta))
    values = np.concatenate([levels.least_squares(found, sizes)[0].ravel(), known])
    return values, np.concatenate([slopes, by_theta]) * misfit.quantities.magnitudes


def normals_of_bounds(quantities: Quantities, theta: Floats) -> Floats:
    """For each bound that a quantity is on, the direction away from it, [m, n_free]."""
    ends = ((quantities.lower, 1.0), (quantities.upper, -1.0))
    on = [(np.flatnonzero(np.abs(theta - end) < ON_BOUND * quantities.magnitudes), sign) for end, sign in ends]
    return np.concatenate([sign * np.eye(len(theta))[which] for which, sign in on])


def explained(jacobian: Floats, values: Floats) -> float:
    """How much of the sum of squares the best step of a linear model would explain."""
    directions, singular, _ = np.linalg.svd(jacobian, full_matrices=False)
    determined = directions[:, singular > _RANK * singular.max(initial=0.0)]
    return float(np.sum((determined.T @ values) ** 2))


def gain_within(jacobian: Floats, values: Floats, normals: Floats) -> tuple[float, Floats]:
    """What the best step s with normals @ s >= 0 gains of the logarithm of the likelihood, and what holds it back.

    The residuals J s + r are shortest for an s whose J s is the projection of -r onto a cone. The rest of -r is a sum
    of images of the normals with weights that are not negative (Moreau's decomposition), which non-negative least
    squares finds: C. L. Lawson, R. J. Hanson, "Solving Least Squares Problems", SIAM (1995), chapter 23.

    Args:
        jacobian: J, [m, n].
        values: r, [m].
        normals: of bounds and constraints that the place is on, [k, n].

    Returns:
        Half the sum of squares that the step explains, and of each normal the square root of what it keeps from being
        explained if it alone does, [k]: zero where it does not hold the step back.
    """
    directions, singular, axes = np.linalg.svd(jacobian, full_matrices=len(jacobian) < jacobian.shape[1])
    largest = singular.max(initial=0.0)
    wanted = np.zeros(len(axes))
    wanted[: len(singular)] = np.where(singular > _RANK * largest, directions.T[: len(singular)] @ values, 0.0)
    if not len(normals) or not largest:
        return 0.5 * float(wanted @ wanted), np.zeros(len(normals))
    stiffness = np.full(len(axes), _STIFF * largest)
    stiffness[: len(singular)] = np.maximum(singular, _STIFF * largest)
    images = (normals @ axes.T / stiffness).T
    sizes = np.maximum(np.linalg.norm(images, axis=0), np.finfo(float).tiny)
    weights, left = nnls(images / sizes, wanted, maxiter=100 * len(normals))
    return 0.5 * left**2, weights


def hoped_gain(misfit: Misfit, levels: Levels, found: Predictions, sizes: Floats) -> tuple[float, float]:
    """What a step within the bounds may gain of the logarithm of the likelihood, and the sum of squared residuals.

    Arguments are as of `linear_residuals`.
    """
    values, jacobian = linear_residuals(misfit, levels, found, sizes)
    gain, _ = gain_within(jacobian, values, normals_of_bounds(misfit.quantities, found.theta))
    return gain, float(np.sum(values**2))
