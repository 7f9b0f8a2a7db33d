"""Datasets: observed time series, made of one table with a time column and columns of data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.reading.cells import read_names
from torchivp.fitting.reading.conditions import Condition, constant_labels, read_conditions
from torchivp.fitting.reading.dates import Calendar, TimeUnit, read_times
from torchivp.fitting.reading.doses import Infusion, read_doses
from torchivp.fitting.reading.observe import (
    columns_called_like_states,
    names_that_are_known,
    observed_state,
    read_observe,
)
from torchivp.fitting.reading.table import DataError, Table, did_you_mean
from torchivp.fitting.reading.tables import import_pandas, read_table
from torchivp.fitting.reading.values import (
    Columns,
    Measurements,
    columns_named,
    merged_rows,
    read_long,
    read_wide,
)

__all__ = ["DataError", "Dataset", "Infusion", "TimeUnit", "Trajectory", "import_pandas", "read_data", "read_doses"]


@dataclass(frozen=True)
class Trajectory:
    """One time series: the observations that follow from one initial state.

    Attributes:
        name: what the trajectory column calls it; empty if there is none.
        t: the times, [T], in order; a time that stands more than once has replicates.
        values: the observations, [T, n_observed], NaN where missing; the limit of detection where censored.
        rows: where each time stands in the source, [T]: "line 7 of data.csv" or "row 5".
        sigma: the standard deviations of the noise as far as the data give them, [T, n_observed], NaN where they do
            not; None if nowhere.
        censored: [T, n_observed]: -1 where the true value lies below `values`, 1 where it lies above, else 0; None if
            no value is censored.
        constants: known constants of this trajectory, by name.
        labels: what else is known of it, in text, by name.

    Raises:
        DataError: the shapes do not fit each other, or the times are not in order.
    """

    name: str
    t: NDArray[np.float64]
    values: NDArray[np.float64]
    rows: list[str]
    sigma: NDArray[np.float64] | None = None
    censored: NDArray[np.int8] | None = None
    constants: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.t)
        if np.ndim(self.values) != 2 or len(self.values) != count or len(self.rows) != count:
            raise DataError(
                f"a trajectory of {count} times needs values of shape ({count}, n_observed) and {count} rows, got "
                f"values of shape {np.shape(self.values)} and {len(self.rows)} rows"
            )
        for what, array in (("sigma", self.sigma), ("censored", self.censored)):
            if array is not None and np.shape(array) != np.shape(self.values):
                raise DataError(f"{what} must have the shape of values, {np.shape(self.values)}, got {np.shape(array)}")
        if not np.all(np.diff(self.t) >= 0):
            raise DataError("the times of a trajectory must be in order, and none NaN: sort the rows")


@dataclass(frozen=True)
class Dataset:
    """Observations of a model.

    Attributes:
        trajectories: the time series.
        observables: the names of the observed columns.
        states: the state that each of them observes; None if it observes something else.
        time_name: the name of the time column.
        source: where the data come from, for reports.
        trajectory_name: the name of the column that tells the trajectories apart; None if there is none.
        observe: what each column observes, as given: the name of a state, the text of an expression or a callable.
            Default: the states.
        notes: what was done to the data, in sentences.
        calendar: what dates were counted in and from; None if times were numbers.

    Raises:
        DataError: `observe` is left out, and a column observes no state.
    """

    trajectories: list[Trajectory]
    observables: list[str]
    states: list[str | None]
    time_name: str
    source: str
    trajectory_name: str | None = None
    observe: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calendar: Calendar | None = None

    def __post_init__(self) -> None:
        if not self.observe:
            object.__setattr__(self, "observe", dict(zip(self.observables, self.states, strict=True)))
        for column, spec in self.observe.items():
            if spec is None:
                raise DataError(f"column {column!r} observes no state: say what it does, observe={{{column!r}: ...}}")

    @property
    def n_data(self) -> int:
        """The number of values that are not missing, censored ones among them."""
        return sum(int(np.isfinite(trajectory.values).sum()) for trajectory in self.trajectories)

    def column(self, k: int) -> NDArray[np.float64]:
        """The values of observable `k` that are not missing, of all trajectories in a row."""
        values = np.concatenate([trajectory.values[:, k] for trajectory in self.trajectories])
        return values[np.isfinite(values)]


def read_data(
    source: Any,
    states: Sequence[str],
    *,
    time: str = "time",
    observe: Sequence[str] | Mapping[str, Any] | None = None,
    trajectory: str | None = None,
    sigma: Columns = None,
    censored: Columns = None,
    long: tuple[str, str] | None = None,
    conditions: Any = None,
    time_unit: TimeUnit | None = None,
    names: Collection[str] = (),
) -> Dataset:
    """Read observations of a model.

    The cells of a text file are separated by commas, semicolons or tabs, whichever its header holds most of, or else by
    spaces; with semicolons or tabs, numbers may have decimal commas. Lines that begin with # are comments. It is read
    as UTF-8, as UTF-16 if it begins with the mark of that, or else as Windows-1252. Missing are cells that are empty,
    NaN or one of pandas' words for it (NA, N/A, null, ...), and in columns of numbers "." and "-". A value such as
    "<0.5" or "> 100" is censored at that limit. Rows are sorted by time; a time that stands more than once has
    replicates.

    Args:
        source: the path of a text file with a header (.csv, .tsv, .txt), of an Excel workbook (.xlsx; "book.xlsx#Sheet"
            for another sheet than the first) or of a Parquet file; a pandas or Polars DataFrame, or any other that
            narwhals takes; or a dict from column to a list, an array [n] or a tensor [n].
        states: the names of the model's states, in order.
        time: the name of the time column. Names of columns are compared as text: 0 is "0".
        observe: the observed columns: a dict from column to the name of a state, the text of an expression or a
            callable; or a list, of columns that are called like states, or else of one column per state in their
            order. Default: the columns called like states. With `long`, all names of the name column.
        trajectory: the column that tells independent time series apart; None if there is one. Trajectories may
            alternate.
        sigma: the columns that hold the standard deviations of the noise, positive wherever there is a value: a dict
            by observed column; with `long`, one column.
        censored: the columns that say which values are limits: "<", "left" or -1 where the true value lies below, ">",
            "right" or 1 where it lies above, 0, "none" or nothing elsewhere: a dict by observed column; with `long`,
            one column.
        long: (name column, value column) of a table of long form, with one measurement in each row: the names become
            the observed columns. Measurements of one time stand in one row of the data.
        conditions: what is known of the trajectories, a row for each: a table like `source`, with a column called like
            `trajectory` or else in its first column, or a dict {trajectory: {name: value}}. Numbers become
            `constants`, text `labels`.
        time_unit: "seconds", "minutes", "hours", "days", "weeks" or "years" (of 365.25 days): what dates (ISO text or a
            column of dates) are counted in, from the first of the table. Durations are taken in that unit.
        names: other names that what is observed may consist of, such as parameters. A word that is none of them, and
            resembles a state, is taken for a misspelt state.

    Returns:
        The data; `notes` say what was done to them.

    Raises:
        DataError: the file or a column is missing, a cell is not what its column must hold, conditions are missing or
            contradict each other, or there is too little data; the message says where.
        TypeError: `source` is no table.
        ValueError: an argument makes no sense.
        ImportError: a package is not installed: narwhals for data frames other than pandas', openpyxl for Excel, and
            pyarrow or Polars for Parquet.
    """
    table = read_table(source)
    time, trajectory = str(time), None if trajectory is None else str(trajectory)
    t, notes_on_times, calendar = read_times(table, time, time_unit)
    series = [""] * len(table.rows) if trajectory is None else read_names(table, trajectory, "trajectory")
    pair = None if long is None else _pair(long)
    kinds = None if pair is None else read_names(table, pair[0], "name")
    specs = _specs(table, states, observe, [time, trajectory], kinds, names)
    if kinds is not None:
        kept = [i for i, kind in enumerate(kinds) if kind in specs]
        table, t, series, kinds = table.take(kept), t[kept], [series[i] for i in kept], [kinds[i] for i in kept]
    if pair is None or kinds is None:
        measured = read_wide(table, list(specs), sigma, censored)
    else:
        measured = read_long(table, pair[1], kinds, list(specs), sigma, censored)
    _check_values(table, list(specs), measured)
    rows, notes_on_order = _rows_by_trajectory(table, time, t, series, kinds)
    used = [time, trajectory, *(pair or ()), *specs, *columns_named(sigma), *columns_named(censored)]
    known, notes_on_conditions = _conditions(table, rows, conditions, trajectory, used)
    of_rows = None if kinds is None else np.array(kinds)
    trajectories = [_trajectory(table, name, own, t, measured, of_rows, known[name]) for name, own in rows.items()]
    notes = [*table.notes, *notes_on_times, *measured.notes, *notes_on_order, *notes_on_conditions]
    observed = [observed_state(spec, states) for spec in specs.values()]
    return Dataset(trajectories, list(specs), observed, time, table.name, trajectory, specs, notes, calendar)


def _pair(long: tuple[str, str]) -> tuple[str, str]:
    if not isinstance(long, tuple | list) or len(long) != 2:
        raise DataError(f"long must name two columns, long=('name column', 'value column'), got {long!r}")
    return str(long[0]), str(long[1])


def _specs(
    table: Table,
    states: Sequence[str],
    observe: Sequence[str] | Mapping[str, Any] | None,
    others: Sequence[str | None],
    kinds: list[str] | None,
    names: Collection[str],
) -> dict[str, Any]:
    """What each column observes, or with `kinds` (what each row of a long table measures) each of these."""
    if observe is None and kinds is None:
        columns = [column for column in table.columns if column not in others]
        return columns_called_like_states(columns, states, table.name)
    if observe is None and kinds is not None:
        return names_that_are_known(list(dict.fromkeys(kinds)), states, names, table.name)
    specs = read_observe({} if observe is None else observe, states, names)
    for column in specs:
        if kinds is None:
            table.column(column, "data")
        elif column not in kinds:
            measured = ", ".join(dict.fromkeys(kinds))
            raise DataError(
                f"{table.name} has no measurements of {column!r}.{did_you_mean(column, set(kinds))} It has those of "
                f"{measured}"
            )
    return specs


def _check_values(table: Table, columns: Sequence[str], measured: Measurements) -> None:
    for k, column in enumerate(columns):
        if not np.isfinite(measured.values[:, k]).any():
            raise DataError(f"column {column!r} of {table.name} holds no values")


def _rows_by_trajectory(
    table: Table, time: str, t: NDArray[np.float64], series: Sequence[str], kinds: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """The rows of each trajectory in the order of time, and a note if those of one quantity were not."""
    groups: dict[str, list[int]] = {}
    last: dict[tuple[str, str], int] = {}
    falls: dict[str, str] = {}
    for i, name in enumerate(series):
        groups.setdefault(name, []).append(i)
        before = last.get(kind := (name, "" if kinds is None else kinds[i]), i)
        if t[i] < t[before]:
            falls.setdefault(name, f"{time} goes from {t[before]:g} to {t[i]:g} in {table.rows[i]}")
        last[kind] = i
    rows = {name: np.array(own)[np.argsort(t[own], kind="stable")] for name, own in groups.items()}
    if not falls:
        return rows, []
    fall = next(iter(falls.values()))
    if "" in falls:
        several = "if there are several time series, name the column that tells them apart, trajectory='column'"
        return rows, [f"the rows were sorted by time: {fall}; {several}"]
    named = f"trajectory {next(iter(falls))!r}" if len(falls) == 1 else f"trajectories {', '.join(map(repr, falls))}"
    return rows, [f"the rows of {named} were sorted by time: {fall}"]


def _conditions(
    table: Table,
    rows: Mapping[str, NDArray[np.int64]],
    conditions: Any,
    trajectory: str | None,
    used: Sequence[str | None],
) -> tuple[dict[str, Condition], list[str]]:
    """What is known of each trajectory, by the table of conditions and by the columns of text of the data."""
    labels = constant_labels(table, {name: own.tolist() for name, own in rows.items()}, used)
    if conditions is None:
        return {name: Condition(labels=labels[name]) for name in rows}, []
    known, notes = read_conditions(conditions, list(rows), trajectory)
    for name, condition in known.items():
        for label, text in labels[name].items():
            if condition.labels.setdefault(label, text) != text:
                raise DataError(
                    f"{label!r} of trajectory {name!r} is {condition.labels[label]!r} in conditions, but {text!r} in "
                    f"{table.name}"
                )
    return known, notes


def _trajectory(
    table: Table,
    name: str,
    rows: NDArray[np.int64],
    t: NDArray[np.float64],
    measured: Measurements,
    kinds: NDArray[np.str_] | None,
    known: Condition,
) -> Trajectory:
    times, own, places = t[rows], measured.take(rows), [table.rows[i] for i in rows]
    if kinds is not None:
        into = merged_rows(times, kinds[rows].tolist())
        times, own = times[np.unique(into, return_index=True)[1]], own.merge(into)
        together: dict[int, list[str]] = {}
        for i, place in zip(into.tolist(), places, strict=True):
            together.setdefault(i, []).append(place)
        places = [", ".join(together[i]) for i in range(len(times))]
    return Trajectory(name, times, own.values, places, own.sigma, own.censored, known.constants, known.labels)


def check_times(data: Dataset) -> None:
    """Refuse data of which no trajectory has two times.

    Raises:
        DataError: the message says so.
    """
    trajectories = data.trajectories
    if any(len(np.unique(each.t)) > 1 for each in trajectories):
        return
    if len(trajectories) > 1:
        raise DataError("too few data: each trajectory has only one time, and a fit needs one that has two")
    which = f" of trajectory {trajectories[0].name!r}" if trajectories[0].name else ""
    raise DataError(f"too few data: there is only one time{which}, and a fit needs two")
