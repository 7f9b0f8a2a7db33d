"""Reading data: one table with a time column, observed columns and, if need be, a trajectory column.

The only module that touches pandas, which it imports when it is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """Data that cannot be fitted; the message says where and why in one line."""


@dataclass(frozen=True)
class Trajectory:
    """One time series: the observations that follow from one initial state.

    Attributes:
        name: what the trajectory column calls it; empty if there is none.
        t: the times, [T], strictly increasing.
        values: the observations, [T, n_observed], NaN where missing.
        rows: where each time stands in the source, [T]: "line 7 of data.csv" or "row 5".
    """

    name: str
    t: NDArray[np.float64]
    values: NDArray[np.float64]
    rows: list[str]


@dataclass(frozen=True)
class Dataset:
    """Observations of some of a model's states.

    Attributes:
        trajectories: the time series.
        observables: the names of the observed columns.
        states: the state that each of them observes.
        time_name: the name of the time column.
        source: where the data come from, for reports.
    """

    trajectories: list[Trajectory]
    observables: list[str]
    states: list[str]
    time_name: str
    source: str

    @property
    def n_data(self) -> int:
        """The number of values that are not missing."""
        return sum(int(np.isfinite(trajectory.values).sum()) for trajectory in self.trajectories)

    def column(self, k: int) -> NDArray[np.float64]:
        """The values of observable `k` that are not missing, of all trajectories in a row."""
        values = np.concatenate([trajectory.values[:, k] for trajectory in self.trajectories])
        return values[np.isfinite(values)]

    def check_positive(self) -> None:
        """Check that lognormal noise makes sense.

        Raises:
            DataError: a value is not positive; the message names it.
        """
        for trajectory in self.trajectories:
            for i, k in np.argwhere(trajectory.values <= 0):
                raise DataError(
                    f"lognormal noise needs positive data, but column {self.observables[k]!r} holds "
                    f"{trajectory.values[i, k]:g} in {trajectory.rows[i]}: use noise='normal', or leave the value out"
                )


def import_pandas() -> ModuleType:
    """The module pandas.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError("reading data and tables needs pandas: pip install 'torchivp[fit]'") from None
    return pandas


def read_data(
    source: Any,
    states: Sequence[str],
    *,
    time: str = "time",
    observe: Sequence[str] | Mapping[str, str] | None = None,
    trajectory: str | None = None,
) -> Dataset:
    """Read observations of a model's states.

    Args:
        source: the path of a CSV file with a header, or a pandas DataFrame.
        states: the names of the model's states, in order.
        time: the name of the time column.
        observe: the observed columns: a dict from column to state; or a list, of columns that are called like
            states, or else of one column per state in their order. Default: the columns called like states, or
            else all columns if there are as many as states.
        trajectory: the column that tells independent time series apart; None if there is one. Rows of a
            trajectory stand in the order of time; trajectories may alternate.

    Returns:
        The data; empty cells are missing values (NaN).

    Raises:
        DataError: the file or a column is missing, a cell is no number, times do not increase strictly within a
            trajectory, or there is too little data.
        ImportError: pandas is not installed.
    """
    table, name, rows = _table(source)
    _check_column(table, time, "time", name)
    if trajectory is not None:
        _check_column(table, trajectory, "trajectory", name)
    mapping = _mapping(table, states, time, observe, trajectory, name)
    t = _numbers(table, time, rows)
    for i in np.flatnonzero(np.isnan(t)):
        raise DataError(f"the time column {time!r} is empty in {rows[i]}")
    values = np.stack([_numbers(table, column, rows) for column in mapping], axis=1)
    labels = np.full(len(t), "") if trajectory is None else table[trajectory].astype(str).to_numpy()
    trajectories = []
    for label in dict.fromkeys(labels):
        of_label = np.flatnonzero(labels == label)
        series = Trajectory(str(label), t[of_label], values[of_label], [rows[i] for i in of_label])
        _check_trajectory(series, time)
        trajectories.append(series)
    dataset = Dataset(trajectories, list(mapping), list(mapping.values()), time, name)
    for k, column in enumerate(dataset.observables):
        if not len(dataset.column(k)):
            raise DataError(f"column {column!r} of {name} holds no values")
    return dataset


