"""What a fit returns, from the maximum that it found: estimates with their uncertainty, statistics, warnings."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.parameters import TENSOR
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.priors import penalty, prior_residuals
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.random_effects.estimates import (
    individual_estimates,
    marginal_uncertainty,
    omega_estimates,
    omega_warnings,
    random_effects,
    size_estimates,
)
from torchivp.fitting.random_effects.maximise import MarginalMaximum
from torchivp.fitting.results.derived import derived_estimates
from torchivp.fitting.results.fit_warnings import fit_warnings
from torchivp.fitting.results.result import FitResult
from torchivp.fitting.results.sizes import meanings, sizes_with_intervals
from torchivp.fitting.results.summary import Estimate
from torchivp.fitting.results.uncertainty import (
    Evidence,
    Uncertainty,
    correlation_of,
    fisher_uncertainty,
    no_uncertainty,
)
from torchivp.fitting.searching.linear_model import ON_BOUND
from torchivp.fitting.searching.maximise import Maximum
from torchivp.fitting.searching.optimise import Search
from torchivp.fitting.searching.trust import quantities_at_zero
from torchivp.models.model import Model


def assemble(
    search: Search,
    maximum: Maximum,
    derived: Mapping[str, Any],
    call: str,
    seconds: float,
    marginal: MarginalMaximum | None = None,
) -> FitResult:
    """The result of a fit.

    Args:
        search: which has ended.
        maximum: where.
        derived: formulas of further quantities, by name.
        call: how to repeat the fit.
        seconds: how long it took.
        marginal: the maximum of the marginal likelihood, if trajectories differ by chance.
    """
    misfit, levels, likelihood = search.misfit, search.levels, maximum.likelihood
    data, quantities = misfit.data, misfit.quantities
    found, theta = likelihood.minimum.found, likelihood.minimum.theta
    assert found is not None, "a finite likelihood has predictions"
    on_bound = quantities.on_bound(theta, ON_BOUND)
    information = levels.information(found, likelihood.sizes)
    floors = levels.floors(maximum.floor)
    absent = (likelihood.sizes[: len(floors)] <= floors) & (not likelihood.at_floor)
    if found.jacobian.shape[1] < len(theta):
        uncertainty = no_uncertainty(quantities.free, on_bound)
        sizes = sizes_with_intervals(information, likelihood.sizes, absent, found, uncertainty)
    elif marginal is None:
        priors = prior_residuals(quantities, theta)[1]
        evidence = levels.evidence(found, likelihood.sizes)
        evidence += [Evidence(priors, len(priors), False)] if len(priors) else []
        uncertainty = fisher_uncertainty(evidence, quantities.free, on_bound, maximum.normals)
        sizes = sizes_with_intervals(information, likelihood.sizes, absent, found, uncertainty)
    else:
        uncertainty = marginal_uncertainty(marginal, quantities.free, len(information))
        sizes = size_estimates(marginal, levels.names, meanings(levels))
    random = None if marginal is None else random_effects(marginal)
    estimates = _estimates(quantities, theta, uncertainty)
    omegas = [] if marginal is None or random is None else omega_estimates(marginal, random)
    estimates += omegas
    n_free = len(quantities.free) + len(omegas) + len(sizes)
    if marginal is not None and random is not None:
        names = [series.name for series in data.trajectories]
        estimates += individual_estimates(marginal, random, uncertainty, names)
    estimates += derived_estimates(misfit, theta, uncertainty, derived)
    single, covariance = quantities.single, np.full(2 * (int(quantities.single.sum()),), np.nan)
    if uncertainty.known:
        covariance = uncertainty.covariance[np.ix_(single, single)]
    nll, n_data = likelihood.nll if marginal is None else marginal.point.value, len(found.values)
    at_zero = quantities_at_zero(misfit, levels, likelihood, uncertainty.standard_errors())
    if marginal is None:
        n_held = len(theta) - uncertainty.room + len(at_zero) + int(absent.sum())
    else:
        n_held = int(marginal.on_bound.sum())
    n_effective = float(n_free - n_held)
    bic = 2 * nll + n_effective * float(np.log(n_data))
    if any(quantity.prior is not None for quantity in quantities.free):
        n_effective, bic = np.nan, np.nan
        if marginal is None and uncertainty.known:
            n_effective = _effective(levels.evidence(found, likelihood.sizes), uncertainty) + len(sizes) - absent.sum()
    left = n_data - n_effective - 1
    ended = "converged" if likelihood.converged else f"not converged within {search.max_iterations} iterations"
    if likelihood.converged and maximum.doubts:
        ended = "not converged to what the model says (see the warnings)"
    return FitResult(
        model=_fitted(misfit, theta),
        data=data,
        levels=levels.at(found),
        sizes=likelihood.sizes,
        estimates=estimates + sizes,
        nll=nll,
        penalty=penalty(quantities, theta),
        aic=2 * nll + 2 * n_effective,
        aicc=np.inf if left <= 0 else 2 * nll + 2 * n_effective * n_data / left,
        bic=bic,
        rss=_squares(levels, found, data.observables),
        n_data=n_data,
        n_free=n_free,
        n_effective=n_effective,
        converged=likelihood.converged and not maximum.doubts,
        message=f"{ended} after {search.iterations} iterations and {misfit.solves} solves in {seconds:.1f} s",
        warnings=[
            *maximum.doubts,
            *maximum.rivals,
            *fit_warnings(search, maximum, uncertainty, on_bound, absent, at_zero),
            *([] if marginal is None else omega_warnings(marginal)),
        ],
        notes=data.notes,
        iterations=search.iterations,
        solves=misfit.solves,
        seconds=seconds,
        covariance=covariance,
        correlation=correlation_of(covariance),
        free_names=quantities.labels(quantities.single),
        theta=theta,
        standardised=found.measured.tables(levels.standardised(found, likelihood.sizes), data),
        search=search,
        floor=maximum.floor,
        attempts=maximum.attempts,
        uncertainty=uncertainty,
        call=call,
        random=random,
    )


def _fitted(misfit: Misfit, theta: NDArray[np.float64]) -> Model:
    """A copy of the model with the estimated parameters, of the first trajectory where they differ."""
    model = copy.deepcopy(misfit.model)
    parameters = misfit.quantities.shifted(None).parameters(torch.tensor(theta))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
    return model


def _estimates(quantities: Quantities, theta: NDArray[np.float64], uncertainty: Uncertainty) -> list[Estimate]:
    values = quantities.values(torch.tensor(theta)).tolist()
    free = {quantity.name: j for j, quantity in enumerate(quantities.free)}
    reaches = np.full(len(free), np.inf)
    if uncertainty.known:
        reaches[quantities.single] = uncertainty.reach(np.eye(len(free))[quantities.single])
    errors = uncertainty.standard_errors()
    estimates = []
    shapes, tensors = dict(quantities.layout), _norms(quantities, values)
    for quantity, value in zip(quantities.all, values, strict=True):
        if quantity.kind == TENSOR:
            if quantity.key in tensors:
                norm, free_ones = tensors.pop(quantity.key)
                estimates.append(Estimate.of_tensor(quantity, norm, shapes[quantity.key], free_ones))
            continue
        j = free.get(quantity.name)
        known = j is None or uncertainty.held[j]
        estimates.append(
            Estimate.build(
                quantity,
                value,
                np.nan if known else float(errors[j]),
                np.nan if known else float(reaches[j]),
            )
        )
    return estimates


def _effective(evidence: Sequence[Evidence], uncertainty: Uncertainty) -> float:
    """For how many free quantities those count that priors hold: the share of the data in what is known of them.

    The trace of the information of the data times the covariance a posteriori: T. J. Hastie, R. J. Tibshirani,
    "Generalized Additive Models", Chapman and Hall (1990), section 3.5.
    """
    rows = np.concatenate([each.rows for each in evidence])
    return float(np.sum((rows @ uncertainty.covariance) * rows))


def _norms(quantities: Quantities, values: Sequence[float]) -> dict[str, tuple[float, bool]]:
    """The norm of each tensor by name, and whether any of it is free."""
    found: dict[str, tuple[float, bool]] = {}
    for quantity, value in zip(quantities.all, values, strict=True):
        if quantity.kind == TENSOR:
            norm, free = found.get(quantity.key, (0.0, False))
            found[quantity.key] = math.hypot(norm, value), free or quantity.free
    return found


def _squares(levels: Levels, found: Predictions, observables: Sequence[str]) -> dict[str, float]:
    """The sum of squared residuals of each observable, on the scale of the noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        h = levels.transform_like(found.values, found.measured)
    left = (levels.transform(found.measured) - h) ** 2
    sums = np.bincount(found.measured.observable, left, len(observables))
    return dict(zip(observables, sums.tolist(), strict=True))
