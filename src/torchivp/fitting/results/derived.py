"""What follows from the estimates: formulas, with their standard errors by the delta method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.assignments import read_formula
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.results.summary import Estimate
from torchivp.fitting.results.uncertainty import (
    Uncertainty,
)


def derived_estimates(
    misfit: Misfit, theta: NDArray[np.float64], uncertainty: Uncertainty, derived: Mapping[str, Any]
) -> list[Estimate]:
    """What follows from the estimates: tied parameters, initial states that are formulas, what the user asked for."""
    quantities = misfit.quantities
    own, slopes = quantities.locals_and_slopes(theta)
    estimates = []
    for each in quantities.assignments:
        for target in each.targets:
            k = quantities.names.index(target)
            for label, i in _different(misfit, own[:, k]):
                one = uncertainty.of(i)
                estimates.append(_derived_estimate(f"{target}{label}", float(own[i, k]), slopes[i, k], one))
    for name, given in derived.items():
        estimates += derive(misfit, theta, uncertainty, name, given)
    return estimates


def check_derived(derived: Mapping[str, Any], quantities: Quantities) -> None:
    """Refuse formulas that cannot be computed, and names that others have, before anything is fitted.

    Raises:
        ValueError, TypeError: the message says which.
    """
    taken = {name for quantity in quantities.all for name in (quantity.name, quantity.key)} | set(quantities.names)
    for name, given in derived.items():
        if name in taken:
            raise ValueError(f"derived names {name!r}, which is a quantity of the fit already: give it another name")
        read_formula(name, given, quantities.single_names)


def derive(
    misfit: Misfit, theta: NDArray[np.float64], uncertainty: Uncertainty, name: str, given: Any
) -> list[Estimate]:
    """The estimate of a formula, one for each trajectory if they differ, by the delta method."""
    quantities = misfit.quantities
    names, formula = read_formula(name, given, quantities.single_names)
    own, slopes = quantities.locals_and_slopes(theta)
    inputs = {each: own[:, quantities.names.index(each)].clone().requires_grad_() for each in names}
    with torch.enable_grad():
        values = formula(inputs).expand(len(own))
        gradients = torch.autograd.grad(values.sum(), list(inputs.values()), allow_unused=True) if inputs else ()
    by_theta = np.zeros((len(own), len(theta)))
    for each, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            by_theta += gradient.numpy()[:, None] * slopes[:, quantities.names.index(each)]
    text = given if isinstance(given, str) else ""
    return [
        _derived_estimate(f"{name}{label}", values[i].item(), by_theta[i], uncertainty.of(i), text)
        for label, i in _different(misfit, values.detach())
    ]


def _different(misfit: Misfit, values: torch.Tensor) -> list[tuple[str, int]]:
    """Labels and numbers of the trajectories whose values are to be told: one if all are the same."""
    if bool((values == values[0]).all()):
        return [("", 0)]
    return [(f"[{series.name}]", i) for i, series in enumerate(misfit.data.trajectories)]


def _derived_estimate(
    name: str, value: float, slopes: NDArray[np.float64], uncertainty: Uncertainty, formula: str = ""
) -> Estimate:
    reach = float(uncertainty.reach(slopes))
    error = float(np.sqrt(max(slopes @ uncertainty.covariance @ slopes, 0.0))) if uncertainty.known else np.inf
    error = error if np.isfinite(reach) else np.inf
    return Estimate(name, "derived", value, error, "linear", error, value - reach, value + reach, False, "", formula)