def _table(source: Any) -> tuple[Any, str, list[str]]:
    """The table with text cells or a DataFrame's own, its name, and the name of each of its rows."""
    pandas = import_pandas()
    if isinstance(source, pandas.DataFrame):
        if source.empty:
            raise DataError("the DataFrame holds no rows")
        return source, "the DataFrame", [f"row {label}" for label in source.index]
    if not isinstance(source, str | Path):
        raise TypeError(f"data must be the path of a CSV file or a DataFrame, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        table = pandas.read_csv(path, dtype=str, skipinitialspace=True, skip_blank_lines=False, encoding="utf-8-sig")
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (pandas.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {str(error).strip()}") from None
    table.columns = [str(column).strip() for column in table.columns]
    table = table.dropna(how="all")
    if table.empty:
        raise DataError(f"{path} holds no rows below its header")
    return table, path.name, [f"line {label + 2} of {path.name}" for label in table.index]


def _check_column(table: Any, column: str, role: str, name: str) -> None:
    columns = [str(each) for each in table.columns]
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{name} has no {role} column {column!r}.{hint} Its columns are {', '.join(columns)}")


def _mapping(
    table: Any,
    states: Sequence[str],
    time: str,
    observe: Sequence[str] | Mapping[str, str] | None,
    trajectory: str | None,
    name: str,
) -> dict[str, str]:
    """Which state each observed column observes."""
    listed = ", ".join(states)
    if isinstance(observe, str):
        observe = [observe]
    if observe is None:
        others = [str(column) for column in table.columns if column not in (time, trajectory)]
        observe = [column for column in others if column in states] or others
        if not set(observe) <= set(states) and len(observe) != len(states):
            raise DataError(
                f"cannot tell which columns of {name} observe the states {listed}: its columns are "
                f"{', '.join(others)}; say observe={{column: state}}"
            )
    if isinstance(observe, Mapping):
        mapping = dict(observe)
    elif set(observe) <= set(states):
        mapping = {column: column for column in observe}
    elif len(observe) == len(states):
        mapping = dict(zip(observe, states, strict=True))
    else:
        raise DataError(
            f"observe lists {len(observe)} columns ({', '.join(observe)}) for the {len(states)} states {listed}: "
            "say which state each observes, observe={column: state}"
        )
    if not mapping:
        raise DataError("observe names no column")
    for column, state in mapping.items():
        _check_column(table, column, "data", name)
        if state not in states:
            raise DataError(f"column {column!r} is to observe {state!r}, but the states are {listed}")
    return mapping


def _numbers(table: Any, column: str, rows: list[str]) -> NDArray[np.float64]:
    """A column as numbers, NaN where empty."""
    cells = table[column]
    numbers = import_pandas().to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    for i in np.flatnonzero((np.isnan(numbers) & cells.notna().to_numpy()) | np.isinf(numbers)):
        raise DataError(f"column {column!r} must hold numbers, but holds {str(cells.iloc[i])!r} in {rows[i]}")
    return numbers


def _check_trajectory(series: Trajectory, time: str) -> None:
    which = f" of trajectory {series.name!r}" if series.name else ""
    for i in np.flatnonzero(np.diff(series.t) <= 0):
        raise DataError(
            f"the times{which} must increase strictly, but {time} goes from {series.t[i]:g} to {series.t[i + 1]:g} "
            f"in {series.rows[i + 1]}: sort the rows, or name the trajectory column if there are several time series"
        )
    if len(series.t) < 2:
        raise DataError(f"too few data: there is only one time{which}, and a fit needs two")
