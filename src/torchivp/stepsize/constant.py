"""Steps fixed in advance: of one size, or from one given time to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchivp.times import Times


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

    def targets(self, times: Times) -> list[float]:
        """The ends of the steps."""
        ratio = abs(times.end - times.start) / self.step_size
        count = max(math.ceil(ratio * (1 - 1e-12) - 1e-9), 1)
        signed = math.copysign(self.step_size, times.direction)
        return [times.start + i * signed for i in range(1, count)] + [times.end]


@dataclass(frozen=True)
class GridSteps:
    """Steps from each of the given times to the next.

    Args:
        grid: step ends for given `Times`, the last of them `times.end`; None to step from output to output.
    """

    grid: Callable[[Times], Sequence[float]] | None = None

    def targets(self, times: Times) -> list[float]:
        """The ends of the steps."""
        if self.grid is not None:
            return list(self.grid(times))
        outputs = [t for t in times.outputs or () if t not in (times.start, times.end)]
        return [*outputs, times.end]
