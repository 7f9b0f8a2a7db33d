"""The measurements of a data set in a row, each with the place where the model predicts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.data import Dataset


@dataclass(frozen=True, eq=False)
class Measured:
    """The n values that were measured: of each trajectory in the order of time, all observables of a time together.

    Attributes:
        y: the values, [n].
        observable: the number of the observable of each, [n].
        trajectory: that of the trajectory, [n].
        place: that of its time among the different times of its trajectory, [n].
        row: that of its row of the table of the trajectory, [n].
        censored: -1 where the true value is below `y`, 1 where it is above, else 0, int8 [n].
        sigma: the standard deviations that were given with the values, NaN for none, [n].
        times: the different times of each trajectory.
    """

    y: NDArray[np.float64]
    observable: NDArray[np.intp]
    trajectory: NDArray[np.intp]
    place: NDArray[np.intp]
    row: NDArray[np.intp]
    censored: NDArray[np.int8]
    sigma: NDArray[np.float64]
    times: list[list[float]]

    @property
    def padded_times(self) -> NDArray[np.float64]:
        """The times as a table, [n_trajectories, T], filled up with the last time of each."""
        width = max(map(len, self.times))
        return np.array([[*t, *[t[-1]] * (width - len(t))] for t in self.times])

    def of(self, observable: int) -> NDArray[np.bool_]:
        """Which values are of an observable, [n]."""
        return self.observable == observable

    def tables(self, values: NDArray[np.float64], data: Dataset) -> list[NDArray[np.float64]]:
        """Numbers [n], one for each value, as tables like those of the trajectories; NaN where data are missing."""
        found = []
        for i, series in enumerate(data.trajectories):
            own = self.trajectory == i
            table = np.full(series.values.shape, np.nan)
            table[self.row[own], self.observable[own]] = values[own]
            found.append(table)
        return found


def measurements(data: Dataset, horizon: float = 1.0) -> Measured:
    """The measurements in the first part of the different times of each trajectory, at least two of them."""
    parts: list[list[NDArray]] = [[] for _ in range(7)]
    times = []
    for i, series in enumerate(data.trajectories):
        distinct, place = np.unique(series.t, return_inverse=True)
        count = min(len(distinct), max(2, int(np.ceil(horizon * len(distinct)))))
        times.append(distinct[:count].tolist())
        row, observable = (np.isfinite(series.values) & (place < count)[:, None]).nonzero()
        censored = np.zeros(len(row), dtype=np.int8) if series.censored is None else series.censored[row, observable]
        sigma = np.full(len(row), np.nan) if series.sigma is None else series.sigma[row, observable]
        trajectory = np.full(len(row), i)
        found = (series.values[row, observable], observable, trajectory, place[row], row, censored, sigma)
        for part, one in zip(parts, found, strict=True):
            part.append(one)
    return Measured(*(np.concatenate(part) for part in parts), times=times)
