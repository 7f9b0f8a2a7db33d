"""The roots of functions of one variable within brackets, of many at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MOST_EVALUATIONS = 200


def find_root(function: Callable[[float], float], a: float, b: float, fa: float, fb: float, width: float) -> float:
    """`find_roots` for one function."""
    ends = (np.array([x], dtype=np.float64) for x in (a, b, fa, fb, width))
    return float(find_roots(lambda x: np.array([function(float(x[0]))]), *ends)[0])


def find_roots(
    function: Callable[[np.ndarray], np.ndarray],
    a: np.ndarray,
    b: np.ndarray,
    fa: np.ndarray,
    fb: np.ndarray,
    width: np.ndarray,
) -> np.ndarray:
    """Where functions change their signs, each on its own interval.

    As fast as the secant method where a function is smooth, never much slower than bisection; functions need not be
    continuous.

    Source: Oliveira and Takahashi, "An enhancement of the bisection method average performance preserving minmax
    optimality", ACM TOMS 47 (2021), the method ITP with kappa_1 = 0.2 / |b - a|, kappa_2 = 2, n_0 = 1. Where a
    function is zero, one evaluation more tells whether it is so over a whole interval, whose near end is then sought.

    Args:
        function: the values at one point of each interval.
        a: where each function is positive.
        b: where it is zero or negative, or not a number.
        fa: its value at `a`.
        fb: its value at `b`.
        width: how near to the change of sign the result lies.

    Returns:
        For each function the end of its last bracket that lies on the far side: it is not positive there, and positive
        within `width` of it.
    """
    a, b, fa, fb = a.copy(), b.copy(), np.where(fa > 0.0, fa, np.abs(fb)), fb.copy()
    width = np.maximum(width, np.maximum(np.spacing(np.abs(a)), np.spacing(np.abs(b))))
    start = np.abs(b - a)
    most = np.ceil(np.log2(np.maximum(start / width, 1.0))) + 1
    at_zero = np.zeros(len(a), dtype=bool)
    for i in range(_MOST_EVALUATIONS):
        size, middle = np.abs(b - a), a + (b - a) / 2
        open_ = (size > width) & (middle != a) & (middle != b)
        if not open_.any():
            break
        radius = width * 2.0 ** np.minimum(most - i, 1000.0) / 2 - size / 2
        push = 0.2 * size / np.where(open_, start, 1.0) * size
        x = _next_points(a, b, fa, fb, middle, push, radius)
        zero = fb == 0.0
        x = np.where(zero, np.where(at_zero, middle, b + np.copysign(width, a - b)), x)
        at_zero |= zero
        x = np.where(open_, x, b)
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
    """Interpolate, truncate towards the middle, project onto the interval that keeps the worst case."""
    with np.errstate(all="ignore"):
        interpolated = a + (b - a) / (1.0 - fb / fa)  # which neither overflows nor underflows
    interpolated = np.where(np.isfinite(fa) & np.isfinite(fb), interpolated, middle)
    towards = np.sign(middle - interpolated)
    truncated = np.where(push <= np.abs(middle - interpolated), interpolated + towards * push, middle)
    near = np.abs(truncated - middle) <= radius
    projected = np.where(near, truncated, middle - towards * np.maximum(radius, 0.0))
    inside = (projected > np.minimum(a, b)) & (projected < np.maximum(a, b))
    return np.where(inside, projected, middle)
