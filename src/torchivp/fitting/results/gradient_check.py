"""The Jacobian of a fit compared with differences of the predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.searching.trust import SMALLEST_RTOL

if TYPE_CHECKING:
    from torchivp.fitting.misfit import Misfit
    from torchivp.fitting.predictions import Predictions
    from torchivp.fitting.results.result import FitResult

_STEP = 1e-2  # of the differences, in typical changes,
_TOLERATED = 1e-3  # the relative error of a derivative that a search does not notice
_TIGHTER = 1e-2  # by what factor the solves of the differences are more accurate
_WEIGHTS = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))  # central differences of order four


@dataclass(frozen=True)
class GradientCheck:
    """How far the Jacobian of the predictions lies from differences.

    Attributes:
        errors: by free quantity, of a tensor along one direction: the largest error of a derivative of a prediction,
            relative to the largest derivative by it; NaN where the model cannot be solved on both sides.
        largest: the largest of them.
        good: whether it is at most 0.001.
        sentence: what was found, in words.
    """

    errors: dict[str, float]
    largest: float
    good: bool
    sentence: str


def check_gradient(result: FitResult) -> GradientCheck:
    """Compare the Jacobian at the optimum with differences; see `FitResult.check_gradient`."""
    misfit, uncertainty = result.misfit, result.uncertainty
    if not uncertainty.known:
        raise ValueError(
            f"{len(result.theta)} numbers are free, by so many of which no derivatives of predictions are computed: "
            "hold the tensors in fixed"
        )
    found = misfit.predictions(result.theta)
    assert found is not None, "the model has been solved at the optimum"
    accuracy = misfit.accuracy
    factor = max(_TIGHTER, min(1.0, SMALLEST_RTOL / accuracy.rtol))
    finer = replace(accuracy.scaled(factor, factor), max_steps=10 * accuracy.max_steps)
    probes = misfit.quantities.probes()
    changes = _STEP * np.stack(list(probes.values()))
    errors = dict(zip(result.free_names, uncertainty.standard_errors()[misfit.quantities.single], strict=True))
    for change, name in zip(changes, probes, strict=True):
        size = np.abs(change).max()
        change *= min(1.0, errors[name] / size) if errors.get(name, 0.0) > 0 else 1.0
    weights = result.levels.weights(found, result.sizes)
    differences = _differences(misfit.at_accuracy(finer), found, changes)
    relative = {}
    for name, exact, change in zip(probes, differences * weights, changes, strict=True):
        slope = found.jacobian @ change * weights
        size = max(np.abs(exact).max(), np.abs(slope).max())
        relative[name] = float(np.abs(slope - exact).max() / size) if size > 0 else 0.0
    return _verdict(relative)


def _differences(misfit: Misfit, found: Predictions, changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much predictions move with each change [m, n_free], [m, n]; NaN where the model cannot be solved."""
    thetas = np.concatenate([found.theta + number * changes for number, _ in _WEIGHTS])
    ends = misfit.predictions_at(thetas)
    values = np.array([np.full(len(found.values), np.nan) if end is None else end.values for end in ends])
    of_number = values.reshape(len(_WEIGHTS), len(changes), -1)
    return np.einsum("k,kjn->jn", [weight for _, weight in _WEIGHTS], of_number)


def _verdict(errors: dict[str, float]) -> GradientCheck:
    unknown = [name for name, error in errors.items() if np.isnan(error)]
    known = {name: error for name, error in errors.items() if not np.isnan(error)}
    worst = max(known, key=known.__getitem__, default=None)
    largest = np.nan if worst is None else known[worst]
    good = not unknown and largest <= _TOLERATED
    if worst is None:
        sentence = "the derivatives could not be compared with differences"
    elif largest <= _TOLERATED:
        sentence = f"the derivatives agree with differences to {largest:.1g}, by {worst} the least"
    else:
        wrong = ", ".join(name for name, error in known.items() if error > _TOLERATED)
        sentence = (
            f"the derivatives by {wrong} differ from differences by up to {largest:.1g}: make the model smooth in what "
            "it depends on, or give a smaller rtol"
        )
    if unknown:
        sentence += f"; the model cannot be solved on both sides of {', '.join(unknown)}"
    return GradientCheck(errors, float(largest), good, sentence)
