"""The method of a fit, where the user leaves the choice to it: an explicit one, or one for stiff problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.solution import SolveError

AUTO = "auto"
EXPLICIT, STIFF = "dopri5", "rodas5p"

_MANY = 2000  # steps that make one look whether a problem is stiff,
_TIMES_FEWER = 10  # which it is if a method for stiff problems takes so many times fewer
_FEW = 0.05  # the fraction of starts that may be given up for the cheaper method
_ROUGH = 1e-5  # with which both are tried


def choose_method(misfit: Misfit, theta: NDArray[np.float64]) -> Misfit:
    """The misfit solved by the method that is cheaper at `theta`.

    A step of a method for stiff problems costs about ten times as much as an explicit one.
    """
    accuracy = misfit.accuracy
    factor = max(1.0, _ROUGH / accuracy.rtol)
    rough = replace(accuracy.scaled(factor), max_steps=min(_MANY, accuracy.max_steps))
    explicit = _steps(misfit, replace(rough, method=EXPLICIT), theta)
    if explicit < _MANY:
        return misfit.at_accuracy(replace(accuracy, method=EXPLICIT))
    stiff = _steps(misfit, replace(rough, method=STIFF), theta)
    if np.isfinite(stiff) and stiff * _TIMES_FEWER <= explicit:
        return misfit.at_accuracy(replace(accuracy, method=STIFF))
    return misfit.at_accuracy(replace(accuracy, method=EXPLICIT))


def choose_method_for_many(misfit: Misfit, thetas: NDArray[np.float64]) -> Misfit:
    """The misfit solved by the method for stiff problems, if it alone can solve some of the `thetas` [n, n_free]."""
    if misfit.accuracy.method == STIFF:
        return misfit
    failed = np.array([found is None for found in misfit.predictions_at(thetas)])
    if not failed.any():
        return misfit
    stiff = misfit.at_accuracy(replace(misfit.accuracy, method=STIFF))
    mended = sum(found is not None for found in stiff.predictions_at(thetas[failed]))
    return stiff if mended >= max(1, _FEW * len(thetas)) else misfit


def _steps(misfit: Misfit, accuracy: Accuracy, theta: NDArray[np.float64]) -> float:
    """How many steps a solve takes: all that are allowed if they do not suffice, infinitely many if it fails."""
    try:
        return misfit.at_accuracy(accuracy).steps(theta)
    except SolveError as error:
        return float(accuracy.max_steps) if error.status.outcome.value == "max_steps" else np.inf
