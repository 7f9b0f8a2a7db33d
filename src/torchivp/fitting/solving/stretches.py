"""What solves a model: many rows over one stretch of time each, with the tangents of their states carried along."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.solution import Status


@dataclass(frozen=True)
class Accuracy:
    """How the model is solved.

    Attributes:
        method: the name of an adaptive ODE method.
        rtol: relative tolerance.
        atol: absolute tolerance, in the units of the states: a number, or one for each state.
        max_steps: a solve (of a piece between inputs) that needs more step attempts counts as failed.
        max_step: no step is longer.
    """

    method: str
    rtol: float
    atol: float | tuple[float, ...]
    max_steps: int
    max_step: float = math.inf

    def scaled(self, factor: float, further: float = 1.0) -> Accuracy:
        """The tolerances times a factor, and the absolute ones times a further one."""
        atol = np.array(self.atol) * (factor * further)
        return replace(self, rtol=self.rtol * factor, atol=tuple(atol) if atol.ndim else float(atol))

    def options(self) -> dict[str, Any]:
        """The options of `solve_ivp`."""
        return {
            "method": self.method,
            "rtol": self.rtol,
            "atol": torch.tensor(self.atol, dtype=torch.float64) if isinstance(self.atol, tuple) else self.atol,
            "max_steps": self.max_steps,
            "max_step": self.max_step,
        }


@dataclass(frozen=True)
class Stretch:
    """Rows to be solved, all in float64.

    A direction is something that moves: its tangent says how the state of a row moves at the start, and the last
    directions, one for each of the `moving` parameters, move that parameter by one too.

    Attributes:
        parameters: those of the model, [rows, n_parameters].
        y: the states at the start, [rows, n_states].
        tangents: [rows, n_directions, n_states].
        moving: the numbers of the parameters that move.
        start: when each row starts, [rows].
        end: when it ends, after that, [rows].
        t: the times of the outputs, increasing, from `start` and before `end`, [rows, T]; NaN after a row's last.
        sided: whether the right-hand side jumps at the ends, where it is to be evaluated on the inner side.
    """

    parameters: Tensor
    y: Tensor
    tangents: Tensor
    moving: tuple[int, ...]
    start: Tensor
    end: Tensor
    t: Tensor
    sided: bool = False

    def row(self, r: int) -> Stretch:
        """One of the rows, without the filling of its times."""
        one = slice(r, r + 1)
        t = self.t[one]
        parts = (self.parameters[one], self.y[one], self.tangents[one], self.moving, self.start[one], self.end[one])
        return Stretch(*parts, t[:, ~t[0].isnan()], self.sided)


@dataclass
class Solved:
    """The solutions of rows.

    Attributes:
        states: at the times asked for, [rows, T, n_states]; NaN where there is none.
        tangents: [rows, T, n_directions, n_states].
        final: the states at the ends, [rows, n_states].
        final_tangents: [rows, n_directions, n_states].
        steps: how many were accepted, [rows].
        ok: which rows reached their ends, [rows].
        failure: why the first of the others did not.
    """

    states: Tensor
    tangents: Tensor
    final: Tensor
    final_tangents: Tensor
    steps: Tensor
    ok: Tensor
    failure: Status | None = None

    @staticmethod
    def nothing(stretch: Stretch, failure: Status | None = None) -> Solved:
        """Rows none of which got anywhere."""
        rows, n = stretch.y.shape
        directions, width = stretch.tangents.shape[1], stretch.t.shape[1]
        nan = stretch.y.new_full
        return Solved(
            nan((rows, width, n), torch.nan),
            nan((rows, width, directions, n), torch.nan),
            nan((rows, n), torch.nan),
            nan((rows, directions, n), torch.nan),
            torch.zeros(rows, dtype=torch.long),
            torch.zeros(rows, dtype=torch.bool),
            failure,
        )

    def put(self, rows: Any, other: Solved) -> None:
        """Write the solutions of some of the rows."""
        width = other.states.shape[1]
        self.states[rows, :width], self.tangents[rows, :width] = other.states, other.tangents
        self.final[rows], self.final_tangents[rows] = other.final, other.final_tangents
        self.steps[rows], self.ok[rows] = other.steps, other.ok
        self.failure = self.failure or other.failure


class Solver(Protocol):
    """Solves rows; a row that fails leaves the others as they are."""

    def solve(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        """Solve a stretch of each row."""
        ...
