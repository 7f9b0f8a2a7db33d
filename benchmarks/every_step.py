"""Fixed steps with an output at every one, as a training loop takes them: a step as a person would write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[nn.Module, Tensor, float, Tensor], Tensor]


def _euler(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    return y + f(t, y) * h


def _midpoint(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    return y + f(t + h / 2, y + f(t, y) * (h / 2)) * h


def _heun2(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    k1 = f(t, y)
    return y + (k1 + f(t + h, y + k1 * h)) * (h / 2)


def _heun3(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    k1 = f(t, y)
    k2 = f(t + h / 3, y + k1 * (h / 3))
    k3 = f(t + 2 * h / 3, y + k2 * (2 * h / 3))
    return y + (k1 + 3 * k3) * (h / 4)


def _rk4(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    k1 = f(t, y)
    k2 = f(t + h / 3, y + k1 * (h / 3))
    k3 = f(t + 2 * h / 3, y + (k2 - k1 / 3) * h)
    k4 = f(t + h, y + (k1 - k2 + k3) * h)
    return y + (k1 + 3 * (k2 + k3) + k4) * (h / 8)


def _rk4_classic(f: nn.Module, t: Tensor, h: float, y: Tensor) -> Tensor:
    k1 = f(t, y)
    k2 = f(t + h / 2, y + k1 * (h / 2))
    k3 = f(t + h / 2, y + k2 * (h / 2))
    k4 = f(t + h, y + k3 * h)
    return y + (k1 + 2 * (k2 + k3) + k4) * (h / 6)


STEPS: dict[str, Step] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun2": _heun2,
    "heun3": _heun3,
    "rk4": _rk4,
    "rk4_classic": _rk4_classic,
}


def bare_loop(func: nn.Module, y0: Tensor, t: Tensor, *, method: str, options: dict[str, Any]) -> Tensor:
    """The loop without a library, called like `odeint`: one step from each output to the next."""
    step, h = STEPS[method], options["step_size"]
    y, states = y0, [y0]
    for time in t[:-1]:
        y = step(func, time, h, y)
        states.append(y)
    return torch.stack(states)
