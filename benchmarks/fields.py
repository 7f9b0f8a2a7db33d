"""Vector fields that several benchmarks solve."""

from __future__ import annotations

import torch
from torch import Tensor


def lotka_volterra(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
    """Prey and predators."""
    a, b, c, d = rates.unbind(-1)
    prey, predator = y.unbind(-1)
    return torch.stack([a * prey - b * prey * predator, -c * predator + d * prey * predator], -1)


def lorenz(t: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """Lorenz's equations."""
    x, v, z = y.unbind(-1)
    return torch.stack([10.0 * (v - x), x * (rho - z) - v, x * v - 8.0 / 3.0 * z], -1)


def robertson(t: Tensor, y: Tensor, k: Tensor, k2: float | Tensor = 3e7, k3: float | Tensor = 1e4) -> Tensor:
    """Robertson's three reactions; `k` is the rate constant of the first."""
    a, b, c = y.unbind(-1)
    slow, fast, back = k * a, k2 * b * b, k3 * b * c
    return torch.stack((back - slow, slow - back - fast, fast), -1)
