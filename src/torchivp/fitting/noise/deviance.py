"""Square roots of deviances and what else likelihoods need, without the cancellation of the formulas in textbooks.

A deviance is twice the difference between minus the log density and the least that it can be for the same datum. Near
that optimum, and for small dispersions, it is a small difference of large terms; here it is not.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from torchivp.fitting.noise.model import Floats

_NEAR = 0.05
_TERMS = 14  # 0.05**13 is less than the rounding error

_LARGE = 20.0  # from here on the series of Stirling are exact to rounding


def root_log(w: Floats) -> tuple[Floats, Floats]:
    """sign(w) sqrt(log(1 + w^2)), which is smooth, and its derivative."""
    w = np.clip(w, -1e150, 1e150)  # whose square is finite
    square = w * w
    tiny = square < np.finfo(float).tiny
    mean = np.where(tiny, 1.0, np.log1p(square) / np.where(tiny, 1.0, square))
    return w * np.sqrt(mean), 1 / ((1 + square) * np.sqrt(mean))


def log1p_over(x: Floats, b: Floats) -> Floats:
    """log(1 + b x)/b, which is x where b is 0."""
    return np.where(b > 0, np.log1p(b * x) / np.where(b > 0, b, 1.0), x)


def log_gap(x: Floats, ratio: Floats, c: Floats) -> Floats:
    """2 (log(1 + b x)/b - log|1 + x|)/x^2 with b = 1 - c, which is c at x = 0.

    Args:
        x: more than -1 where b is not 0.
        ratio: 1 + x, for where x is too close to -1 to tell.
        c: from 0, exclusive, to 1. At 1 the first of the logarithms over b is x.
    """
    b = 1 - c
    near = np.abs(x) < _NEAR
    series, sums, powers = np.zeros_like(x), np.zeros_like(x), np.ones_like(x)
    for k in range(2, _TERMS + 2):
        sums = sums * b + 1  # (1 - b^(k-1))/c
        series += 2 / k * powers * sums
        powers = np.where(near, -x * powers, 0.0)
    far, ratio = np.where(near, 1.0, x), np.where(near, 2.0, ratio)
    inner = c + b * ratio  # 1 + b x
    low = b * far < -0.5
    first = np.where(low, np.log(inner) / np.where(low, b, 1.0), log1p_over(np.where(low, 0.0, far), b))
    fraction = c * far / ratio  # 1 - (1 + b x)/(1 + x)
    close = np.abs(fraction) < 0.5
    shift = np.where(close, np.log1p(-np.where(close, fraction, 0.0)), np.log(np.abs(inner / ratio)))
    return np.where(near, c * series, 2 * (shift + c * first) / far / far)


def log_rising(y: Floats, a: Floats) -> Floats:
    """The logarithm of the product of 1 + j a for j from 0 to y - 1: that of Γ(y + n)/Γ(n)/n^y, where n = 1/a."""
    n = 1 / a
    small = special.gammaln(y + n) - special.gammaln(n) - y * np.log(n)
    large = (n + y - 0.5) * np.log1p(a * y) - y + _stirling(n + y) - _stirling(n)
    return np.where(n < _LARGE, small, large)


def log_rising_slope(y: Floats, a: Floats) -> Floats:
    """The derivative of `log_rising` with respect to a: the sum of j/(1 + j a) for j from 0 to y - 1."""
    n, u = 1 / a, a * y
    small = n * y - n * n * (special.digamma(n + y) - special.digamma(n))
    bend = log_gap(u, 1 + u, np.ones_like(u))
    large = 0.5 * y * (y * bend - 1 / (1 + u)) + n * n * (_digamma_series(n + y) - _digamma_series(n))
    return np.where(n < _LARGE, small, large)


def _stirling(x: Floats) -> Floats:
    """What Stirling's formula lacks of log Γ(x): NIST Digital Library of Mathematical Functions, 5.11.1."""
    s = x**-2.0
    return (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188)))) / x


def _digamma_series(x: Floats) -> Floats:
    """What log x - 1/(2x) exceeds ψ(x) by: the same, 5.11.2."""
    s = x**-2.0
    return s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
