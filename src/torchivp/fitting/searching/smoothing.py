"""Smooth curves through data: natural cubic splines, as smooth as generalised cross-validation sees fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline, make_smoothing_spline
from scipy.linalg import eigh, solveh_banded
from scipy.optimize import fminbound

Floats = NDArray[np.float64]

_LEAST = 1e-8  # the least penalty that is looked at,
_PER_DECADE = 4  # and how many there are until a tenfold one, before the best is refined


class Smoothing:
    """Draws curves through series that have times in common, of which much is computed once.

    A curve g minimises sum (v - g(s))^2 + penalty * integral of g''^2. Its values are (I + penalty K)^-1 v with a
    matrix K of the times alone. In eigenvectors of K, sums of squares and degrees of freedom at any penalty are sums
    over n numbers: A. Demmler, C. Reinsch, "Oscillation matrices with spline smoothing", Numerische Mathematik 24
    (1975). The penalty is that of the least n |v - g|^2 / (n - degrees of freedom)^2: P. Craven, G. Wahba, "Smoothing
    noisy data with spline functions", Numerische Mathematik 31 (1979).
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Floats, Floats]] = {}

    def curve(self, s: Floats, v: Floats) -> BSpline:
        """The curve through values v at increasing times s [n], n > 4, about one apart."""
        key = s.tobytes()
        if key not in self._known:
            self._known[key] = eigh(_roughness(s))
        stiffness, axes = self._known[key]
        return make_smoothing_spline(s, v, lam=_best_penalty(np.maximum(stiffness, 0.0), axes.T @ v))


def _roughness(s: Floats) -> Floats:
    """K, of which v K v is the integral of the squared second derivative of the spline through v, [n, n].

    Source: P. J. Green, B. W. Silverman, "Nonparametric Regression and Generalized Linear Models", Chapman and Hall
    (1994), section 2.1.2: K = Q R^-1 Q^T.
    """
    h, n = np.diff(s), len(s)
    q, inner = np.zeros((n, n - 2)), np.arange(n - 2)
    q[inner, inner], q[inner + 2, inner] = 1 / h[:-1], 1 / h[1:]
    q[inner + 1, inner] = -1 / h[:-1] - 1 / h[1:]
    r = np.zeros((2, n - 2))
    r[0, 1:], r[1] = h[1:-1] / 6, (h[:-1] + h[1:]) / 3
    return q @ solveh_banded(r, q.T)


def _best_penalty(stiffness: Floats, parts: Floats) -> float:
    """The penalty of the least score, from the eigenvalues of K and what v is along its eigenvectors, [n]."""
    n = len(parts)

    def score(logarithms: Floats) -> Floats:
        lost = 1 - 1 / (1 + np.exp(logarithms)[:, None] * stiffness)
        return n * ((lost * parts) ** 2).sum(1) / lost.sum(1) ** 2

    least, most = np.log(_LEAST), np.log(n)
    grid = np.linspace(least, most, int(_PER_DECADE * (most - least) / np.log(10)))
    best = int(score(grid).argmin())
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(np.exp(fminbound(lambda at: float(score(np.array([at]))[0]), *around)))
