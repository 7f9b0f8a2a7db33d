"""Many starts at once: spread within bounds and priors, searched side by side as rows of one solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.quantities import Quantity
from torchivp.fitting.searching.optimise import Minimum, Search, Weighing
from torchivp.fitting.searching.start import on_all_data

_SPREAD = 2.0  # without bounds, a quantity on the log scale starts within this many powers of ten of its default


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
    starts = spread_starts(search, count)

    def attempt(one: Search, number: int) -> Attempt:
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


def spread_starts(search: Search, count: int) -> NDArray[np.float64]:
    """The default start and points of a Sobol sequence, [count, n_free].

    Within the bounds where a quantity has both, along its prior where it has one, else around its default: powers of
    ten on the log scale, twice its size on the linear one. An observed initial state without either starts from its
    first value in the data.
    """
    misfit = search.misfit
    quantities = misfit.quantities
    default = quantities.theta()
    sobol = torch.quasirandom.SobolEngine(len(default), scramble=True, seed=0)
    uniform = sobol.draw(count - 1, dtype=torch.float64).numpy() if count > 1 else np.zeros((0, len(default)))
    columns = [
        _spread(quantity, start, column, quantity.key in misfit.data.states)
        for quantity, start, column in zip(quantities.free, default, uniform.T, strict=True)
    ]
    spread = np.stack(columns, axis=1) if columns else uniform
    return np.clip(np.concatenate([default[None], spread]), quantities.lower, quantities.upper)


def _spread(quantity: Quantity, default: float, uniform: NDArray[np.float64], observed: bool) -> NDArray[np.float64]:
    """Starts of one quantity on its scale of estimation, from numbers that are uniform between 0 and 1."""
    if quantity.prior is not None:
        try:
            values = quantity.prior.distribution.icdf(torch.as_tensor(uniform).clamp(1e-6, 1 - 1e-6))
            if quantity.lower < values.min() and values.max() < quantity.upper:
                return np.array([quantity.to_scale(value) for value in values.tolist()])
        except NotImplementedError:  # a distribution without quantiles
            pass
    if np.isfinite(quantity.lower) and np.isfinite(quantity.upper) and not (quantity.log and quantity.lower <= 0):
        inside = quantity.lower + (quantity.upper - quantity.lower) * np.array([1e-6, 1 - 1e-6])
        low, high = (quantity.to_scale(value) for value in inside.tolist())
        return low + (high - low) * uniform
    if quantity.kind == "initial state" and observed:
        return np.full(len(uniform), default)
    width = _SPREAD * np.log(10) if quantity.scale != "linear" else 2 * quantity.magnitude
    return default + (2 * uniform - 1) * width
