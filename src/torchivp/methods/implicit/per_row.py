"""Numbers and truth values of rows: arrays with an entry for each, or Python's own where there is a single row.

A solve of a single row asks so little of them in every iteration that arrays of one entry would take longer than the
linear algebra. Comparisons, `&` and `|` do for both; here is what does not. NumPy must not warn of what is not finite.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Numbers: TypeAlias = Any
"""An array [rows] of floats, or a float."""

Flags: TypeAlias = Any
"""An array [rows] of truth values, or a bool."""


def any_of(flags: Flags) -> bool:
    """Whether one is true."""
    return flags if isinstance(flags, bool) else int(np.count_nonzero(flags)) > 0  # faster than flags.any()


def all_of(flags: Flags) -> bool:
    """Whether all are true."""
    return flags if isinstance(flags, bool) else int(np.count_nonzero(flags)) == flags.size


def without(flags: Flags, others: Flags) -> Flags:
    """`flags` where `others` are not true."""
    return flags and not others if isinstance(flags, bool) and isinstance(others, bool) else flags & ~np.asarray(others)


def pick(flags: Flags, one: Numbers, other: Numbers) -> Numbers:
    """`one` where the flags are true, the other elsewhere."""
    return (one if flags else other) if isinstance(flags, bool) else np.where(flags, one, other)


def clipped(numbers: Numbers, least: float, most: float) -> Numbers:
    """The numbers, within these bounds; NaN stays."""
    return min(max(numbers, least), most) if isinstance(numbers, float) else np.clip(numbers, least, most)


def is_single(dt: float | Tensor) -> bool:
    """Whether a size of steps as the arithmetic takes it, a number or [rows, 1], is of a single row."""
    return not isinstance(dt, Tensor) or dt.ndim == 0


def column(numbers: Numbers, like: Tensor) -> float | Tensor:
    """The numbers as a tensor [rows, 1]; a float stays one."""
    return numbers if isinstance(numbers, float) else torch.from_numpy(numbers).to(like).unsqueeze(1)


def pick_slopes(flags: Flags, one: Tensor, other: Tensor | float) -> Tensor:
    """Of slopes, [stages, rows, size], `one` where the flags are true, the other elsewhere."""
    if all_of(flags):
        return one
    return torch.where(torch.as_tensor(flags).to(one.device).view(1, -1, 1), one, other)
