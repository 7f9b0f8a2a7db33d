"""The root of a function of one variable within a bracket, or of many such functions at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

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


def find_roots(
    function: Callable[[np.ndarray], np.ndarray],
    a: np.ndarray,
    b: np.ndarray,
    fa: np.ndarray,
    fb: np.ndarray,
    width: np.ndarray,
) -> np.ndarray:
    """`find_root` for many functions at once, each on its own interval.

    Args:
        function: the values at one point of each interval.
        a: where each function is positive.
        b: where it is zero or negative.
        fa: its value at `a`.
        fb: its value at `b`.
        width: how near to the change of sign the result lies.

    Returns:
        For each function a point at which it is zero or negative, and positive nearby.
    """
    a, b, fa, fb = a.copy(), b.copy(), np.where(fa > 0.0, fa, np.abs(fb)), fb.copy()
    width = np.maximum(width, np.maximum(np.spacing(np.abs(a)), np.spacing(np.abs(b))))
    start = np.abs(b - a)
    most = np.ceil(np.log2(np.maximum(start / width, 1.0))) + 1
    for i in range(_MOST_EVALUATIONS):
        size, middle = np.abs(b - a), a + (b - a) / 2
        open_ = (size > width) & (middle != a) & (middle != b)
        if not open_.any():
            break
        radius = width * 2.0 ** np.minimum(most - i, 1000.0) / 2 - size / 2
        push = 0.2 * size / np.where(open_, start, 1.0) * size
        x = np.where(open_, _next_points(a, b, fa, fb, middle, push, radius), b)
        fx = function(x)
        positive, other = open_ & (fx > 0.0), open_ & ~(fx > 0.0)
        a, fa = np.where(positive, x, a), np.where(positive, fx, fa)
        b, fb = np.where(other, x, b), np.where(other, fx, fb)
    return b


def _next_points(
    a: np.ndarray,
    b: np.ndarray,
    fa: np.ndarray,
    fb: np.ndarray,
    middle: np.ndarray,
    push: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:
    """`_next_point` for many intervals."""
    with np.errstate(all="ignore"):
        interpolated = a + (b - a) / (1.0 - fb / fa)
    towards = np.sign(middle - interpolated)
    truncated = np.where(push <= np.abs(middle - interpolated), interpolated + towards * push, middle)
    near = np.abs(truncated - middle) <= radius
    projected = np.where(near, truncated, middle - towards * np.maximum(radius, 0.0))
    inside = (projected > np.minimum(a, b)) & (projected < np.maximum(a, b))
    return np.where(inside, projected, middle)
