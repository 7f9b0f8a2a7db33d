"""The sizes of the noise among the estimates, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels, Part
from torchivp.fitting.noise import NoiseModel
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.results.summary import Estimate
from torchivp.fitting.results.uncertainty import (
    Uncertainty,
)

_95 = 1.959963984540054


def sizes_with_intervals(
    information: Sequence[tuple[Part, NDArray[np.float64]]],
    sizes: NDArray[np.float64],
    absent: NDArray[np.bool_],
    found: Predictions,
    uncertainty: Uncertainty,
) -> list[Estimate]:
    """The sizes of the noise, estimated on the log scale; without an interval those of which the data show nothing."""
    estimates = []
    for number, (part, of_each) in enumerate(information):
        group = part.group
        if not group.count:
            continue
        values = sizes[group.first : group.first + group.count]
        errors = _size_errors(of_each, found.jacobian[part.which])
        if not uncertainty.known:
            errors = [math.nan] * len(errors)
        if group.noise.regression:
            factors = [uncertainty.sigma_factors(number)]
        else:
            factors = [(float(np.exp(-_95 * error)), float(np.exp(_95 * error))) for error in errors]
        for k in absent[group.first : group.first + group.count].nonzero()[0]:
            errors[k], factors[k] = math.nan, (math.nan, math.nan)
        for name, value, error, (lower, upper) in zip(group.names, values.tolist(), errors, factors, strict=True):
            estimates.append(
                Estimate(
                    name=name,
                    kind="sigma",
                    value=value,
                    standard_error=value * error,
                    scale="log",
                    scale_error=error,
                    lower=value * lower,
                    upper=value * upper,
                    free=True,
                    unit="",
                    description=_meaning(group.noise, name.removesuffix(group.label)),
                )
            )
    return estimates


def meanings(levels: Levels) -> list[str]:
    """What each of the sizes that are estimated means."""
    return [_meaning(group.noise, name.removesuffix(group.label)) for group in levels.groups for name in group.names]


def _meaning(noise: NoiseModel, size: str) -> str:
    """What a size of the noise means."""
    if size == "sigma":
        return "standard deviation of the noise" + (" of the logarithm" if noise.log else "")
    if size == "relative":
        return "standard deviation of the noise relative to the value"
    if size == "scale":
        return f"scale of the {noise.name} distribution of the noise"
    return "overdispersion: the variance is h + dispersion h^2"


def _size_errors(information: NDArray[np.float64], jacobian: NDArray[np.float64]) -> list[float]:
    """The standard errors of the logarithms of the sizes of a group, with theta estimated too."""
    of_theta = np.einsum("n,ni,nj->ij", information[:, 0, 0], jacobian, jacobian)
    mixed = np.einsum("nk,ni->ik", information[:, 0, 1:], jacobian)
    of_sizes = information[:, 1:, 1:].sum(0)
    left = of_sizes - mixed.T @ np.linalg.pinv(of_theta, hermitian=True) @ mixed
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.diag(np.linalg.pinv(left, hermitian=True))).tolist()
