"""Many starts at once: spread within bounds and priors, searched side by side as rows of one solve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchivp.ensembles.executors import Workers
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.priors import penalty
from torchivp.fitting.progress import STARTS, tell_part
from torchivp.fitting.searching.optimise import Minimum, Search, Weighing
from torchivp.fitting.searching.spread import spread
from torchivp.fitting.searching.start import on_all_data
from torchivp.fitting.solving.elsewhere import Elsewhere, by_portions


@dataclass(frozen=True)
class Attempt:
    """A start, and where it led.

    Attributes:
        start: the free quantities where it began, on the scale of estimation, [n_free].
        theta: where it ended.
        nll: the negative log-likelihood there; infinite if the model could not be solved at the start.
        converged: whether it ended at an optimum.
        failure: why it could not be solved, else empty.
    """

    start: NDArray[np.float64]
    theta: NDArray[np.float64]
    nll: float
    converged: bool
    failure: str = ""


@dataclass(frozen=True)
class _Led:
    """An attempt, and what it cost.

    Attributes:
        attempt: the start, and where it led.
        iterations: how many there were.
    """

    attempt: Attempt
    iterations: int


@dataclass(frozen=True)
class _Starts:
    """What searches from many starts need.

    Attributes:
        weighing: what makes residuals of predictions for the first, plain search.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        starts: where they begin, [count, n_free].
    """

    weighing: Weighing
    floor: NDArray[np.float64]
    starts: NDArray[np.float64]

    def search(self, search: Search, numbers: Sequence[int], ended: Callable[[], None] | None = None) -> list[_Led]:
        """Search from some of the starts, side by side; `ended` is called whenever one has ended."""

        def led(own: Search, number: int) -> _Led:
            attempt = self._attempt(own, number)
            if ended is not None:
                ended()
            return _Led(attempt, own.iterations)

        every = [lambda own, number=number: led(own, number) for number in numbers]
        return search.side_by_side(every, alike=len(self.starts) > 1)

    def _attempt(self, search: Search, number: int) -> Attempt:
        start, stage = self.starts[number], f"start {number + 1} of {len(self.starts)}"
        minimum = on_all_data(search, start, self.weighing, stage)
        if minimum.found is None:
            return Attempt(start, start, np.inf, False, search.misfit.failure)
        found = search.maximise_likelihood(minimum.theta, self.floor, stage, tolerance=1e-6, known=minimum.found)
        return Attempt(start, found.minimum.theta, found.nll, found.converged)


class _Count:
    """Tells how many starts have ended, whichever thread they ran in."""

    def __init__(self, search: Search, total: int):
        self._progress, self._total = search.progress, total
        self._ended, self._lock = 0, threading.Lock()
        tell_part(self._progress, STARTS, 0, total)

    def __call__(self) -> None:
        with self._lock:
            self._ended += 1
            tell_part(self._progress, STARTS, self._ended, self._total)


def search_from_many(
    search: Search, weighing: Weighing, floor: NDArray[np.float64], count: int, executor: Workers = None
) -> list[Attempt]:
    """Search from many starts, the first of which is the default one.

    Args:
        search: what is maximised, by solves of little accuracy.
        weighing: what makes residuals of predictions for the first, plain search.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        count: how many starts.
        executor: who searches; each worker does so side by side.

    Returns:
        The attempts, the most likely first (with priors, the most probable). A start that fails is one of them.
    """
    starts = _Starts(weighing, floor, starts_of(search.misfit, count))
    ended = _Count(search, count)
    if executor is None:
        attempts = [led.attempt for led in starts.search(search, range(count), ended)]
    else:
        attempts = _elsewhere(search, starts, executor, ended)
    return sorted(attempts, key=lambda each: each.nll + penalty(search.misfit.quantities, each.theta))


def _elsewhere(search: Search, starts: _Starts, executor: Workers, ended: _Count) -> list[Attempt]:
    """The attempts of other processes; with a journal, those that are not in it."""
    misfit, journal = search.misfit, search.misfit.shared.journal
    attempts: dict[int, Attempt] = {}
    keys = [b""] * len(starts.starts)
    if journal is not None:
        keys = [journal.start_key(misfit.accuracy, start) for start in starts.starts]
        for number, key in enumerate(keys):
            if key in journal:
                theta, nll, converged, failure, iterations = journal[key]
                attempts[number] = Attempt(starts.starts[number], theta, nll, converged, failure)
                search.iterations += iterations
                ended()
    new = [number for number in range(len(keys)) if number not in attempts]
    sent = Elsewhere(search, (starts, new))
    for part, (led, solves) in by_portions(_search_elsewhere, sent, len(new), executor, "the starts"):
        for number, one in zip(new[part], led, strict=True):
            attempts[number] = one.attempt
            if journal is not None:
                found = one.attempt
                entry = (found.theta, float(found.nll), bool(found.converged), found.failure, one.iterations)
                journal.add(keys[number], entry)
            search.iterations += one.iterations
            search.progress(f"start {number + 1} of {len(keys)}", search.iterations, one.attempt.nll)
            ended()
        misfit.count(solves)
        if journal is not None:
            journal.flush()
    return [attempts[number] for number in range(len(keys))]


def _search_elsewhere(task: tuple[Elsewhere[Search], slice]) -> tuple[list[_Led], int]:
    """Search from a portion of the starts, in a worker; with the number of solves."""
    search, (starts, new) = task[0].get()
    before = search.misfit.solves
    return starts.search(search, new[task[1]]), search.misfit.solves - before


def best_minimum(search: Search, attempts: list[Attempt]) -> Minimum:
    """Where the most likely of the attempts ended; without predictions if all of them failed."""
    best = attempts[0]
    found = search.misfit.predictions(best.theta) if np.isfinite(best.nll) else None
    return Minimum(best.theta, np.inf if found is None else best.nll, best.converged, found)


def starts_of(misfit: Misfit, count: int) -> NDArray[np.float64]:
    """The default start, and others that are spread, [count, n_free]."""
    return np.concatenate([misfit.quantities.theta()[None], spread(misfit, count - 1)])
