"""The likelihood of innovations: what each observation differs by from what those before it let expect."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Group, Levels, Part
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.results.uncertainty import Evidence

Floats = NDArray[np.float64]

_LOG_2PI = math.log(2 * math.pi)
_ROOM = 3.0
"""By which power of e a variance may shrink in a search before its logarithm counts no longer."""
_LEAST = 0.1
_NOTHING = 1e-10  # the fraction of the variances of others that a variance never is


@dataclass
class Innovations(Predictions):
    """What each observation is expected to be given those before it, of its trajectory.

    Attributes:
        values: the expectations, [n].
        jacobian: their derivatives by theta.
        variances: the variances of the observations around them, [n].
        variance_jacobian: likewise, [n, n_free] or [n, 0].
        deviations: the standard deviation of the measurement of each observable, [n_observed]; NaN where each value has
            its own.
    """

    variances: Floats
    variance_jacobian: Floats
    deviations: Floats

    @property
    def numbers(self) -> tuple[Floats, ...]:
        return self.values, self.jacobian, self.variances, self.variance_jacobian, self.deviations


class InnovationLevels(Levels):
    """The density of observations one by one, each given those before: that of all together.

    Its negative logarithm is half the sum of e²/S + log 2πS, with innovations e and their variances S: F. C. Schweppe,
    "Evaluation of likelihood functions for Gaussian signals", IEEE Transactions on Information Theory 11 (1965).

    What the sizes of the noise are to other models, the variances are here: `estimate` takes them from where a search
    stands, and the next one measures against them. The standard deviations of the measurements are entries of theta.
    """

    def __init__(self, groups: Sequence[Group]):
        super().__init__(groups)
        self.names = []

    def least_squares(self, found: Predictions, sizes: Floats) -> tuple[Floats, Floats]:
        """Residuals [2, n] and their derivatives by the expectations [2, n].

        The first are e/√S. The second, √(c + log S/S₀), are one number each whose square has the logarithm in it; c is
        such that S may shrink from S₀, its size, by e^c. The cross product of their derivatives is close to the
        information where S is.
        """
        values, of_values, _ = _residuals(_innovations(found), sizes)
        return values, of_values

    def residual_jacobian(self, found: Predictions, sizes: Floats) -> Floats:
        """The derivatives of the residuals by theta, [2, n, n_free]."""
        innovations = _innovations(found)
        _, of_values, of_variances = _residuals(innovations, sizes)
        return of_values[..., None] * found.jacobian + of_variances[..., None] * innovations.variance_jacobian

    def possible(self, found: Predictions) -> bool:
        """Whether all variances are positive."""
        return super().possible(found) and bool((_innovations(found).variances > 0).all())

    def nll(self, found: Predictions, sizes: Floats) -> float:
        """Minus the logarithm of the density of the data."""
        variances = _innovations(found).variances
        squares = (found.measured.y - found.values) ** 2 / variances
        return float(0.5 * np.sum(squares + np.log(variances) + _LOG_2PI))

    def standardised(self, found: Predictions, sizes: Floats) -> Floats:
        """The innovations over their standard deviations, [n]: standard normal, independent if the model is right."""
        return (found.measured.y - found.values) / np.sqrt(_innovations(found).variances)

    def information(self, found: Predictions, sizes: Floats) -> list[tuple[Part, Floats]]:
        """No sizes are estimated apart from theta."""
        return []

    def weights(self, found: Predictions, sizes: Floats) -> Floats:
        """One over the standard deviations of the innovations, [n]."""
        return 1 / np.sqrt(_innovations(found).variances)

    def distances(self, found: Predictions, other: Predictions, sizes: Floats) -> Floats:
        """How far other expectations and variances are from those found, in standard deviations, [n]."""
        variances = _innovations(found).variances
        change = (_innovations(other).variances - variances) / variances
        return np.hypot(super().distances(found, other, sizes), change / math.sqrt(2))

    def evidence(self, found: Predictions, sizes: Floats) -> list[Evidence]:
        """Rows whose cross product is the information of the innovations about theta.

        Of each, h'h'ᵀ/S + S'S'ᵀ/(2S²): B. Porat and B. Friedlander, "Computation of the exact information matrix of
        Gaussian time series", IEEE Transactions on Acoustics, Speech and Signal Processing 34 (1986).
        """
        innovations = _innovations(found)
        variances = innovations.variances[:, None]
        of_values = found.jacobian / np.sqrt(variances)
        of_variances = innovations.variance_jacobian / (math.sqrt(2) * variances)
        return [Evidence(np.concatenate([of_values, of_variances]), len(found.values), False)]

    def estimate(self, found: Predictions, floor: Floats) -> Floats:
        """The variances of the innovations, [n]."""
        return _innovations(found).variances.copy()

    def at_floor(self, sizes: Floats, floor: Floats) -> bool:
        """Never: a variance is that of the model."""
        return False

    def doubts(self, found: Predictions | None, names: Sequence[str]) -> list[str]:
        """Of which observables a value is expected too exactly to be true: the likelihood has no maximum there."""
        if found is None:
            return []
        variances, observable = _innovations(found).variances, found.measured.observable
        own = [variances[observable == k] for k in range(len(names))]
        return [
            f"a value of {name} is met exactly, and the likelihood grows without bound as its standard "
            "deviation goes to zero: an estimated initial state does that, which fixed, an initial_covariance of the "
            "model or a known sigma prevents"
            for name, each in zip(names, own, strict=True)
            if len(each) and each.min() < _NOTHING * np.median(each)
        ]

    def at(self, found: Predictions) -> Levels:
        """These levels with the standard deviations of the measurements that were found."""
        settled = copy.copy(self)
        settled._deviations = _innovations(found).deviations  # type: ignore[attr-defined]
        return settled

    def per_observable(self, sizes: Floats) -> Floats:
        """The standard deviation of the measurement of each observable, [n_observed]; NaN where it is no number."""
        return getattr(self, "_deviations", np.full(len(self.noises), np.nan))


def _innovations(found: Predictions) -> Innovations:
    return cast(Innovations, found)


def _residuals(found: Innovations, sizes: Floats) -> tuple[Floats, Floats, Floats]:
    """The residuals [2, n], and their derivatives by expectations and variances, likewise."""
    s = found.variances
    first = (found.values - found.measured.y) / np.sqrt(s)
    inside = _ROOM + np.log(s / sizes)
    second = np.sqrt(np.maximum(inside, _LEAST))
    of_second = np.where(inside > _LEAST, 0.5 / (s * second), 0.0)
    nothing = np.zeros_like(s)
    return np.stack([first, second]), np.stack([1 / np.sqrt(s), nothing]), np.stack([-0.5 * first / s, of_second])
