"""Many starts at once: spread within bounds and priors, searched side by side as rows of one solve."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.misfit import Misfit
from torchivp.fitting.progress import STARTS, tell_part
from torchivp.fitting.searching.optimise import Minimum, Search, Weighing
from torchivp.fitting.searching.spread import spread
from torchivp.fitting.searching.start import on_all_data


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


def search_from_many(search: Search, weighing: Weighing, floor: NDArray[np.float64], count: int) -> list[Attempt]:
    """Search from many starts, the first of which is the default one.

    Args:
        search: what is maximised, by solves of little accuracy.
        weighing: what makes residuals of predictions for the first, plain search.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        count: how many starts.

    Returns:
        The attempts, the most likely first. A start that fails is one of them.
    """
    starts = starts_of(search.misfit, count)
    tell_part(search.progress, STARTS, 0, count)
    counting = threading.Lock()

    ended = 0

    def attempt(one: Search, number: int) -> Attempt:
        nonlocal ended
        found = search_from(one, number)
        with counting:
            ended += 1
            tell_part(search.progress, STARTS, ended, count)
        return found

    def search_from(one: Search, number: int) -> Attempt:
        start = starts[number]
        minimum = on_all_data(one, start, weighing, f"start {number + 1} of {count}")
        if minimum.found is None:
            return Attempt(start, start, np.inf, False, one.misfit.failure)
        found = one.maximise_likelihood(
            minimum.theta, floor, f"start {number + 1} of {count}", tolerance=1e-6, known=minimum.found
        )
        return Attempt(start, found.minimum.theta, found.nll, found.converged)

    attempts = search.side_by_side([lambda one, number=number: attempt(one, number) for number in range(count)])
    return sorted(attempts, key=lambda each: each.nll)


def best_minimum(search: Search, attempts: list[Attempt]) -> Minimum:
    """Where the most likely of the attempts ended; without predictions if all of them failed."""
    best = attempts[0]
    found = search.misfit.predictions(best.theta) if np.isfinite(best.nll) else None
    return Minimum(best.theta, np.inf if found is None else best.nll, best.converged, found)


def starts_of(misfit: Misfit, count: int) -> NDArray[np.float64]:
    """The default start, and others that are spread, [count, n_free]."""
    return np.concatenate([misfit.quantities.theta()[None], spread(misfit, count - 1)])
