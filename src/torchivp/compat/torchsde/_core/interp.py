"""States between the ends of a step."""

from __future__ import annotations

from typing import Any


def linear_interp(t0: Any, y0: Any, t1: Any, y1: Any, t: Any) -> Any:
    """The value at `t` of the straight line from `(t0, y0)` to `(t1, y1)`.

    Raises:
        AssertionError: `t` is not between `t0` and `t1`.
    """
    assert t0 <= t <= t1, f"t must be between t0 and t1, got t0={t0}, t={t}, t1={t1}"
    share = (t - t0) / (t1 - t0)
    return (1 - share) * y0 + share * y1
