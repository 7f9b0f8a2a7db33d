"""What is kept of the steps of the rows: outputs, and the trail along which they are replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.dense import RowSteps, WithinSteps
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.rows.times import RowTimes

Carry = Callable[[np.ndarray, np.ndarray, Tensor], Tensor]
"""Called with rows, the numbers of their outputs and their states; returns the states as functions of these times."""


class RowOutputs:
    """The states at the requested times, or at the end of every step if none were requested.

    A solution is continuous from the right, in the direction of integration: at the time of a change it is the state
    after it. Where no times were requested, the state before is kept too.

    Args:
        times: the times of the rows.
        dense: whether to keep the solutions within all steps too.
        moving: the requested times as a tensor, [rows, T], if a derivative by times is wanted.
    """

    def __init__(self, times: RowTimes, dense: bool = False, moving: Tensor | None = None):
        self._moving = moving
        self._direction = times.direction
        self.dense: list[RowSteps] | None = [] if dense else None
        self._wanted: np.ndarray | None = None
        if times.outputs is not None:
            column = np.full((len(times.start), 1), math.nan)
            self._wanted = np.concatenate([times.outputs, column], axis=1)
        self.begin()

    def begin(self) -> None:
        """A solve begins: nothing has been kept."""
        rows = len(self._direction)
        self.dense = None if self.dense is None else []
        self.next = np.zeros(rows, dtype=np.int64)
        """How many outputs of each row have been kept."""
        self._ahead = np.full(rows, math.nan) if self._wanted is None else self._wanted[:, 0].copy()
        self._rows: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._times: list[np.ndarray] = []
        self.values: list[Tensor] = []
        """The states, chunk by chunk, [n, size]."""
        self.last = np.zeros(rows, dtype=np.int64)
        """The place at which the last state of each row was kept."""

    def step(
        self,
        rows: np.ndarray,
        t0: np.ndarray,
        t1: np.ndarray,
        within: Callable[[], WithinSteps],
        ends: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Keep the outputs strictly within steps of the `rows` from `t0` to `t1`; `ends` are these, if they move."""
        if self.dense is not None:
            self.dense.append(RowSteps(rows, t0, t1, within().kept(), ends))
        if self._wanted is None:
            return
        inside: list[np.ndarray] = []
        times: list[np.ndarray] = []
        places: list[np.ndarray] = []
        wanted = self._ahead[rows]
        before = (t1 - wanted) * np.sign(t1 - t0) > 0
        if not before.any():
            return
        position = np.flatnonzero(before)
        while len(position):
            row, wanted = rows[position], wanted[position] if not inside else wanted
            places.append(self.next[row])
            self._place(row, wanted)
            inside.append(position)
            times.append(wanted)
            wanted = self._ahead[row]
            before = (t1[position] - wanted) * np.sign(t1[position] - t0[position]) > 0
            position, wanted = position[before], wanted[before]
        where, t = np.concatenate(inside), np.concatenate(times)
        interpolant = within()
        select = torch.from_numpy(where)
        if ends is not None and self._moving is not None:
            entry = torch.from_numpy(rows[where]), torch.from_numpy(np.concatenate(places))
            start, end = (x.squeeze(1)[select] for x in ends)
            moving = self._moving[entry]
            self.values.append(interpolant.at(select, (moving - start) / (end - start), moving))
            return
        theta = (t - t0[where]) / (t1[where] - t0[where])
        self.values.append(interpolant.at(select, theta, t))

    def end(self, rows: np.ndarray, t: np.ndarray, y: Tensor, carry: Carry | None = None) -> None:
        """Keep the states at which the `rows` are at `t`, where they were asked for.

        `carry` carries them to times that move on their own.
        """
        if self._wanted is None:
            self._place(rows, t)
            self.values.append(y)
            return
        there = self._ahead[rows] == t
        if there.any():
            asked = np.flatnonzero(there)
            if len(asked) < len(rows):
                rows, t, y = rows[asked], t[asked], y[torch.from_numpy(asked).to(y.device)]
            self.values.append(y if carry is None else carry(rows, self.next[rows], y))
            self._place(rows, t)

    def finish(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> None:
        """Keep the last states of the `rows`, which go no further than `t`, after their last output."""
        self.last[rows] = self.next[rows] - (self._wanted is None)
        if self._wanted is not None:
            self._rows.append(rows)
            self._places.append(self.last[rows])
            self._times.append(t)
            self.values.append(y)

    def before_change(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> None:
        """Keep the states just before they are changed, if no times were requested."""
        if self._wanted is None:
            self._place(rows, t)
            self.values.append(y)

    def many(self, rows: np.ndarray, counts: np.ndarray, t: np.ndarray, y: Tensor) -> None:
        """Keep so many further outputs of each of the rows; times and states row by row."""
        self._rows.append(np.repeat(rows, counts))
        self._places.append(ragged(self.next[rows], counts))
        self._times.append(t)
        self.values.append(y)
        self.next[rows] += counts
        if self._wanted is not None:
            self._ahead[rows] = self._wanted[rows, self.next[rows]]

    def _place(self, rows: np.ndarray, t: np.ndarray) -> None:
        self._rows.append(rows)
        self._places.append(self.next[rows])
        self._times.append(t)
        self.next[rows] += 1
        if self._wanted is not None:
            self._ahead[rows] = self._wanted[rows, self.next[rows]]

    def resume(self, kept: np.ndarray) -> None:
        """Go on as if so many outputs of each row had been kept, to replay steps."""
        self.next = kept.copy()
        if self._wanted is not None:
            self._ahead = self._wanted[np.arange(len(kept)), kept]

    def collect(self, like: Tensor, count: int | None = None) -> tuple[Tensor, np.ndarray]:
        """All outputs, [rows, T, size], and their times, [rows, T]; NaN where there are none.

        Where times were requested, the last state of a row comes after its last output.

        Args:
            like: a tensor [rows, size] of the dtype and on the device of the result.
            count: T; by default one more than were requested, or the most that a row has.
        """
        rows = len(self.next)
        most = int(self.next.max(initial=0)) if self._wanted is None else self._wanted.shape[1]
        shape = (rows, most if count is None else count)
        times = np.full(shape, math.nan)
        if self._wanted is not None:
            times[:, :-1] = self._wanted[:, :-1]
        states = torch.full((shape[0] * shape[1], like.shape[1]), math.nan, dtype=like.dtype, device=like.device)
        if not rows:
            states = like.reshape(0, like.shape[1])  # a gradient flows to nothing, but it flows
        if self.values:
            where, place = np.concatenate(self._rows), np.concatenate(self._places)
            times[where, place] = np.concatenate(self._times)
            index = torch.from_numpy(where * shape[1] + place).to(like.device)
            states = states.index_copy_(0, index, torch.cat(self.values))
        return states.view(*shape, like.shape[1]), times

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The row and the place in it of each entry of `values`."""
        if not self._rows:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(self._rows), np.concatenate(self._places)


def ragged(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each of the `first` on, so many of each, one after the other."""
    begins = np.cumsum(counts) - counts
    return np.repeat(first - begins, counts) + np.arange(int(counts.sum()))


class RowTrail:
    """The ends of the accepted steps of each row, what happened there, and the states at some of them.

    Checkpoints are laid every `stride` steps of each row. When there are more than `limit`, every other one is dropped
    and the stride doubles.

    Args:
        y0: the initial states, [rows, size].
        start: where the rows start.
        limit: the largest number of checkpoints; None for about the square root of the number of steps, 0 for none.
        replayable: whether the steps are to be taken again; if not, they are counted only.
    """

    def __init__(self, y0: Tensor, start: np.ndarray, limit: int | None, replayable: bool = True):
        self._y0 = y0
        self._start = start
        self._limit = limit
        self._replayable = replayable
        self.begin(y0, np.zeros(len(y0), dtype=np.int64))

    def step(self, rows: np.ndarray, t: np.ndarray, orders: np.ndarray | None) -> None:
        """Steps of the `rows` ended at `t`; `orders` are theirs, if the method varies them."""
        if self._replayable:
            self._ends.append((rows, self.steps[rows], t))
            if orders is not None:
                self._orders.append(orders)
        self.steps[rows] += 1

    def begin(self, y: Tensor, kept: np.ndarray) -> None:
        """A solve begins: the rows start from the states `y`; `kept` outputs were kept of each."""
        self._stride = 1
        self._ends: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._orders: list[np.ndarray] = []
        self.changes: list[ChangeRecord] = []
        self.steps = np.zeros(len(y), dtype=np.int64)
        self.checkpoints = [Checkpoint(0, y.clone(), kept.copy())]

    def lay(self, rows: np.ndarray, y: Tensor, kept: np.ndarray, carry: Any) -> None:
        """The `rows` go on from the states `y` and the `carry`; `kept` outputs were kept of each of all rows."""
        if self._limit == 0:
            return
        here = np.flatnonzero(self.steps[rows] % self._stride == 0)
        if not len(here):
            return
        number = self.steps[rows[here]] // self._stride
        for k in np.unique(number):
            while k >= len(self.checkpoints):
                last = self.checkpoints[0]
                self.checkpoints.append(
                    Checkpoint(len(self.checkpoints) * self._stride, torch.zeros_like(last.y), last.next * 0)
                )
            checkpoint, chosen = self.checkpoints[k], here[number == k]
            where = rows[chosen]
            checkpoint.y[torch.from_numpy(where).to(y.device)] = y[torch.from_numpy(chosen).to(y.device)]
            checkpoint.next[where] = kept[where]
            if len(self.steps) == 1:
                checkpoint.carry = pytree.tree_map_only(Tensor, Tensor.clone, carry)
            elif carry is not None:
                checkpoint.put(carry, torch.from_numpy(where), torch.from_numpy(chosen))
        if len(self.checkpoints) > (self._limit or 2 * self._stride + 1):
            self.checkpoints = self.checkpoints[::2]
            self._stride *= 2

    def record(self) -> Record:
        """What is left when the solve is over."""
        changes = ChangeRecord.joined(self.changes, self._y0)
        shape = (len(self.steps), int(self.steps.max(initial=0)))
        ends, orders = np.full((shape[0], shape[1] + 1), math.nan), np.zeros(shape, dtype=np.int64)
        ends[:, 0] = self._start
        for rows, number, t in self._ends:
            ends[rows, number + 1] = t
        for (rows, number, _), of_steps in zip(self._ends, self._orders, strict=False):
            orders[rows, number] = of_steps
        return Record(ends, self.steps, orders if self._orders else None, self.checkpoints, changes)
