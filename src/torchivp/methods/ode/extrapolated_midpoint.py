"""One step of any even order, from its start alone: the midpoint rule, extrapolated."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.methods.ode.combined import as_factor, combined
from torchivp.times import time_scalar


def extrapolated_midpoint(
    func: FlatFunc, t0: float | Tensor, dt: float | Tensor, y0: Tensor, f0: Tensor, order: int, real_dtype: torch.dtype
) -> Tensor:
    """The states at `t0 + dt`, with an error of order `order + 1` in `dt`; `f0` are the slopes at the start.

    Gragg's midpoint rule in 2, 4, 6, ... steps, whose errors have expansions in even powers of the step, extrapolated
    to steps of size zero: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.9.
    """
    counts = range(2, order + 2, 2)
    results = torch.stack([_midpoint(func, t0, dt, y0, f0, n, real_dtype) for n in counts], 1)
    weights = [prod(n * n / (n * n - m * m) for m in counts if m != n) for n in counts]
    # Of the differences, which are small, so that the weights, which are not, do not magnify rounding.
    differences = results - y0.unsqueeze(1)
    return y0 + combined(y0.new_tensor([[weights]]), differences)[:, 0]


def _midpoint(
    func: FlatFunc, t0: float | Tensor, dt: float | Tensor, y0: Tensor, f0: Tensor, n: int, real_dtype: torch.dtype
) -> Tensor:
    h = dt / n
    before, y = y0, y0 + as_factor(h, y0) * f0
    for i in range(1, n):
        before, y = y, before + as_factor(2.0 * h, y0) * func(time_scalar(t0 + i * h, real_dtype, y.device), y)
    return y
