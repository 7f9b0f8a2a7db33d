"""The data in segments, for multiple shooting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.data import Dataset, Trajectory
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.inputs import Inputs

_MOST, _MOST_IN_ALL = 64, 512  # segments of a trajectory, and of all of them


@dataclass(frozen=True)
class Segments:
    """The trajectories of data in segments.

    Attributes:
        data: the segments in the place of the trajectories. Each has the data from its beginning to before its end,
            and a row without data at its end.
        owner: the number of the trajectory that each is of, [n_segments].
        later: which of them begin at a node, instead of at the beginning of their trajectory, [n_segments].
    """

    data: Dataset
    owner: NDArray[np.intp]
    later: NDArray[np.bool_]

    @property
    def chains(self) -> list[list[int]]:
        """The numbers of the segments of each trajectory."""
        return [np.flatnonzero(self.owner == i).tolist() for i in range(self.owner[-1] + 1)]


def split(misfit: Misfit) -> Segments | None:
    """The data in segments; None if no trajectory has enough times for two.

    Where every state is observed, a segment has two intervals between times or more; where states are hidden, it has
    values enough to say something of them.
    """
    data, least = misfit.data, _intervals(misfit)
    most = max(2, min(_MOST, _MOST_IN_ALL // len(data.trajectories)))
    parts, owner, later = [], [], []
    for number, series in enumerate(data.trajectories):
        borders = _borders(series, misfit.inputs, least, most)
        for i, (start, end) in enumerate(pairwise(borders)):
            parts.append(_part(series, start, end, last=i == len(borders) - 2))
            owner.append(number)
            later.append(i > 0)
    if not any(later):
        return None
    return Segments(replace(data, trajectories=parts), np.array(owner), np.array(later))


def check_segments(misfit: Misfit) -> None:
    """Refuse data that make no two segments.

    Raises:
        ValueError: the message says how many times that takes.
    """
    if split(misfit) is None:
        longest = max(len(np.unique(series.t)) for series in misfit.data.trajectories)
        raise ValueError(
            f"shooting='multiple' needs a time series with {2 * _intervals(misfit) + 1} different times or more, not "
            f"all of them those of inputs, and the longest has {longest}: leave it out"
        )


def _intervals(misfit: Misfit) -> int:
    """How many intervals between times a segment has at least."""
    if set(misfit.model.states) <= set(misfit.data.states):
        return 2
    return max(2, -(-2 * len(misfit.model.states) // len(misfit.data.observables)))


def _borders(series: Trajectory, inputs: Inputs, least: int, most: int) -> list[float]:
    """Where the segments of a trajectory begin and end: at times of data at which no input acts."""
    times = np.unique(series.t)
    count = max(1, min(most, (len(times) - 1) // least))
    inner = times[np.unique(np.linspace(0, len(times) - 1, count + 1).round().astype(int))[1:-1]]
    taken = {*inputs.times(series.name), *inputs.jump_times}
    return [float(times[0]), *(t for t in inner.tolist() if t not in taken), float(times[-1])]


def _part(series: Trajectory, start: float, end: float, last: bool) -> Trajectory:
    """The data from `start` to before `end`, at which there is a row without data; with those at `end` if `last`."""
    until = len(series.t) if last else int(np.searchsorted(series.t, end)) + 1
    own = slice(int(np.searchsorted(series.t, start)), until)
    values = series.values[own].copy()
    if not last:
        values[-1] = np.nan
    return replace(
        series,
        t=series.t[own],
        values=values,
        rows=series.rows[own],
        sigma=None if series.sigma is None else series.sigma[own],
        censored=None if series.censored is None else series.censored[own],
    )
