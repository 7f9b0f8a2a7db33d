"""What a multistep method remembers: the slopes at the ends of past steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.methods.ode.slope_polynomial import Array
from torchivp.times import time_scalar
from torchivp.torch_func import moves, read_rows


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the slopes are that a step may use: arrays, or tensors on the CPU if a gradient flows through time.

    Attributes:
        nodes: the end of the step, its start and the ends of the steps before it, in units of the step from its start,
            [rows, n + 1]; where there were none, numbers beyond the step.
        dt: the sizes of the steps, [rows, 1].
        count: how many slopes are known, that at the start included, [rows].
    """

    nodes: Array
    dt: Array
    count: np.ndarray

    def only(self, rows: np.ndarray) -> Grid:
        """The same, with steps of size zero in all but these rows."""
        if np.count_nonzero(rows) == len(rows):
            return self
        mask = rows[:, None]
        if isinstance(self.dt, np.ndarray):
            return replace(self, dt=np.where(mask, self.dt, 0.0))
        return replace(self, dt=torch.where(torch.from_numpy(mask), self.dt, 0.0))

    def weights(self, integrals: Array, like: Tensor) -> Tensor:
        """Integrals over the steps, [rows, m, n], as what weighs slopes like the states `like`."""
        weights = self.dt[:, :, None] * integrals
        return (torch.from_numpy(weights) if isinstance(weights, np.ndarray) else weights).to(like.device, like.dtype)


class PastSlopes(NamedTuple):
    """Slopes at the ends of past steps, newest first.

    Attributes:
        times: when, [rows, n], float64 on the CPU; NaN for never. A tensor, as a gradient may flow through it.
        slopes: [rows, n, size]; zero for never.
        current: that at the start of the next step, [rows, size]; None if it is yet to be evaluated, which is not done
            in vain if a step is the last one or is rejected.
    """

    times: Tensor
    slopes: Tensor
    current: Tensor | None

    @staticmethod
    def none(slope: Tensor, count: int) -> PastSlopes:
        """Before the first step, whose start has this slope, [rows, size], of a method that uses `count` of them."""
        rows, size = slope.shape
        times = torch.full((rows, count - 1), torch.nan, dtype=torch.float64)
        return PastSlopes(times, slope.new_zeros(rows, count - 1, size), slope)

    def grid(self, t0: float | Tensor, t1: float | Tensor) -> Grid:
        """Where the slopes are, as a step from `t0` to `t1` sees it."""
        times = read_rows(self.times)
        known = times == times
        count, beyond = known.sum(1) + 1, np.arange(2.0, times.shape[1] + 2)
        if isinstance(t0, Tensor) and isinstance(t1, Tensor) and (t0.ndim == 0 or moves(t0) or moves(t1)):
            start, dt = (t.to("cpu", torch.float64).reshape(-1, 1) for t in (t0, t1 - t0))
            there = torch.from_numpy(known)
            nodes = torch.where(there, (torch.where(there, self.times, start) - start) / dt, torch.from_numpy(beyond))
            return Grid(torch.cat((torch.ones_like(dt), torch.zeros_like(dt), nodes), 1), dt, count)
        start, end = (read_rows(t) if isinstance(t, Tensor) else np.array([[t]]) for t in (t0, t1))
        dt = end - start
        nodes = np.empty((len(times), times.shape[1] + 2))
        nodes[:, 0], nodes[:, 1] = 1.0, 0.0
        # Rows that are through stand still.
        units = dt if np.count_nonzero(dt) == len(dt) else np.where(dt == 0.0, 1.0, dt)
        nodes[:, 2:] = (times - start) / units
        if np.count_nonzero(known) < known.size:
            nodes[:, 2:] = np.where(known, nodes[:, 2:], beyond)
        return Grid(nodes, dt, count)

    def after(self, t: float | Tensor, known: Tensor) -> PastSlopes:
        """What the step after that from `t` starts from; `known` are the slopes of this one, [rows, n + 1, size]."""
        stamp = (
            t.to("cpu", torch.float64).reshape(-1, 1) if isinstance(t, Tensor) else torch.from_numpy(np.array([[t]]))
        )
        return PastSlopes(torch.cat((stamp, self.times), 1)[:, :-1], known[:, :-1], None)


def with_current(
    past: PastSlopes | None, func: FlatFunc, t: float | Tensor, y: Tensor, real_dtype: torch.dtype, count: int
) -> tuple[PastSlopes, Tensor]:
    """The past slopes with that at `(t, y)`, evaluated if it is not known; and all of them, [rows, count, size]."""
    slope = None if past is None else past.current
    if slope is None:
        slope = func(time_scalar(t, real_dtype, y.device), y)
    past = past or PastSlopes.none(slope, count)
    known = torch.cat((slope.unsqueeze(1), past.slopes), 1)
    return past._replace(current=known[:, 0]), known  # func may use its memory again
