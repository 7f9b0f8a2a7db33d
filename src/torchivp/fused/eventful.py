"""A solve of rows with events and schedules, of which a kernel takes the steps in which nothing happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.kernel import Kernel
from torchivp.fused.pieces import Piece, Results, of_changes, pieces_of, table_of
from torchivp.fused.quiet import QuietSteps, TableTrail
from torchivp.fused.solve import FusedRecord, FusedTimes, Rows, Seeds, steps_back
from torchivp.fused.used import Used
from torchivp.gradients.draws import APPLY_NOT_REPEATED, is_repeated
from torchivp.gradients.replay import after_change
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.gradients.stretches import Stretch, pull_back
from torchivp.record import Record
from torchivp.rows.ahead import run_ahead
from torchivp.rows.changes import all_scheduled, changing, groups
from torchivp.rows.loop import RowIntegration
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
        self._kernel, self._rows, self._wanted, self._only = kernel, rows, dict(wanted), only
        self._used = used
        self._table: FusedRecord | None = None
        self._pieces: list[Piece] | None = None

    def run(self, dense: bool = False) -> tuple[Tensor, Tensor]:
        plan, problem, kernel = self.plan, self.plan.problem, self._kernel
        if self.inputs.used:
            kernel.pull(tuple(self._wanted))  # refused now rather than in the backward pass
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
        rows, columns, _ = self._kept
        if self._pieces is None:
            self._pieces = self._cut()
        flat = torch.cat([grads[0][torch.from_numpy(rows), torch.from_numpy(columns)], grads[1]])
        first, shared = pull_back(reversed(self._pieces), lambda piece: self._take_piece(piece, flat), self.late)
        return [first[0], *shared]

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
        return pieces_of(self.record, problem.times.direction, results, changed)

    def _take_piece(self, piece: Piece, grads: Tensor) -> Stretch:
        """The steps of a piece and the changes at its end, with autograd watching; `grads` are those of all results."""
        table, record = self._table, self.record
        assert table is not None
        taken = _TakenPiece(self, piece, table, record)
        problem, leaves = self.inputs.on_leaves(taken.start)
        wanted = [leaves[place] for place in self._wanted.values()]
        inside, ends, last = _PieceNode.apply(taken, leaves[0], *wanted)
        results = [inside, ends]
        seeds = [table_of(piece.inside, grads, inside.shape[:2]), table_of(piece.ends, grads, ends.shape[:2])]
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
                if any(problem.actions[action].g is not None for action, _ in firing):
                    self._used.check()
                y = y.index_copy(0, select, after_change(problem, firing, rows, t, last[select]))
            if not is_repeated(y[at], changes.after[torch.from_numpy(piece.changes)]):
                raise RuntimeError(APPLY_NOT_REPEATED)
        return Stretch(results, seeds, [y], None, [leaves[0]], leaves[1:])

    def back(self, taken: _TakenPiece, grads: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the states at the start of a piece and of what is wanted, given those of its results."""
        inside, ends, last = (x.contiguous() for x in grads)
        problem = self.plan.problem
        start, end = (torch.from_numpy(x) for x in (problem.times.start, problem.times.end))
        times = FusedTimes(start, end, torch.from_numpy(taken.piece.t) if inside.shape[1] else None)
        numbers = tuple(self._wanted)
        seeds = Seeds(inside, ends, last)
        found = steps_back(
            self._kernel, numbers, self._rows.inputs, times, taken.steps, torch.from_numpy(taken.count), seeds
        )
        return found.y0, [found.inputs[i] for i in numbers]


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
        last: the states at its end, before what happens there, [rows, size].
    """

    def __init__(self, solve: KernelRows, piece: Piece, table: FusedRecord, record: Record):
        self.solve, self.piece, self.count = solve, piece, piece.last - piece.first
        rows = np.arange(len(piece.first))
        number = np.minimum(piece.first[:, None] + np.arange(int(self.count.max(initial=0)) + 1), piece.last[:, None])
        place = torch.from_numpy(rows).unsqueeze(1), torch.from_numpy(number)
        self.steps = table.each(lambda x: x[place])
        self.start = self.steps.states[:, 0]
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
    def forward(ctx: Any, taken: _TakenPiece, y: Tensor, *wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.taken, ctx.like = taken, [(x.shape, x.dtype) for x in wanted]
        inside = y.new_zeros(*taken.piece.t.shape, y.shape[1])
        return inside, taken.steps.states.clone(), taken.last.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        start, found = ctx.taken.solve.back(ctx.taken, grads)
        return None, start, *(x.reshape(shape).to(dtype) for x, (shape, dtype) in zip(found, ctx.like, strict=True))
