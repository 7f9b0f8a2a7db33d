"""What a multistep method remembers: the slopes at the ends of past steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.methods.ode.slope_polynomial import Array
from torchivp.times import time_scalar


class PastSlopes(NamedTuple):
    """Slopes at the ends of past steps, newest first; all of it tensors, so that a gradient flows through it.

    Attributes:
        times: when, [n], float64 on the CPU.
        slopes: [n, size].
        current: whether the first is that at the start of the next step; otherwise that is yet to be evaluated, which
            is not done in vain if a step is the last one or is rejected.
    """

    times: Tensor
    slopes: Tensor
    current: bool

    def nodes(self, t0: float | Tensor, t1: float | Tensor) -> Array:
        """The end of the step from `t0` to `t1` and the past times, in units of the step from its start."""
        if isinstance(t0, Tensor) and isinstance(t1, Tensor):
            return torch.cat((torch.ones(1, dtype=torch.float64), (self.times - t0) / (t1 - t0)))
        return (np.array([t1, *self.times.tolist()]) - t0) / (t1 - t0)

    def and_slope(self, t: float | Tensor, slope: Tensor, keep: int) -> PastSlopes:
        """With the slope at `t` in front, and no more than `keep` in all."""
        times = torch.cat((_stamp(t), self.times[: keep - 1]))
        return PastSlopes(times, torch.cat((slope, self.slopes[: keep - 1])), True)


def first_slope(t: float | Tensor, slope: Tensor) -> PastSlopes:
    """One slope at the start of the first step."""
    return PastSlopes(_stamp(t), slope if slope.requires_grad else slope.clone(), True)  # func may use its memory again


def with_current(
    past: PastSlopes | None, func: FlatFunc, t: float | Tensor, y: Tensor, real_dtype: torch.dtype, keep: int
) -> PastSlopes:
    """The past slopes up to and with that at `(t, y)`, evaluated if it is not known."""
    if past is not None and past.current:
        return past
    slope = func(time_scalar(t, real_dtype, y.device), y)
    return first_slope(t, slope) if past is None else past.and_slope(t, slope, keep)


def _stamp(t: float | Tensor) -> Tensor:
    if isinstance(t, Tensor):
        return t.to("cpu", torch.float64).reshape(1)
    return torch.tensor([t], dtype=torch.float64)
