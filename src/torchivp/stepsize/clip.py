"""Times that a step must end on."""

from __future__ import annotations

from collections.abc import Sequence


class Clip:
    """Shortens a proposed step so that it ends on the next required time, and stretches one that almost does.

    Args:
        targets: the required times in the order of integration, the last one the end of the span.
        direction: 1.0 forward in time, -1.0 backward.
    """

    def __init__(self, targets: Sequence[float], direction: float):
        self._targets = targets
        self._direction = direction
        self._next = 0

    def step_end(self, t: float, h: float) -> float:
        """Where a step from `t` of the proposed size `h` ends."""
        target = self._targets[self._next]
        if abs(target - t) <= 1.01 * h:
            return target
        return t + self._direction * h

    def reached(self, t: float) -> bool:
        """Whether `t` is the next required time; if so, look ahead to the one after it."""
        if t != self._targets[self._next]:
            return False
        self._next += 1
        return True

    @property
    def done(self) -> bool:
        """Whether the last required time has been reached."""
        return self._next == len(self._targets)
