"""The times of the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class RowTimes:
    """Where each row starts and ends, and the times asked for.

    Attributes:
        start: where each row starts, [rows].
        end: where it ends, [rows]; reached exactly.
        outputs: the requested times, [rows, T], each row in the order of its integration and filled up with NaN; None
            for the ends of all accepted steps.
    """

    start: np.ndarray
    end: np.ndarray
    outputs: np.ndarray | None

    @property
    def direction(self) -> np.ndarray:
        """1.0 for the rows that go forward in time, -1.0 for those that go backward, [rows]."""
        return np.where(self.end >= self.start, 1.0, -1.0)


@dataclass(frozen=True)
class MovingTimes:
    """The times that a gradient flows to, as float64 tensors on the CPU; None for those that do not move.

    Attributes:
        start: [rows].
        end: [rows].
        outputs: [rows, T]; later outputs, if there are more, stay where they are.
        anchors: ends of steps that the solver chose and that do not move with the start.
        tied: whether an output at the start or the end is that time itself.
    """

    start: Tensor | None = None
    end: Tensor | None = None
    outputs: Tensor | None = None
    anchors: frozenset[float] = frozenset()
    tied: bool = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that move, by name."""
        named = {"start": self.start, "end": self.end, "outputs": self.outputs}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def any(self) -> bool:
        """Whether one of them moves."""
        return bool(self.tensors)

    def with_tensors(self, tensors: dict[str, Tensor]) -> MovingTimes:
        """The same times, their derivatives flowing to these."""
        return replace(self, **tensors)
