"""Steps that end on events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.rows.steps import Stepper, TakenSteps
from torchivp.rows.watch import Located, RowWatch

_CORRECTIONS = 3
"""How often the end is corrected, each time with a new step. The first correction leaves next to nothing."""

_FAR = 0.1
"""A correction by this part of a step shows that the interpolant is no guide, or the function not continuous."""


_BEFORE = 0.01
"""The slope of the event function is taken over this part of a step."""


@dataclass(frozen=True)
class Start:
    """Where the steps begin: times [m], states [m, size], and what the method carries."""

    t: np.ndarray
    y: Tensor
    carry: Any


def land(watch: RowWatch, stepper: Stepper, start: Start, located: Located) -> TakenSteps:
    """Take steps up to the events, which were located on the interpolant, and correct their ends.

    An end is corrected by the slope of the event function along the step, until the function vanishes at the state that
    the step leads to.
    """
    t = located.t.copy()
    rows = stepper.rows
    pick = (located.event, np.arange(len(rows)))
    steps = stepper.step(start.t, t, start.y, start.carry)
    value = watch.values(rows, t, steps.y1)[pick]
    rounding = (
        8 * torch.finfo(steps.y1.dtype).eps * np.maximum(np.maximum(np.abs(start.t), np.abs(t)), np.abs(t - start.t))
    )
    last_t, last_value = None, None
    for _ in range(_CORRECTIONS):
        if last_t is None:
            length = t - start.t
            slope = _slope(watch, steps, rows, pick, value, length)
        else:
            moved = t != last_t
            slope = np.where(moved, (value - last_value) / np.where(moved, t - last_t, 1.0), 0.0)
        with np.errstate(all="ignore"):
            correction = np.where(slope != 0.0, -value / slope, 0.0)
        length = np.abs(t - start.t)
        sensible = np.isfinite(correction) & (np.abs(correction) > rounding) & (np.abs(correction) < _FAR * length)
        if not sensible.any():
            break
        last_t, last_value = t, value
        t = np.where(sensible, t + correction, t)
        steps = stepper.step(start.t, t, start.y, start.carry)
        value = watch.values(rows, t, steps.y1)[pick]
    return steps


def _slope(
    watch: RowWatch, steps: TakenSteps, rows: np.ndarray, pick: Any, value: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The derivative of the event function along the step, at its end; NaN where it jumps there."""
    before, within = _BEFORE * length, steps.within()
    last, one_before = (
        watch.values(rows, steps.t1 - i * before, within.at_fraction(1.0 - i * _BEFORE))[pick] for i in (1, 2)
    )
    change = value - last
    with np.errstate(all="ignore"):
        return np.where(np.abs(change - (last - one_before)) < 0.5 * np.abs(change), change / before, np.nan)
