"""Telling the user how a fit is getting on, and how long it may still take where that can be known."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torchivp.terminal import Say, duration, live_line

STARTS = "starts"
"""The stage whose parts are starts, which compete."""


class Progress(Protocol):
    """Called at every iteration of a fit with the stage it is in, a running number and the negative log-likelihood.

    The likelihood is that of the part of the data that the stage uses. Where the parts of a stage are counted (starts,
    profiles, sets of a bootstrap, samples), a method `part(stage, done, total)` is called too, if the object has one:
    first with `done=0`, then whenever one is done.
    """

    def __call__(self, stage: str, iteration: int, nll: float) -> None:
        """Take note of an iteration."""


def tell_part(progress: Progress, stage: str, done: int, total: int) -> None:
    """Say that so many parts of a stage are done, to whoever wants to know."""
    part = getattr(progress, "part", None)
    if part is not None:
        part(stage, done, total)


@contextmanager
def show_progress(progress: bool | Progress) -> Iterator[Progress]:
    """What to call at every iteration.

    Args:
        progress: False for silence, True for the terminal (a live line where rich is installed and standard error is
            a terminal, else a line for each stage), or a function to call.
    """
    if progress is False:
        yield silent
    elif progress is not True:
        yield progress
    else:
        with live_line("fitting") as show:
            yield Reporter(show)


def silent(stage: str, iteration: int, nll: float) -> None:
    """Say nothing."""


class Reporter:
    """Puts what it is told into words.

    While the parts of a stage are counted, it says how long the others will take if they are like those that are done.
    Nobody knows how many iterations a search needs, so that there it says how many there were. Starts are searches too,
    all under way at the same time: where the first of them ends, the last is near.

    Args:
        show: is called with the stage, the words, and how many of how many parts are done, or None.
        clock: the time in seconds.
    """

    def __init__(self, show: Say, clock=time.monotonic):
        self._show, self._clock = show, clock
        self._lock = threading.Lock()  # starts run in threads
        self._counted: str | None = None
        self._done, self._total, self._iterations = 0, 0, 0
        self._within, self._nll = "", math.inf
        self._began = clock()

    def __call__(self, stage: str, iteration: int, nll: float) -> None:
        with self._lock:
            if self._counted is None:
                self._show(stage, f"{stage}: iteration {iteration}, nll {nll:.6g}", None)
                return
            self._iterations += 1
            self._within = stage
            self._nll = min(self._nll, nll) if self._counted == STARTS else nll
            self._tell()

    def part(self, stage: str, done: int, total: int) -> None:
        """Take note that so many parts of a stage are done."""
        with self._lock:
            if stage != self._counted or done == 0:
                self._counted, self._within, self._iterations = stage, stage, 0
                self._nll, self._began = math.inf, self._clock()
            self._done, self._total = done, total
            self._tell()
            if done == total:
                self._counted = None

    def _tell(self) -> None:
        words, searching = [f"{self._counted}: {self._done} of {self._total} done"], self._counted == STARTS
        if 0 < self._done < self._total and not searching:
            left = (self._clock() - self._began) * (self._total - self._done) / self._done
            words.append(f"about {duration(left)} left")
        if searching and self._iterations:
            words.append(f"{self._iterations} iterations")
        elif self._within != self._counted and self._done < self._total:
            words.append(self._within)
        if math.isfinite(self._nll):
            words.append(f"{'best ' if searching else ''}nll {self._nll:.6g}")
        self._show(str(self._counted), ", ".join(words), (self._done, self._total))
