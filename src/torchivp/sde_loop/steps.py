"""The steps of a solve of an SDE, and where its outputs lie among them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from torchivp.stepsize.constant import ConstantSteps


class Steps:
    """Steps from time to time, in stretches of steps of equal size.

    Attributes:
        count: the number of steps.
        outputs: for each time asked for, the number of the step in which it lies, and how far within it: 1 at its end.
            The first time lies before all steps: its entry is (-1, 1).
    """

    def __init__(self, edges: Sequence[float], counts: Sequence[int], outputs: Sequence[tuple[int, float]]) -> None:
        self._edges = list(edges)
        self._firsts = [0, *accumulate(counts)]
        self.count = self._firsts[-1]
        self.outputs = list(outputs)

    @staticmethod
    def landing(ts: Sequence[float], dt: float) -> Steps:
        """Between any two of the times `ts`, equal steps, no larger than `dt`.

        Raises:
            ValueError: `dt` is too small to move time.
        """
        counts = [_count(a, b, dt) for a, b in pairwise(ts)]
        return Steps(ts, counts, [(-1, 1.0), *((n - 1, 1.0) for n in accumulate(counts))])

    @staticmethod
    def regular(ts: Sequence[float], dt: float) -> Steps:
        """Steps of the size `dt` from the first of the times `ts`; the last one ends at the last of them.

        Raises:
            ValueError: `dt` is too small to move time.
        """
        if len(ts) == 1:
            return Steps(ts, [], [(-1, 1.0)])
        span = ts[-1] - ts[0]
        count = _count(ts[0], ts[-1], dt)
        edge = ts[0] + float(np.copysign((count - 1) * dt, span))
        if edge == ts[-1]:  # the last step is shorter than the spacing of numbers
            steps = Steps([ts[0], ts[-1]], [count - 1], [])
        else:
            steps = Steps([ts[0], edge, ts[-1]], [count - 1, 1], [])
        steps.outputs = [(-1, 1.0), *(steps.place(t) for t in ts[1:])]
        return steps

    @staticmethod
    def through(times: Sequence[float], outputs: Sequence[tuple[int, float]]) -> Steps:
        """Steps from each of the `times` to the next."""
        return Steps(times, [1] * (len(times) - 1), outputs)

    def times(self, first: int, last: int) -> list[float]:
        """The ends of the steps `first` to `last - 1`, and before them the start of the first."""
        found: list[float] = []
        i = bisect_right(self._firsts, first) - 1
        at = first
        while at <= last:
            if i == len(self._edges) - 1:
                found.append(self._edges[-1])
                break
            begin, end = self._firsts[i], min(self._firsts[i + 1] - 1, last)
            if end >= at:
                a, b, n = self._edges[i], self._edges[i + 1], self._firsts[i + 1] - begin
                found += (a + (b - a) * (np.arange(at, end + 1) - begin) / n).tolist()
                at = end + 1
            i += 1
        return found

    def place(self, t: float) -> tuple[int, float]:
        """The number of the step in which the time `t` lies, and how far within it; rounding does not count."""
        sign = 1.0 if self._edges[-1] >= self._edges[0] else -1.0
        low, high = 0, self.count - 1
        while low < high:
            middle = (low + high) // 2
            if (self.times(middle + 1, middle + 1)[0] - t) * sign >= 0.0:
                high = middle
            else:
                low = middle + 1
        a, b = self.times(low, low + 1)
        share = (t - a) / (b - a)
        if share < 1e-9 and low > 0:
            return low - 1, 1.0
        return low, 1.0 if share > 1.0 - 1e-9 else share


def _count(a: float, b: float, dt: float) -> int:
    """The number of steps of a size of at most `dt` from the time `a` to `b`.

    Raises:
        ValueError: there are several, but so small that rounding may make their ends coincide.
    """
    count = ConstantSteps(dt).count(abs(b - a))
    farthest = max(a, b, key=abs)
    spacing = math.ulp(farthest)
    if count > 1 and dt < 4 * spacing:
        shift = "shift ts to start near 0, or " if abs(b - a) < abs(farthest) else ""
        raise ValueError(
            f"dt={dt:g} is too small to move time at t = {farthest:g}: numbers there are {spacing:.3g} apart; {shift}"
            "make dt larger"
        )
    return int(count)
