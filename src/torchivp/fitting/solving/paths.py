"""The paths of trajectories: solved piece by piece between their inputs, many trajectories as rows of one solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.data import Dataset
from torchivp.fitting.solving.inputs import Change, Inputs, Piece, apply_changes
from torchivp.fitting.solving.stretches import Accuracy, Solver, Stretch
from torchivp.solution import Status


@dataclass(frozen=True)
class Rows:
    """What is solved: a trajectory of the data in each row, with the numbers that it has there.

    Attributes:
        trajectories: the number of the trajectory of each row.
        parameters: of the model, [rows, n_parameters].
        y0: the initial states, [rows, n_states].
        tangents: how the initial states move in each direction, [rows, n_directions, n_states].
        moving: the numbers of the parameters that move in the last directions.
    """

    trajectories: Sequence[int]
    parameters: Tensor
    y0: Tensor
    tangents: Tensor
    moving: tuple[int, ...]


@dataclass
class Paths:
    """The states of rows at their times.

    Attributes:
        states: [rows, T, n_states], NaN after the last time of a row, and where it could not be solved.
        tangents: [rows, T, n_directions, n_states].
        ok: which rows could be solved to their ends, [rows].
        steps: how many steps that took, [rows].
        failure: why the first of the others could not.
    """

    states: Tensor
    tangents: Tensor
    ok: Tensor
    steps: Tensor
    failure: Status | None = None

    def part(self, rows: slice) -> Paths:
        """Those of some of the rows."""
        return Paths(self.states[rows], self.tangents[rows], self.ok[rows], self.steps[rows], self.failure)


@dataclass
class PathSolver:
    """Solves trajectories piece by piece.

    Attributes:
        data: the trajectories, which start at their first times.
        inputs: what acts on them.
        solver: solves the pieces.
    """

    data: Dataset
    inputs: Inputs
    solver: Solver

    def solve(self, rows: Rows, times: Mapping[int, Sequence[float]], accuracy: Accuracy) -> Paths:
        """The states at increasing times of each trajectory, none before its first.

        Args:
            rows: what to solve.
            times: by the number of the trajectory.
            accuracy: how.
        """
        walk = _Walk(self.data, self.inputs, rows, times)
        for number in range(walk.most_pieces):
            walk.take_piece(number, self.solver, accuracy)
        return walk.paths


class _Walk:
    """Rows on their way from piece to piece."""

    def __init__(self, data: Dataset, inputs: Inputs, rows: Rows, times: Mapping[int, Sequence[float]]):
        count, directions, n = rows.tangents.shape
        self._rows, self._infused = rows, inputs.infused
        self._trajectories = np.array(rows.trajectories)
        self._pieces: dict[int, list[Piece]] = {
            i: inputs.pieces(data.trajectories[i].name, float(data.trajectories[i].t[0]), t[-1], t)
            for i, t in times.items()
        }
        self.most_pieces = max(len(self._pieces[i]) for i in set(rows.trajectories))
        self._y, self._tangents = rows.y0, rows.tangents
        width = max(len(t) for t in times.values())
        self.paths = Paths(
            rows.y0.new_full((count, width, n), torch.nan),
            rows.y0.new_full((count, width, directions, n), torch.nan),
            torch.ones(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.long),
        )
        self._filled = np.zeros(max(times) + 1, dtype=np.intp)  # how many outputs of each trajectory are there

    def take_piece(self, number: int, solver: Solver, accuracy: Accuracy) -> None:
        """Solve the pieces with this number of the rows that have one and have come so far."""
        has_one = np.array([number < len(self._pieces[i]) for i in self._trajectories])
        active = np.flatnonzero(self.paths.ok.numpy() & has_one)
        if not len(active):
            return
        pieces = {int(i): self._pieces[i][number] for i in np.unique(self._trajectories[active])}
        self._change(active, {i: piece.changes for i, piece in pieces.items()})
        moving = [i for i, piece in pieces.items() if piece.start < piece.end]
        if moving:
            rows = active[np.isin(self._trajectories[active], moving)]
            self._solve(rows, {i: pieces[i] for i in moving}, solver, accuracy)
        self._change(active, {i: piece.last for i, piece in pieces.items()})
        ending = [i for i, piece in pieces.items() if piece.outputs and piece.outputs[-1] == piece.end]
        for i, piece in pieces.items():
            self._filled[i] += len(piece.outputs or [])
        if ending:
            of_ending = active[np.isin(self._trajectories[active], ending)]
            rows, last = torch.from_numpy(of_ending), torch.from_numpy(self._filled[self._trajectories[of_ending]] - 1)
            self.paths.states[rows, last], self.paths.tangents[rows, last] = self._y[rows], self._tangents[rows]

    def _of(self, rows: NDArray[np.intp], trajectory: int) -> Tensor:
        """Those of the rows that are of a trajectory."""
        return torch.from_numpy(rows[self._trajectories[rows] == trajectory])

    def _change(self, active: NDArray[np.intp], changes: Mapping[int, Sequence[Change]]) -> None:
        for i, of_trajectory in changes.items():
            if of_trajectory:
                rows = self._of(active, i)
                y, tangents = apply_changes(of_trajectory, self._y[rows], self._tangents[rows])
                self._y = self._y.index_copy(0, rows, y)
                self._tangents = self._tangents.index_copy(0, rows, tangents)

    def _solve(self, active: NDArray[np.intp], pieces: Mapping[int, Piece], solver: Solver, accuracy: Accuracy) -> None:
        inner = {i: [t for t in piece.outputs or [] if t < piece.end] for i, piece in pieces.items()}
        width = max(map(len, inner.values()))
        rows = torch.from_numpy(active)
        which = np.searchsorted(list(pieces), self._trajectories[active])  # pieces are in the order of trajectories
        padded = [[*times, *[np.nan] * (width - len(times))] for times in inner.values()]
        t = np.array(padded, dtype=np.float64).reshape(len(inner), width)
        ends = np.array([[piece.start, piece.end] for piece in pieces.values()])[which]
        rates = [[piece.rates.get(k, 0.0) for k in self._infused] for piece in pieces.values()]
        of_rows = torch.tensor(rates, dtype=torch.float64)[torch.from_numpy(which)]
        stretch = Stretch(
            torch.cat([self._rows.parameters[rows], of_rows], 1),
            self._y[rows],
            self._tangents[rows],
            self._rows.moving,
            torch.from_numpy(ends[:, 0].copy()),
            torch.from_numpy(ends[:, 1].copy()),
            torch.from_numpy(t[which]),
            sided=any(len(self._pieces[i]) > 1 for i in pieces),
        )
        solved = solver.solve(stretch, accuracy)
        paths, filled = self.paths, self._filled[self._trajectories[active]]
        counts = np.array(list(map(len, inner.values())))[which]
        for first in np.unique(filled):
            # What a row has no time for is NaN, and stands where its next outputs will.
            here = np.flatnonzero(filled == first)
            own, wide = rows[here], int(counts[here].max())
            paths.states[own, first : first + wide] = solved.states[here, :wide]
            paths.tangents[own, first : first + wide] = solved.tangents[here, :wide]
        paths.steps[rows] += solved.steps
        paths.ok[rows] &= solved.ok
        paths.failure = paths.failure or solved.failure
        self._y = self._y.index_copy(0, rows, solved.final)
        self._tangents = self._tangents.index_copy(0, rows, solved.final_tangents)
