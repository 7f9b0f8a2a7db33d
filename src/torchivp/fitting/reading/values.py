"""The measured values of a table, of wide form (a column for each quantity) or long form (a row for each value)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.reading.cells import read_limits, read_numbers, read_signs
from torchivp.fitting.reading.table import DataError, Table

Columns = Mapping[str, str] | str | None
"""The columns that go with columns of data, by column; in a table of long form, the one that goes with the values."""


@dataclass(frozen=True)
class Measurements:
    """What was measured in n rows, of K quantities.

    Attributes:
        values: [n, K], NaN where missing; a limit where censored.
        sigma: the standard deviations that the table gives, [n, K], NaN where it gives none; None if nowhere.
        censored: -1 where the true value is below, +1 where it is above, else 0, [n, K]; None if nowhere.
        notes: what was done to read them.
    """

    values: NDArray[np.float64]
    sigma: NDArray[np.float64] | None
    censored: NDArray[np.int8] | None
    notes: list[str] = field(default_factory=list)

    def take(self, rows: NDArray[np.int64]) -> Measurements:
        """Those of some of the rows."""
        sigma = None if self.sigma is None else self.sigma[rows]
        return Measurements(self.values[rows], sigma, None if self.censored is None else self.censored[rows])

    def merge(self, into: NDArray[np.int64]) -> Measurements:
        """Fewer rows: each value that is not missing goes into the row that `into` [n] names."""
        i, k = np.nonzero(np.isfinite(self.values))
        n, columns = int(into.max()) + 1, self.values.shape[1]

        def moved(array: NDArray[Any], empty: float) -> NDArray[Any]:
            merged = np.full((n, columns), empty, dtype=array.dtype)
            merged[into[i], k] = array[i, k]
            return merged

        sigma = None if self.sigma is None else moved(self.sigma, np.nan)
        censored = None if self.censored is None else moved(self.censored, 0)
        return Measurements(moved(self.values, np.nan), sigma, censored)


def read_wide(
    table: Table,
    columns: Sequence[str],
    sigma: Columns,
    censored: Columns,
) -> Measurements:
    """The measurements in some columns of a table.

    Args:
        table: the table.
        columns: the columns of values, K.
        sigma: the column of standard deviations of some of them, by column.
        censored: the column that says which values are censored, of some of them, by column.

    Raises:
        DataError: a column is missing, or a cell does not hold what it should.
    """
    of_sigma = _by_column("sigma", sigma, columns, "its standard deviations")
    of_censored = _by_column("censored", censored, columns, "the signs of its limits")
    read = [_measured(table, column, of_sigma.get(column), of_censored.get(column)) for column in columns]
    return Measurements(
        np.concatenate([each.values for each in read], axis=1),
        _side_by_side([each.sigma for each in read], np.nan, np.float64),
        _side_by_side([each.censored for each in read], 0, np.int8),
        [note for each in read for note in each.notes],
    )


def read_long(
    table: Table,
    column: str,
    names: Sequence[str],
    columns: Sequence[str],
    sigma: Columns,
    censored: Columns,
) -> Measurements:
    """The measurements in one column of a table.

    Args:
        table: the table.
        column: the column of values.
        names: what each row measures, [n].
        columns: what to read of that, K.
        sigma: the column of standard deviations.
        censored: the column that says which values are censored.

    Raises:
        DataError: a column is missing, or a cell does not hold what it should.
    """
    read = _measured(table, column, _one_column("sigma", sigma), _one_column("censored", censored))
    own = np.array(names)[:, None] == np.array(columns)
    return Measurements(
        np.where(own, read.values, np.nan),
        None if read.sigma is None else np.where(own, read.sigma, np.nan),
        None if read.censored is None else np.where(own, read.censored, np.int8(0)),
        read.notes,
    )


def columns_named(argument: Columns) -> list[str]:
    """The columns that such an argument names."""
    return (
        []
        if argument is None
        else [argument]
        if isinstance(argument, str)
        else [str(each) for each in argument.values()]
    )


def merged_rows(t: NDArray[np.float64], kinds: Sequence[str]) -> NDArray[np.int64]:
    """The row into which each measurement of a long table goes: the first ones of a time into one, and so on."""
    seen: Counter[tuple[float, str]] = Counter()
    index: dict[tuple[float, int], int] = {}
    into = []
    for time, kind in zip(t.tolist(), kinds, strict=True):
        into.append(index.setdefault((time, seen[time, kind]), len(index)))
        seen[time, kind] += 1
    return np.array(into)


def _one_column(argument: str, given: Any) -> str | None:
    if isinstance(given, Mapping):
        raise DataError(f"with long, {argument} must name one column, {argument}='column', got {given!r}")
    return None if given is None else str(given)


def _by_column(argument: str, given: Columns, columns: Sequence[str], what: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DataError(
            f"{argument} must be a dict from column to the column that holds {what}, "
            f"{argument}={{{columns[0]!r}: 'column'}}, got {given!r}"
        )
    for column in map(str, given):
        if column not in columns:
            raise DataError(
                f"{argument} names the column {column!r}, which is not observed: the columns of data are "
                f"{', '.join(columns)}"
            )
    return {str(column): str(other) for column, other in given.items()}


def _measured(table: Table, column: str, sigma: str | None, censored: str | None) -> Measurements:
    """One column of measurements, K = 1."""
    values, signs, notes = read_limits(table, column)
    if censored is not None:
        signs = _both(table, column, signs, censored)
    for i in np.flatnonzero((signs != 0) & np.isnan(values)):
        raise DataError(
            f"column {censored!r} says that column {column!r} is censored in {table.rows[i]}, where that is empty: "
            "write the limit of detection there"
        )
    deviations = None if sigma is None else _deviations(table, column, values, sigma)
    used = censored is not None or signs.any()
    return Measurements(
        values[:, None], None if deviations is None else deviations[:, None], signs[:, None] if used else None, notes
    )


def _both(table: Table, column: str, limits: NDArray[np.int8], censored: str) -> NDArray[np.int8]:
    """The signs that stand before the values and those of the column for them."""
    signs = read_signs(table, censored)
    for i in np.flatnonzero(signs * limits < 0):
        raise DataError(
            f"columns {column!r} and {censored!r} contradict each other in {table.rows[i]}: one says that the true "
            "value is above, the other that it is below"
        )
    return np.where(limits == 0, signs, limits)


def _deviations(table: Table, column: str, values: NDArray[np.float64], sigma: str) -> NDArray[np.float64]:
    deviations = read_numbers(table, sigma, "sigma")
    for i in np.flatnonzero(np.isfinite(values) & ~(deviations > 0)):
        holds = "is empty" if np.isnan(deviations[i]) else f"holds {deviations[i]:g}"
        raise DataError(
            f"the sigma column {sigma!r} must hold a positive standard deviation for each value of {column!r}, but "
            f"{holds} in {table.rows[i]}"
        )
    return np.where(np.isfinite(values), deviations, np.nan)


def _side_by_side(columns: Sequence[NDArray[Any] | None], empty: float, dtype: type) -> NDArray[Any] | None:
    """Columns [n, 1] as an array [n, K], those that are None filled with `empty`; None if all are."""
    known = next((column for column in columns if column is not None), None)
    if known is None:
        return None
    filled = np.full(known.shape, empty, dtype=dtype)
    return np.concatenate([filled if column is None else column for column in columns], axis=1)
