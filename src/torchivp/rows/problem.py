"""The checked problem of a batch: its functions on rows, its states and its times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torchivp.problem import Problem
from torchivp.rows.function import RowArguments, RowFunction
from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.stepsize.stops import Stops
from torchivp.times import Times, time_dtype


@dataclass(frozen=True)
class Action:
    """What an event or a schedule of the user's does.

    Attributes:
        apply: gives the state with which to go on; None to go on with the same.
        g: the function whose change of sign is the event; None for a schedule.
        direction: which changes of sign are meant.
        last_count: the number of the event at which the row ends.
        checks: at how many points within a step `g` is looked at.
        times: the times of a schedule, [rows, n], NaN for none.
        moving: the same as a tensor, if a gradient flows to it.
        values: what `apply` takes besides, [rows, n, ...].
    """

    apply: RowFunction | None
    g: RowFunction | None = None
    direction: int = 0
    last_count: float = float("inf")
    checks: int = 0
    times: np.ndarray | None = None
    moving: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class RowProblem:
    """Initial value problems, one a row.

    Attributes:
        func: the right-hand side.
        y0: the initial states, [rows, size].
        times: where they start and end, and the times asked for.
        actions: the events and schedules, in the user's order.
        real_dtype: the dtype of the `t` that the functions receive.
        stops: where func jumps, of one row.
        moving: those of the times that a derivative is wanted by.
        batched: whether there are batch dimensions; without them the one row takes the steps of a solve without events,
            to the last bit.
    """

    func: RowFunction
    y0: Tensor
    times: RowTimes
    actions: Sequence[Action]
    real_dtype: torch.dtype
    stops: Stops = field(default_factory=Stops)
    moving: MovingTimes = field(default_factory=MovingTimes)
    batched: bool = True

    @property
    def rows(self) -> int:
        return len(self.y0)

    def time(self, t: np.ndarray) -> Tensor:
        """The times of some rows as a [rows, 1] tensor in the dtype of time."""
        times = torch.from_numpy(t).unsqueeze(1)
        device = self.y0.device
        return times if device.type == "cpu" else times.to(device, time_dtype(device))

    def moved(self, t: Tensor) -> Tensor:
        """Times that move, [rows, 1], in the dtype of time."""
        device = self.y0.device
        return t if device.type == "cpu" else t.to(device, time_dtype(device))

    def user_time(self, t: np.ndarray | Tensor) -> Tensor:
        """The same as the functions of the user receive it."""
        return (self.moved(t) if isinstance(t, Tensor) else self.time(t)).to(self.real_dtype)

    def select(self, rows: np.ndarray) -> Tensor:
        """The numbers of rows as a tensor that selects them."""
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.y0.device)

    @cached_property
    def scheduled_times(self) -> np.ndarray:
        """All times at which anything is scheduled in any row, in ascending order."""
        tables = [action.times.reshape(-1) for action in self.actions if action.times is not None]
        every = np.unique(np.concatenate(tables)) if tables else np.zeros(0)
        return every[~np.isnan(every)]

    def with_args(self, args: RowArguments) -> RowProblem:
        """The same problem with other arguments of its functions."""
        actions = [
            replace(
                action,
                g=action.g and action.g.with_args(args),
                apply=action.apply and action.apply.with_args(args),
            )
            for action in self.actions
        ]
        return replace(self, func=self.func.with_args(args), actions=actions)


def single_problem(problem: RowProblem, row: int, y: Tensor) -> Problem:
    """The problem of one row, as the engine of one row states it, started from `y`, [1, size]."""
    func = problem.func.on(None if problem.rows == 1 else problem.select(np.array([row])))
    times = Times(float(problem.times.start[row]), float(problem.times.end[row]), None)
    return Problem(func, y, times, problem.real_dtype)
