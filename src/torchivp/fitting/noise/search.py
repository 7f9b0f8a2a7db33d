"""Sizes of noise that have no closed form, found on the log scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from torchivp.fitting.noise.model import Floats

_SPACING = 1.0  # of trial sizes, on the log scale
_ROUNDING = 1e-13  # the error of a function value


def best_size(nll: Callable[[float], float], lower: float, upper: float) -> float:
    """The size between two bounds at which `nll` is least; a bound itself if it is as good as what is found.

    `nll` may have several minima, as long as the lowest is wider than the spacing of the trial sizes.
    """
    low, high = math.log(lower), math.log(max(upper, 2 * lower))
    trials = np.linspace(low, high, max(3, math.ceil((high - low) / _SPACING) + 1))
    values = [nll(math.exp(trial)) for trial in trials]
    best = int(np.argmin(values))
    bounds = (trials[max(best - 1, 0)], trials[min(best + 1, len(trials) - 1)])
    found = minimize_scalar(lambda log: nll(math.exp(log)), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    least = float(found.fun)  # type: ignore[attr-defined]  # SciPy's annotation knows no attributes
    if nll(lower) <= least + _ROUNDING * (1 + abs(least)):
        return lower
    return math.exp(high) if values[-1] <= least else math.exp(float(found.x))  # type: ignore[attr-defined]


def best_sizes(
    nll: Callable[[Floats], tuple[float, Floats]],
    starts: Sequence[Sequence[float]],
    floors: Sequence[float],
    ceilings: Sequence[float],
) -> Floats:
    """Several sizes at which `nll` is least, none below its floor; a floor itself if it is as good as what is found.

    Args:
        nll: the function, of the sizes [k], with its derivatives with respect to their logarithms [k].
        starts: where to start; the best of what is found from there is returned.
        floors: the least values, [k].
        ceilings: the largest, [k].
    """
    bounds = list(zip(np.log(floors), np.log(ceilings), strict=True))
    best, least = np.array(floors), math.inf
    for start in starts:
        first = np.log(np.maximum(start, floors))
        options = {"ftol": 1e-14, "gtol": 1e-7, "maxiter": 500}
        found = minimize(
            lambda log: nll(np.exp(log)), first, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        if found.fun < least:
            best, least = np.exp(found.x), float(found.fun)
    for i, floor in enumerate(floors):
        smaller = np.where(np.arange(len(best)) == i, floor, best)
        if nll(smaller)[0] <= least + _ROUNDING * (1 + abs(least)):
            best = smaller
    return best
