"""Noise of counts: Poisson, and negative binomial where they scatter more than that."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from torchivp.fitting.noise.deviance import log1p_over, log_gap, log_rising, log_rising_slope
from torchivp.fitting.noise.model import LARGEST, RELATIVE_FLOOR, Censored, Floats, NoiseModel
from torchivp.fitting.noise.search import best_size

_MOST_DISPERSED = 1e4
_BLOCKS = 160  # of counts over which sums are taken, of each of two kinds
_AT_ONCE = 256  # data for which they are taken at once
_SMALLEST = 1e-250  # prediction, whose inverse can still be multiplied


class Counts(NoiseModel):
    """Counts with mean h and variance h + a h^2, where a is the dispersion; that of Poisson noise is 0.

    Residuals are signed roots of the deviance: P. McCullagh, J. A. Nelder, "Generalized Linear Models", Chapman & Hall
    (1989), sections 2.3 and 2.4; for negative binomial noise J. F. Lawless, "Negative binomial and mixed Poisson
    regression", Canadian Journal of Statistics 15 (1987). Quantile residuals take half the probability of the count
    itself (the mid-p of H. O. Lancaster, "Significance tests in discrete distributions", Journal of the American
    Statistical Association 56 (1961)), and so need no random numbers.
    """

    @abstractmethod
    def dispersion(self, h: Floats, size: Floats) -> Floats:
        """The dispersion of each datum, [n]."""

    @abstractmethod
    def probability_up_to(self, y: Floats, h: Floats, a: Floats) -> Floats:
        """The probability of a count of y or less; y may be -1."""

    @abstractmethod
    def probability_above(self, y: Floats, h: Floats, a: Floats) -> Floats:
        """The probability of a count of more than y."""

    def refusal(self, y: Floats, censored: Censored) -> tuple[int, str] | None:
        number = ~((y >= 0) & (np.floor(y) == y) & np.isfinite(y))
        wrong = np.flatnonzero(number | (censored != 0))
        if not len(wrong):
            return None
        if number[wrong[0]]:
            return int(wrong[0]), f"is not a whole number from 0 on, as data with {self.name} noise are"
        return int(wrong[0]), f"is a limit, which data with {self.name} noise cannot be"

    def possible(self, h: Floats) -> NDArray[np.bool_]:
        return (h >= _SMALLEST) & (h <= LARGEST)

    def nll(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        return self._nll(y, h, self.dispersion(h, size))

    def _nll(self, y: Floats, h: Floats, a: Floats) -> Floats:
        rising = np.where(a > 0, log_rising(y, np.where(a > 0, a, 1.0)), 0.0)
        return special.gammaln(y + 1) - rising - y * np.log(h) + y * np.log1p(a * h) + log1p_over(h, a)

    def residuals(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> tuple[Floats, Floats]:
        a, some = self.dispersion(h, size), y > 0
        count = np.where(some, y, 1.0)
        x = (h - count) / count
        gap = np.sqrt(log_gap(x, h / count, 1 / (1 + a * count)))
        empty = np.sqrt(2 * log1p_over(h, a))
        values = np.where(some, np.sqrt(count) * x * gap, empty)
        slopes = np.where(some, np.sqrt(count) / (h * gap), 1 / empty) / (1 + a * h)
        return values[:, None], slopes[:, None]

    def standardised(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        a = self.dispersion(h, size)
        density = -self._nll(y, h, a)
        below, above = self.probability_up_to(y - 1, h, a), self.probability_above(y, h, a)
        # How many times as likely the next count outwards is, for tails that are too small for a float.
        inwards = y * (1 + a * h) / (h * (1 + a * np.maximum(y - 1, 0.0)))
        outwards = h * (1 + a * y) / ((y + 1) * (1 + a * h))
        lower, upper = _log_tail(density, below, inwards), _log_tail(density, above, outwards)
        score = np.where(lower < upper, special.ndtri_exp(lower), -special.ndtri_exp(upper))
        return np.where(censored == 0, score, np.nan)

    def quantiles(self, h: Floats, size: Floats, p: float) -> Floats:
        a = self.dispersion(h, size)
        low, high = np.full(len(h), -1.0), np.ceil(h + np.sqrt(h + a * h * h)) + 1
        while (short := self.probability_up_to(high, h, a) < p).any():
            low, high = np.where(short, high, low), np.where(short, 2 * high, high)
        while (high - low > np.maximum(1.0, 4 * np.finfo(float).eps * high)).any():
            middle = np.floor(0.5 * (low + high))
            short = self.probability_up_to(middle, h, a) < p
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return high


def _log_tail(log_density: Floats, probability: Floats, ratio: Floats) -> Floats:
    """The logarithm of the probability of counts further out than y, plus half that of y.

    Args:
        log_density: the logarithm of the probability of y.
        probability: that of counts further out, which may have become zero.
        ratio: by what the probability falls from y to the next count. A tail too small for a float falls about
            geometrically.
    """
    with np.errstate(divide="ignore"):
        counted = np.log(probability + 0.5 * np.exp(log_density))
    ratio = np.minimum(ratio, 1 - 1e-8)
    return np.where(probability > 1e-290, counted, log_density + np.log(0.5 + ratio / (1 - ratio)))


@dataclass(frozen=True)
class Poisson(Counts):
    """Poisson noise: counts of independent events, of which h are expected. It has no size."""

    name: ClassVar[str] = "poisson"
    references: ClassVar[tuple[str, ...]] = ("McCullaghNelder1989",)
    sizes: ClassVar[tuple[str, ...]] = ()

    def dispersion(self, h: Floats, size: Floats) -> Floats:
        return np.zeros_like(h)

    def probability_up_to(self, y: Floats, h: Floats, a: Floats) -> Floats:
        return np.where(y < 0, 0.0, special.gammaincc(np.maximum(y, 0.0) + 1, h))

    def probability_above(self, y: Floats, h: Floats, a: Floats) -> Floats:
        return special.gammainc(y + 1, h)

    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        return np.zeros(0)

    def information(self, h: Floats, size: Floats, censored: Censored, y: Floats) -> Floats:
        return (1 / h)[:, None, None]

    def draw(self, h: Floats, size: Floats, rng: np.random.Generator) -> Floats:
        return rng.poisson(h).astype(np.float64)


@dataclass(frozen=True)
class NegativeBinomial(Counts):
    """Negative binomial noise: counts with mean h and variance h + dispersion h^2.

    They are Poisson counts about a mean that scatters itself: h times a gamma variable with mean 1 and variance
    dispersion. Probabilities are incomplete beta functions of dispersion h/(1 + dispersion h), or of 1 minus that if
    it is the smaller.
    """

    name: ClassVar[str] = "negative_binomial"
    references: ClassVar[tuple[str, ...]] = ("McCullaghNelder1989", "Lawless1987")
    sizes: ClassVar[tuple[str, ...]] = ("dispersion",)

    def dispersion(self, h: Floats, size: Floats) -> Floats:
        return size[:, 0]

    def probability_up_to(self, y: Floats, h: Floats, a: Floats) -> Floats:
        return np.where(y < 0, 0.0, _beta(special.betaincc, special.betainc, np.maximum(y, 0.0) + 1, 1 / a, a * h))

    def probability_above(self, y: Floats, h: Floats, a: Floats) -> Floats:
        return _beta(special.betainc, special.betaincc, y + 1, 1 / a, a * h)

    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        """See `NoiseModel.estimate`; at most 10 000, which data can exceed that are all but zero."""
        if not len(y):
            return np.array([RELATIVE_FLOOR])

        def nll(value: float) -> float:
            return float(self._nll(y, h, np.full(len(y), value)).sum())

        return np.array([best_size(nll, RELATIVE_FLOOR, _MOST_DISPERSED)])

    def information(self, h: Floats, size: Floats, censored: Censored, y: Floats) -> Floats:
        """See `NoiseModel.information`: h and dispersion are orthogonal.

        About the dispersion there is no formula: the squared score is summed over all counts, or over blocks of them.
        """
        a, information = size[:, 0], np.zeros((len(h), 2, 2))
        information[:, 0, 0] = 1 / (h * (1 + a * h))
        for first in range(0, len(h), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            information[some, 1, 1] = self._about_dispersion(h[some, None], a[some, None])
        return information

    def _about_dispersion(self, h: Floats, a: Floats) -> Floats:
        """The expected squared derivative of the log probability with respect to log a, [n], for columns [n, 1]."""
        edges = _blocks(h, a)
        masses = np.diff(self.probability_up_to(edges - 1, h, a))
        middles = np.maximum(edges[:, :-1], 0.5 * (edges[:, :-1] + edges[:, 1:] - 1))
        v = a * h
        constant = h * h * (1 / (1 + v) - 0.5 * log_gap(v, 1 + v, np.ones_like(v)))
        scores = a * (log_rising_slope(middles, a) - middles * h / (1 + v) + constant)
        return (masses * scores**2).sum(1)

    def draw(self, h: Floats, size: Floats, rng: np.random.Generator) -> Floats:
        a = size[:, 0]
        return rng.poisson(h * a * rng.standard_gamma(1 / a)).astype(np.float64)


def _beta(little: np.ufunc, large: np.ufunc, count: Floats, n: Floats, v: Floats) -> Floats:
    """An incomplete beta function of (count, n) at v/(1 + v), or of (n, count) at 1/(1 + v) where v is 1 or more."""
    probability = np.empty(np.broadcast_shapes(count.shape, v.shape))
    small = np.broadcast_to(v < 1, probability.shape)
    little(count, n, v / (1 + v), out=probability, where=small)
    large(n, count, 1 / (1 + v), out=probability, where=~small)
    return probability


def _blocks(h: Floats, a: Floats) -> Floats:
    """Where blocks of counts begin that together hold all but none of the probability, in order, [n, n_blocks + 1].

    Blocks are narrow compared with the standard deviation, and with the distance from the lowest count; single counts
    where there are few. Some are empty.
    """
    deviation = np.sqrt(h + a * h * h)
    low, high = np.maximum(0.0, np.floor(h - 8 * deviation)), h + 8 * deviation
    end = high + 40 * (1 + a * h) - low + 2
    along = np.linspace(0, 1, _BLOCKS)
    edges = [low, low + (high - low) * along, low + end**along]
    return np.sort(np.floor(np.concatenate(edges, 1)), 1)
