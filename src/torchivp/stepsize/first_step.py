"""The size of the first step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc


def first_step(
    func: FlatFunc, t0: Tensor, y0: Tensor, f0: Tensor, span: float, norm: ErrorNorm, error_order: int
) -> float:
    """Estimate the first step from the sizes of the state, its slope and its curvature.

    `span` is the time to the end, signed. Costs one evaluation of `func`. NaN if state or slope is not finite. Source:
    Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.4, "Starting Step Size".
    """
    size, slope = norm(y0, y0, y0), norm(f0, y0, y0)
    if not (math.isfinite(size) and math.isfinite(slope)):
        return math.nan
    h0 = min(0.01 * size / slope if size >= 1e-5 and slope >= 1e-5 else 1e-6, abs(span))
    signed = math.copysign(h0, span)
    f1 = func(t0 + signed, torch.add(y0, f0, alpha=signed)).detach()
    curvature = norm(f1 - f0.detach(), y0, y0) / h0
    if not math.isfinite(curvature):
        return h0
    largest = max(slope, curvature)
    h1 = (0.01 / largest) ** (1 / (error_order + 1)) if largest > 1e-15 else max(1e-6, 1e-3 * h0)
    return min(100 * h0, h1, abs(span))


def first_steps(
    func: Callable[[np.ndarray, Tensor], Tensor],
    t0: np.ndarray,
    y0: Tensor,
    f0: Tensor,
    span: np.ndarray,
    norm: ErrorNorm,
    error_order: int,
) -> np.ndarray:
    """`first_step` for many rows at once, each independent of the others."""
    size, slope = norm.rows(y0, y0, y0), norm.rows(f0, y0, y0)
    bad = ~(np.isfinite(size) & np.isfinite(slope))
    usual = (size >= 1e-5) & (slope >= 1e-5) & ~bad
    h0 = np.minimum(np.where(usual, 0.01 * size / np.where(usual, slope, 1.0), 1e-6), np.abs(span))
    signed = np.copysign(h0, span)
    f1 = func(t0 + signed, y0 + torch.from_numpy(signed).to(y0.device, y0.dtype).unsqueeze(1) * f0)
    curvature = norm.rows(f1 - f0, y0, y0) / h0
    largest = np.maximum(slope, curvature)
    fast = (largest > 1e-15) & np.isfinite(curvature)
    h1 = np.where(fast, (0.01 / np.where(fast, largest, 1.0)) ** (1 / (error_order + 1)), np.maximum(1e-6, 1e-3 * h0))
    h = np.where(np.isfinite(curvature), np.minimum(np.minimum(100 * h0, h1), np.abs(span)), h0)
    return np.where(bad, math.nan, h)
