"""The times of a layer: one series for all samples, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from torchivp.checks import check_number
from torchivp.times import joined


@dataclass(frozen=True)
class Span:
    """From where to where to solve, and where to return the solution.

    Attributes:
        start: the time at which to start, or one for each sample.
        end: the time at which to end, likewise.
        outputs: the times to return, [T], or [*batch, T] with NaN for none.
        last: the number of the last output of each sample, [*batch]; None where all have as many.
    """

    start: Any
    end: Any
    outputs: Any
    last: Tensor | None

    @staticmethod
    def of(times: tuple[float, ...] | Tensor, trajectory: bool) -> Span:
        """The span of `times`, whose outputs are all of them or the end alone."""
        if not isinstance(times, Tensor) or times.ndim == 1:
            return Span(times[0], times[-1], times if trajectory else times[-1:], None)
        last = (~times.detach().isnan()).sum(-1).sub(1).clamp(min=0)
        end = torch.take_along_dim(times, last.unsqueeze(-1), -1)
        if trajectory:
            return Span(times[..., 0], end.squeeze(-1), times, last)
        return Span(times[..., 0], end.squeeze(-1), end, None)


def layer_times(t: Any) -> tuple[float, ...]:
    """The times that a layer is made with, as numbers; a single one is an end, from 0.

    Raises:
        TypeError: they are no numbers.
        ValueError: they are not one series of at least two.
    """
    values = t.detach().cpu().numpy() if isinstance(t, Tensor) else t
    if np.ndim(values) == 0:
        return (0.0, check_number("t", t))
    if np.ndim(values) != 1 or len(values) < 2:
        raise ValueError(
            f"t must be an end, or a start and an end, or all times of a trajectory, got shape {np.shape(values)}: "
            "times for each sample come with the samples, layer(y0, t)"
        )
    return tuple(check_number("t", value) for value in values)


def call_times(t: Any) -> tuple[float, ...] | Tensor:
    """The times that a layer is called with: one series [T], or one for each sample, [*batch, T].

    Raises:
        TypeError: they are no numbers.
        ValueError: there are fewer than two.
    """
    entries = [joined(x) for x in t] if isinstance(t, Sequence) else []
    if any(np.ndim(_detached(x)) == 1 for x in entries):
        # A list in default precision would be rounded.
        series = [x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64) for x in entries]
        t = pad_sequence(series, batch_first=True, padding_value=torch.nan)
    t = torch.from_numpy(t) if isinstance(t, np.ndarray) else joined(t)
    if not isinstance(t, Tensor):
        return layer_times(t)
    if t.ndim == 0:
        return torch.stack((torch.zeros_like(t), t))
    if t.shape[-1] < 2:
        raise ValueError(f"t must hold at least a start and an end, got shape {tuple(t.shape)}")
    return t


def _detached(x: Any) -> Any:
    return x.detach().cpu() if isinstance(x, Tensor) else x
