"""What a noise model is: the distribution of a datum around the prediction of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Censored = NDArray[np.int8]

RELATIVE_FLOOR = 1e-8
"""The smallest relative size, and the smallest dispersion, that `estimate` returns."""

LARGEST = 1e100
"""Predictions of a larger magnitude are not possible: solutions on their way to infinity, whose squares overflow."""

SMALLEST = 1e-60
"""Nor are those of a smaller one where the spread of the data shrinks with them."""


class NoiseModel(ABC):
    """The distribution of data around predictions.

    Data are independent. Throughout, `y` [n] are the data and `h` [n] the predictions, in the same units; `size`
    [n, k] are the sizes of the noise, those of each datum, in the order of `sizes`; `censored` [n] is 0 where `y` is
    the value, -1 where the value is below `y` (a limit of detection) and +1 where it is above. `y` must be such that
    `refusal` has nothing against it, and `h` such that it is `possible`.

    A censored datum has no density. It contributes the probability of being where it is said to be: J. Tobin,
    "Estimation of relationships for limited dependent variables", Econometrica 26 (1958).

    Attributes:
        name: what `find_noise` knows it by.
        references: its sources: keys of `references.bib`.
        sizes: the names of its sizes, all of them positive and estimated on the log scale.
        log: whether it lives on the log scale.
        regression: whether it is normal on its scale, of one size: then standard errors and intervals are those of
            regression, with Student's distribution and the chi-squared one.
    """

    name: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[str, ...]]
    log: ClassVar[bool] = False
    regression: ClassVar[bool] = False

    def transform(self, y: Floats) -> Floats:
        """The data on the scale on which noise has the same size everywhere: log y if `log`, y itself otherwise."""
        return np.log(y) if self.log else y

    def refusal(self, y: Floats, censored: Censored) -> tuple[int, str] | None:
        """The first datum that cannot be of this noise.

        Returns:
            Its index, and why as the end of a sentence that begins with the datum; None if all data can be.
        """
        return None

    def possible(self, h: Floats) -> NDArray[np.bool_]:
        """Whether data around each prediction have a density, [n].

        That is so for no prediction above 1e100 in magnitude, nor, where the spread of the data shrinks with it, for
        one that is too small to divide by.
        """
        return np.abs(h) <= LARGEST

    @abstractmethod
    def nll(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        """Minus the logarithm of the density of each datum, or of its probability if it is a count or censored, [n].

        All constants are included, so that noise models can be compared.
        """

    @abstractmethod
    def residuals(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> tuple[Floats, Floats]:
        """Residuals for least squares, whose optimum is that of the likelihood.

        Half the sum of their squares is the sum of `nll` up to a constant that depends on data and sizes only.

        Returns:
            The residuals [n, m], with an m that is the same for all data, and their derivatives with respect to h
            [n, m]. The first of them is positive where the prediction is larger than is most likely.
        """

    @abstractmethod
    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        """The sizes that make the data most likely at these predictions, all data sharing them, [k].

        Args:
            y: the data.
            h: the predictions.
            censored: which data are limits.
            floor: the smallest size in the units of the data (of their logarithms if `log`), positive. That of
                relative sizes and dispersions is 1e-8.

        Returns:
            The sizes; the floors if there are no data. Sizes that grow without bound, which limits or counts of zero
            can make them do, stop at a large multiple of the largest residual, dispersions at 10 000.
        """

    @abstractmethod
    def information(self, h: Floats, size: Floats, censored: Censored, y: Floats) -> Floats:
        """The Fisher information of each datum about (h, logarithms of the sizes), [n, 1 + k, 1 + k].

        That which is expected before the datum is seen; of a censored datum, the part of the observed information
        that cannot be negative. Each matrix is positive semidefinite.
        """

    @abstractmethod
    def standardised(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        """Residuals that are standard normal if the model is right, [n]: positive above the prediction.

        Where noise is not normal, these are quantile residuals: P. K. Dunn, G. K. Smyth, "Randomized quantile
        residuals", Journal of Computational and Graphical Statistics 5 (1996).

        Returns:
            The residuals; NaN for censored data.
        """

    @abstractmethod
    def quantiles(self, h: Floats, size: Floats, p: float) -> Floats:
        """The value below which a new datum falls with probability p, between 0 and 1, [n]."""

    @abstractmethod
    def draw(self, h: Floats, size: Floats, rng: np.random.Generator) -> Floats:
        """New data around the predictions, [n]."""
