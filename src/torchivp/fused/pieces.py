"""What a gradient goes back through: steps of rows between the changes of their states, and what was kept in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchivp.gradients.step_ends import first_places
from torchivp.record import ChangeRecord, Record


@dataclass
class Piece:
    """Steps of all rows, from the last change of the state to the next.

    Attributes:
        first: the number of steps that each row has taken before, [rows].
        last: those it has taken then, [rows].
        changes: the places, among all changes, of those that end it; none of a row that goes no further.
        inside: what was kept within steps.
        ends: what was kept at ends of steps.
        t: the times of what was kept within steps, in order, NaN after the last of a row, [rows, T].
    """

    first: np.ndarray
    last: np.ndarray
    changes: np.ndarray
    inside: Kept
    ends: Kept
    t: np.ndarray


@dataclass
class Kept:
    """Results that were kept, [n].

    Attributes:
        source: their places among all results.
        rows: in which rows.
        columns: where in the row: which of those within steps, or at the end of which step of the piece.
    """

    source: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass
class Results:
    """States that a solve returned, [n]: outputs, then those before changes.

    Attributes:
        rows: of which row.
        t: when; NaN for none.
        change: of which change it is the state before, -1 for an output that is none.
    """

    rows: np.ndarray
    t: np.ndarray
    change: np.ndarray


def pieces_of(record: Record, direction: np.ndarray, results: Results, changes_state: np.ndarray) -> list[Piece]:
    """The pieces of the steps, the first of them first.

    Args:
        record: the steps.
        direction: that of each row.
        results: what was kept of them.
        changes_state: which of the changes change the state.
    """
    changes, rows = record.changes, len(record.steps)
    changing = np.flatnonzero(~changes.within & changes_state)
    order = changing[np.lexsort((changes.steps[changing], changes.rows[changing]))]
    row = changes.rows[order]
    number = np.arange(len(order)) - np.searchsorted(row, row)
    count = int(number.max(initial=-1)) + 1
    after = np.full((rows, count + 1), np.iinfo(np.int64).max)  # the steps before each change, and none after the last
    after[row, number] = changes.steps[order]
    bounds = np.concatenate([np.zeros((rows, 1), np.int64), np.minimum(after, record.steps[:, None])], axis=1)
    step, within = _steps_of(record, direction, results)
    before = (results.change >= 0) & np.isin(results.change, changing)
    known = ~np.isnan(results.t) & ~before
    ordinal = first_places(after, results.rows, lambda x, i: x <= (step - within)[i])
    found = []
    for k in range(count + 1):
        first, last = bounds[:, k], bounds[:, k + 1]
        mine = known & (ordinal == k)
        ends = np.flatnonzero(mine & ~within)
        inside = np.flatnonzero(mine & within)
        inside = inside[np.lexsort((results.t[inside] * direction[results.rows[inside]], results.rows[inside]))]
        row_of = results.rows[inside]
        column = np.arange(len(inside)) - np.searchsorted(row_of, row_of)
        t = np.full((rows, int(column.max(initial=-1)) + 1), np.nan)
        t[row_of, column] = results.t[inside]
        found.append(
            Piece(
                first,
                last,
                order[number == k],
                Kept(inside, row_of, column),
                Kept(ends, results.rows[ends], step[ends] - first[results.rows[ends]]),
                t,
            )
        )
    return found


def _steps_of(record: Record, direction: np.ndarray, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """The steps in which results were kept, and whether that was within them, not at their ends."""
    ahead = direction[results.rows]
    now = results.t * ahead
    step = first_places(
        record.ends, results.rows, lambda x, i: x * ahead[i] < now[i], np.maximum(record.steps[results.rows], 0)
    )
    within = record.ends[results.rows, step] != results.t
    told = results.change >= 0
    step[told] = record.changes.steps[results.change[told]]
    within[told] = record.changes.within[results.change[told]]
    return step, within


def table_of(kept: Kept, grads: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradients of what was kept as a table, [rows, columns, size], zero elsewhere.

    `grads` are those of all results, [n, size].
    """
    table = grads.new_zeros(*shape, grads.shape[1])
    if len(kept.source):
        where = torch.from_numpy(kept.rows), torch.from_numpy(kept.columns)
        table.index_put_(where, grads[torch.from_numpy(kept.source)], accumulate=True)
    return table


def of_changes(changes: ChangeRecord, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """In which rows changes were, and the states before them, [n, size]."""
    return torch.from_numpy(changes.rows[places]), changes.y[torch.from_numpy(places)]
