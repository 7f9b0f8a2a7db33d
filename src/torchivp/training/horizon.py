"""How long a stretch of the trajectories is compared, which may grow from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchivp.checks import check_positive, check_whole_number


@dataclass(frozen=True)
class Horizon:
    """How long after its start a trajectory is compared.

    Args:
        given: None for all of it; a pair `(first, epochs)`, which grows evenly from `first` in the first epoch to the
            whole after so many epochs; or a function of the epoch's number, from 1.
        longest: the length of the longest trajectory.

    Raises:
        TypeError, ValueError: it is none of these.
    """

    given: Any
    longest: float

    def __post_init__(self) -> None:
        if self.given is None or callable(self.given):
            return
        if not isinstance(self.given, tuple | list) or len(self.given) != 2:
            raise TypeError(
                f"horizon must be a pair (first, epochs) or a function of the epoch, got {self.given!r}: write "
                f"horizon=({self.longest / 10:g}, 100)"
            )
        check_positive("the first horizon", self.given[0])
        check_whole_number("the epochs over which the horizon grows", self.given[1], 1)

    def at(self, epoch: int) -> float | None:
        """The horizon of an epoch; None for the whole."""
        if self.given is None:
            return None
        if isinstance(self.given, Callable):
            horizon = check_positive(f"horizon({epoch})", self.given(epoch))
        else:
            first, epochs = self.given
            fraction = min(1.0, (epoch - 1) / epochs)
            horizon = first + fraction * (self.longest - first) if fraction < 1 else math.inf
        return horizon if horizon < self.longest else None
