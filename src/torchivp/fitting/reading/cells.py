"""What the cells of a table mean: numbers, limits of detection, signs of censoring, names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.reading.table import DataError, Table

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_LIMIT = re.compile(r"([<>])=?\s*(\S+)")
_NO_NUMBER = (".", "-")  # missing values too, in a column of numbers
_DATE = re.compile(r"(\d{4}-\d{1,2}-\d{1,2})|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_SIGNS = {"<": -1, "left": -1, "-1": -1, ">": 1, "right": 1, "1": 1, "0": 0, "none": 0}


def is_missing(cell: Any) -> bool:
    """Whether a cell of a column of numbers holds none."""
    return cell is None or (isinstance(cell, str) and cell in _NO_NUMBER)


def parse_number(cell: Any, decimal_comma: bool = False) -> float | None:
    """A cell as a number: NaN where it is missing, None if it is no finite number."""
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        if decimal_comma and "." in cell:
            return None
        text = cell.replace(",", ".") if decimal_comma else cell
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
    else:
        number = float(cell) if isinstance(cell, Real | Decimal) else math.inf
    return number if math.isfinite(number) else None


def read_numbers(table: Table, column: str, role: str, dates: str = "") -> NDArray[np.float64]:
    """A column as numbers, [n], NaN where missing.

    Args:
        table: the table.
        column: its column.
        role: what it is wanted for, for messages.
        dates: how dates in it can be counted in a unit, for messages; empty if they make no sense there.

    Raises:
        DataError: there is no such column, or a cell is no finite number.
    """
    cells = table.column(column, role)
    numbers = [parse_number(cell, table.decimal_comma) for cell in cells]
    for i, number in enumerate(numbers):
        if number is None:
            raise _no_number(table, column, i, dates)
    return np.array(numbers, dtype=np.float64)


def read_limits(table: Table, column: str) -> tuple[NDArray[np.float64], NDArray[np.int8], list[str]]:
    """A column of data as numbers or limits, such as "<0.5".

    Returns:
        The numbers [n], NaN where missing; -1 where a cell says that the true value is below, +1 where above, else 0,
        [n]; and a note if there are limits.
    """
    cells = table.column(column, "data")
    limits = {i: match for i, cell in enumerate(cells) if isinstance(cell, str) and (match := _LIMIT.fullmatch(cell))}
    bare = [limits[i][2] if i in limits else cell for i, cell in enumerate(cells)]
    numbers = [parse_number(cell, table.decimal_comma) for cell in bare]
    for i, number in enumerate(numbers):
        if number is None or (i in limits and math.isnan(number)):
            raise _no_number(table, column, i)
    signs = np.zeros(len(cells), dtype=np.int8)
    for i, match in limits.items():
        signs[i] = _SIGNS[match[1]]
    notes = []
    if limits:
        first, count = min(limits), len(limits)
        cells_are = "1 cell" if count == 1 else f"{count} cells"
        notes.append(
            f"{cells_are} of column {column!r}, such as {cells[first]!r} in {table.rows[first]}, "
            f"{'was' if count == 1 else 'were'} read as censored at that limit"
        )
    return np.array(numbers, dtype=np.float64), signs, notes


def _no_number(table: Table, column: str, i: int, dates: str = "") -> DataError:
    """The error about a cell that is no number."""
    cell, where = table.cells[table.columns.index(column)][i], table.rows[i]
    if table.decimal_comma and isinstance(cell, str) and "." in cell and not _DATE.match(cell):
        return DataError(
            f"{table.name} has decimal commas, so column {column!r} must not hold {cell!r} in {where}: write all of "
            "its numbers the same way, without separators of thousands"
        )
    return DataError(
        f"column {column!r} must hold numbers, but holds {str(cell)!r} in {where}{_hint(column, cell, dates)}"
    )


def _hint(column: str, cell: Any, dates: str) -> str:
    """How to make numbers of dates or durations; empty if the cell is neither."""
    if isinstance(cell, timedelta):
        return f": take them in a unit, {dates or f'table[{column!r}] / pandas.Timedelta(days=1)'}"
    written = _DATE.match(cell) if isinstance(cell, str) else None
    if not dates or not (written or isinstance(cell, date)):
        return ""
    iso = "" if written is None or written[1] else " write dates as 2020-01-31, and"
    return f":{iso} count from the first date, {dates}"


def read_signs(table: Table, column: str) -> NDArray[np.int8]:
    """A column that says which values are censored: -1 if the true value is below, +1 if above, else 0; [n].

    Raises:
        DataError: there is no such column, or a cell says something else.
    """
    cells = table.column(column, "censored")
    signs = np.zeros(len(cells), dtype=np.int8)
    for i, cell in enumerate(cells):
        sign = 0 if cell in (None, "") else _SIGNS.get(read_name(cell).lower())
        if sign is None:
            raise DataError(
                f"the censored column {column!r} must hold '<', 'left' or -1, '>', 'right' or 1, or 0, 'none' or "
                f"nothing, but holds {str(cell)!r} in {table.rows[i]}"
            )
        signs[i] = sign
    return signs


def read_name(cell: Any) -> str:
    """A cell as a name: whole numbers without decimals, so that 1.0 and 1 and "1" are one name."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def read_names(table: Table, column: str, role: str) -> list[str]:
    """A column of names, none of which may be missing.

    Raises:
        DataError: there is no such column, or a cell of it is missing.
    """
    cells = table.column(column, role)
    for i, cell in enumerate(cells):
        if cell is None:
            raise DataError(f"the {role} column {column!r} is empty in {table.rows[i]}")
    return [read_name(cell) for cell in cells]


def is_text(cells: Sequence[Any], decimal_comma: bool = False) -> bool:
    """Whether a column holds text that is no number, or dates."""
    return any(isinstance(cell, str | date) and parse_number(cell, decimal_comma) is None for cell in cells)


def repeated(names: Sequence[str]) -> str | None:
    """The first name that stands more than once; None if there is none."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
