"""Steps fixed in advance: of one size, or from one given time to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchivp.times import Times, check_times

_ROUNDINGS = 4
"""By so many spacings of the numbers in which they were given, times may miss the multiples that are meant."""


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

    def count(self, span: float | np.ndarray, slack: float = 0.0) -> np.ndarray:
        """The number of steps for a span, or for each of several; rounding, or a `slack` in the times, adds none."""
        return np.maximum(np.ceil((span - slack) / self.step_size * (1 - 1e-12) - 1e-9), 1.0)

    def targets(self, times: Times) -> Iterator[float]:
        """The ends of the steps.

        A step ends on an output that equals its end to the precision in which the times were given, so that the output
        is the end of a step and need not be interpolated: `torch.arange(0, 10, 0.1)` is single precision. Not so where
        a gradient flows to the times: outputs would move the steps.
        """
        step = math.copysign(self.step_size, times.direction)
        span = abs(times.end - times.start)
        if math.isinf(span / self.step_size):
            yield from (times.start + i * step for i in itertools.count(1))
        slack = (
            0.0
            if times.tensor is not None
            else min(_ROUNDINGS * times.spacing * max(abs(times.start), abs(times.end)), 1e-3 * self.step_size)
        )
        outputs = iter(times.outputs or ())
        output = next(outputs, None)
        for i in range(1, int(self.count(span, slack))):
            end = times.start + i * step
            while output is not None and (output - end) * times.direction < -slack:
                output = next(outputs, None)
            yield end if output is None or abs(output - end) > slack else output
        yield times.end


@dataclass(frozen=True)
class GridSteps:
    """Steps from each of the given times to the next.

    Args:
        grid: gives the ends of the steps for the `Times` of a problem, strictly monotone from `times.start`, which
            may be left out, to `times.end`; None to step from output to output.

    Raises:
        ValueError: when a solve begins, if the grid does not lead from its start to its end.

    Examples:
        >>> import torch
        >>> from torchivp import GridSteps, solve_ivp
        >>> grid = GridSteps(lambda times: [0.1, 0.5, 1.0])
        >>> solve_ivp(lambda t, y: -y, (0, 1), torch.ones(1).double(), method="rk4", controller=grid).t.tolist()
        [0.0, 0.1, 0.5, 1.0]
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
