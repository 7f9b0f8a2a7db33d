"""A solve whose gradients are those of its accepted steps, taken again: all at once, or stretch by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.dense import RowSteps
from torchivp.error_norm import Tolerance
from torchivp.generators import Generators
from torchivp.gradients.draws import DrawingTrail, RecordedDraws, check_led_back, check_repeated
from torchivp.gradients.event_marks import EventMarks
from torchivp.gradients.node import NodeSolve
from torchivp.gradients.replay import Replay, ReplayedSteps
from torchivp.gradients.row_inputs import RowInputs
from torchivp.gradients.step_ends import StepEnds
from torchivp.gradients.stretches import Stretch, pull_back
from torchivp.methods.method import Method
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.solution import Stats, Status
from torchivp.torch_func import in_forward_mode


@dataclass
class RowResult:
    """What a solve of rows gives.

    Attributes:
        states: the outputs, [rows, T, size], NaN where there are none.
        times: their times, [rows, T].
        final: the last state of each row, [rows, size].
        final_times: when it is there, [rows].
        record: the steps; the states before what happened on the way, in it, are differentiable.
        moving: the ends of the steps as functions of the times that the user gave; None if none of them moves.
        dense: the solutions within all steps, if they were asked for.
        status: how each row ended.
        stats: what each cost.
        moves: whether derivatives of it can be wanted.
    """

    states: Tensor
    times: np.ndarray
    final: Tensor
    final_times: np.ndarray
    record: Record
    moving: StepEnds | None
    dense: list[RowSteps] | None
    status: list[Status]
    stats: list[Stats]
    moves: bool = True

    @property
    def changes(self) -> ChangeRecord:
        """All that happened on the way."""
        return self.record.changes


class ReplayedSolve(NodeSolve):
    """A solve whose steps can be taken again.

    Args:
        plan: how it is solved.
        inputs: what it is differentiated with respect to.
        limit: the largest number of checkpoints; None for about the square root of the number of steps, 0 for none.

    Attributes:
        record: what it has left behind, once it has run.
        times: the times of the outputs, [rows, T + 1], with that of the last state after them.
        last: the place of the last state of each row among these.
        dense: the solutions within all steps, if they were asked for.
        evaluations: how often func was called for each row when all steps were last taken again.
    """

    record: Record
    times: np.ndarray
    last: np.ndarray
    dense: list[RowSteps] | None = None
    status: list[Status]
    stats: list[Stats]
    evaluations: np.ndarray
    _expected: Tensor | None = None  # what steps taken again must lead to, if func draws random numbers
    _marks: EventMarks | None = None
    _ended: Tensor | None = None  # the last states, [rows, size], to which they must lead in any case

    def __init__(self, plan: RowIntegration, inputs: RowInputs, limit: int | None):
        self.plan = plan
        self.inputs = inputs
        self.late = inputs.late
        self.limit = limit
        self._tangents = in_forward_mode()  # asked here: the solve itself runs without

    @property
    def replayable(self) -> bool:
        """Whether the steps may be taken again, for a gradient or with tangents."""
        return self.inputs.used or self._tangents

    @cached_property
    def replay(self) -> Replay:
        """The steps, to be taken again."""
        return Replay(self.plan, self.record)

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        states, before = self.run()
        self._marks = EventMarks(self.plan.problem, self.record.changes)
        return states, before.clone()  # what the node returns holds it, and it the solve, which keeps the other

    def run(self, dense: bool = False) -> tuple[Tensor, Tensor]:
        """The outputs with the last state after them, and the states before what happened; the rest into attributes.

        `dense` says whether to keep the solutions within all steps.
        """
        problem = self.plan.problem
        outputs = RowOutputs(problem.times, dense)
        method, trail = self.plan.make_method(), RowTrail(problem.y0, problem.times.start, self.limit, replayable=False)
        if self.replayable:
            recorded = RecordedDraws(method, Generators(problem.y0.device))
            trail = DrawingTrail(recorded, problem.y0, problem.times.start, self.limit)
            method = cast("Method", recorded)
        self.status, self.stats = self.plan.run(outputs, trail, method)
        states, self.times = outputs.collect(problem.y0)
        self.last, self.dense, self.record = outputs.last, outputs.dense, trail.record()
        self.expect(states)
        return states, self.record.changes.y

    def expect(self, states: Tensor) -> None:
        """Steps taken again are to lead to these outputs: if func draws random numbers, to the same."""
        if not self.replayable:
            return
        self._ended = self._last_of(states)
        if self.replay.drawn is not None:
            self._expected = states.clone()  # not what is returned: that would be a cycle

    def _last_of(self, states: Tensor) -> Tensor:
        """The last state of each row among the outputs."""
        select = self.plan.problem.select
        return states[select(np.arange(len(self.last))), select(self.last)]

    def expect_again(self, solve: ReplayedSolve, copies: int) -> None:
        """Steps taken again are to lead to what those of another solve are to lead to, so many times over."""
        expected = solve._expected
        self._expected = None if expected is None else expected.repeat(copies, 1, 1)

    def check_events(self) -> None:
        """Check that event functions are what they were.

        Raises:
            RuntimeError: one is not.
        """
        if self._marks is not None:
            self._marks.check(self.plan.problem)

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        self.check_events()
        problem, leaves = self.inputs.on_leaves(self.plan.problem.y0)
        results = self.run_again(problem)
        self._check_end(self._last_of(results[0]))
        return results, leaves

    def _check_end(self, found: Tensor) -> None:
        """Check that all steps, taken again, have led to the last states to which they led before."""
        if self._ended is not None:
            check_led_back(found, self._ended, self.plan.problem.y0, *self._left_open)

    @property
    def _left_open(self) -> tuple[Tolerance, Tolerance]:
        """By how much, relatively and absolutely, steps may lead elsewhere when they are taken again."""
        norm = self.plan.norm
        return norm.rtol, norm.atol if self.replay.method.iterates_anew else 0.0

    def run_again(self, problem: RowProblem, dense: bool = False) -> tuple[Tensor, Tensor]:
        """What `run` returns, by all steps taken again from the start of the `problem`."""
        start = Checkpoint(0, problem.y0.detach(), np.zeros(problem.rows, dtype=np.int64))
        replayed = self.replay.run(problem, start, problem.y0, None, self.replay.most, dense)
        self.dense, self.evaluations = replayed.outputs.dense, replayed.evaluations
        states, _ = replayed.outputs.collect(problem.y0, self.times.shape[1])
        if self._expected is not None:
            check_repeated(states, self._expected, problem.y0.unsqueeze(1))
        before = self.record.changes.y
        if replayed.before:
            index = problem.select(replayed.places)
            before = torch.zeros_like(before).index_copy(0, index, torch.cat(replayed.before))
        return states, before

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of all inputs, stretch by stretch."""
        self.check_events()
        replay = self.replay
        ends = [checkpoint.step for checkpoint in replay.checkpoints[1:]] + [replay.most]
        stretches = list(zip(replay.checkpoints, ends, strict=True))
        for stats in self.stats:
            stats.backward = Stats()
        first, shared = pull_back(reversed(stretches), lambda stretch: self._take(*stretch, *grads), self.late)
        return [first[0], *shared]

    def _take(self, checkpoint: Checkpoint, last: int, grad: Tensor, grad_before: Tensor) -> Stretch:
        """Take the steps from a checkpoint to number `last` again, given the gradients of what `run` returned."""
        problem, leaves = self.inputs.on_leaves(checkpoint.y)
        carry = pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), checkpoint.carry)
        replayed = self.replay.run(problem, checkpoint, leaves[0], carry, last)
        outputs, results, seeds = replayed.outputs, [], []
        if outputs.values:
            results.append(torch.cat(outputs.values))
            seeds.append(grad[tuple(map(problem.select, outputs.places()))])
        self._check(replayed, results, checkpoint, last)
        if replayed.before:
            results.append(torch.cat(replayed.before))
            seeds.append(grad_before[problem.select(replayed.places)])
        self._count(replayed, checkpoint.step, last)
        end = [replayed.y]
        if self.record.keeps_carry:
            end += _tensors(self.replay.method.carry_to_keep(replayed.carry))
        rows = None if problem.rows == 1 else problem.select(replayed.rows)
        return Stretch(results, seeds, end, rows, [leaves[0], *_tensors(carry)], leaves[1:])

    def _check(self, replayed: ReplayedSteps, outputs: Sequence[Tensor], checkpoint: Checkpoint, last: int) -> None:
        """Check that steps taken again from a checkpoint up to number `last` have led to where they led before."""
        select = self.plan.problem.select
        ends = [following.y for following in self.replay.checkpoints if following.step == last]
        if last == self.replay.most and self._ended is not None:
            ends.append(self._ended)
        there = np.flatnonzero(self.record.steps[replayed.rows] >= last)  # of a stretch without steps, not all rows
        for y in ends:
            rows = select(replayed.rows[there])
            found, expected, start = replayed.y[select(there)], y[rows], checkpoint.y[rows]
            if self._expected is None:
                check_led_back(found, expected, start, *self._left_open)
            else:
                check_repeated(found, expected, start)
        if self._expected is not None:
            for states in outputs:
                places = tuple(map(select, replayed.outputs.places()))
                check_repeated(states, self._expected[places], checkpoint.y[places[0]])

    def _count(self, replayed: ReplayedSteps, first: int, last: int) -> None:
        taken = np.clip(self.record.steps, first, last) - first
        counts = zip(self.stats, taken.tolist(), replayed.evaluations.tolist(), strict=True)
        for stats, steps, evaluations in counts:
            assert stats.backward is not None
            stats.backward.accepted += steps
            stats.backward.evaluations += evaluations

    def result(self, states: Tensor, before: Tensor) -> RowResult:
        """What there is, given what `run` returned."""
        problem, record = self.plan.problem, self.record
        rows = np.arange(len(self.last))
        entry = (problem.select(rows), problem.select(self.last))
        final, final_times, times = states[entry], self.times[rows, self.last], self.times
        if (wanted := problem.times.outputs) is not None:
            early = np.flatnonzero(self.last < wanted.shape[1])
            places = (problem.select(early), problem.select(self.last[early]))
            nothing = states.new_full((len(early), states.shape[2]), torch.nan)
            states, times = states.index_put(places, nothing)[:, :-1], wanted
        moving = StepEnds.of(record.ends, problem, record.changes, self.plan.controller) if self.replayable else None
        record = replace(record, changes=replace(record.changes, y=before))
        told = self.dense, self.status, self.stats
        return RowResult(states, times, final, final_times, record, moving, *told, self.replayable)


def _tensors(carry: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(carry) if isinstance(x, Tensor)]
