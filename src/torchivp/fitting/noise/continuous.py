"""Noise with a density: symmetric about the prediction or its logarithm, of a spread that may depend on it."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.noise.deviance import log_gap, root_log
from torchivp.fitting.noise.model import LARGEST, RELATIVE_FLOOR, SMALLEST, Censored, Floats, NoiseModel
from torchivp.fitting.noise.search import best_size, best_sizes
from torchivp.fitting.noise.standard import DoubleExponential, Gaussian, Standard, Student

_WIDEST = 1e3  # the largest size to look for, in units of the largest residual
_NARROWEST = 1e-12  # the smallest


class Continuous(NoiseModel):
    """T(y) = T(h) + s(h) times a standard variable, where T is `transform` and s the spread.

    The information of h and of the logarithms of the sizes is that of a location and a scale that both depend on
    them: A. W. van der Vaart, "Asymptotic Statistics", Cambridge University Press (1998), chapter 5; about means
    and variances of normal noise, S. M. Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory",
    Prentice Hall (1993), section 3.9.
    """

    n_residuals: ClassVar[int] = 1

    @property
    def standard(self) -> Standard:
        """The distribution of standardised noise."""
        return Gaussian()

    def spread(self, h: Floats, size: Floats) -> Floats:
        """The spread of the noise of each datum, [n]."""
        return size[:, 0]

    def spread_slopes(self, h: Floats, size: Floats) -> Floats:
        """The derivatives of its logarithm with respect to h and the logarithms of the sizes, [n, 1 + k]."""
        return np.stack([np.zeros_like(h), np.ones_like(h)], 1)

    @abstractmethod
    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        """What `residuals` returns, of data that are not censored."""

    def nll(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        z, spread = self._deviation(y, h, size)
        nll = np.log(spread) - self.standard.log_density(z)
        if self.log:
            nll += np.log(y)
        limit = censored != 0
        nll[limit] = -self.standard.log_tail((censored * z)[limit])
        return nll

    def residuals(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> tuple[Floats, Floats]:
        if not censored.any():
            return self.exact_residuals(y, h, size)
        values, slopes = np.zeros((len(y), self.n_residuals)), np.zeros((len(y), self.n_residuals))
        exact, limit = censored == 0, censored != 0
        values[exact], slopes[exact] = self.exact_residuals(y[exact], h[exact], size[exact])
        y, h, size, side = y[limit], h[limit], size[limit], -censored[limit].astype(np.float64)
        u = -side * self._deviation(y, h, size)[0]
        root = np.sqrt(-2 * self.standard.log_tail(u))
        visible = root > 1e-150  # where it is less, the square is not a float any more
        slope = np.where(visible, self.standard.hazard(u) / np.where(visible, root, 1.0), 0.0)
        values[limit, 0] = side * root
        slopes[limit, 0] = slope * self._excess_slopes(y, h, size)[:, 0]
        return values, slopes

    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        """See `NoiseModel.estimate`: in closed form for data without limits, else by a search for the best size."""
        if not len(y):
            return np.array([floor])
        unit = self._deviation(y, h, np.ones((len(y), 1)))[0]
        closed = None if censored.any() else self.closed_size(unit)
        if closed is not None:
            return np.array([max(closed, floor)])
        largest = max(float(np.abs(unit).max()), floor)

        def nll(value: float) -> float:
            return float(self.nll(y, h, np.full((len(y), 1), value), censored).sum())

        return np.array([max(floor, best_size(nll, max(floor, _NARROWEST * largest), _WIDEST * largest))])

    def closed_size(self, unit: Floats) -> float | None:
        """The best size for residuals at unit size, where there is a formula."""
        return float(np.sqrt(np.mean(unit**2)))

    def information(self, h: Floats, size: Floats, censored: Censored, y: Floats) -> Floats:
        location = np.zeros((len(h), 1 + len(self.sizes)))
        location[:, 0] = self._location_slope(h) / self.spread(h, size)
        about_location, about_scale = self.standard.information()
        matrices = about_location * _outer(location) + about_scale * _outer(self.spread_slopes(h, size))
        limit = censored != 0
        y, h, size = y[limit], h[limit], size[limit]
        u = censored[limit] * self._deviation(y, h, size)[0]
        matrices[limit] = self.standard.hazard_slope(u)[:, None, None] * _outer(self._excess_slopes(y, h, size))
        return matrices

    def standardised(self, y: Floats, h: Floats, size: Floats, censored: Censored) -> Floats:
        return np.where(censored == 0, self.standard.normal_score(self._deviation(y, h, size)[0]), np.nan)

    def quantiles(self, h: Floats, size: Floats, p: float) -> Floats:
        return self._around(h, size, np.full(len(h), self.standard.quantile(p)))

    def draw(self, h: Floats, size: Floats, rng: np.random.Generator) -> Floats:
        return self._around(h, size, self.standard.draw(len(h), rng))

    def _around(self, h: Floats, size: Floats, z: Floats) -> Floats:
        shift = self.spread(h, size) * z
        return h * np.exp(shift) if self.log else h + shift

    def _deviation(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        """How many spreads the data lie above the predictions, and the spread."""
        spread = self.spread(h, size)
        return (self.transform(y) - self.transform(h)) / spread, spread

    def _location_slope(self, h: Floats) -> Floats:
        return 1 / h if self.log else np.ones_like(h)

    def _excess_slopes(self, y: Floats, h: Floats, size: Floats) -> Floats:
        """The derivatives of minus the deviation with respect to h and the logarithms of the sizes, [n, 1 + k]."""
        z, spread = self._deviation(y, h, size)
        slopes = z[:, None] * self.spread_slopes(h, size)
        slopes[:, 0] += self._location_slope(h) / spread
        return slopes


def _outer(vectors: Floats) -> Floats:
    return vectors[:, :, None] * vectors[:, None, :]


@dataclass(frozen=True)
class Normal(Continuous):
    """Normal noise with standard deviation sigma, in the units of the data. Residuals are (h - y)/sigma."""

    name: ClassVar[str] = "normal"
    regression: ClassVar[bool] = True
    sizes: ClassVar[tuple[str, ...]] = ("sigma",)

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        sigma = size[:, :1]
        return (h - y)[:, None] / sigma, 1 / sigma


@dataclass(frozen=True)
class Lognormal(Continuous):
    """Lognormal noise: log y is normal about log h, with standard deviation sigma.

    Residuals are (log h - log y)/sigma. The density is that of y, which is 1/y times that of log y.
    """

    name: ClassVar[str] = "lognormal"
    regression: ClassVar[bool] = True
    sizes: ClassVar[tuple[str, ...]] = ("sigma",)
    log: ClassVar[bool] = True

    def refusal(self, y: Floats, censored: Censored) -> tuple[int, str] | None:
        wrong = np.flatnonzero(~(y > 0))
        return (int(wrong[0]), "is not positive, as data with lognormal noise are") if len(wrong) else None

    def possible(self, h: Floats) -> NDArray[np.bool_]:
        return (h >= SMALLEST) & (h <= LARGEST)

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        sigma = size[:, 0]
        return ((np.log(h) - np.log(y)) / sigma)[:, None], (1 / (sigma * h))[:, None]


@dataclass(frozen=True)
class Proportional(Continuous):
    """Normal noise whose standard deviation is a fraction of the prediction: relative times |h|.

    M. Davidian, D. M. Giltinan, "Nonlinear Models for Repeated Measurement Data", Chapman & Hall (1995), chapter 2.

    The logarithm of the standard deviation is not bounded below, so it has no square root. But the density as a whole
    is greatest at one prediction, y divided by t* = (1 + sqrt(1 + 4 relative^2))/2, and residuals are signed roots
    of the deviance from there. With x = y/(h t*) - 1 that is (t* x/relative)^2 + 2 (x - log|1 + x|).
    """

    name: ClassVar[str] = "proportional"
    references: ClassVar[tuple[str, ...]] = ("DavidianGiltinan1995",)
    sizes: ClassVar[tuple[str, ...]] = ("relative",)

    def refusal(self, y: Floats, censored: Censored) -> tuple[int, str] | None:
        wrong = np.flatnonzero((y == 0) & (censored == 0))
        if not len(wrong):
            return None
        reason = (
            "is zero, whose density under proportional noise grows without bound as the prediction goes to zero; "
            "noise='combined' has no such bias"
        )
        return int(wrong[0]), reason

    def possible(self, h: Floats) -> NDArray[np.bool_]:
        return (np.abs(h) >= SMALLEST) & (np.abs(h) <= LARGEST)

    def spread(self, h: Floats, size: Floats) -> Floats:
        return size[:, 0] * np.abs(h)

    def spread_slopes(self, h: Floats, size: Floats) -> Floats:
        return np.stack([1 / h, np.ones_like(h)], 1)

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        relative = size[:, 0]
        beyond = 2 * relative**2 / (1 + np.sqrt(1 + 4 * relative**2))  # t* - 1
        best = 1 + beyond
        x, ratio = ((y - h) - beyond * h) / (best * h), y / h / best
        stiffness = (best / relative) ** 2
        root = np.sqrt(stiffness + log_gap(x, ratio, np.ones_like(x)))
        return (-np.sign(h) * x * root)[:, None], ((stiffness * ratio + 1) / (np.abs(h) * root))[:, None]

    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        return super().estimate(y, h, censored, RELATIVE_FLOOR)


@dataclass(frozen=True)
class Combined(Continuous):
    """Normal noise with a constant and a proportional part: variance sigma^2 + (relative h)^2.

    M. Davidian, D. M. Giltinan, "Nonlinear Models for Repeated Measurement Data", Chapman & Hall (1995), chapter 2.
    Each datum has two residuals, (h - y)/s and the signed root of log(1 + (relative h/sigma)^2), whose square is twice
    the logarithm of s(h)/s(0). The second of a censored datum is zero.
    """

    name: ClassVar[str] = "combined"
    references: ClassVar[tuple[str, ...]] = ("DavidianGiltinan1995",)
    sizes: ClassVar[tuple[str, ...]] = ("sigma", "relative")
    n_residuals: ClassVar[int] = 2

    def spread(self, h: Floats, size: Floats) -> Floats:
        return np.hypot(size[:, 0], size[:, 1] * h)

    def spread_slopes(self, h: Floats, size: Floats) -> Floats:
        spread = self.spread(h, size)
        constant, growth = size[:, 0] / spread, size[:, 1] / spread
        return np.stack([growth**2 * h, constant**2, (growth * h) ** 2], 1)

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        sigma, relative = size.T
        z, spread = self._deviation(y, h, size)
        slope = ((sigma / spread) ** 2 + (relative / spread) ** 2 * h * y) / spread
        root, root_slope = root_log(relative * h / sigma)
        return np.stack([-z, root], 1), np.stack([slope, root_slope * relative / sigma], 1)

    def estimate(self, y: Floats, h: Floats, censored: Censored, floor: float) -> Floats:
        """See `NoiseModel.estimate`: by a quasi-Newton search from little, some and much proportional noise."""
        floors = [floor, RELATIVE_FLOOR]
        if not len(y):
            return np.array(floors)
        total = max(float(np.sqrt(np.mean((y - h) ** 2))), floor)
        share = max(total / max(float(np.sqrt(np.mean(h**2))), np.finfo(float).tiny), RELATIVE_FLOOR)

        def nll(sizes: Floats) -> tuple[float, Floats]:
            size = np.tile(sizes, (len(y), 1))
            z = self._deviation(y, h, size)[0]
            slope, limit = 1 - z * z, censored != 0
            u = (censored * z)[limit]
            slope[limit] = -u * self.standard.hazard(u)
            return float(self.nll(y, h, size, censored).mean()), slope @ self.spread_slopes(h, size)[:, 1:] / len(y)

        starts = [(total, 1e-2 * share), (0.5 * total, 0.5 * share), (1e-2 * total, share)]
        return best_sizes(nll, starts, floors, [_WIDEST * total, _WIDEST**2 * share])


@dataclass(frozen=True)
class Laplace(Continuous):
    """Laplace noise, of density exp(-|y - h|/scale)/(2 scale): fits least absolute deviations.

    Its mode is a kink, where residuals cannot be smooth. Theirs is the density with |z| replaced by
    sqrt(z^2 + d^2) - d, z = (h - y)/scale and d = 0.001, so that half their squares are less than the exact ones by
    at most d. `nll` and all else is exact.
    """

    name: ClassVar[str] = "laplace"
    sizes: ClassVar[tuple[str, ...]] = ("scale",)
    width: ClassVar[float] = 1e-3

    @property
    def standard(self) -> Standard:
        return DoubleExponential()

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        scale = size[:, 0]
        z = (h - y) / scale
        length = np.hypot(z, self.width)
        values, slopes = z * np.sqrt(2 / (length + self.width)), np.sqrt(0.5 * (length + self.width)) / length
        return values[:, None], (slopes / scale)[:, None]

    def closed_size(self, unit: Floats) -> float | None:
        return float(np.mean(np.abs(unit)))


@dataclass(frozen=True)
class StudentT(Continuous):
    """Noise of Student's t distribution times a scale: outliers hardly matter.

    K. L. Lange, R. J. A. Little, J. M. G. Taylor, "Robust statistical modeling using the t distribution", Journal of
    the American Statistical Association 84 (1989). Residuals are signed roots of the deviance,
    (df + 1) log(1 + z^2/df) with z = (h - y)/scale.

    Args:
        df: the degrees of freedom, from 1, the Cauchy distribution, to 10 000, which is all but normal.

    Raises:
        ValueError: df lies outside.
    """

    df: float = 4.0

    name: ClassVar[str] = "student_t"
    references: ClassVar[tuple[str, ...]] = ("LangeLittleTaylor1989",)
    sizes: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self):
        if not 1 <= self.df <= 1e4:
            raise ValueError(
                f"df must be from 1 to 10000, not {self.df!r}: StudentT(df=4) is usual, and more is noise='normal'"
            )

    @property
    def standard(self) -> Standard:
        return Student(self.df)

    def exact_residuals(self, y: Floats, h: Floats, size: Floats) -> tuple[Floats, Floats]:
        unit = size[:, 0] * math.sqrt(self.df)
        values, slopes = root_log((h - y) / unit)
        factor = math.sqrt(self.df + 1)
        return (factor * values)[:, None], (factor * slopes / unit)[:, None]

    def closed_size(self, unit: Floats) -> float | None:
        return None
