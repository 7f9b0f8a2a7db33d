"""Steps of some rows by one method and of the others by another, as one step of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import WithinSteps
from torchivp.methods.jacobian import given_jacobian, sparsity_of
from torchivp.methods.method import FlatFunc, Step, Work, map_rows


def taken(carry: Any, rows: Tensor) -> Any:
    """The carry of some of the rows."""
    return map_rows(lambda x: x.index_select(0, rows.to(x.device)), carry)


def spread(carry: Any, rows: Tensor, count: int) -> Any:
    """The carry of some of the rows as one of all `count`; zero in the others."""
    return map_rows(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy(0, rows.to(x.device), x), carry)


class OnSome:
    """The function of all rows, and its Jacobian if that is given, for some of them; the others stay where they are."""

    def __init__(self, func: FlatFunc, rows: Tensor, t: Tensor, y: Tensor):
        with torch.inference_mode(False):  # autograd takes nothing that was made in it
            self._func, self._rows, self._t, self._y = func, rows.clone(), t.clone(), y.clone()
        self.sparsity = sparsity_of(func)
        given = given_jacobian(func)
        self.jacobian = None if given is None else OnSome(given, rows, t, y)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        times, states = self._t.index_copy(0, self._rows, t.to(self._t.dtype)), self._y.index_copy(0, self._rows, y)
        return self._func(times, states).index_select(0, self._rows)


def put_together(
    ends: tuple[Tensor, Tensor], y0: Tensor, parts: Sequence[Step], rows: Sequence[Tensor], error_order: int | None
) -> Step:
    """One step of the steps of some rows and of the others; its carry and retry are pairs of theirs.

    The first are explicit ones, whose errors are of the order `error_order`.
    """
    count, order = len(y0), torch.argsort(torch.cat(tuple(rows)))
    y1 = torch.cat([step.y1 for step in parts])[order]
    error = torch.cat([step.error for step in parts if step.error is not None])[order]
    carry, retry = (
        tuple(spread(getattr(step, name), chosen, count) for step, chosen in zip(parts, rows, strict=True))
        for name in ("carry", "retry")
    )
    work = np.zeros((count, len(Work._fields)), dtype=np.int64)
    for step, chosen in zip(parts, rows, strict=True):
        if step.work is not None:
            work[chosen.cpu().numpy()] = step.work.by_row(len(chosen))
    whole = Step(*ends, y0, y1, error, carry, retry, None, work=Work(*work.T))
    second, others = parts[1], rows[1].cpu().numpy()
    if second.order is not None:
        assert error_order is not None
        whole.order = np.full(count, error_order)
        whole.order[others] = second.order
        whole.others = [
            (_of_all(count, others, order), spread(estimate, rows[1], count)) for order, estimate in second.others
        ]
        whole.hold = _of_all(count, others, second.hold)
    if second.failure is not None:
        whole.failure = {int(others[i]): why for i, why in second.failure.items()}
    if np.any(second.growth < math.inf):
        whole.growth = np.full(count, math.inf)
        whole.growth[others] = second.growth
    return whole


def _of_all(count: int, rows: np.ndarray, values: Any) -> np.ndarray:
    """What is known of some of the rows as an array of all; zero, or false, in the others."""
    found = np.zeros(count, dtype=np.asarray(values).dtype)
    found[rows] = values
    return found


class WithinParts:
    """The solutions within the steps of some rows and of the others.

    Args:
        within: those of the one and of the other.
        second: which rows are among the other, [rows].
    """

    def __init__(self, within: tuple[WithinSteps, WithinSteps], second: np.ndarray):
        self._within = within
        self._second = second
        self._place = np.where(second, np.cumsum(second), np.cumsum(~second)) - 1
        self._order = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(~second), np.flatnonzero(second)])))

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        number = rows.cpu().numpy()
        pieces, entries = [], []
        for within, of_this in zip(self._within, (~self._second[number], self._second[number]), strict=True):
            here = np.flatnonzero(of_this)
            if not len(here):
                continue
            entries.append(here)
            places = torch.from_numpy(self._place[number[here]])
            pieces.append(within.at(places, _entries(theta, here), None if t is None else _entries(t, here)))
        order = torch.from_numpy(np.argsort(np.concatenate(entries)))
        y = torch.cat(pieces)
        return y.index_select(0, order.to(y.device))

    def at_fractions(self, theta: tuple[float, ...], *further: Tensor) -> Tensor:
        parts = [within.at_fractions(theta).unflatten(0, (len(theta), -1)) for within in self._within]
        y = torch.cat(parts, 1)
        return torch.cat([y.index_select(1, self._order.to(y.device)).flatten(0, 1), *further])

    def kept(self) -> WithinParts:
        one, other = (within.kept() for within in self._within)
        return WithinParts((one, other), self._second)


def _entries(values: np.ndarray | Tensor, which: np.ndarray) -> np.ndarray | Tensor:
    return values[torch.from_numpy(which)] if isinstance(values, Tensor) else values[which]
