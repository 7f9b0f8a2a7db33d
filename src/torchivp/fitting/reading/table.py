"""What a table is once it is read: columns of plain Python values.

What its cells mean is said in `cells.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np

from torchivp.checks import did_you_mean

_MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
"""What stands for a missing value in text: the words that pandas takes for one."""


class DataError(ValueError):
    """Data that cannot be fitted; the message says where and why in one line."""


@dataclass(frozen=True)
class Table:
    """What was read, before any cell is taken for a number.

    Attributes:
        columns: the names of the columns, as text; a name that stands twice is refused where it is asked for.
        cells: the cells of each column, as text or as what the source holds; None where missing.
        name: what errors and reports call the table.
        rows: what errors call each of its rows: "line 7 of data.csv" or "row 5".
        decimal_comma: whether its numbers are written with decimal commas.
        notes: what was done to read it, in sentences.
    """

    columns: list[str]
    cells: list[list[Any]]
    name: str
    rows: list[str]
    decimal_comma: bool = False
    notes: list[str] = field(default_factory=list)

    def column(self, name: str, role: str) -> list[Any]:
        """The cells of a column; `role` says in messages what it is wanted for: "time" or "data".

        Raises:
            DataError: there is no such column, or more than one.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.name} has no {role} column {name!r}.{did_you_mean(name, self.columns)} Its columns are "
                f"{', '.join(self.columns)}"
            )
        if self.columns.count(name) > 1:
            raise DataError(f"{self.name} has {self.columns.count(name)} columns called {name!r}: rename all but one")
        return self.cells[self.columns.index(name)]

    def take(self, rows: Sequence[int]) -> Table:
        """The table of some of the rows."""
        cells = [[column[i] for i in rows] for column in self.cells]
        return replace(self, cells=cells, rows=[self.rows[i] for i in rows])


def import_package(name: str, purpose: str, extra: str) -> ModuleType:
    """An optional package, or a module of it.

    Raises:
        ImportError: it is not installed; the message says what needs it and how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise ImportError(f"{purpose} needs {package}: pip install 'torchivp[{extra}]'") from None


def read_cell(cell: Any) -> Any:
    """A cell as a table holds it: text without space around it, a plain Python value, None where missing."""
    if isinstance(cell, str):
        text = cell.strip()
        return None if text in _MISSING else text
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(cell, "item") and np.ndim(cell) == 0:
        cell = cell.item()
    return None if isinstance(cell, float | complex) and cell != cell else cell


def any_cell(cells: Sequence[Any]) -> bool:
    """Whether some cell is not missing."""
    return any(read_cell(cell) is not None for cell in cells)
