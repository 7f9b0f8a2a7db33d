"""Times that a step must end on."""

from __future__ import annotations

import math
from collections.abc import Iterable

STRETCH = 1.1
"""A step may be longer than proposed by this factor, which the controller's safety factor leaves room for."""

IN_SIGHT = 4.0
"""A required time within so many steps is reached in equal steps."""


class Clip:
    """Fits proposed steps to the times that a step must end on: equal steps lead up to each of them.

    Args:
        targets: the required times in the order of integration, the last one the end of the span.
        direction: 1.0 forward in time, -1.0 backward.
        longest: no step is longer.
    """

    def __init__(self, targets: Iterable[float], direction: float, longest: float = math.inf):
        self._longest = longest
        self._targets = iter(targets)
        self._direction = direction
        self._target = next(self._targets, None)

    def step_end(self, t: float, h: float, stretch: bool) -> float:
        """Where a step from `t` of the proposed size `h`, or a little longer if it may `stretch`, ends."""
        target = self._target
        assert target is not None, "there is no step to take after the last required time"
        if h == math.inf:  # any step will do, even the longest
            return target
        ratio = abs(target - t) / (min(STRETCH * h, self._longest) if stretch else h)
        if ratio <= 1.0:
            return target
        if ratio < IN_SIGHT:
            return t + (target - t) / math.ceil(ratio)
        return t + self._direction * h

    def reached(self, t: float) -> bool:
        """Whether `t` is the next required time; if so, look ahead to the one after it."""
        if t != self._target:
            return False
        self._target = next(self._targets, None)
        return True

    @property
    def done(self) -> bool:
        """Whether the last required time has been reached."""
        return self._target is None
