"""Multiple shooting: trajectories cut into segments that are all solved as one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from torchivp.checks import check_number, check_whole_number
from torchivp.data.series import Series


@dataclass(frozen=True)
class Shooting:
    """How to cut trajectories into segments, each solved from a state of its own.

    An error at the start of a long trajectory spoils all of it, and the loss has many minima; over short segments it
    has few. Source: Bock, "Recent advances in parameter identification techniques for O.D.E." (1983).

    Args:
        length: how many observations a segment reaches beyond its start. All segments are cut once, at the start
            of the training.
        start: where a segment starts: "data", from the observation there, with its noise (if it is incomplete, the
            segment before goes on to the next one that is not); or "free", from a state that is learned along with
            the model.
        continuity: the weight of the gaps: the mean square of the differences between the end of a segment and
            the start of the next is added to the loss with this factor. "free" needs it.

    Raises:
        TypeError, ValueError: an argument does not make sense.
    """

    length: int
    start: Literal["data", "free"] = "data"
    continuity: float = 0.0

    def __post_init__(self) -> None:
        check_whole_number("the length of segments", self.length, 1)
        if self.start not in ("data", "free"):
            raise ValueError(f"start must be 'data' or 'free', got {self.start!r}")
        if check_number("continuity", self.continuity) < 0:
            raise ValueError(f"continuity must not be negative, got {self.continuity}")
        if self.start == "free" and self.continuity == 0:
            raise ValueError(
                f"segments that start from free states are held together by continuity alone: write "
                f"Shooting({self.length}, start='free', continuity=1.0)"
            )


@dataclass(frozen=True)
class SegmentBatch:
    """Segments of some trajectories as one batch.

    Attributes:
        series: the segments; with free starts, they are compared with the data up to where the next one starts.
        before: the segments that others continue, each of them the next one of the batch.
        joints: the number of the time at which each of these is at the start of the next.
    """

    series: Series
    before: Tensor
    joints: Tensor

    def gaps(self, predicted: Tensor) -> Tensor:
        """How far each segment is from the start of the next one, [joints, *state]."""
        return predicted[self.before, self.joints] - self.series.y0[self.before + 1]


class Segments:
    """The segments of all trajectories of a dataset, cut once.

    Args:
        shooting: how to cut.
        series: all trajectories, in the order of their numbers.
        device: where to keep the segments.

    Attributes:
        states: the free states that segments start from, the first ones of trajectories excepted, [n, *state]; None
            if segments start from the data.
    """

    def __init__(self, shooting: Shooting, series: Sequence[Series], device: torch.device):
        items: list[Series] = []
        joints: list[int] = []
        free: list[Tensor] = []
        start_of: list[int] = []
        self._of_series: list[list[int]] = []
        for number, each in enumerate(series):
            starts = _starts(shooting, each)
            self._of_series.append(list(range(len(items), len(items) + len(starts))))
            known = _filled(each) if shooting.start == "free" else each.y
            for k, (start, end) in enumerate(zip(starts, _ends(shooting, starts, len(each.t)), strict=True)):
                joint = starts[k + 1] - start if k + 1 < len(starts) else -1
                y = each.y[start : end + 1]
                if joint >= 0 and shooting.start == "free":  # what follows belongs to the next segment
                    y = torch.cat((y[:joint], torch.full_like(y[joint:], math.nan)))
                start_of.append(number if k == 0 else len(series) + len(free))
                if k > 0:
                    free.append(known[start])
                items.append(Series(each.t[start : end + 1], y, each.y0))
                joints.append(joint)
        self._lengths = [len(item.t) for item in items]
        self._t = pad_sequence([item.t for item in items], batch_first=True, padding_value=math.nan).to(device)
        self._y = pad_sequence([item.y for item in items], batch_first=True, padding_value=math.nan).to(device)
        self._joints = torch.tensor(joints, device=device)
        self._start_of = torch.tensor(start_of, device=device)
        """The number of each segment's start among the first states of trajectories, and then all others."""
        self._first = torch.stack([each.y0 for each in series]).to(device)
        later = torch.stack(free).to(device) if free else self._first[:0]
        self.states = nn.Parameter(later) if shooting.start == "free" else None
        self._later = later

    def batch(self, numbers: Sequence[int]) -> SegmentBatch:
        """The segments of the trajectories with these numbers."""
        chosen = [segment for number in numbers for segment in self._of_series[number]]
        length = max(self._lengths[segment] for segment in chosen)
        index = torch.tensor(chosen, device=self._t.device)
        starts = torch.cat((self._first, self._later if self.states is None else self.states))
        series = Series(self._t[index, :length], self._y[index, :length], starts[self._start_of[index]])
        joints = self._joints[index]
        before = (joints >= 0).nonzero().squeeze(1)
        return SegmentBatch(series, before, joints[before])


def _starts(shooting: Shooting, series: Series) -> list[int]:
    """The numbers of the times at which segments start."""
    last = len(series.t) - 1
    if shooting.start == "free":
        usable = np.ones(last + 1, dtype=bool)
    else:
        usable = (~series.y.flatten(1).isnan().any(1)).cpu().numpy()
    starts = [0]
    while starts[-1] + shooting.length < last:
        # The last segment is as long as the others, so that all can share steps, and overlaps with the one before.
        wanted = min(starts[-1] + shooting.length, last - shooting.length)
        later = np.flatnonzero(usable[wanted:last])
        if not len(later):
            break
        starts.append(wanted + int(later[0]))
    return starts


def _ends(shooting: Shooting, starts: Sequence[int], count: int) -> list[int]:
    """The numbers of the times at which segments end: where the next one starts, or later."""
    following = [*starts[1:], count - 1]
    return [min(count - 1, max(start + shooting.length, after)) for start, after in zip(starts, following, strict=True)]


def _filled(series: Series) -> Tensor:
    """The states with missing values interpolated in time."""
    y = series.y.flatten(1).double().cpu().numpy().copy()
    t = series.t.double().cpu().numpy()
    for column in y.T:
        known = np.isfinite(column)
        if known.any():
            column[~known] = np.interp(t[~known], t[known], column[known])
    y = np.nan_to_num(y)
    return torch.as_tensor(y, dtype=series.y.dtype).reshape(series.y.shape)
