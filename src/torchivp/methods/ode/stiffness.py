"""What speaks for an explicit method or for one for stiff problems, step by step, in every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from torchivp.methods.implicit.per_row import Flags, Numbers, any_of, pick, without
from torchivp.methods.method import Memory, on_arrays

STABLE = 2.2
"""Steps are limited by stability where the step times the spectral radius is larger: for tsit5 it varies about 3."""

_CALM = 1.5
"""Below this, stability would not limit the steps of tsit5."""

PATIENCE = 10
"""After so many more steps that stability has limited than others, the stiff method takes over."""

RELIEF = 5
"""After so many steps in turn that would be stable, the explicit one does;"""

RELIEF_FROM_PAST = 30
"""or after so many, if the stiff one builds on steps before: its first ones are short for want of them."""

EVERY = 10
"""Steps in which nothing speaks for the stiff method are looked at once in so many."""

_PAUSE = 20
"""Where the stiff method cannot be used, so many more such steps are taken before it is thought of again."""

_NEVER = -(2**62)
"""The count in rows that must not switch."""


@dataclass(slots=True)
class Modes(Memory):
    """Which method each row is at, and what speaks against it; of a single row in Python's numbers.

    Attributes:
        stiff: whether it is the stiff one.
        count: how many steps speak for the other one.
        wait: in how many steps to look whether the next one does.
        switched: whether the last step has led to the other one.
        told: whether a step is taken again, by the method that took it.
    """

    stiff: Flags = False
    count: Numbers = 0
    wait: Numbers = 0
    switched: Flags = False
    told: bool = False

    @staticmethod
    def of_rows(rows: int) -> Modes:
        no, zero = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=np.int64)
        return Modes(no, zero, zero, no)

    def map(self, function: Callable[..., Tensor], *others: Modes) -> Modes:
        each = zip(*((x.stiff, x.count, x.wait, x.switched) for x in (self, *others)), strict=True)
        stiff, count, wait, switched = (on_arrays(function, *arrays) for arrays in each)
        return Modes(stiff, count, wait, switched)

    def after(self, stiffness: Numbers, relief: int = RELIEF) -> Modes:
        """Those after a step in which the step times the spectral radius was this; NaN where nobody knows.

        `relief` is the number of steps in turn after which the explicit method takes over.
        """
        looked, none = self.wait <= 0, self.switched & False if any_of(self.switched) else self.switched
        if not any_of(looked):
            return Modes(self.stiff, self.count, self.wait - 1, none)
        against = looked & pick(self.stiff, stiffness < _CALM, stiffness > STABLE)
        rest = pick(self.stiff, 0, pick(self.count > 0, self.count - 1, self.count))
        count = pick(against, self.count + 1, pick(looked, rest, self.count))
        switched = count >= pick(self.stiff, relief, PATIENCE)
        stiff, count = self.stiff ^ switched, pick(switched, 0, count)
        wait = pick(looked, pick(stiff | (count > 0), 0, EVERY - 1), self.wait - 1)
        return Modes(stiff, count, wait, switched)

    def settled(self) -> Modes:
        """The same, for when the step is tried again."""
        return replace(self, switched=self.switched & False) if any_of(self.switched) else self

    def relieved(self, rows: Flags) -> Modes:
        """The same, but that these rows go back to the explicit method, for a while at least."""
        return Modes(
            without(self.stiff, rows), pick(rows, -_PAUSE, self.count), self.wait, without(self.switched, rows)
        )

    def as_told(self, stiff: Flags) -> Modes:
        """The same, but that the rows are at the stiff method where they were, whatever these say.

        A row that begins with it is one that has switched; not one that would have left it.
        """
        begins = stiff & (self.stiff ^ stiff) & (self.switched ^ True)
        goes_on = self.switched & ((self.stiff ^ stiff) ^ True)
        return Modes(stiff, self.count, self.wait, begins | goes_on, told=True)

    def always_stiff(self) -> Modes:
        """The same, but that all rows are at the stiff method and stay there."""
        every = self.stiff | True
        return Modes(every, pick(every, _NEVER, self.count), self.wait, self.switched & False)
