"""The root of a function of one variable within a bracket."""

from __future__ import annotations

import math
from collections.abc import Callable

_MOST_EVALUATIONS = 200


def find_root(function: Callable[[float], float], a: float, b: float, fa: float, fb: float, width: float) -> float:
    """Where `function` changes sign between `a`, where it is `fa` > 0, and `b`, where it is `fb` <= 0.

    The end of the last bracket that lies on the far side: `function` is not positive there, and `a` is no further
    than `width` away. As fast as the secant method where `function` is smooth, never much slower than bisection;
    `function` need not be continuous.

    Source: Oliveira and Takahashi, "An enhancement of the bisection method average performance preserving minmax
    optimality", ACM TOMS 47 (2021), the method ITP with kappa_1 = 0.2 / |b - a|, kappa_2 = 2, n_0 = 1. Where
    `function` is zero, one evaluation more tells whether it is so over a whole interval, whose near end is then sought.
    """
    width = max(width, math.ulp(a), math.ulp(b))
    start = abs(b - a)
    most = math.ceil(math.log2(max(start / width, 1.0))) + 1
    at_zero = False
    for i in range(_MOST_EVALUATIONS):
        size = abs(b - a)
        middle = a + (b - a) / 2
        if size <= width or middle in (a, b):
            break
        if fb == 0.0:
            x, at_zero = (middle, True) if at_zero else (b + math.copysign(width, a - b), True)
        else:
            x = _next_point(a, b, fa, fb, middle, 0.2 * size / start * size, width * 2.0 ** (most - i) / 2 - size / 2)
        fx = function(x)
        if fx > 0.0:
            a, fa = x, fx
        else:
            b, fb = x, fx
    return b


def _next_point(a: float, b: float, fa: float, fb: float, middle: float, push: float, radius: float) -> float:
    """Interpolate, truncate towards the middle, project onto the interval that keeps the worst case."""
    if not (math.isfinite(fa) and math.isfinite(fb)):
        return middle
    interpolated = a + (b - a) / (1.0 - fb / fa)  # which neither overflows nor underflows
    towards = math.copysign(1.0, middle - interpolated)
    truncated = interpolated + towards * push if push <= abs(middle - interpolated) else middle
    projected = truncated if abs(truncated - middle) <= radius else middle - towards * max(radius, 0.0)
    low, high = min(a, b), max(a, b)
    return projected if low < projected < high else middle
