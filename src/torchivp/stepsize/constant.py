"""Steps fixed in advance: of one size, or from one given time to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

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

    def targets(self, times: Times) -> Sequence[float]:
        """The ends of the steps."""
        ratio = abs(times.end - times.start) / self.step_size
        count = max(math.ceil(ratio * (1 - 1e-12) - 1e-9), 1)
        return _EvenGrid(times.start, math.copysign(self.step_size, times.direction), count, times.end)


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


class _EvenGrid(Sequence[float]):
    """`start + i step` for i = 1, 2, ..., count - 1, and `end`, without a list of them."""

    def __init__(self, start: float, step: float, count: int, end: float):
        self._start, self._step, self._count, self._end = start, step, count, end

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        index %= self._count
        return self._end if index == self._count - 1 else self._start + (index + 1) * self._step
