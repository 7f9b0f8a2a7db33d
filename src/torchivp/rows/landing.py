"""Steps that end on events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.events.landing import land, slopes_before
from torchivp.rows.crossings import Located
from torchivp.rows.recorders import WithinSteps
from torchivp.rows.steps import Stepper, TakenSteps
from torchivp.rows.watch import RowWatch


@dataclass(frozen=True)
class Start:
    """Steps of some rows in which events were located, to be taken again up to these.

    Attributes:
        t: where they begin, [m].
        end: where they ended, [m].
        y: the states at their starts, [m, size].
        carry: what the method starts from.
        within: the solutions within the steps.
    """

    t: np.ndarray
    end: np.ndarray
    y: Tensor
    carry: Any
    within: WithinSteps


def take_to_events(watch: RowWatch, stepper: Stepper, start: Start, located: Located) -> TakenSteps:
    """Take steps of the stepper's rows again, each up to the event that it must end on, so that it vanishes there."""
    rows = stepper.rows
    there = (located.event, np.arange(len(rows)))
    taken: list[TakenSteps] = []

    def along(t: np.ndarray) -> np.ndarray:
        theta = (t - start.t) / (start.end - start.t)
        y = start.within.at(torch.arange(len(rows), device=start.y.device), theta)
        return located.sign * watch.values(rows, t, y)[there]

    def at_end(t: np.ndarray) -> np.ndarray:
        taken[:] = [stepper.step(start.t, t, start.y, start.carry)]
        value = located.sign * watch.values(rows, t, taken[0].y1)[there]
        return np.full(len(t), np.nan) if taken[0].step.failure is not None else value

    length = np.abs(start.end - start.t)
    spacing = np.spacing(np.maximum(np.maximum(np.abs(start.t), np.abs(start.end)), length))
    slopes = slopes_before(along, start.t, located.t, 4 * spacing)
    rounding = 8 * (spacing + torch.finfo(start.y.dtype).eps * length)  # times are double, whatever states are
    t = land(at_end, located.t, start.t, start.end, slopes, np.zeros(len(rows)), rounding)
    if (taken[0].t1 != t).any():
        at_end(t)
    return taken[0]
