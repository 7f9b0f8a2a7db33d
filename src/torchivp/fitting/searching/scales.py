"""Typical changes of quantities on the linear scale, where the start says little about them."""

from __future__ import annotations

import numpy as np

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.quantities import Quantity
from torchivp.fitting.searching.optimise import Likelihood

_SMALL = 1e-3  # a typical change so much smaller than the largest, or than 1, may be that of a start which means zero
_UNSEEN = 1e-4  # the part of the scatter of the data that it must move them by, or it is none


def seen_changes(misfit: Misfit) -> Misfit:
    """The misfit with typical changes that can be seen in the data.

    A start of 1e-9 may be the size of a quantity in its unit, or somebody's zero. If so small a change moves no datum,
    it is the latter, and the typical change is one that moves the data by their scatter.
    """
    quantities = misfit.quantities
    largest = max([1.0, *(each.magnitude for each in quantities.free if _is_open(each))])
    small = [j for j, each in enumerate(quantities.free) if _is_open(each) and each.magnitude < _SMALL * largest]
    found = misfit.predictions(quantities.theta()) if small else None
    if found is None:
        return misfit
    values, magnitudes, scatter = found.measured.y, quantities.magnitudes.copy(), np.ones(len(found.values))
    for k in range(len(misfit.data.observables)):
        own = found.measured.of(k)
        scatter[own] = values[own].std() or 1.0
    for j in small:
        moved = np.sqrt(np.mean((found.jacobian[:, j] / scatter) ** 2))
        if 0 < moved * magnitudes[j] < _UNSEEN:
            magnitudes[j] = 1 / moved
    return misfit.rescaled(magnitudes)


def changes_at(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> Misfit:
    """The misfit with typical changes that fit an optimum, whatever the start was.

    They are at least as large as the quantity, and as its standard error if the others are known, and at most a
    thousand times as large as both.
    """
    found, quantities = likelihood.minimum.found, misfit.quantities
    open_ones = np.array([_is_open(each) for each in quantities.free], dtype=bool)
    if found is None or found.jacobian.shape[1] < len(open_ones) or not open_ones.any():
        return misfit
    with np.errstate(divide="ignore"):
        errors = 1 / np.linalg.norm(found.jacobian * levels.weights(found, likelihood.sizes)[:, None], axis=0)
    least = np.maximum(np.abs(found.theta), np.where(np.isfinite(errors), errors, 0.0))
    changes = np.clip(quantities.magnitudes, least, np.where(least > 0, least / _SMALL, np.inf))
    return misfit.rescaled(np.where(open_ones, changes, quantities.magnitudes))


def _is_open(quantity: Quantity) -> bool:
    """Whether its typical change is no more than its size at the start."""
    return quantity.scale == "linear" and quantity.kind == "parameter"
