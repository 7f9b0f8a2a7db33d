"""Steps in which nothing but a step happens, taken by a kernel for the step loop of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.call import SolveCall
from torchivp.fused.kernel import Kernel
from torchivp.fused.outcomes import STIFF, SUCCESS
from torchivp.fused.solve import (
    FusedRecord,
    Rows,
    give_inputs,
    give_tolerances,
    size_steps,
    threads_and_block,
)
from torchivp.methods.method import Work
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.rows.ahead import Places
from torchivp.rows.recorders import RowOutputs, RowTrail, ragged
from torchivp.rows.times import RowTimes

_HELD, _FULL = 9, 10
"""Kinds of endings, as the kernel numbers them: before a step for the loop to take, or that there is no room for."""

_REJECTED, _OVERFLOWED = 1, 2
"""What flags of rows mean."""


class TableTrail(RowTrail):
    """A trail that keeps all steps, in tables that a kernel writes into as well.

    Args:
        y0: the initial states, [rows, size].
        start: where the rows start.
        hands_on: whether the slopes that steps start from are kept too.
        keeps: whether anything is kept but the numbers of steps and what happened.
        room: for how many steps of a row there is room at first.
    """

    def __init__(self, y0: Tensor, start: np.ndarray, hands_on: bool, keeps: bool, room: int):
        self._like = y0.detach()
        self.table: FusedRecord | None = None
        if keeps:
            self.table = FusedRecord.empty(self._like, room, hands_on)
            self.table.ends[:, 0] = torch.from_numpy(start)
        super().__init__(y0, start, limit=0, replayable=False)

    @property
    def room(self) -> int:
        """For how many steps of a row there is room."""
        return 0 if self.table is None else self.table.ends.shape[1] - 1

    def step(self, rows: np.ndarray, t: np.ndarray, orders: np.ndarray | None) -> None:
        super().step(rows, t, orders)
        if self.table is not None:
            self.widen(int(self.steps[rows].max(initial=0)))
            self.table.ends[torch.from_numpy(rows), torch.from_numpy(self.steps[rows])] = torch.from_numpy(t)

    def start_from(self, rows: np.ndarray, y: Tensor, slopes: Tensor | None) -> None:
        """The next steps of the `rows` start from these states, and slopes if they are known."""
        if self.table is None:
            return
        place = torch.from_numpy(rows), torch.from_numpy(self.steps[rows])
        self.table.states[place] = y
        if self.table.slopes is not None and slopes is not None:
            self.table.slopes[place] = slopes

    def widen(self, steps: int) -> None:
        """See to it that there is room for so many steps of a row."""
        table = self.table
        if table is None or steps <= self.room:
            return
        more = max(steps, 2 * self.room) - self.room
        self.table = table.each(lambda x: torch.cat((x, x.new_empty(len(x), more, *x.shape[2:])), 1))

    def record(self) -> Record:
        if self.table is None:
            ends = np.full((len(self.steps), int(self.steps.max(initial=0)) + 1), math.nan)
        else:
            ends = self.table.taken_ends(self.steps)
        changes = ChangeRecord.joined(self.changes, self._like)
        start = Checkpoint(0, self._like, np.zeros(len(self.steps), dtype=np.int64))
        return Record(ends, self.steps, None, [start], changes, keeps_carry=False)


class QuietSteps:
    """Takes rows ahead by a kernel: `rows.ahead.Ahead`.

    Args:
        kernel: the kernel, which watches event functions.
        rows: what it is called with for all rows.
        trail: where the steps are kept.
        times: the times of the rows.
        grid: the ends of fixed steps, [rows, n], NaN after a row's last; None for adaptive steps.
        directions: which changes of sign of each event function are events.
    """

    def __init__(
        self,
        kernel: Kernel,
        rows: Rows,
        trail: TableTrail,
        times: RowTimes,
        grid: np.ndarray | None,
        directions: Sequence[int],
    ):
        self._directions = np.array(directions, dtype=np.int64)
        self._kernel, self._rows, self._trail, self._grid = kernel, rows, trail, grid
        self._direction = times.direction
        self._count = len(times.start)
        self._steps = kernel.form.coefficients
        self.sees_time = kernel.sees_time
        self._wanted: Tensor | None = None
        if times.outputs is not None:
            self._wanted = torch.from_numpy(np.ascontiguousarray(times.outputs))
            self._values = rows.like.new_empty(*times.outputs.shape, kernel.form.size)
        self._ends = None if grid is None else torch.from_numpy(np.ascontiguousarray(grid))
        self._watch = np.zeros((2, self._count), dtype=np.int64)  # the watch on stiffness of each row

    def go(self, places: Places, outputs: RowOutputs) -> None:
        kernel, trail, index = self._kernel, self._trail, places.rows
        trail.start_from(index, places.y, places.slopes)
        count, before = len(index), places.steps.copy()
        marks = np.concatenate(
            [
                np.stack(
                    [places.t, places.h, places.last, places.before_last, places.until, places.smallest],
                    dtype=np.float64,
                ),
                places.signs,
                places.values,
                places.levels,
                np.full((2, count), math.nan),
            ]
        )
        stops = np.ascontiguousarray(places.stops, dtype=np.int64)
        tallies = np.zeros((12, count), dtype=np.int64)
        tallies[1], tallies[2], tallies[6:8], tallies[8] = before, places.rejections, self._watch[:, index], places.next
        tallies[9] = self._passed(index, places.t)
        tallies[10] = places.rejected * _REJECTED + places.overflowed * _OVERFLOWED
        y, last = places.y.contiguous(), torch.empty_like(places.y)
        knows = places.slopes is not None and not self._steps.uses_jacobian
        slopes = places.slopes.contiguous() if knows and places.slopes is not None else torch.empty_like(y)
        places.there = torch.empty_like(y)
        self._call(places, marks, tallies, (y, last, slopes), knows, stops)
        why, events = tallies[0], len(places.signs)
        places.t, places.h, places.last, places.before_last = marks[:4]
        places.signs, places.values, places.levels = marks[6:-2].reshape(3, events, count)
        places.crossed, (places.when, places.theta) = tallies[11], marks[-2:]
        places.steps, places.rejections, places.evaluations = tallies[1:4]
        places.rejected, places.overflowed = (tallies[10] & _REJECTED) > 0, (tallies[10] & _OVERFLOWED) > 0
        factorisations = tallies[5]
        costs = Work(tallies[4], factorisations, factorisations * self._steps.solves)
        places.work = costs.by_row(count)
        places.waits, places.stiff = why == _HELD, why == STIFF
        self._watch[:, index] = tallies[6:8]
        places.y, places.slopes = last, slopes if self._steps.hands_on else None
        kernel.steps = max(int((places.steps - before).max()), 1)
        landed = (places.crossed >= 0) & np.isnan(places.theta)
        self._keep(places, before, tallies[8], (why == SUCCESS) | landed, outputs)
        if (why == _FULL).any():
            trail.widen(trail.room + 1)

    def _passed(self, rows: np.ndarray, t: np.ndarray) -> np.ndarray | int:
        """How many ends of fixed steps the `rows` have come to."""
        if self._grid is None:
            return 0
        ahead = self._direction[rows]
        return (self._grid[rows] * ahead[:, None] <= (t * ahead)[:, None]).sum(1)

    def _call(
        self,
        places: Places,
        marks: np.ndarray,
        tallies: np.ndarray,
        states: tuple[Tensor, Tensor, Tensor],
        knows: bool,
        stops: np.ndarray,
    ) -> None:
        """Call the kernel; `states` are those at which rows are, those that they come to, and the slopes."""
        kernel, rows, table, call, index = self._kernel, self._rows, self._trail.table, SolveCall(), places.rows
        y, last, slopes = states
        chosen = np.ascontiguousarray(index, dtype=np.int64)
        call.rows, call.count, call.chosen = self._count, len(index), chosen.ctypes.data
        call.max_steps, call.capacity = rows.max_steps, self._trail.room
        call.threads, call.block = threads_and_block(len(index), kernel)
        if self._wanted is not None:
            call.outputs = call.wanted_stride = self._wanted.shape[1]
            call.wanted, call.values = self._wanted.data_ptr(), self._values.data_ptr()
        sides = None
        if places.sides is not None:  # those of other rows are not read
            sides = torch.stack(places.sides)
            if len(index) < self._count:
                sides = rows.like.new_empty(2, self._count).index_copy(1, torch.from_numpy(index), sides)
            call.low, call.high = sides[0].data_ptr(), sides[1].data_ptr()
        if self._ends is not None:
            call.grid, call.grid_stride = self._ends.data_ptr(), self._ends.shape[1]
        give_tolerances(call, rows.rtol, rows.atol)
        held = give_inputs(call, kernel, rows.inputs, self._count, kernel.kept, rows.like)
        size_steps(call, rows.controller, self._steps.error_order)
        call.y0, call.last = y.data_ptr(), last.data_ptr()
        call.marks, call.tallies = marks.ctypes.data, tallies.ctypes.data
        call.directions, call.stops, call.there = (
            self._directions.ctypes.data,
            stops.ctypes.data,
            places.there.data_ptr(),
        )
        call.slopes_now, call.knows_slopes = slopes.data_ptr(), knows
        if table is not None:
            call.ends, call.states = table.ends.data_ptr(), table.states.data_ptr()
            call.slopes = None if table.slopes is None else table.slopes.data_ptr()
        kernel.solve(call)
        del held, sides

    def _keep(
        self, places: Places, before: np.ndarray, kept: np.ndarray, arrived: np.ndarray, outputs: RowOutputs
    ) -> None:
        """Keep the outputs of the steps taken, but for those where rows have arrived or something happens."""
        index = places.rows
        first = places.next
        if self._wanted is not None:
            counts, source = kept - first, (self._wanted, self._values)
        else:
            table = self._trail.table
            assert table is not None
            counts, first, source = places.steps - before - arrived, before + 1, (table.ends, table.states)
        if not counts.any():
            return
        some = counts > 0
        index, counts = index[some], counts[some]
        where = torch.from_numpy(np.repeat(index, counts)), torch.from_numpy(ragged(first[some], counts))
        outputs.many(index, counts, source[0][where].numpy(), source[1][where])
