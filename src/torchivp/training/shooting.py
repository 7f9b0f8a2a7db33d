"""Multiple shooting: trajectories cut into segments that are all solved as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from torchivp.checks import check_number, check_whole_number
from torchivp.data.series import Series, collate


@dataclass(frozen=True)
class Shooting:
    """How to cut trajectories into segments, each solved from a state of its own.

    An error at the start of a long trajectory spoils all of it, and the loss has many minima; over short segments it
    has few. Source: Bock, "Recent advances in parameter identification techniques for O.D.E." (1983).

    Args:
        length: how many observations a segment reaches beyond its start.
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
        series: the segments; those that other segments continue are compared up to there only if starts are free.
        joints: segment `joints[0][k]` is at its time number `joints[1][k]` where segment `joints[0][k] + 1` starts.
    """

    series: Series
    joints: tuple[list[int], list[int]]

    def gaps(self, predicted: Tensor) -> Tensor:
        """How far each segment is from the start of the next one, [joints, *state]."""
        before, at = self.joints
        after = [segment + 1 for segment in before]
        return predicted[before, at] - self.series.y0[after]


class Segments:
    """The segments of the trajectories of a dataset.

    Args:
        shooting: how to cut.
        series: all trajectories, in the order of their numbers.
        device: where to keep free states.

    Attributes:
        states: the free states that segments start from, the first ones of trajectories excepted, [n, *state]; None
            if segments start from the data.
    """

    def __init__(self, shooting: Shooting, series: Sequence[Series], device: torch.device):
        self._shooting = shooting
        self._starts = [_starts(shooting, each) for each in series]
        counts = [len(starts) - 1 for starts in self._starts]
        self._first = np.cumsum([0, *counts]).tolist()
        self.states: nn.Parameter | None = None
        if shooting.start == "free":
            first = [_filled(each)[starts[1:]] for each, starts in zip(series, self._starts, strict=True)]
            self.states = nn.Parameter(torch.cat(first).to(device))

    def batch(self, numbers: Sequence[int], series: Sequence[Series]) -> SegmentBatch:
        """The segments of the trajectories with these numbers."""
        items: list[Series] = []
        joints: tuple[list[int], list[int]] = ([], [])
        for number, each in zip(numbers, series, strict=True):
            starts = self._starts[number]
            ends = _ends(self._shooting, starts, len(each.t))
            for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
                y = each.y[start : end + 1]
                if k + 1 < len(starts):
                    joints[0].append(len(items))
                    joints[1].append(starts[k + 1] - start)
                    if self.states is not None:  # what follows belongs to the next segment
                        y = y.clone()
                        y[starts[k + 1] - start :] = torch.nan
                items.append(Series(each.t[start : end + 1], y, self._start(number, k, each, start)))
        return SegmentBatch(collate(items), joints)

    def _start(self, number: int, k: int, series: Series, start: int) -> Tensor:
        if k == 0:
            return series.y0
        if self.states is None:
            return series.y[start]
        return self.states[self._first[number] + k - 1]


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
