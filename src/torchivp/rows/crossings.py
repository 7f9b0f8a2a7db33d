"""What is known of the events in steps of some rows: where they are, and what rows come to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
from torch import Tensor


@dataclass
class Crossings:
    """Events in steps of some rows, in the order of the rows and, in a row, of the integration; arrays are [n].

    Attributes:
        position: the place of the row among those looked at.
        event: which event.
        theta: at which fraction of the step.
        t: when.
        sign: the sign of the event function before it.
        stops: whether the step must end there: the event changes the state or ends the row.
    """

    position: np.ndarray
    event: np.ndarray
    theta: np.ndarray
    t: np.ndarray
    sign: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def take(self, which: np.ndarray) -> Crossings:
        """A choice of them."""
        return Crossings(*(getattr(self, entry.name)[which] for entry in fields(self)))

    def of(self, where: np.ndarray) -> Crossings:
        """Those in a choice of the rows, in ascending order."""
        mine = self.take(np.isin(self.position, where))
        return replace(mine, position=np.searchsorted(where, mine.position))

    def number(self) -> np.ndarray:
        """How many of the same event in the same row come before each."""
        order = np.lexsort((self.event, self.position))
        keys = np.stack([self.position, self.event])[:, order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (keys[:, 1:] != keys[:, :-1]).any(0)
        count = np.arange(len(order))
        found = np.empty(len(order), dtype=np.int64)
        found[order] = count - np.maximum.accumulate(np.where(fresh, count, 0))
        return found


@dataclass
class Located:
    """The events in steps of some rows, and at which of them the step must end.

    Attributes:
        t: when the first event of each row is at which its step must end; NaN for none, [m].
        event: which it is, [m].
        sign: the sign of its function before it, [m].
        crossings: all events.
        signs: the signs of the event functions at the end of the step, [events, m].
        levels: below which size they say nothing about the sign, [events, m].
        ends: the event functions at the ends of the steps, [events, m].
        undefined: in which rows an event function is NaN at the end of the step, and the step need not end before, [m].
    """

    t: np.ndarray
    event: np.ndarray
    sign: np.ndarray
    crossings: Crossings
    signs: np.ndarray
    levels: np.ndarray
    ends: np.ndarray
    undefined: np.ndarray

    def take(self, where: np.ndarray) -> Located:
        """Those of a choice of the rows, in ascending order."""
        arrays = {
            entry.name: getattr(self, entry.name)[..., where] for entry in fields(self) if entry.name != "crossings"
        }
        return Located(crossings=self.crossings.of(where), **arrays)

    def at(self, t: np.ndarray) -> np.ndarray:
        """Which of the crossings are at the times `t` of their rows, but for rounding."""
        there = t[self.crossings.position]
        return np.abs(self.crossings.t - there) <= 8 * np.spacing(np.maximum(np.abs(there), 1e-300))


@dataclass
class Moments:
    """How long it is, in rows at which something has just happened, to moments at which to look ahead, [m]; signed.

    Attributes:
        soon: a moment before which no event is to be expected.
        next: about when the next one would be, if they came ever faster; NaN if this was the first.
    """

    soon: np.ndarray
    next: np.ndarray


@dataclass
class Met:
    """Events that rows have come to, by steps that end there, and what is known of these steps.

    Attributes:
        fired: which events happen, [events, m].
        crossing: the signs of their functions before them, [events, m].
        size: how large the elements of the states have been in the steps, [m, size]; None where they end on a time.
        within: the event functions in the middle of the steps, [events, m]; NaN where nobody has looked.
        since: how long after the event before, [m]; NaN where nobody has asked.
    """

    fired: np.ndarray
    crossing: np.ndarray
    size: Tensor | None = None
    within: np.ndarray = field(init=False)
    since: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.within = np.full(self.fired.shape, np.nan)
        self.since = np.full(self.fired.shape[1], np.nan)

    def take(self, which: np.ndarray) -> Met:
        """Those of a choice of the rows, before anything is known of the steps."""
        return Met(self.fired[:, which], self.crossing[:, which])
