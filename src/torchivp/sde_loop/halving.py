"""A walk along a path in steps whose size follows the error: each is taken once whole and once in halves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torchivp.boundary import warn
from torchivp.solution import Outcome, SolveError, Status, failure_class
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.pid import History, PIDController

Reached = TypeVar("Reached")
"""What an attempt at a step leads to."""


@dataclass(frozen=True)
class Pace:
    """What the sizes of the steps depend on besides the error.

    Attributes:
        first: the size of the first step, if it is no smaller than the smallest.
        smallest: the smallest size of a step. Such a step is accepted whatever its error, with a warning.
        strong_order: the order of the method.
        max_steps: the largest number of step attempts.
        failure: what is raised if a walk does not get to its end.
    """

    first: float
    smallest: float
    strong_order: float
    max_steps: int
    failure: type[SolveError] = field(default_factory=failure_class)

    @property
    def controller(self) -> PIDController:
        """Sizes the steps."""
        first = max(self.first, self.smallest)
        return PIDController(kp=0.1, ki=0.3, first_step=first, min_step=self.smallest, accept_at_min_step=True)


@dataclass(frozen=True)
class Words:
    """How to speak of a walk.

    Attributes:
        subject: what is solved for.
        tolerances: the names of the tolerances.
        limit: what raises the limit of the number of steps.
        faster: what else leads to fewer steps; begins with a comma, or is empty.
        not_finite: what may be wrong if the subject is not finite.
    """

    subject: str
    tolerances: str
    limit: str
    faster: str
    not_finite: str


class HalvedSteps(ABC, Generic[Reached]):
    """Walks from the first of the times `ts` to the last, and ends steps on all of the `targets`.

    The error of a step is the difference between it and two steps of half the size. A step that is rejected is tried
    again on the same path, so that the choice of steps does not bias the noise.

    Args:
        ts: the times asked for, in the order of the walk.
        targets: those of them on which a step must end; the last one is the end.
        pace: what the sizes of the steps depend on.
        words: how to speak of the walk.

    Attributes:
        t: where the walk is.
    """

    def __init__(self, ts: Sequence[float], targets: Sequence[float], pace: Pace, words: Words) -> None:
        self.t = ts[0]
        self._ends = ts[0], ts[-1]
        self._asked = frozenset(ts)
        self._clip = Clip(targets, 1.0 if ts[-1] >= ts[0] else -1.0)
        self._pace, self._words = pace, words
        self._controller, self._history = pace.controller, History()
        first = self._controller.first_step
        assert first is not None, "the first step is always given"
        self._h = first
        self._accepted = self._rejected = self._forced = 0

    @abstractmethod
    def attempt(self, middle: float, end: float) -> tuple[float, Reached]:
        """Try a step to `end` whole and in halves; returns its scaled error, and what the halves lead to."""

    @abstractmethod
    def accept(self, middle: float, end: float, reached: Reached, landed: bool) -> None:
        """Go on from what an attempt has `reached`; `landed` says whether `end` is a target."""

    def walk(self) -> None:
        """Take all steps.

        Raises:
            SolveError: the last time was not reached.
        """
        while not self._clip.done:
            end = self._rounded(self._clip.step_end(self.t, self._h, stretch=not self._history.rejected))
            middle, size = self.t + 0.5 * (end - self.t), abs(end - self.t)
            if middle in (self.t, end):
                raise self._pace.failure(self._stuck())
            if self._accepted + self._rejected >= self._pace.max_steps:
                raise self._pace.failure(self._out_of_steps(size))
            error, reached = self.attempt(middle, end)
            if self._counts(error, size):
                self.accept(middle, end, reached, self._clip.reached(end))
                self.t = end

    def warn_of_forced(self) -> None:
        """Warn of steps that were accepted for no other reason than that they could not be smaller."""
        if self._forced:
            warn(
                f"Hitting minimum allowed step size in adaptive time-stepping of {self._words.subject}: {self._forced} "
                f"of {self._accepted} steps, of the size dt_min = {self._pace.smallest:g}, do not meet the tolerances; "
                f"loosen {self._words.tolerances}, or make dt_min smaller",
            )

    def _rounded(self, end: float) -> float:
        """The end of a step moved, by a hundredth of its size at most, to where the path is quick to ask.

        That is a multiple of the span over a power of two (see `BrownianInterval`). Times asked for stay.
        """
        if end in self._asked:
            return end
        first, span = min(self._ends), abs(self._ends[1] - self._ends[0])
        unit = span * 0.5 ** (math.ceil(math.log2(max(span / self._h, 1.0))) + 6)
        return first + round((end - first) / unit) * unit

    def _counts(self, error: float, size: float) -> bool:
        """Whether to accept a step; fixes the size of the next one.

        Raises:
            SolveError: not even the smallest step leads to numbers.
        """
        h = self._h
        accept, next_h, history = self._controller.adapt(error, size, h, self._history, self._pace.strong_order - 0.5)
        if not math.isfinite(error) and h <= self._pace.smallest:
            raise self._pace.failure(self._not_finite(size))
        # A step cut very short to land on a required time says nothing about the size of the next one.
        if not accept or size > 0.1 * h or next_h > h:
            self._h, self._history = next_h, history
        if not accept:
            self._rejected += 1
            return False
        self._accepted += 1
        self._forced += error > 1.0
        return True

    def _stuck(self) -> Status:
        sentence = (
            f"the step size of {self._words.subject} fell to {self._h:.3g} at t = {self.t:.9g}, too small to move "
            f"time: the tolerances cannot be met there; loosen {self._words.tolerances}, or raise dt_min"
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, self.t)

    def _out_of_steps(self, size: float) -> Status:
        first, last = self._ends
        sentence = (
            f"{self._pace.max_steps} step attempts ({self._accepted} accepted, {self._rejected} rejected) took "
            f"{self._words.subject} from t = {first:g} to t = {self.t:g} of {last:g}, where the step size is "
            f"{size:.3g}: raise {self._words.limit}, or loosen {self._words.tolerances}{self._words.faster}"
        )
        return Status(Outcome.MAX_STEPS, sentence, self.t)

    def _not_finite(self, size: float) -> Status:
        sentence = (
            f"{self._words.subject} is not finite after t = {self.t:.9g} even with the smallest step, dt_min = "
            f"{size:.3g}: {self._words.not_finite}"
        )
        return Status(Outcome.NON_FINITE, sentence, self.t)
