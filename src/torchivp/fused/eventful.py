"""A solve of rows with events and schedules, of which a kernel takes the steps in which nothing happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.kernel import Kernel
from torchivp.fused.pieces import Kept, Piece, Results, of_changes, pieces_of, table_of
from torchivp.fused.quiet import QuietSteps, TableTrail
from torchivp.fused.solve import FusedRecord, FusedTimes, Pulled, Rows, Seeds, steps_back
from torchivp.fused.used import Used
from torchivp.gradients.draws import APPLY_NOT_REPEATED, is_repeated
from torchivp.gradients.moving_time import Slope
from torchivp.gradients.replay import after_change, end_of
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.gradients.step_ends import StepEnds
from torchivp.gradients.stretches import Stretch, add_all, pull_back
from torchivp.gradients.vjp import vjp
from torchivp.methods.consistent import slopes_of
from torchivp.record import Record
from torchivp.rows.ahead import run_ahead
from torchivp.rows.changes import all_scheduled, changing, function_after, groups, rounds, side_times
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import RowOutputs
from torchivp.rows.targets import fixed_ends
from torchivp.stepsize.constant import ConstantSteps, GridSteps


class KernelRows(ReplayedSolve):
    """A solve of rows by a kernel and the step loop: the loop decides wherever more happens than a step.

    Its gradients go back through the steps by a kernel, from one change of the states to the one before, and through
    the changes by autograd.

    Args:
        plan: how it is solved.
        inputs: what it is differentiated with respect to.
        kernel: what takes the steps.
        rows: what that is called with.
        used: the tensors that its functions use.
        wanted: the numbers of its inputs whose gradients are wanted, each with the place of its tensor among `inputs`.
        only: which rows are solved; None for all.

    Attributes:
        wanted: as given.
        sees_time: whether func depends on time.
        stiff: the rows that were left to another method, [rows], once it has run.
    """

    mapped: ClassVar[bool] = False
    stiff: np.ndarray

    def __init__(
        self,
        plan: RowIntegration,
        inputs: RowInputs,
        kernel: Kernel,
        rows: Rows,
        used: Used,
        wanted: Mapping[int, int],
        only: np.ndarray | None = None,
    ):
        super().__init__(plan, inputs, None)
        self._kernel, self._rows, self.wanted, self._only = kernel, rows, dict(wanted), only
        self.sees_time = kernel.sees_time
        self._used = used
        self._timed = plan.problem.moving.any or any(action.moving is not None for action in plan.problem.actions)
        self._table: FusedRecord | None = None
        self._pieces: list[Piece] | None = None

    def run(self, dense: bool = False) -> tuple[Tensor, Tensor]:
        plan, problem, kernel = self.plan, self.plan.problem, self._kernel
        if self.inputs.used:
            kernel.pull(tuple(self.wanted), self._timed)  # refused now rather than in the backward pass
        outputs = _Outputs(problem.times)
        keeps = self.inputs.used or problem.times.outputs is None
        trail = TableTrail(
            problem.y0, problem.times.start, kernel.form.coefficients.predicts, keeps, kernel.room if keeps else 0
        )
        grid = None
        if isinstance(plan.controller, ConstantSteps | GridSteps):
            grid = fixed_ends(plan.controller, problem.times, all_scheduled(problem))
        directions = [action.direction for action in problem.actions if action.g is not None]
        ahead = QuietSteps(kernel, self._rows, trail, problem.times, grid, directions)
        self.status, self.stats, self.stiff = run_ahead(plan, outputs, trail, plan.make_method(), ahead, self._only)
        states, self.times = outputs.collect(problem.y0)
        self.last, self.record, self._table = outputs.last, trail.record(), trail.table
        self._kept, self._before = (*outputs.places(), outputs.times()), outputs.before
        kernel.room = max(kernel.room, trail.room)
        for stats in self.stats:
            stats.backend = "fused"
        return states, self.record.changes.y

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        self.check_events()
        rows, columns, _ = self._kept
        if self._pieces is None:
            self._pieces = self._cut()
        flat = torch.cat([grads[0][torch.from_numpy(rows), torch.from_numpy(columns)], grads[1]])
        (_, *leaves), moving, held = self._step_ends()
        first, shared = pull_back(reversed(self._pieces), lambda piece: self._take_piece(piece, flat, held), self.late)
        if moving is not None:
            of_table = shared.pop()
            add_all(shared, vjp([moving.table], [of_table], leaves))
        return [first[0], *shared]

    def _step_ends(self) -> tuple[Sequence[Tensor], StepEnds | None, StepEnds | None]:
        """The ends of the steps as functions of leaves, if times move, and the same with a leaf for their table.

        Pieces have the latter in common, so that the way from the table to the times is gone once.
        """
        problem, leaves = self.inputs.on_leaves(self.plan.problem.y0)
        with torch.enable_grad():
            moving = StepEnds.of(self.record.ends, problem, self.record.changes, self.plan.controller)
        held = None if moving is None else replace(moving, table=moving.table.detach().requires_grad_())
        return leaves, moving, held

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        self._used.check()
        return super().again(tensors)

    def _cut(self) -> list[Piece]:
        """The pieces, with what was kept in them: outputs, then the states before changes."""
        (rows, columns, t), changes, problem = self._kept, self.record.changes, self.plan.problem
        change = np.full(len(rows), -1)
        if len(self._before):
            # Where all steps were asked for, the state before a change is an output too.
            mine = np.flatnonzero(~changes.within & changing(problem, changes.firings))
            number = {(int(changes.rows[i]), float(changes.t[i])): i for i in mine.tolist()}
            kept = {(int(r), int(c)) for of, at in self._before for r, c in zip(of, at, strict=True)}
            for i, key in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
                if key in kept:
                    change[i] = number[int(rows[i]), float(t[i])]
        results = Results(
            np.concatenate([rows, changes.rows]),
            np.concatenate([t, changes.t]),
            np.concatenate([change, np.arange(len(changes.rows))]),
        )
        self._results = results
        changed = changing(problem, changes.firings)
        if self._timed:
            self._go_on_from(np.flatnonzero(~changes.within & changed))
        return pieces_of(self.record, problem.times.direction, results, changed)

    def _go_on_from(self, places: np.ndarray) -> None:
        """Write the states after these changes into the table: of one at the end of a row, no step has."""
        changes, table = self.record.changes, self._table
        assert table is not None
        for some in (places[i] for i in rounds(changes.rows[places])):  # of several at one time the last
            at = torch.from_numpy(changes.rows[some]), torch.from_numpy(changes.steps[some])
            table.states[at] = changes.after[torch.from_numpy(some)]

    def _take_piece(self, piece: Piece, grads: Tensor, moving: StepEnds | None) -> Stretch:
        """The steps of a piece and the changes at its end, with autograd watching.

        `grads` are those of all results, and `moving` are the ends of the steps, if they move.
        """
        table, record = self._table, self.record
        assert table is not None
        taken = _TakenPiece(self, piece, table, record)
        problem, leaves = self.inputs.on_leaves(taken.start)
        wanted = [leaves[place] for place in self.wanted.values()]
        times = (None, None) if moving is None else (moving.table[taken.place], self._inside(problem, piece))
        inside, ends, last = _PieceNode.apply(taken, leaves[0], *times, *wanted)
        results = [inside, ends]
        seeds = [table_of(piece.inside, grads, inside.shape[:2]), table_of(piece.ends, grads, ends.shape[:2])]
        if moving is not None:
            for motion, seed in self._motions(problem, piece, moving, ends.detach(), grads):
                results.append(motion)
                seeds.append(seed)
        y = last
        if len(piece.changes):
            changes = record.changes
            at, _ = of_changes(changes, piece.changes)
            which = np.flatnonzero(np.isin(self._results.change, piece.changes))
            results.append(last[torch.from_numpy(self._results.rows[which])])
            seeds.append(grads[torch.from_numpy(which)])
            for firing, chosen in groups([changes.firings[i] for i in piece.changes]).items():
                places = piece.changes[chosen]
                select = at[torch.from_numpy(chosen)]
                rows, t = changes.rows[places], changes.t[places]
                if moving is not None or any(problem.actions[action].g is not None for action, _ in firing):
                    self._used.check()
                end, is_own = end_of(moving, firing, rows, t, changes.steps[places])
                y = y.index_copy(0, select, after_change(problem, firing, rows, end, last[select], is_own))
            if not is_repeated(y[at], changes.after[torch.from_numpy(piece.changes)], last[at]):
                raise RuntimeError(APPLY_NOT_REPEATED)
        shared = leaves[1:] if moving is None else [*leaves[1:], moving.table]
        return Stretch(results, seeds, [y], None, [leaves[0]], shared)

    def _inside(self, problem: RowProblem, piece: Piece) -> Tensor:
        """The times of what was kept within steps of a piece, [rows, T], of which those that move are the user's."""
        t, moving = torch.from_numpy(piece.t), problem.moving.outputs
        outputs = self._outputs_among(piece.inside)
        if moving is None or not len(outputs):
            return t
        source, place = piece.inside.source[outputs], (piece.inside.rows[outputs], piece.inside.columns[outputs])
        rows, columns, _ = self._kept
        values = moving[torch.from_numpy(rows[source]), torch.from_numpy(columns[source])]
        return t.index_put(tuple(map(torch.from_numpy, place)), values)

    def _outputs_among(self, kept: Kept) -> np.ndarray:
        """Which of the results that were kept are outputs that were asked for."""
        rows, columns, _ = self._kept
        asked = self.plan.problem.times.outputs
        if asked is None:
            return np.zeros(0, dtype=np.int64)
        found = np.flatnonzero(kept.source < len(rows))  # of the others, the last states come after all that was asked
        return found[columns[kept.source[found]] < asked.shape[1]]

    def _motions(
        self, problem: RowProblem, piece: Piece, moving: StepEnds, ends: Tensor, grads: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By how much outputs at ends of steps move against these, and the gradients of that.

        `ends` are the states there.
        """
        kept, asked = piece.ends, problem.times.outputs
        rows, columns, _ = self._kept
        outputs = self._outputs_among(kept)
        loose = outputs[moving.loose[rows[kept.source[outputs]], columns[kept.source[outputs]]]]
        if not len(loose) or asked is None:
            return
        self._used.check()
        at = torch.from_numpy(asked) if problem.moving.outputs is None else problem.moving.outputs
        for some in (loose[i] for i in rounds(kept.rows[loose])):  # functions take a row once at a time
            row, step, source = kept.rows[some], kept.columns[some], torch.from_numpy(kept.source[some])
            end = moving.of_steps(row, piece.first[row] + step)
            motion = at[torch.from_numpy(row), torch.from_numpy(columns[kept.source[some]])].unsqueeze(1) - end
            y, grad = ends[torch.from_numpy(row), torch.from_numpy(step)], grads[source]
            func = function_after(problem, row, self.record.ends[row, piece.first[row] + step])
            slope = Slope.of(slopes_of(func), problem.user_time(end), y)
            along = torch.where(grad != 0, slope.value * grad, 0.0).sum(1, keepdim=True)
            yield motion, along.to(motion.dtype)

    def back(self, taken: _TakenPiece, grads: Sequence[Tensor]) -> Pulled:
        """The gradients of what a piece starts from and depends on, given those of its results."""
        inside, ends, last = (x.contiguous() for x in grads)
        problem = self.plan.problem
        start, end = (torch.from_numpy(x) for x in (problem.times.start, problem.times.end))
        times = FusedTimes(start, end, torch.from_numpy(taken.piece.t) if inside.shape[1] else None)
        seeds = Seeds(inside, ends, last)
        return steps_back(
            self._kernel,
            tuple(self.wanted),
            self._rows.inputs,
            times,
            taken.steps,
            torch.from_numpy(taken.count),
            seeds,
            self._timed,
            taken.sides,
        )


class _Outputs(RowOutputs):
    """Outputs that know which of them are states before changes, as rows and places."""

    def begin(self) -> None:
        super().begin()
        self.before: list[tuple[np.ndarray, np.ndarray]] = []

    def before_change(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> None:
        if self._wanted is None:
            self.before.append((rows, self.next[rows]))
        super().before_change(rows, t, y)

    def times(self) -> np.ndarray:
        """The time of each entry of `values`."""
        return np.concatenate(self._times) if self._times else np.zeros(0)


class _TakenPiece:
    """The steps of a piece, as the kernel that goes back reads them.

    Attributes:
        piece: the piece.
        start: the states at its start, [rows, size].
        count: how many steps each row takes, [rows].
        steps: the steps.
        place: where their ends are among all; the last is there again for rows that are through.
        last: the states at its end, before what happens there, [rows, size].
        sides: between which times func is evaluated, [rows]; None for any.
    """

    def __init__(self, solve: KernelRows, piece: Piece, table: FusedRecord, record: Record):
        self.solve, self.piece, self.count = solve, piece, piece.last - piece.first
        rows = np.arange(len(piece.first))
        number = np.minimum(piece.first[:, None] + np.arange(int(self.count.max(initial=0)) + 1), piece.last[:, None])
        self.place = torch.from_numpy(rows).unsqueeze(1), torch.from_numpy(number)
        self.steps = table.each(lambda x: x[self.place])
        self.start = self.steps.states[:, 0]
        ends, problem, self.sides = record.ends, solve.plan.problem, None
        if solve.sees_time:
            self.sides = side_times(problem, rows, ends[rows, piece.first], ends[rows, piece.last])
        self.last = self.steps.states[torch.from_numpy(rows), torch.from_numpy(self.count)]
        if len(piece.changes):
            at, before = of_changes(record.changes, piece.changes)
            self.last = self.last.index_copy(0, at, before)


class _PieceNode(torch.autograd.Function):
    """The steps of a piece as a node of the graph.

    Its results are the states within steps that were kept, which nobody reads, those at the ends of the steps, and the
    last.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, taken: _TakenPiece, y: Tensor, ends: Tensor | None, t: Tensor | None, *wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.taken, ctx.like = taken, [(x.shape, x.dtype) for x in wanted]
        inside = y.new_zeros(*taken.piece.t.shape, y.shape[1])
        return inside, taken.steps.states.clone(), taken.last.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        solve: KernelRows = ctx.taken.solve
        found = solve.back(ctx.taken, grads)
        of_inputs = [found.inputs[number] for number in solve.wanted]
        wanted = (x.reshape(shape).to(dtype) for x, (shape, dtype) in zip(of_inputs, ctx.like, strict=True))
        return None, found.y0, found.ends, found.outputs, *wanted
