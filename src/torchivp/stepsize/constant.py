"""Steps fixed in advance: of one size, or from one given time to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchivp.times import Times, check_times


@dataclass(frozen=True)
class ConstantSteps:
    """Steps of the size `step_size`; the last one is shorter if the span is no multiple of it.

    Step ends are `t0 + i step_size`, not a running sum, and the last is the end of the span exactly.

    Args:
        step_size: the size of a step, in the units of time.

    Raises:
        ValueError: `step_size` is not positive and finite.
    """

    step_size: float

    def __post_init__(self) -> None:
        if not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise ValueError(
                f"step_size must be positive and finite, got {self.step_size}; "
                "the direction of integration comes from the order of the times"
            )

    def count(self, span: float | np.ndarray) -> np.ndarray:
        """The number of steps for a span, or for each of several; rounding adds none."""
        return np.maximum(np.ceil(span / self.step_size * (1 - 1e-12) - 1e-9), 1.0)

    def targets(self, times: Times) -> Iterator[float]:
        """The ends of the steps."""
        step = math.copysign(self.step_size, times.direction)
        span = abs(times.end - times.start)
        if math.isinf(span / self.step_size):
            yield from (times.start + i * step for i in itertools.count(1))
        count = int(self.count(span))
        yield from (times.start + i * step for i in range(1, count))
        yield times.end


@dataclass(frozen=True)
class GridSteps:
    """Steps from each of the given times to the next.

    Args:
        grid: gives the ends of the steps for the `Times` of a problem, strictly monotone from `times.start`, which
            may be left out, to `times.end`; None to step from output to output.

    Raises:
        ValueError: when a solve begins, if the grid does not lead from its start to its end.
    """

    grid: Callable[[Times], Any] | None = None

    def targets(self, times: Times) -> list[float]:
        """The ends of the steps."""
        if self.grid is None:
            if times.outputs is None:
                raise ValueError("GridSteps() steps from output to output: pass t_eval, or GridSteps(grid)")
            return [*(t for t in times.outputs if t not in (times.start, times.end)), times.end]
        grid, _ = check_times(self.grid(times), "grid")
        ends = grid[1:] if grid[0] == times.start else grid
        if not ends or ends[-1] != times.end or (ends[0] - times.start) * times.direction <= 0:
            raise ValueError(
                f"the grid must lead from the start, {times.start}, to the end, {times.end}; "
                f"it leads from {grid[0]} to {grid[-1]}"
            )
        return ends
