"""A solve by a kernel: the call, and what of it autograd sees."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.call import PullCall, SolveCall
from torchivp.fused.kernel import Kernel
from torchivp.fused.outcomes import STIFF, Outcomes, OutcomesOnGpu
from torchivp.gradients.captured import NoLateLeaves
from torchivp.gradients.node import NodeSolve
from torchivp.gradients.step_ends import StepEnds
from torchivp.gradients.vjp import vjp
from torchivp.record import ChangeRecord
from torchivp.rows.problem import RowProblem
from torchivp.stepsize.pid import PIDController

_BLOCK = 16
"""So many vectors of rows, at most, are a block, which one thread takes."""

_FEW = 5000
"""One thread is through with so many steps of vectors before another has begun."""

_SUMS = 256 * 2**20
"""Sums over blocks of rows take so many bytes of a GPU at most: beyond, blocks have more rows."""

Check = Literal["none", "first", "all"]
"""Of which rows the outputs are looked at: of the first alone, whose outputs are those of all rows and differ from each
other; or of all, of which some may be the same, and NaN none."""

_CHECKS: dict[Check, int] = {"none": 0, "first": 1, "all": 2}


@dataclass
class FusedTimes:
    """The times of a call, as the kernel reads them; they lie in the processor's memory.

    Attributes:
        start: where each row starts, [rows] or [1] for all.
        end: where it ends, likewise.
        wanted: the outputs, [rows, T] or [1, T], NaN for none; None for the ends of all steps.
        grid: the ends of fixed steps, [rows, n] or [1, n]; None for adaptive steps.
        check: which outputs the kernel looks at before it begins, whether they are in order.
    """

    start: Tensor
    end: Tensor
    wanted: Tensor | None
    grid: Tensor | None = None
    check: Check = "none"

    def on(self, device: torch.device) -> FusedTimes:
        """The same on a GPU."""
        wanted, grid = (None if x is None else x.to(device) for x in (self.wanted, self.grid))
        return FusedTimes(self.start.to(device), self.end.to(device), wanted, grid)

    def in_order(self) -> bool:
        """Whether the outputs of the rows to be looked at are in order: as `all_in_order` of source/host.h."""
        if self.wanted is None or self.check == "none" or not self.wanted.shape[1]:
            return True
        first = slice(1) if self.check == "first" else slice(None)
        start, end, wanted = self.start[first, None], self.end[first, None], self.wanted[first]
        onward = torch.where(end >= start, 1.0, -1.0).to(wanted.dtype)
        t, start, end = wanted * onward, start * onward, end * onward
        none = torch.isnan(t)
        if self.check == "first":
            return not bool(none.any() | (t.diff() <= 0).any() | (t < start).any() | (t > end).any())
        latest = t.where(~none, -math.inf).cummax(1).values
        return bool((none | ((t >= latest) & (t >= start) & (t <= end))).all())


class OutOfOrder(Exception):
    """The outputs that were asked for are not in order, or outside the span."""


@dataclass
class FusedRecord:
    """The steps of a solve: their ends and the states there, [rows, room + 1, ...]; slopes where they are handed on."""

    ends: Tensor
    states: Tensor
    slopes: Tensor | None

    @staticmethod
    def empty(y: Tensor, room: int, hands_on: bool) -> FusedRecord:
        """With room for so many steps of each row of `y`, [rows, size], and for slopes if these are handed on."""
        shape = (len(y), room + 1, y.shape[1])
        ends = torch.empty(shape[:2], dtype=torch.float64, device=y.device)
        return FusedRecord(ends, y.new_empty(shape), y.new_empty(shape) if hands_on else None)

    def taken_ends(self, taken: np.ndarray) -> np.ndarray:
        """The start and the ends of the steps `taken`, [rows], of each row: [rows, most + 1], NaN after the last."""
        most = int(taken.max(initial=0))
        ends = self.ends[:, : most + 1].cpu().numpy().copy()
        ends[np.arange(most + 1) > taken[:, None]] = math.nan
        return ends

    def each(self, function: Callable[[Tensor], Tensor]) -> FusedRecord:
        """What a function makes of each of them."""
        return FusedRecord(
            function(self.ends), function(self.states), None if self.slopes is None else function(self.slopes)
        )


@dataclass(eq=False)
class FusedSolve(NodeSolve):
    """A solve by a kernel, whose gradients come from a kernel too.

    Attributes:
        kernel: what runs.
        y0: the initial states, [*lead, *shape], in order in memory.
        lead: the sizes of the dimensions that number the rows; none for one row.
        shape: that of the state of a row.
        times: where the rows start and end.
        controller: what sizes the steps; None for fixed ones.
        rtol: the relative tolerance, [rows or 1, size].
        atol: the absolute one.
        max_steps: the largest number of step attempts of a row.
        inputs: what the function is called with besides, as the kernel reads them; None for time and state.
        wanted: the numbers of the inputs whose gradients are wanted.
        replayed: makes the same solve out of steps that are taken again in torch, for derivatives of gradients.
        keeps_record: whether the steps are written down, for gradients or because all of them were asked for.
        chosen: the numbers of the rows that are solved; None for all.
        timed: the problem as the step loop states it, where times move.
        record: the steps, once it has run.
        outcomes: how the rows ended.
        well: whether all reached their ends, or were found stiff.
        found_stiff: whether some were, and are to be solved by another method.
        last_states: where some did not, the last states of all, [rows, size].
    """

    mapped: ClassVar[bool] = False

    kernel: Kernel
    y0: Tensor
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    times: FusedTimes
    controller: PIDController | None
    rtol: Tensor
    atol: Tensor
    max_steps: int
    inputs: Sequence[Tensor | None]
    wanted: Sequence[int]
    replayed: Callable[[FusedSolve], NodeSolve] | None = None
    keeps_record: bool = False
    chosen: np.ndarray | None = None
    timed: RowProblem | None = None
    record: FusedRecord | None = field(default=None, init=False)
    outcomes: Outcomes = field(init=False)
    well: bool = field(init=False)
    found_stiff: bool = field(init=False)
    last_states: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.late = NoLateLeaves()
        self.rows = math.prod(self.lead)
        self.size = self.kernel.form.size

    def keep(self) -> None:
        """Keep what the way back needs as it is now: the caller may write into it."""
        times = self.times
        self.y0 = self.y0.clone()
        self.times = replace(times, wanted=None if times.wanted is None else times.wanted.clone())
        self.inputs = [
            x if x is None or i in self.wanted else x.clone() for i, x in enumerate(self.inputs)
        ]  # autograd looks after what is wanted

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.run()

    def run(self) -> tuple[Tensor, Tensor]:
        """The outputs, [*lead, T, *shape], and the last states, [*lead, *shape]; the rest into attributes."""
        kernel = self.kernel
        room = kernel.room if self.keeps_record else 0
        while True:
            values, last, record, call = self._call(room)
            kernel.steps = most = call.most
            fits = most <= room or not self.keeps_record
            if self.keeps_record and not (fits and kernel.gpu is None):
                room = kernel.room = most + most // 8 + 8
            if fits:
                break
            del values, last, record  # there may be no room for two
        self.record, device = record, self.y0.device
        self.well, self.found_stiff = not call.failed, bool(call.stiff)
        if not self.well or self.found_stiff:
            self.last_states = last.clone().view(self.rows, self.size)
        if self.times.wanted is None and record is not None:
            values = record.states[:, : most + 1 if self.rows else 0].clone()
            beyond = torch.arange(values.shape[1], device=device) > self.outcomes.steps_there.unsqueeze(1)
            values[beyond] = math.nan
            values = values.view(*self.lead, values.shape[1], *self.shape)
        return values, last

    def _call(self, room: int) -> tuple[Tensor, Tensor, FusedRecord | None, SolveCall]:
        y0, times, call = self.y0, self.times, SolveCall()
        rows, size, device = self.rows, self.size, y0.device
        if self.kernel.gpu is not None:
            if not times.in_order():
                raise OutOfOrder
            times = times.on(device)
        outputs = 0 if times.wanted is None else times.wanted.shape[1]
        call.rows, call.outputs, call.max_steps, call.capacity = rows, outputs, self.max_steps, room
        call.count = rows
        if self.chosen is not None:
            chosen = torch.from_numpy(self.chosen).to(device)
            call.count, call.chosen = len(chosen), chosen.data_ptr()
        call.threads, call.block = threads_and_block(call.count, self.kernel)
        call.start, call.end = times.start.data_ptr(), times.end.data_ptr()
        call.span_stride = len(times.start) > 1
        if times.wanted is not None:
            call.wanted, call.wanted_stride = times.wanted.data_ptr(), outputs if len(times.wanted) > 1 else 0
            call.check_wanted = _CHECKS[times.check]
        call.y0 = y0.data_ptr()
        give_tolerances(call, self.rtol, self.atol)
        if times.grid is not None:
            call.grid, call.grid_stride = times.grid.data_ptr(), times.grid.shape[1] if len(times.grid) > 1 else 0
        held = give_inputs(call, self.kernel, self.inputs, rows, self.kernel.kept, y0)
        size_steps(call, self.controller, self.kernel.form.coefficients.error_order)
        values, last = y0.new_empty(*self.lead, outputs, *self.shape), torch.empty_like(y0)
        outcomes = self.outcomes = Outcomes(rows) if self.kernel.gpu is None else OutcomesOnGpu(rows, device)
        call.values, call.last = values.data_ptr(), last.data_ptr()
        call.counts, call.numbers = outcomes.addresses
        record = None
        if self.keeps_record:
            record = FusedRecord.empty(y0.view(rows, size), room, self.kernel.form.coefficients.predicts)
            call.ends, call.states = record.ends.data_ptr(), record.states.data_ptr()
            call.slopes = None if record.slopes is None else record.slopes.data_ptr()
        if self.chosen is not None:
            self._leave_others(outcomes, times.start, last, record)
        if not self.kernel.solve(call):
            raise OutOfOrder
        if isinstance(outcomes, OutcomesOnGpu):
            outcomes.sum_up(call)
        del held
        return values, last, record, call

    def _leave_others(self, outcomes: Outcomes, start: Tensor, last: Tensor, record: FusedRecord | None) -> None:
        """Leave the rows where they start; those that are chosen are written again."""
        start = start.expand(self.rows)
        outcomes.start_from(start)
        last.copy_(self.y0)
        if record is not None:
            record.ends[:, 0] = start
            record.states[:, 0] = self.y0.view(self.rows, self.size)

    def leave_stiff(self) -> np.ndarray:
        """Which rows were found stiff, [rows]: nothing goes back through their steps, which are taken otherwise."""
        stiff = self.outcomes.counts[0] == STIFF
        self.outcomes.forget_steps(stiff)
        return stiff

    def taken_ends(self) -> np.ndarray:
        """The start and the ends of the steps, [rows, most + 1], NaN after a row's last."""
        assert self.record is not None
        return self.record.taken_ends(self.outcomes.accepted)

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        assert self.replayed is not None
        return self.replayed(self).again(tensors)

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of the initial states, of the inputs wanted and of the times that move."""
        record, (grad_values, grad_last), rows = self.record, (x.contiguous() for x in grads), self.rows
        wanted, timed = tuple(self.wanted), self.timed
        assert record is not None
        grad_states = None
        if self.times.wanted is None:
            grad_states = torch.zeros_like(record.states)
            count = grad_values.shape[len(self.lead)]
            grad_states[:, :count] = grad_values.view(rows, count, self.size)
        seeds, steps, times = Seeds(grad_values, grad_states, grad_last), self.outcomes.steps_there, self.times
        if self.kernel.gpu is not None:
            times = times.on(record.states.device)
        found = steps_back(self.kernel, wanted, self.inputs, times, record, steps, seeds, timed=timed is not None)
        given, moving = tensors[1 : 1 + len(wanted)], tensors[1 + len(wanted) :]
        of_inputs = [found.inputs[i].reshape(x.shape).to(x.device, x.dtype) for i, x in zip(wanted, given, strict=True)]
        of_times: Sequence[Tensor | None] = ()
        if timed is not None:
            of_times = times_back(timed, moving, self.taken_ends(), found)
        return [found.y0.view(self.y0.shape), *of_inputs, *of_times]


def times_back(
    problem: RowProblem, tensors: Sequence[Tensor], ends: np.ndarray, found: Pulled
) -> Sequence[Tensor | None]:
    """The gradients of the times of the user's that move, from those of the ends of the steps and of the outputs.

    Args:
        problem: the problem.
        tensors: the times.
        ends: the start and the ends of the steps, [rows, most + 1], NaN after a row's last.
        found: the gradients.
    """
    assert found.ends is not None and found.outputs is not None
    leaves = [x.detach().requires_grad_() for x in tensors]
    moving = problem.moving.with_tensors(dict(zip(problem.moving.tensors, leaves, strict=True)))
    with torch.enable_grad():
        table = StepEnds.of(ends, replace(problem, moving=moving), ChangeRecord.joined([], problem.y0))
        assert table is not None
        roots, seeds = [table.table], [found.ends[:, : ends.shape[1]].cpu()]
        if moving.outputs is not None:
            roots.append(moving.outputs)
            seeds.append(found.outputs.cpu())
        return vjp(roots, seeds, leaves)


class Seeds(NamedTuple):
    """The gradients of what steps have led to, in order in memory.

    Attributes:
        values: those of the outputs, [rows, T, size]; of no meaning where there are none but the ends of steps.
        states: those of the states at the start and the ends of the steps, [rows, room + 1, size]; None for zero.
        last: those of the last states, [rows, size].
    """

    values: Tensor
    states: Tensor | None
    last: Tensor


class Pulled(NamedTuple):
    """The gradients of what a record starts from and depends on.

    Attributes:
        y0: those of the states that the rows start from, [rows, size].
        inputs: those of the inputs that were wanted, by their numbers.
        ends: those of the start and the ends of the steps, [rows, room + 1]; None if no times move.
        outputs: those of the times of the outputs within steps, [rows, T], zero at ends of steps; likewise.
    """

    y0: Tensor
    inputs: dict[int, Tensor]
    ends: Tensor | None = None
    outputs: Tensor | None = None


def steps_back(
    kernel: Kernel,
    wanted: tuple[int, ...],
    inputs: Sequence[Tensor | None],
    times: FusedTimes,
    record: FusedRecord,
    steps: Tensor,
    seeds: Seeds,
    timed: bool = False,
    sides: tuple[Tensor, Tensor] | None = None,
) -> Pulled:
    """The gradients of what the rows of a record start from, and of the inputs that are `wanted`.

    Args:
        kernel: that of the function.
        wanted: the numbers of the inputs.
        inputs: what the function was called with.
        times: where the rows started, in which direction they went, and the outputs within and at the ends of steps.
        record: the steps, whoever has taken them.
        steps: how many there are of each row, [rows], int64.
        seeds: the gradients of what they led to.
        timed: whether those of times are wanted too.
        sides: between which times the function is evaluated, [rows], if it may jump there.
    """
    pull, call, like = kernel.pull(wanted, timed), PullCall(), record.states
    rows, room, size = like.shape[0], record.ends.shape[1] - 1, like.shape[2]
    call.rows, call.capacity = rows, room
    call.threads, call.block = threads_and_block(rows, kernel)
    call.start, call.end = times.start.data_ptr(), times.end.data_ptr()
    call.span_stride = len(times.start) > 1
    call.steps = steps.data_ptr()
    if times.wanted is not None:
        call.outputs, call.wanted = times.wanted.shape[1], times.wanted.data_ptr()
        call.wanted_stride = call.outputs if len(times.wanted) > 1 else 0
        call.grad_values = seeds.values.data_ptr()
    if seeds.states is not None:
        call.grad_states = seeds.states.data_ptr()
    call.grad_last = seeds.last.data_ptr()
    call.ends, call.states = record.ends.data_ptr(), record.states.data_ptr()
    call.slopes = None if record.slopes is None else record.slopes.data_ptr()
    if sides is not None:
        call.low, call.high = (x.data_ptr() for x in sides)
    held = give_inputs(call, kernel, inputs, rows, pull.kept, like)
    if kernel.gpu is not None:
        call.block = max(1, -(-rows * pull.sums * like.element_size() // _SUMS))
    blocks = -(-rows // call.block)
    grad_y0, grad_rows = like.new_empty(rows, size), like.new_empty(rows, pull.row_sums)
    grad_shared, partial = like.new_empty(pull.sums), like.new_empty(blocks, pull.sums)
    call.grad_y0, call.grad_rows = grad_y0.data_ptr(), grad_rows.data_ptr()
    call.grad_shared, call.partial = grad_shared.data_ptr(), partial.data_ptr()
    of_times = None
    if timed:
        of_times = torch.zeros_like(record.ends), record.ends.new_zeros(rows, call.outputs)
        call.grad_ends, call.grad_wanted = (x.data_ptr() for x in of_times)
    pull.run(call)
    if kernel.gpu is not None:
        of_blocks = partial.view(pull.sums, blocks)  # in another order than the processor's
        grad_shared = of_blocks.sum(1, dtype=torch.float64).to(like.dtype)  # always in the same way
    del held
    found = {i: grad_shared[where] for i, where in pull.shared}
    found |= {i: grad_rows[:, where] for i, where in pull.per_row}
    return Pulled(grad_y0, found, *(of_times or ()))


@dataclass(frozen=True)
class Rows:
    """What rows are solved with, whoever leads.

    Attributes:
        like: a tensor of the dtype of the states.
        inputs: what the functions are called with besides, as the kernel reads it; None for time and state.
        rtol: the relative tolerance, [rows or 1, size].
        atol: the absolute one.
        controller: what sizes the steps; None for fixed ones.
        max_steps: the largest number of step attempts of a row.
    """

    like: Tensor
    inputs: Sequence[Tensor | None]
    rtol: Tensor
    atol: Tensor
    controller: PIDController | None
    max_steps: int


def give_tolerances(call: SolveCall, rtol: Tensor, atol: Tensor) -> None:
    """Hand the tolerances over, [rows or 1, size]."""
    call.rtol, call.atol = rtol.data_ptr(), atol.data_ptr()
    call.rtol_stride, call.atol_stride = (x.shape[1] if len(x) > 1 else 0 for x in (rtol, atol))


def give_inputs(
    call: SolveCall | PullCall, kernel: Kernel, inputs: Sequence[Tensor | None], rows: int, kept: int, like: Tensor
) -> Any:
    """Hand the inputs over, and room for what is computed once; returns what must live as long as the call."""
    count = len(inputs)
    addresses, strides = (ctypes.c_int64 * count)(), (ctypes.c_int64 * count)()
    for i, x in enumerate(inputs):
        if x is not None:
            addresses[i] = x.data_ptr()
            if kernel.roles[i] == "row":
                strides[i] = x.numel() // rows if rows else 0
    call.inputs, call.input_strides = ctypes.addressof(addresses), ctypes.addressof(strides)
    if kernel.gpu is not None:
        table = torch.tensor((*addresses, *strides), dtype=torch.int64).to(like.device)
        call.inputs, call.input_strides = table.data_ptr(), table.data_ptr() + 8 * count
        addresses = table
    uniform = like.new_empty(kept) if kept else None
    if uniform is not None:
        call.uniform = uniform.data_ptr()
    return addresses, strides, uniform


def threads_and_block(rows: int, kernel: Kernel) -> tuple[int, int]:
    """How many threads are worth it, and how many rows a block has: of the threads, it must not depend on them."""
    lanes = kernel.form.lanes
    vectors = -(-rows // lanes)
    block = min(max(vectors // 8, 1), _BLOCK) * lanes
    return (
        torch.get_num_threads() if vectors * kernel.steps * kernel.form.size > _FEW * kernel.form.states else 1
    ), block


def size_steps(call: SolveCall, controller: PIDController | None, error_order: int) -> None:
    """Hand over how a controller sizes steps; nothing of fixed ones."""
    if controller is None:
        return
    k = error_order + 1
    call.safety, call.dead_band = controller.safety, controller.dead_band
    call.factor_min, call.factor_max = controller.factor_min, controller.factor_max
    call.first_step = -1.0 if controller.first_step is None else controller.first_step
    call.min_step, call.max_step = controller.min_step, controller.max_step
    call.power = -(controller.kp + controller.ki + controller.kd) / k
    call.power_last, call.power_before = (controller.kp + 2 * controller.kd) / k, -controller.kd / k
    call.remembers = bool(controller.kp or controller.kd)
    call.accept_at_min_step = controller.accept_at_min_step
