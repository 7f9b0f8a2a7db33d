"""Radau IIA of order 5 with Broyden's iteration, for comparison.

The implicit methods of torchdiffeq are not in the version on the package index. Its development version solves the
stage equations by Broyden's iteration: from the identity, in each step anew, with a dense system of all stages at once,
until the Euclidean norm of the residual is below 1e-8. This is that algorithm, as plainly as PyTorch can say it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_ROOT = math.sqrt(6)
_A = (
    ((88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225),
    ((296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225),
    ((16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9),
)
_C = ((4 - _ROOT) / 10, (4 + _ROOT) / 10, 1.0)


def radau_by_broyden(func: nn.Module, y0: Tensor, t: Tensor, *, options: dict[str, Any], **rest: Any) -> Tensor:
    """The states at the first and the last of the times `t`, called like `odeint`; `options` has the `step_size`."""
    a = torch.tensor(_A, dtype=y0.dtype)
    c = torch.tensor(_C, dtype=t.dtype)
    steps = round(float(t[-1] - t[0]) / options["step_size"])
    h = (t[-1] - t[0]) / steps
    y = y0
    for i in range(steps):
        times = t[0] + (i + c) * h

        def residual(k: Tensor, y: Tensor = y, times: Tensor = times) -> Tensor:
            k = k.reshape(3, -1)
            states = y + h * (a @ k)
            return (k - torch.stack([func(s, state) for s, state in zip(times, states, strict=True)])).flatten()

        k = _solve(residual, func(times[0], y).repeat(3))
        y = y + h * (a[-1] @ k.reshape(3, -1))
    return torch.stack([y0, y])


def _solve(residual: Any, x: Tensor) -> Tensor:
    jacobian = torch.eye(x.numel(), dtype=x.dtype)
    r = residual(x)
    for _ in range(100):
        if torch.linalg.vector_norm(r) < 1e-8:
            break
        step = torch.linalg.solve(jacobian, -r)
        x = x + step
        new = residual(x)
        jacobian = jacobian + torch.outer(new - r - jacobian @ step, step) / (step @ step)
        r = new
    return x
