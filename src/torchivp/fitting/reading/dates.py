"""Columns of times: numbers, or dates and durations counted in a unit."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.reading.cells import is_missing, parse_number, read_numbers
from torchivp.fitting.reading.table import DataError, Table

TimeUnit = Literal["seconds", "minutes", "hours", "days", "weeks", "years"]

_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0, "years": 31557600.0}


def read_times(
    table: Table, column: str, unit: TimeUnit | None = None, dates: str = "time_unit='days'"
) -> tuple[NDArray[np.float64], list[str]]:
    """The times of a table, [n].

    Args:
        table: the table.
        column: its column of times.
        unit: what dates are counted in, from the first date of the table, and durations too. A year has 365.25 days.
        dates: how dates can be counted in a unit, for messages.

    Returns:
        The times, and a note on what dates were counted from.

    Raises:
        DataError: there is no such column, a cell is missing, or cells are no numbers, or with `unit` no dates.
        ValueError: `unit` is unknown.
    """
    for i, cell in enumerate(table.column(column, "time")):
        if is_missing(cell):
            raise DataError(f"the time column {column!r} is empty in {table.rows[i]}")
    if unit is None:
        return read_numbers(table, column, "time", dates), []
    if unit not in _SECONDS:
        raise ValueError(f"time_unit must be one of {', '.join(map(repr, get_args(TimeUnit)))}, got {unit!r}")
    cells = table.column(column, "time")
    if all(isinstance(cell, timedelta) for cell in cells):
        since, notes = cells, [f"the durations in column {column!r} were taken in {unit}"]
    else:
        moments = [_moment(table, column, i, cell) for i, cell in enumerate(cells)]
        _check_time_zones(table, column, moments)
        first = min(moments)
        since = [moment - first for moment in moments]
        shown = first.date() if (first.hour, first.minute, first.second, first.microsecond) == (0, 0, 0, 0) else first
        notes = [f"times were counted in {unit} from {shown}, the first date of column {column!r}"]
    return np.array([each.total_seconds() for each in since]) / _SECONDS[unit], notes


def _moment(table: Table, column: str, i: int, cell: Any) -> datetime:
    """A cell as a date with a time of day; one with a time zone in UTC."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError):
            cell = datetime.fromisoformat(cell)
    if isinstance(cell, datetime):
        # Python subtracts the clocks of one time zone from each other, also where summer time lies between.
        return cell if cell.tzinfo is None else cell.astimezone(UTC)
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day)
    where = f"holds {str(cell)!r} in {table.rows[i]}"
    if parse_number(cell, table.decimal_comma) is not None:
        raise DataError(f"time_unit counts dates, but column {column!r} {where}, a number: leave time_unit out")
    raise DataError(f"column {column!r} must hold dates, but {where}: write dates as 2020-01-31 or 2020-01-31T14:30")


def _check_time_zones(table: Table, column: str, moments: list[datetime]) -> None:
    aware = [moment.tzinfo is not None for moment in moments]
    if any(aware) and not all(aware):
        raise DataError(
            f"column {column!r} has dates with a time zone, in {table.rows[aware.index(True)]}, and without, in "
            f"{table.rows[aware.index(False)]}: write all of them the same way"
        )
