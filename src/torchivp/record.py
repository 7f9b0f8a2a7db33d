"""What a solve leaves behind: enough to take any of its steps again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.method import map_rows

Firing = tuple[tuple[int, int], ...]
"""What happens in a row at one time, in order: the number of each action, with the column of its schedule or -1."""


@dataclass
class ChangeRecord:
    """What happened to rows at the ends of steps, and what was merely reported within them.

    Attributes:
        rows: the rows.
        steps: how many steps each had taken, that in which it happened included.
        t: when.
        firings: what happened in each.
        y: the states before it, [n, size].
        after: the states after it, [n, size].
        theta: at which fraction of the step an event was reported; NaN for what happened at its end, where it may have
            changed the state.
    """

    rows: np.ndarray
    steps: np.ndarray
    t: np.ndarray
    firings: Sequence[Firing]
    y: Tensor
    after: Tensor
    theta: np.ndarray

    @property
    def within(self) -> np.ndarray:
        """Which were reported within a step."""
        return ~np.isnan(self.theta)

    @staticmethod
    def joined(parts: Sequence[ChangeRecord], like: Tensor) -> ChangeRecord:
        """All `parts` as one record; `like` is a tensor of states, [rows, size]."""
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            none = like.detach()[:0]
            return ChangeRecord(empty, empty, np.zeros(0), [], none, none, np.zeros(0))
        return ChangeRecord(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.t for part in parts]),
            [firing for part in parts for firing in part.firings],
            torch.cat([part.y for part in parts]),
            torch.cat([part.after for part in parts]),
            np.concatenate([part.theta for part in parts]),
        )


@dataclass
class Checkpoint:
    """A place from which a solve can be taken up again: so many steps into each row.

    Attributes:
        step: the number of steps.
        y: the states there, [rows, size]; rows that did not get so far are zero.
        next: how many outputs each row had kept, [rows].
        carry: what the method starts from besides.
    """

    step: int
    y: Tensor
    next: np.ndarray
    carry: Any = None

    def put(self, carry: Any, rows: Tensor, chosen: Tensor) -> None:
        """Keep the entries `chosen` of a carry as those of the `rows`."""
        if self.carry is None:
            self.carry = map_rows(lambda x: x.new_zeros(len(self.y), *x.shape[1:]), carry)
        self.carry = map_rows(
            lambda x, y: x.index_copy_(0, rows.to(x.device), y[chosen.to(x.device)]), self.carry, carry
        )


@dataclass
class Record:
    """What a solve leaves behind: enough to take any of its steps again.

    Attributes:
        ends: the start and the ends of the accepted steps of each row, [rows, most + 1], NaN after a row's last.
        steps: how many each row has taken, [rows].
        orders: the orders of the steps of each row, [rows, most]; None if the method does not vary it.
        checkpoints: from where to take them again, the first of them the start.
        changes: all that happened on the way; the states in it are those before it.
        keeps_carry: whether the checkpoints hold what the method carries on; if not, it is computed anew.
        drawn: for each call of the method, the numbers of the steps that it took, one for each row, and what the random
            number generators were before it; None if func draws no numbers.
    """

    ends: np.ndarray
    steps: np.ndarray
    orders: np.ndarray | None
    checkpoints: Sequence[Checkpoint]
    changes: ChangeRecord
    keeps_carry: bool = True
    drawn: Sequence[tuple[np.ndarray, Any]] | None = None
