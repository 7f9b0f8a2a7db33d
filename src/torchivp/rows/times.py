"""The times of the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    def take(self, rows: np.ndarray) -> RowTimes:
        """The times of a choice of the rows."""
        return RowTimes(self.start[rows], self.end[rows], None if self.outputs is None else self.outputs[rows])
