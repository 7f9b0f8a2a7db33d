"""What is known of each trajectory: constants and labels, of a table of conditions or of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchivp.fitting.reading.cells import is_missing, is_text, read_name, read_names, read_numbers, repeated
from torchivp.fitting.reading.table import DataError, Table
from torchivp.fitting.reading.tables import read_table


@dataclass(frozen=True)
class Condition:
    """What is known of one trajectory.

    Attributes:
        constants: numbers by name.
        labels: text by name.
    """

    constants: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def read_conditions(
    source: Any, trajectories: Sequence[str], trajectory: str | None
) -> tuple[dict[str, Condition], list[str]]:
    """Read a table of conditions, with a row for each trajectory.

    A column all of whose cells are numbers holds constants, another one labels; a missing cell gives neither.

    Args:
        source: a table as `read_table` takes it; or a dict of dicts, {trajectory: {name: value}}.
        trajectories: the trajectories of the data.
        trajectory: the column of the data that names them; so does the column of that name here, or else the first.

    Returns:
        The condition of each trajectory, and notes.

    Raises:
        DataError: a trajectory has no row or several, a column stands twice, or the data name no trajectories.
    """
    if trajectory is None:
        raise DataError("conditions are told apart by trajectory: name the column that does so, trajectory='column'")
    table = _of_dicts(source, trajectory) if _is_dict_of_dicts(source) else read_table(source, "conditions")
    if (twice := repeated(table.columns)) is not None:
        table.column(twice, "conditions")  # refuses it
    key = trajectory if trajectory in table.columns else table.columns[0]
    names = read_names(table, key, "trajectory")
    if (twice := repeated(names)) is not None:
        first, second = [table.rows[i] for i, name in enumerate(names) if name == twice][:2]
        raise DataError(f"{table.name} has two rows for trajectory {twice!r}, in {first} and {second}: leave one out")
    conditions, notes = _conditions(table, key, names)
    for name in trajectories:
        if name not in conditions:
            raise DataError(
                f"{table.name} has no row for trajectory {name!r} of the data: column {key!r} names {', '.join(names)}"
            )
    known = set(trajectories)
    extra = [name for name in names if name not in known]
    if extra:
        notes.append(f"{table.name} has rows for {', '.join(extra)}, of which there are no data: they were ignored")
    return {name: conditions[name] for name in trajectories}, table.notes + notes


def constant_labels(
    table: Table, groups: Mapping[str, Sequence[int]], used: Sequence[str | None]
) -> dict[str, dict[str, str]]:
    """The columns of text that are constant within each trajectory, as labels by trajectory.

    Args:
        table: the data.
        groups: the rows of each trajectory.
        used: the columns that hold something else.
    """
    labels: dict[str, dict[str, str]] = {name: {} for name in groups}
    for column, cells in zip(table.columns, table.cells, strict=True):
        if column in used or table.columns.count(column) > 1 or not is_text(cells):
            continue
        found = {name: {cells[i] for i in rows} for name, rows in groups.items()}
        if all(len(texts) == 1 for texts in found.values()):
            for name, (text,) in found.items():
                labels[name] |= {} if text is None else {column: read_name(text)}
    return labels


def _is_dict_of_dicts(source: Any) -> bool:
    return isinstance(source, Mapping) and all(isinstance(each, Mapping) for each in source.values())


def _of_dicts(source: Mapping[Any, Mapping[Any, Any]], trajectory: str) -> Table:
    names = list(dict.fromkeys(str(name) for each in source.values() for name in each))
    by_text = [{str(name): value for name, value in each.items()} for each in source.values()]
    columns: dict[str, list[Any]] = {name: [each.get(name) for each in by_text] for name in names}
    return read_table({trajectory: list(source), **columns}, "conditions")


def _conditions(table: Table, key: str, names: Sequence[str]) -> tuple[dict[str, Condition], list[str]]:
    """The condition of each row, by name."""
    conditions = {name: Condition() for name in names}
    notes = []
    for column, cells in zip(table.columns, table.cells, strict=True):
        if column == key:
            continue
        if not is_text(cells, table.decimal_comma):
            for name, number in zip(names, read_numbers(table, column, "conditions"), strict=True):
                conditions[name].constants.update({} if np.isnan(number) else {column: float(number)})
            continue
        for name, cell in zip(names, cells, strict=True):
            conditions[name].labels.update({} if cell is None else {column: read_name(cell)})
        if not all(is_text([cell], table.decimal_comma) for cell in cells if not is_missing(cell)):
            notes.append(f"column {column!r} of {table.name} holds numbers and text, and was read as text")
    return conditions, notes
