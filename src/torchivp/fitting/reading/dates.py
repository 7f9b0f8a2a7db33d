"""Columns of times: numbers, or dates and durations counted in a unit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.reading.cells import is_missing, parse_number, read_numbers
from torchivp.fitting.reading.table import DataError, Table

TimeUnit = Literal["seconds", "minutes", "hours", "days", "weeks", "years"]

_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0, "years": 31557600.0}


@dataclass(frozen=True)
class Calendar:
    """What dates are counted in, and from.

    Attributes:
        unit: of the times.
        origin: the date whose time is 0, one with a time zone in UTC; None where times were durations.
    """

    unit: TimeUnit
    origin: datetime | None = None


def read_times(
    table: Table, column: str, unit: TimeUnit | None = None
) -> tuple[NDArray[np.float64], list[str], Calendar | None]:
    """The times of a table, [n].

    Args:
        table: the table.
        column: its column of times.
        unit: what dates are counted in, from the first date of the table, and durations too. A year has 365.25 days.

    Returns:
        The times, a note on what dates were counted from, and with `unit` the calendar for other tables.

    Raises:
        DataError: there is no such column, a cell is missing, or cells are no numbers, or with `unit` no dates.
        ValueError: `unit` is unknown.
    """
    _check_filled(table, column)
    if unit is None:
        return read_numbers(table, column, "time", "time_unit='days'"), [], None
    if unit not in _SECONDS:
        raise ValueError(f"time_unit must be one of {', '.join(map(repr, get_args(TimeUnit)))}, got {unit!r}")
    cells = table.column(column, "time")
    if _are_durations(cells):
        times = _counted(cells, unit)
        return times, [f"the durations in column {column!r} were taken in {unit}"], Calendar(unit)
    moments = _moments(table, column)
    first = min(moments)
    shown = first.date() if (first.hour, first.minute, first.second, first.microsecond) == (0, 0, 0, 0) else first
    note = f"times were counted in {unit} from {shown}, the first date of column {column!r}"
    return _counted([moment - first for moment in moments], unit), [note], Calendar(unit, first)


def read_times_of(table: Table, column: str, calendar: Calendar | None) -> NDArray[np.float64]:
    """The times of a further table as they are counted in the data, [n].

    Args:
        table: the table.
        column: its column of times.
        calendar: that of the data, whose times are dates or durations; None if they are numbers.

    Raises:
        DataError: there is no such column, a cell is missing, or cells are not what the times of the data are.
    """
    _check_filled(table, column)
    cells = table.column(column, "time")
    if calendar is None:
        return read_numbers(table, column, "time", "as time_unit='days' does for the data")
    if _are_durations(cells):
        return _counted(cells, calendar.unit)
    if calendar.origin is None:
        raise DataError(
            f"the times of the data are durations, but column {column!r} of {table.name} holds {str(cells[0])!r} in "
            f"{table.rows[0]}: give durations there too"
        )
    for i, cell in enumerate(cells):
        if parse_number(cell, table.decimal_comma) is not None:
            raise DataError(
                f"the times of the data are dates, but column {column!r} of {table.name} holds {str(cell)!r} in "
                f"{table.rows[i]}: write dates there too"
            )
    moments, origin = _moments(table, column), calendar.origin
    if (moments[0].tzinfo is None) != (origin.tzinfo is None):
        with_zone, without = ("the data", table.name) if origin.tzinfo else (table.name, "the data")
        raise DataError(
            f"the dates of {with_zone} have a time zone, and those of {without} have none: write both alike"
        )
    return _counted([moment - origin for moment in moments], calendar.unit)


def _check_filled(table: Table, column: str) -> None:
    for i, cell in enumerate(table.column(column, "time")):
        if is_missing(cell):
            raise DataError(f"the time column {column!r} is empty in {table.rows[i]}")


def _are_durations(cells: Sequence[Any]) -> bool:
    return all(isinstance(cell, timedelta) for cell in cells)


def _counted(since: Sequence[timedelta], unit: TimeUnit) -> NDArray[np.float64]:
    return np.array([each.total_seconds() for each in since]) / _SECONDS[unit]


def _moments(table: Table, column: str) -> list[datetime]:
    """The cells of a column as dates, all with a time zone or none."""
    moments = [_moment(table, column, i, cell) for i, cell in enumerate(table.column(column, "time"))]
    _check_time_zones(table, column, moments)
    return moments


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
