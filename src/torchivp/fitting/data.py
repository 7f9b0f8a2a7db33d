"""Reading data: one table with a time column, observed columns and, if need be, a trajectory column.

The only module that touches pandas, which it imports when it is used.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_NOT_NUMBERS = "Mmc"  # the kinds of columns of dates, durations and complex numbers, which pandas would convert


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
        trajectory_name: the name of the column that tells the trajectories apart; None if there is none.
    """

    trajectories: list[Trajectory]
    observables: list[str]
    states: list[str]
    time_name: str
    source: str
    trajectory_name: str | None = None

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
        source: the path of a CSV file with a header, or a pandas DataFrame. The cells of a file are separated by
            commas, semicolons or tabs, whichever its header holds most of; with semicolons, numbers may have decimal
            commas. Lines that begin with # are comments.
        states: the names of the model's states, in order.
        time: the name of the time column. Names of columns are compared as text: 0 is "0".
        observe: the observed columns: a dict from column to state; or a list, of columns that are called like
            states, or else of one column per state in their order. Default: the columns called like states.
        trajectory: the column that tells independent time series apart; None if there is one. Rows of a
            trajectory stand in the order of time; trajectories may alternate.

    Returns:
        The data; empty cells are missing values (NaN).

    Raises:
        DataError: the file or a column is missing, a cell is no number, times do not increase strictly within a
            trajectory, or there is too little data.
        ImportError: pandas is not installed.
    """
    table = _table(source)
    time, trajectory = str(time), None if trajectory is None else str(trajectory)
    _check_column(table, time, "time")
    t = _numbers(table, time)
    for i in np.flatnonzero(np.isnan(t)):
        raise DataError(f"the time column {time!r} is empty in {table.rows[i]}")
    labels = np.full(len(t), "") if trajectory is None else _labels(table, trajectory)
    mapping = _mapping(table, states, observe, [time] if trajectory is None else [time, trajectory])
    values = np.stack([_numbers(table, column) for column in mapping], axis=1)
    trajectories = []
    for label in dict.fromkeys(labels):
        of_label = np.flatnonzero(labels == label)
        series = Trajectory(str(label), t[of_label], values[of_label], [table.rows[i] for i in of_label])
        _check_trajectory(series, time)
        trajectories.append(series)
    dataset = Dataset(trajectories, list(mapping), list(mapping.values()), time, table.name, trajectory)
    for k, column in enumerate(dataset.observables):
        if not len(dataset.column(k)):
            raise DataError(f"column {column!r} of {table.name} holds no values")
    return dataset


@dataclass(frozen=True)
class _Table:
    """What was read, before any cell is taken for a number.

    Attributes:
        cells: a DataFrame whose columns are called by text; its cells are text, or what a DataFrame held.
        name: what errors and reports call it.
        rows: what errors call each of its rows.
        decimal_comma: whether its numbers are written with decimal commas.
    """

    cells: Any
    name: str
    rows: list[str]
    decimal_comma: bool = False


def _table(source: Any) -> _Table:
    pandas = import_pandas()
    if isinstance(source, str | Path):
        return _csv_table(Path(source))
    if not isinstance(source, pandas.DataFrame):
        raise TypeError(f"data must be the path of a CSV file or a DataFrame, got {type(source).__name__}")
    if source.empty:
        raise DataError("the DataFrame holds no rows")
    cells = source.set_axis([str(column) for column in source.columns], axis="columns")
    return _Table(cells, "the DataFrame", [f"row {label}" for label in source.index])


def _csv_table(path: Path) -> _Table:
    pandas = import_pandas()
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    # The header is read as a row like the others, so that pandas refuses lines that are longer: it would take their
    # first cells for an index, and shift the rest.
    options: dict[str, Any] = {"header": None, "dtype": str, "skip_blank_lines": False}
    one_cell = {"sep": "\x1f", "quoting": csv.QUOTE_NONE, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        lines = pandas.read_csv(path, **options, **one_cell)[0].tolist()
        lines = ["" if line.lstrip().startswith("#") else line for line in lines]
        first = next(i for i, line in enumerate(lines) if line.strip())
        separator = max(",;\t", key=lines[first].count)
        options |= {"sep": separator, "skipinitialspace": True, "skiprows": first}
        cells = pandas.read_csv(StringIO("\n".join(lines)), **options).iloc[1:]
    except (pandas.errors.EmptyDataError, StopIteration):
        raise DataError(f"{path} is empty") from None
    except (pandas.errors.ParserError, UnicodeDecodeError) as error:
        longer = "saw" in str(error)
        hint = ": a line has more cells than the header; decimal commas need semicolons between cells" if longer else ""
        raise DataError(f"{path} is not a CSV file: {str(error).strip()}{hint}") from None
    header = next(csv.reader((f"{line}\n" for line in lines[first:]), delimiter=separator, skipinitialspace=True))
    cells.columns = [name.strip() for name in header]
    cells = cells.dropna(how="all")
    if cells.empty:
        raise DataError(f"{path} holds no rows below its header")
    rows = [f"line {first + label + 1} of {path.name}" for label in cells.index]
    texts = (text for text in cells.to_numpy().ravel() if isinstance(text, str))
    decimal_comma = separator == ";" and any(_DECIMAL_COMMA.fullmatch(text) for text in texts)
    return _Table(cells, path.name, rows, decimal_comma)


def _check_column(table: _Table, column: str, role: str) -> None:
    columns = list(table.cells.columns)
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{table.name} has no {role} column {column!r}.{hint} Its columns are {', '.join(columns)}")
    if columns.count(column) > 1:
        raise DataError(f"{table.name} has {columns.count(column)} columns called {column!r}: rename all but one")


def _mapping(
    table: _Table, states: Sequence[str], observe: Sequence[str] | Mapping[str, str] | None, others: Sequence[str]
) -> dict[str, str]:
    """Which state each observed column observes; `others` are the columns of times and trajectories."""
    if observe is None:
        columns = [column for column in table.cells.columns if column not in others]
        mapping = {column: column for column in columns if column in states}
        if not mapping:
            call = ", ".join(f"{column!r}: state" for column in columns)
            raise DataError(
                f"no column of {table.name} is called like one of the states {', '.join(states)}: say which state each "
                f"observes, observe={{{call}}}"
            )
    elif isinstance(observe, Mapping):
        mapping = {str(column): state for column, state in observe.items()}
    else:
        mapping = _mapping_of_list([observe] if isinstance(observe, str) else [str(each) for each in observe], states)
    if not mapping:
        raise DataError("observe names no column")
    for column, state in mapping.items():
        _check_column(table, column, "data")
        if state not in states:
            raise DataError(f"column {column!r} is to observe {state!r}, but the states are {', '.join(states)}")
    return mapping


def _mapping_of_list(columns: Sequence[str], states: Sequence[str]) -> dict[str, str]:
    """Which state each of the listed columns observes: the one of its name, or else that of its place."""
    listed, known = ", ".join(columns), ", ".join(states)
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"observe lists {column!r} twice: {listed}")
    if set(columns) <= set(states):
        return {column: column for column in columns}
    if len(columns) != len(states):
        raise DataError(
            f"observe lists {len(columns)} columns ({listed}) for the {len(states)} states {known}: "
            "say which state each observes, observe={column: state}"
        )
    mapping = dict(zip(columns, states, strict=True))
    for column, state in mapping.items():
        if column in states and column != state:
            raise DataError(
                f"observe lists {listed} for the states {known}: by its place {column!r} observes {state!r}, by its "
                "name another state; say which, observe={column: state}"
            )
    return mapping


def _labels(table: _Table, column: str) -> NDArray[Any]:
    """What a column calls the trajectory of each row."""
    _check_column(table, column, "trajectory")
    cells = table.cells[column]
    for i in np.flatnonzero(cells.isna()):
        raise DataError(f"the trajectory column {column!r} is empty in {table.rows[i]}")
    return cells.astype(str).to_numpy()


def _numbers(table: _Table, column: str) -> NDArray[np.float64]:
    """A column as numbers, NaN where empty."""
    cells = written = table.cells[column]
    if table.decimal_comma:
        for i in np.flatnonzero(cells.str.contains(".", regex=False, na=False)):
            raise DataError(
                f"{table.name} has decimal commas, so column {column!r} must not hold {cells.iloc[i]!r} in "
                f"{table.rows[i]}: write all of its numbers the same way, without separators of thousands"
            )
        cells = cells.str.replace(",", ".", regex=False)
    if cells.dtype.kind not in _NOT_NUMBERS:
        cells = import_pandas().to_numeric(cells, errors="coerce")
    if cells.dtype.kind in _NOT_NUMBERS:
        numbers = np.full(len(cells), np.nan)
    else:
        numbers = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    for i in np.flatnonzero((np.isnan(numbers) & written.notna().to_numpy()) | np.isinf(numbers)):
        cell = written.iloc[i]
        hint = _hint_on_dates(column, cell)
        raise DataError(f"column {column!r} must hold numbers, but holds {str(cell)!r} in {table.rows[i]}{hint}")
    return numbers


def _hint_on_dates(column: str, cell: Any) -> str:
    """How to make numbers of a column of dates or durations; empty if it is none."""
    days = "pandas.Timedelta(days=1)"
    if isinstance(cell, import_pandas().Timedelta):
        return f": take them in a unit, table[{column!r}] / {days}"
    if not _DATE.match(str(cell)):
        return ""
    read = f"table = pandas.read_csv(path, parse_dates=[{column!r}]), " if isinstance(cell, str) else ""
    return (
        f": count from a first date, {read}table[{column!r}] = (table[{column!r}] - table[{column!r}].min()) / {days}"
    )


def _check_trajectory(series: Trajectory, time: str) -> None:
    which = f" of trajectory {series.name!r}" if series.name else ""
    for i in np.flatnonzero(np.diff(series.t) <= 0):
        raise DataError(
            f"the times{which} must increase strictly, but {time} goes from {series.t[i]:g} to {series.t[i + 1]:g} "
            f"in {series.rows[i + 1]}: sort the rows, or name the trajectory column if there are several time series"
        )
    if len(series.t) < 2:
        raise DataError(f"too few data: there is only one time{which}, and a fit needs two")
