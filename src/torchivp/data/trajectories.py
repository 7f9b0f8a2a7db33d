"""Observed trajectories as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchivp.data.series import Series
from torchivp.fitting.data import DataError, read_data


class TrajectoryDataset(Dataset[Series]):
    """Observed trajectories: `dataset[i]` is the `Series` `(t, y, y0)` of one.

    The trajectories may have different times and lengths; missing values are NaN. `DataLoader` needs
    `collate_fn=torchivp.data.collate` where times differ; `torchivp.train` makes its own batches.

    Args:
        t: the times, in order: [T] for all trajectories, [N, T] with NaN at the end of shorter ones, or a list with
            a series for each.
        y: the observed states, [N, T, *state] or a list of [T, *state]; [T, n] for one trajectory.
        y0: the states at the first times, [N, *state], or [*state] for all; None for the first observations.
        names: what the states are called, for pictures; default `y0`, `y1`, ...

    Attributes:
        names: the names of the states.

    Raises:
        TypeError, ValueError: shapes do not fit, times are not in order, or a trajectory begins with a missing value
            and there is no `y0`.
    """

    def __init__(self, t: Any, y: Any, y0: Any = None, *, names: Sequence[str] | None = None):
        states = _states(t, y)
        times = _times(t, len(states))
        starts = _starts(y0, states)
        pairs = zip(times, states, starts, strict=True)
        self._series = [_checked(i, *each) for i, each in enumerate(pairs)]
        if not self._series:
            raise ValueError("there is no trajectory: y must hold at least one")
        size = self._series[0].y0.numel()
        self.names = [f"y{i}" for i in range(size)] if names is None else list(names)
        if len(self.names) != size:
            raise ValueError(f"{size} states need {size} names, got {', '.join(self.names)}")

    @classmethod
    def from_table(
        cls,
        source: Any,
        columns: Sequence[str],
        *,
        time: str = "time",
        trajectory: str | None = None,
        y0: Any = None,
        dtype: torch.dtype | None = None,
    ) -> TrajectoryDataset:
        """Read trajectories from a table.

        Args:
            source: a table as `torchivp.fitting.read_data` takes it: the path of a file, a DataFrame or a dict of
                columns.
            columns: the columns with the states, in order. Empty cells are missing values. The rows of a trajectory
                are sorted by time.
            time: the column with the times.
            trajectory: the column that tells trajectories apart; None if there is one.
            y0: as for the class.
            dtype: the dtype of times and states; None for torch's default.

        Raises:
            DataError: the file or a column is missing, or a cell is no number.
            ValueError: a trajectory has a time twice.
            ImportError: a package is not installed that reads the format.
        """
        table = read_data(source, columns, time=time, observe=columns, trajectory=trajectory)
        if any(each.censored is not None for each in table.trajectories):
            raise DataError(f"a TrajectoryDataset holds no censored values: {'; '.join(table.notes)}")
        dtype = dtype or torch.get_default_dtype()
        times = [torch.as_tensor(each.t, dtype=dtype) for each in table.trajectories]
        states = [torch.as_tensor(each.values, dtype=dtype) for each in table.trajectories]
        return cls(times, states, y0, names=columns)

    def __len__(self) -> int:
        return len(self._series)

    def __getitem__(self, index: int) -> Series:
        return self._series[index]

    def __repr__(self) -> str:
        lengths = sorted({len(each.t) for each in self._series})
        times = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        return f"{type(self).__name__}({len(self)} trajectories, {times} times, states {', '.join(self.names)})"


def _states(t: Any, y: Any) -> list[Tensor]:
    """The states of each trajectory, [T, *state]."""
    if isinstance(y, Tensor | np.ndarray):
        one = torch.as_tensor(y)
        if one.ndim == 2 and np.ndim(t) == 1 and len(t) == len(one):
            return [one]
        if one.ndim < 3:
            raise ValueError(
                f"y must be [N, T, n], N trajectories of n states at T times, or [T, n] for one, got shape "
                f"{tuple(one.shape)} with times of shape {tuple(np.shape(t))}: write y.unsqueeze(-1) where the state "
                "is one number"
            )
        return list(one)
    if not isinstance(y, list | tuple):
        raise TypeError(f"y must be a tensor [N, T, n] or a list of tensors [T, n], got {type(y).__name__}")
    return [torch.as_tensor(each) for each in y]


def _times(t: Any, count: int) -> list[Tensor]:
    """The times of each trajectory, [T]."""
    if isinstance(t, list | tuple) and t and all(np.ndim(each) == 1 for each in t):
        times = [torch.as_tensor(each) for each in t]
    else:
        tensor = torch.as_tensor(t)
        times = [tensor] * count if tensor.ndim == 1 else list(tensor)
    if len(times) != count:
        raise ValueError(f"t has times for {len(times)} trajectories, and y states of {count}")
    return times


def _starts(y0: Any, states: Sequence[Tensor]) -> list[Tensor]:
    """The state that each trajectory starts from."""
    if y0 is None:
        return [each[0] for each in states]
    starts = torch.as_tensor(y0)
    one = states[0].shape[1:]
    if starts.shape == one:
        return [starts] * len(states)
    if starts.shape != (len(states), *one):
        raise ValueError(
            f"y0 must be of shape {tuple(one)} or {(len(states), *one)}, the states that the trajectories start from, "
            f"got {tuple(starts.shape)}"
        )
    return list(starts)


def _checked(number: int, t: Tensor, y: Tensor, y0: Tensor) -> Series:
    """A trajectory without the padding behind its last time.

    Raises:
        TypeError: times or states are no floating point numbers.
        ValueError: they do not fit each other, or it cannot be told where the trajectory starts.
    """
    which = f"trajectory {number}"
    if not (t.is_floating_point() and y.is_floating_point()):
        raise TypeError(f"times and states must be floating point, got {t.dtype} and {y.dtype} in {which}")
    length = int((~t.isnan()).sum())
    if t[:length].isnan().any():
        raise ValueError(f"t has NaN before other times in {which}: NaN may only fill up the end of a row")
    if y.ndim < 2 or len(y) != len(t):
        raise ValueError(
            f"{which} has {len(t)} times and states of shape {tuple(y.shape)}: they must be [T, n], one state for each"
        )
    t, y = t[:length], y[:length]
    if length < 2:
        raise ValueError(f"{which} has {length} times, and needs at least two")
    if not (t.isfinite().all() and (t.diff() > 0).all()):
        raise ValueError(f"the times of {which} must be finite and increase strictly: sort them")
    if y.isinf().any():
        raise ValueError(f"the states of {which} hold infinite values: write NaN for missing ones")
    if not y0.isfinite().all():
        raise ValueError(
            f"{which} begins with missing values, so that it is not known where it starts: give y0=, or leave out the "
            "times before all states are observed"
        )
    return Series(t, y, y0.to(y.dtype))
