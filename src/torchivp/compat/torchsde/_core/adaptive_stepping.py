"""The error of a step, and the size of the next one."""

from __future__ import annotations

import math
from typing import Any

import torch

from torchivp.compat.torchsde.types import TensorOrTensors


def compute_error(y11: TensorOrTensors, y12: TensorOrTensors, rtol: Any, atol: Any, eps: float = 1e-7) -> float:
    """The root mean square of the difference of two states, each element relative to its tolerance.

    Args:
        y11: where one step leads, a tensor or several.
        y12: where two halves of it lead.
        rtol: relative tolerance.
        atol: absolute tolerance.
        eps: the smallest tolerance, and the smallest result.

    Raises:
        AssertionError: the difference is not a number.
    """
    whole = [y11] if isinstance(y11, torch.Tensor) else list(y11)
    halves = [y12] if isinstance(y12, torch.Tensor) else list(y12)
    squares, count = 0.0, 0
    for a, b in zip(whole, halves, strict=True):
        tolerance = (rtol * torch.maximum(a.abs(), b.abs()) + atol).clamp_min(eps)
        squares += float(((a - b).abs() / tolerance).square().sum())
        count += a.numel()
    assert not math.isnan(squares), (
        "the error of a step is not a number: make the first step smaller, loosen rtol and atol, or look for what "
        "makes drift or diffusion infinite"
    )
    return max(math.sqrt(squares / count), eps)


def update_step_size(
    error_estimate: float,
    prev_step_size: Any,
    safety: float = 0.9,
    facmin: float = 0.2,
    facmax: float = 1.4,
    prev_error_ratio: float | None = None,
) -> tuple[Any, float | None]:
    """The size of the next step, by a PI controller, and what to pass as `prev_error_ratio` after it.

    Args:
        error_estimate: the error of the last step, in units of the tolerance.
        prev_step_size: its size.
        safety: which share of the tolerance to aim at.
        facmin: a rejected step shrinks at most to this share.
        facmax: an accepted step grows at most by this factor; it never shrinks.
        prev_error_ratio: what the last call returned.
    """
    ratio = safety / error_estimate
    if error_estimate > 1:
        factor = max(ratio ** (1 / 1.5), facmin)
    else:
        change = 1.0 if prev_error_ratio is None else ratio / prev_error_ratio
        factor = max(ratio ** (1 / 4.5) * change**0.13, 1.0)
        prev_error_ratio = ratio
    if prev_error_ratio is None:
        prev_error_ratio = ratio
    return prev_step_size * min(factor, facmax), prev_error_ratio
