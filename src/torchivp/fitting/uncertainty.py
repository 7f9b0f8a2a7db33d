"""Uncertainty of what was estimated, from the Fisher information on the scale of estimation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.quantities import Quantity

QUANTILE = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: intervals hold 95 %."""

_SINGULAR = 1e-7  # a direction with a singular value this much smaller than the largest counts as not determined
_WEAK = 2.0  # a direction with a standard error of this many typical changes (on the log scale e^2) is weak


@dataclass(frozen=True)
class Uncertainty:
    """The covariance of the estimates, and the directions that the data say nothing about.

    Attributes:
        covariance: of theta, [n_free, n_free], within the directions that the data determine.
        undetermined: the other directions, as orthonormal columns in units of typical changes, [n_free, m].
        magnitudes: those units, [n_free].
        warnings: what is not determined, or only weakly, in words.
    """

    covariance: NDArray[np.float64]
    undetermined: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    warnings: list[str]

    def standard_errors(self) -> NDArray[np.float64]:
        """The standard error of each entry of theta, [n_free]; infinite where the data do not determine it."""
        errors = np.sqrt(np.diag(self.covariance))
        touched = np.any(np.abs(self.undetermined) > 1e-3, axis=1)
        return np.where(touched, np.inf, errors)

    def correlation(self) -> NDArray[np.float64]:
        """The correlations of the entries of theta, [n_free, n_free]."""
        errors = np.sqrt(np.diag(self.covariance))
        errors = np.where(errors > 0, errors, 1.0)
        return self.covariance / np.outer(errors, errors)

    def variance(self, derivatives: NDArray[np.float64]) -> NDArray[np.float64]:
        """The variance of what has the `derivatives` [..., n_free] with respect to theta, by the delta method."""
        variance = np.einsum("...i,ij,...j->...", derivatives, self.covariance, derivatives)
        scaled = derivatives * self.magnitudes
        along = np.abs(scaled @ self.undetermined).max(axis=-1, initial=0.0)
        return np.where(along > 1e-3 * np.linalg.norm(scaled, axis=-1), np.inf, variance)


def fisher_uncertainty(scaled_jacobian: NDArray[np.float64], free: Sequence[Quantity]) -> Uncertainty:
    """The uncertainty of theta from the Jacobian of the residuals over sigma.

    Args:
        scaled_jacobian: [n, n_free]; its cross product is the Fisher information.
        free: what the entries of theta are.
    """
    magnitudes = np.array([quantity.magnitude for quantity in free])
    _, singular, directions = np.linalg.svd(scaled_jacobian * magnitudes, full_matrices=False)
    lost = singular <= _SINGULAR * singular.max(initial=0.0)
    warnings = []
    for value, direction in zip(singular[::-1], directions[::-1], strict=True):
        if value <= _SINGULAR * singular.max():
            warnings.append(f"the data do not determine {_combination(direction, free)}")
        elif value * _WEAK < 1:
            warnings.append(
                f"the data hardly determine {_combination(direction, free)}: its standard error is {1 / value:.2g}"
            )
    inverse = np.where(lost, 0.0, 1 / np.where(lost, 1.0, singular))
    root = magnitudes[:, None] * directions.T * inverse
    return Uncertainty(root @ root.T, directions[lost].T, magnitudes, warnings)


def _combination(direction: NDArray[np.float64], free: Sequence[Quantity]) -> str:
    """A direction in words: a single quantity, or the weighted sum of those that matter most."""
    order = np.argsort(-np.abs(direction))
    leading = [i for i in order if abs(direction[i]) > 0.2 * abs(direction[order[0]])]
    if len(leading) == 1:
        return free[leading[0]].name
    sign = np.sign(direction[leading[0]])
    terms = [f"{sign * direction[i]:+.2f} {_term(free[i])}" for i in leading]
    return "the combination " + " ".join(terms).removeprefix("+")


def _term(quantity: Quantity) -> str:
    if quantity.log:
        return f"log {quantity.name}"
    return quantity.name if quantity.magnitude == 1 else f"{quantity.name}/{quantity.magnitude:.3g}"
