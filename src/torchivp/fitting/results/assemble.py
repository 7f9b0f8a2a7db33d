"""What a fit returns, from the maximum that it found: estimates with their uncertainty, statistics, warnings."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.assignments import read_formula
from torchivp.fitting.levels import Levels, Part
from torchivp.fitting.misfit import Misfit, Predictions
from torchivp.fitting.noise import NoiseModel
from torchivp.fitting.parameters import TENSOR
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
from torchivp.fitting.results.result import FitResult
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
from torchivp.fitting.searching.trust import no_better_than_constant, quantities_at_zero
from torchivp.models.model import Model

_95 = 1.959963984540054


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
        sizes = _size_estimates(information, likelihood.sizes, absent, found, uncertainty)
    elif marginal is None:
        priors = prior_residuals(quantities, theta)[1]
        evidence = levels.evidence(found, likelihood.sizes)
        evidence += [Evidence(priors, len(priors), False)] if len(priors) else []
        uncertainty = fisher_uncertainty(evidence, quantities.free, on_bound, maximum.normals)
        sizes = _size_estimates(information, likelihood.sizes, absent, found, uncertainty)
    else:
        uncertainty = marginal_uncertainty(marginal, quantities.free, len(information))
        sizes = size_estimates(marginal, levels.names, _meanings(levels))
    random = None if marginal is None else random_effects(marginal)
    estimates = _estimates(quantities, theta, uncertainty)
    omegas = [] if marginal is None or random is None else omega_estimates(marginal, random)
    estimates += omegas
    n_free = len(quantities.free) + len(omegas) + len(sizes)
    if marginal is not None and random is not None:
        names = [series.name for series in data.trajectories]
        estimates += individual_estimates(marginal, random, uncertainty, names)
    estimates += _derived(misfit, theta, uncertainty, derived)
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
            *_warnings(search, maximum, uncertainty, on_bound, absent, at_zero),
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


def _derived(
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


def _size_estimates(
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


def _meanings(levels: Levels) -> list[str]:
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


def _squares(levels: Levels, found: Predictions, observables: Sequence[str]) -> dict[str, float]:
    """The sum of squared residuals of each observable, on the scale of the noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        h = levels.transform_like(found.values, found.measured)
    left = (levels.transform(found.measured) - h) ** 2
    sums = np.bincount(found.measured.observable, left, len(observables))
    return dict(zip(observables, sums.tolist(), strict=True))


def _follows_all(levels: Levels, uncertainty: Uncertainty) -> bool:
    """Whether a sigma that is estimated has no degree of freedom left."""
    estimated = [group.count > 0 for group in levels.groups]
    return any(one and freedom <= 1.0 for one, freedom in zip(estimated, uncertainty.freedom, strict=False))


def _at_zero(misfit: Misfit, name: str) -> str:
    """That a quantity on the log scale may be zero, in words."""
    if name in [each.name for each in misfit.quantities.free if each.kind == "sigma"]:
        return (
            f"{name} is at its bound, zero: the noise of the model alone explains the data as well; sigma=0 says that "
            "they are exact"
        )
    return (
        f"{name} is at its bound, zero: the model explains the data as well without it. If it may be negative, leave "
        f"it out of the positive of {type(misfit.model).__name__}, which names what is estimated on the log scale (by "
        "default all parameters)"
    )


def _warnings(
    search: Search,
    maximum: Maximum,
    uncertainty: Uncertainty,
    on_bound: NDArray[np.bool_],
    absent: NDArray[np.bool_],
    at_zero: Sequence[str],
) -> list[str]:
    misfit, levels, likelihood = search.misfit, search.levels, maximum.likelihood
    warnings = []
    if not likelihood.converged:
        warnings.append("the search has not converged: the numbers are those of its last iteration")
    if likelihood.at_floor:
        warnings.append(
            "a sigma is as small as the error of the solver: the model fits these data exactly, and standard errors "
            "mean little"
        )
    elif lost := [name for name, none in zip(levels.names, absent, strict=True) if none]:
        warnings.append(
            f"{', '.join(lost)}: the data show no noise of this kind, or less than the error of the solver: take noise "
            "without it"
        )
    held = [
        quantity.name
        for quantity in misfit.quantities.all
        if quantity.kind == "initial state" and quantity.assumed and quantity.key not in misfit.data.states
    ]
    if held:
        warnings.append(
            f"not observed and not estimated, but held at the default of the model: {', '.join(held)} (give its value "
            "in fixed, or estimate it with free='all')"
        )
    names = misfit.quantities.labels(on_bound)
    if names:
        warnings.append(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} at a bound, and the standard errors of the "
            "others take that as known: if the bound is not a fact, widen it"
        )
    if maximum.active:
        several = len(maximum.active) > 1
        warnings.append(
            f"the constraint{'s' if several else ''} {', '.join(maximum.active)} {'are' if several else 'is'} active: "
            "the likelihood grows beyond, and the estimates are the best there. Standard errors and intervals are "
            "those along it, and take it as known: if it is no fact, leave it out"
        )
    if not misfit.quantities.single.all() and _follows_all(levels, uncertainty):
        names = ", ".join(misfit.quantities.labels(~misfit.quantities.single))
        warnings.append(
            f"{names} can follow every datum, so that sigma, intervals and criteria mean nothing: give priors={{name: "
            "(0, 1)}, fewer numbers or a known sigma"
        )
    warnings += [_at_zero(misfit, name) for name in at_zero]
    if not at_zero:  # which says as much
        warnings += no_better_than_constant(misfit, levels, likelihood)
    said = [f"determine {name}" for name in at_zero]
    return warnings + [each for each in uncertainty.warnings if not any(f"{words}:" in f"{each}:" for words in said)]
