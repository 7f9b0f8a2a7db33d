"""The times of the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

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
        outputs: [rows, T].
    """

    start: Tensor | None
    end: Tensor | None
    outputs: Tensor | None
