"""The distributions of standardised noise: symmetric about zero, with scale one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy import special

from torchivp.fitting.noise.model import Floats

_LOG_2PI = math.log(2 * math.pi)


class Standard(ABC):
    """A symmetric distribution, with the functions that likelihoods are made of."""

    @abstractmethod
    def information(self) -> tuple[float, float]:
        """The Fisher information about a shift, and about the logarithm of the scale, at scale one."""

    @abstractmethod
    def log_density(self, z: Floats) -> Floats:
        """The logarithm of the density."""

    @abstractmethod
    def influence(self, z: Floats) -> Floats:
        """Minus the derivative of the log density."""

    @abstractmethod
    def log_tail(self, u: Floats) -> Floats:
        """The logarithm of the probability of more than u, accurate in both tails."""

    def hazard(self, u: Floats) -> Floats:
        """The density over the probability of more: minus the derivative of `log_tail`."""
        return np.exp(self.log_density(u) - self.log_tail(u))

    def hazard_slope(self, u: Floats) -> Floats:
        """The derivative of `hazard`, or zero where it is negative."""
        hazard = self.hazard(u)
        return np.maximum(hazard * (hazard - self.influence(u)), 0.0)

    @abstractmethod
    def quantile(self, p: float) -> float:
        """The value below which a probability of p lies."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Values, [n]."""

    def normal_score(self, z: Floats) -> Floats:
        """The standard normal value that lies as far out in its distribution as z does in this one."""
        return np.copysign(special.ndtri_exp(self.log_tail(np.abs(z))), z)


@dataclass(frozen=True)
class Gaussian(Standard):
    """The standard normal distribution."""

    def information(self) -> tuple[float, float]:
        return 1.0, 2.0

    def log_density(self, z: Floats) -> Floats:
        return -0.5 * z * z - 0.5 * _LOG_2PI

    def influence(self, z: Floats) -> Floats:
        return z

    def log_tail(self, u: Floats) -> Floats:
        return special.log_ndtr(-u)

    def hazard(self, u: Floats) -> Floats:
        return math.sqrt(2 / math.pi) / special.erfcx(u / math.sqrt(2))

    def hazard_slope(self, u: Floats) -> Floats:
        # It tends to 1 from below, but there hazard and u are too close for their difference to be computed.
        return np.where(u > 1e4, 1.0, np.clip(super().hazard_slope(u), 0.0, 1.0))

    def quantile(self, p: float) -> float:
        return float(special.ndtri(p))

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        return rng.standard_normal(n)

    def normal_score(self, z: Floats) -> Floats:
        return z


@dataclass(frozen=True)
class DoubleExponential(Standard):
    """The Laplace distribution of density exp(-|z|)/2."""

    def information(self) -> tuple[float, float]:
        return 1.0, 1.0

    def log_density(self, z: Floats) -> Floats:
        return -np.abs(z) - math.log(2)

    def influence(self, z: Floats) -> Floats:
        return np.sign(z)

    def log_tail(self, u: Floats) -> Floats:
        return np.where(u > 0, -math.log(2) - u, np.log1p(-0.5 * np.exp(np.minimum(u, 0.0))))

    def hazard(self, u: Floats) -> Floats:
        growth = np.exp(np.minimum(u, 0.0))
        return growth / (2 - growth)

    def quantile(self, p: float) -> float:
        return math.log(2 * p) if p < 0.5 else -math.log(2 * (1 - p))

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        return rng.laplace(size=n)


@dataclass(frozen=True)
class Student(Standard):
    """Student's t distribution with df degrees of freedom.

    Its information: K. L. Lange, R. J. A. Little, J. M. G. Taylor, "Robust statistical modeling using the t
    distribution", Journal of the American Statistical Association 84 (1989).
    """

    df: float

    def information(self) -> tuple[float, float]:
        return (self.df + 1) / (self.df + 3), 2 * self.df / (self.df + 3)

    def log_density(self, z: Floats) -> Floats:
        constant = -special.betaln(0.5 * self.df, 0.5) - 0.5 * math.log(self.df)
        return constant - (self.df + 1) * np.log(np.hypot(1.0, z / math.sqrt(self.df)))

    def influence(self, z: Floats) -> Floats:
        return (self.df + 1) * z / (self.df + z * z)

    def log_tail(self, u: Floats) -> Floats:
        """The logarithm of the probability of more than u.

        Where that is too small for a float, by the hypergeometric function of the incomplete beta function: NIST
        Digital Library of Mathematical Functions, 8.17.8.
        """
        tail = special.stdtr(self.df, -np.abs(u))
        small = tail < 1e-290
        logs = np.log(np.where(small, 1.0, tail))
        a, size = 0.5 * self.df, np.hypot(1.0, u[small] / math.sqrt(self.df))
        series = np.log(special.hyp2f1(a, 0.5, a + 1, size**-2.0)) - math.log(2 * a) - special.betaln(a, 0.5)
        logs[small] = series - self.df * np.log(size)
        return np.where(u > 0, logs, np.log1p(-tail))

    def quantile(self, p: float) -> float:
        return float(special.stdtrit(self.df, p))

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        return rng.standard_t(self.df, n)
