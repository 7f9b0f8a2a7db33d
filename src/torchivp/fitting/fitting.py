"""The door to fitting: `fit`."""

from __future__ import annotations

import copy
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.call import python_call
from torchivp.fitting.data import DataError, Dataset, read_data
from torchivp.fitting.misfit import Accuracy, Misfit, Noise, SigmaMode
from torchivp.fitting.optimise import Likelihood, Search
from torchivp.fitting.progress import Progress, show_progress
from torchivp.fitting.quantities import Quantities, list_quantities
from torchivp.fitting.result import Estimate, FitResult
from torchivp.fitting.start import find_start
from torchivp.fitting.uncertainty import Uncertainty, fisher_uncertainty
from torchivp.methods import find_method
from torchivp.models.model import Model

_SEARCH_RTOL = 1e-5  # the search for the start solves no more accurately than this
_SEARCH_STEPS, _SEARCH_STEPS_PER_TIME = 500, 10  # nor in more steps, in all and per data time
_MAX_STEPS = 10_000


def fit(
    model: Model,
    data: Any,
    *,
    time: str = "time",
    observe: Sequence[str] | Mapping[str, str] | None = None,
    trajectory: str | None = None,
    noise: Noise = "normal",
    sigma: SigmaMode = "separate",
    free: str | Iterable[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
    method: str = "dopri5",
    rtol: float = 1e-8,
    atol: float | None = None,
    max_iterations: int = 200,
    progress: bool | Progress = False,
) -> FitResult:
    """Estimate the parameters and initial states of a model from data, by maximum likelihood.

    Each observed value is the state plus normal noise, or the state times lognormal noise. Parameters and initial
    states that the model declares positive are estimated on the log scale. The residuals are minimised by a
    trust-region Gauss-Newton method (SciPy's `least_squares`) with the exact Jacobian of the numerical solution; the
    standard deviations of the noise are estimated with the rest. No start values are needed: see
    `torchivp.fitting.start.find_start` for how they are found.

    Args:
        model: an instance of `torchivp.models.Model`; it is not changed.
        data: the path of a CSV file with a header, a pandas DataFrame, or a `Dataset`.
        time: the name of the time column.
        observe: the observed columns: a dict from column to state; or a list, of columns that are called like
            states, or else of one column per state in their order. Default: the columns called like states.
        trajectory: the column that tells time series with initial states of their own apart; None if there is one.
        noise: "normal" or "lognormal".
        sigma: "separate" for a standard deviation of the noise per observable, "shared" for one for all.
        free: the names of what to estimate (an initial state by the name of its state); "all"; or None for all
            parameters and the initial states of observed states. What is not free is held at its value in `fixed`,
            in `start`, or else a parameter at its value in `model`, an observed initial state at its first datum,
            and another one at the default of the model.
        fixed: values at which to hold quantities, by name.
        start: values from which to start, by name; with them, no others are tried.
        method: an adaptive ODE method.
        rtol: relative tolerance of the solves.
        atol: absolute tolerance, in the units of the states; default `rtol` times a tenth of the root mean square of
            the smallest observable.
        max_iterations: the largest number of iterations of each search.
        progress: True to show on the terminal how the fit is getting on, or a function
            `progress(stage, iteration, nll)`.

    Returns:
        A `FitResult`. If the search did not converge, it says so: see `converged`, `message` and `warnings`.

    Raises:
        DataError: the data cannot be fitted: see `read_data`; or there are no more values than free quantities, or
            values that are not positive with lognormal noise.
        ValueError: an argument makes no sense; the message says how to mend it.
        TypeError: `model` is not a `Model`.
        ImportError: pandas is not installed.
        RuntimeError: the model cannot be solved from any start.

    Examples:
        >>> import pandas, torchivp.models
        >>> from torchivp import fit
        >>> data = pandas.DataFrame({"time": [0, 1, 2, 3, 4], "angle": [1.0, -0.9, 0.5, -0.2, -0.2]})
        >>> fit(torchivp.models.Pendulum(), data, fixed={"velocity": 0.0}).free_names
        ['length', 'damping', 'angle(0)']
    """
    began = clock.perf_counter()
    free = free if free is None or isinstance(free, str) else list(free)
    arguments = dict(locals())
    _check_arguments(model, noise, sigma, method)
    dataset = (
        data
        if isinstance(data, Dataset)
        else read_data(data, list(model.states), time=time, observe=observe, trajectory=trajectory)
    )
    if noise == "lognormal":
        dataset.check_positive()
    quantities = list_quantities(model, dataset, free=free, fixed=fixed, start=start, lognormal=noise == "lognormal")
    n_free = len(quantities.free) + (1 if sigma == "shared" else len(dataset.observables))
    if dataset.n_data <= n_free:
        raise DataError(
            f"too few data: {dataset.n_data} values for {n_free} free quantities, sigmas included: hold some, "
            "fixed={name: value}"
        )
    size = min(float(np.sqrt(np.mean(dataset.column(k) ** 2))) or 1.0 for k in range(len(dataset.observables)))
    accuracy = Accuracy(method, rtol, 0.1 * rtol * size if atol is None else atol, _MAX_STEPS)
    misfit = Misfit(copy.deepcopy(model), dataset, quantities, noise, accuracy)
    with show_progress(progress) as tell:
        search = Search(misfit, sigma, tell, max_iterations)
        likelihood = _estimate(search, given=start is not None)
    return _result(search, likelihood, python_call(fit, arguments, dataset), clock.perf_counter() - began)


def _check_arguments(model: Model, noise: str, sigma: str, method: str) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model must be a torchivp.models.Model, got {type(model).__name__}")
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {get_args(Noise)}, got {noise!r}")
    if sigma not in get_args(SigmaMode):
        raise ValueError(f"sigma must be one of {get_args(SigmaMode)}, got {sigma!r}")
    if find_method(method).error_order is None:
        raise ValueError(f"{method!r} takes fixed steps, and a fit needs an adaptive method such as 'dopri5'")


def _estimate(search: Search, given: bool) -> Likelihood:
    """Find the start and the maximum of the likelihood, first with solves of little accuracy."""
    misfit, exact = search.misfit, search.misfit.accuracy
    rtol = max(exact.rtol, _SEARCH_RTOL)
    longest = max(len(trajectory.t) for trajectory in misfit.data.trajectories)
    search.misfit = misfit.at_accuracy(
        rtol=rtol, atol=exact.atol * rtol / exact.rtol, max_steps=_SEARCH_STEPS + _SEARCH_STEPS_PER_TIME * longest
    )
    begin = find_start(search, _data_scale(misfit, search.sigma_mode), given)
    if not np.isfinite(begin.cost):
        raise RuntimeError("the model cannot be solved from any start: give start={name: value, ...}")
    floor = 10 * _data_size(misfit)
    rough = search.maximise_likelihood(begin.theta, rtol * floor, "maximum likelihood, roughly", tolerance=1e-6)
    search.misfit = misfit
    likelihood = search.maximise_likelihood(
        rough.minimum.theta, exact.rtol * floor, "maximum likelihood", tolerance=1e-9
    )
    if not np.isfinite(likelihood.nll):
        raise RuntimeError("the model cannot be solved accurately enough at the best start: loosen rtol")
    return likelihood


def _data_size(misfit: Misfit) -> NDArray[np.float64]:
    """The root mean square of each observable; 1 for logarithms, [n_observed]."""
    columns = [misfit.data.column(k) for k in range(len(misfit.data.observables))]
    if misfit.noise == "lognormal":
        return np.ones(len(columns))
    return np.array([float(np.sqrt(np.mean(column**2))) or 1.0 for column in columns])


def _data_scale(misfit: Misfit, sigma_mode: SigmaMode) -> NDArray[np.float64]:
    """The standard deviation of each observable on the scale of the noise, [n_observed]; one for all if shared."""
    columns = [misfit.data.column(k) for k in range(len(misfit.data.observables))]
    if misfit.noise == "lognormal":
        columns = [np.log(column) for column in columns]
    scale = np.array([column.std() for column in columns])
    if sigma_mode == "shared":
        scale = np.full(len(scale), np.sqrt(np.mean(scale**2)))
    return np.where(scale > 0, scale, _data_size(misfit))


def _result(search: Search, likelihood: Likelihood, call: str, seconds: float) -> FitResult:
    misfit, minimum = search.misfit, likelihood.minimum
    data, quantities = misfit.data, misfit.quantities
    residuals = minimum.residuals
    assert residuals is not None, "a finite likelihood has residuals"
    scaled = residuals.jacobian / likelihood.sigma[residuals.observable][:, None]
    uncertainty = fisher_uncertainty(scaled, quantities.free)
    nll = likelihood.nll
    sigmas = _sigma_estimates(misfit, search.sigma_mode, likelihood.sigma)
    n_free, n_data = len(quantities.free) + len(sigmas), data.n_data
    squares = np.bincount(residuals.observable, residuals.values**2, len(data.observables))
    ended = "converged" if likelihood.converged else f"not converged within {search.max_iterations} iterations"
    return FitResult(
        model=_fitted(misfit, minimum.theta),
        data=data,
        observed_states=data.states,
        noise=misfit.noise,
        sigma_mode=search.sigma_mode,
        estimates=_estimates(quantities, minimum.theta, uncertainty) + sigmas,
        nll=nll,
        aic=2 * nll + 2 * n_free,
        aicc=2 * nll + 2 * n_free * n_data / (n_data - n_free - 1) if n_data > n_free + 1 else np.inf,
        bic=2 * nll + n_free * float(np.log(n_data)),
        rss=dict(zip(data.observables, squares.tolist(), strict=True)),
        n_data=n_data,
        n_free=n_free,
        converged=likelihood.converged,
        message=f"{ended} after {search.iterations} iterations and {misfit.solves} solves in {seconds:.1f} s",
        warnings=_warnings(misfit, likelihood, uncertainty),
        iterations=search.iterations,
        solves=misfit.solves,
        seconds=seconds,
        covariance=uncertainty.covariance,
        correlation=uncertainty.correlation(),
        free_names=[quantity.name for quantity in quantities.free],
        sigma=likelihood.sigma,
        theta=minimum.theta,
        misfit=misfit,
        uncertainty=uncertainty,
        call=call,
    )


def _fitted(misfit: Misfit, theta: NDArray[np.float64]) -> Model:
    """A copy of the model with the estimated parameters."""
    model = copy.deepcopy(misfit.model)
    parameters = misfit.quantities.parameters(misfit.quantities.values(torch.tensor(theta)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
    return model


def _estimates(quantities: Quantities, theta: NDArray[np.float64], uncertainty: Uncertainty) -> list[Estimate]:
    values = quantities.values(torch.tensor(theta)).tolist()
    names = [quantity.name for quantity in quantities.free]
    errors = dict(zip(names, uncertainty.standard_errors().tolist(), strict=True))
    return [
        Estimate.build(
            quantity.name,
            quantity.kind,
            value,
            errors.get(quantity.name, np.nan),
            log=quantity.log,
            free=quantity.free,
            unit=quantity.unit,
            description=quantity.description,
        )
        for quantity, value in zip(quantities.all, values, strict=True)
    ]


def _sigma_estimates(misfit: Misfit, sigma_mode: SigmaMode, sigma: NDArray[np.float64]) -> list[Estimate]:
    """The standard deviations of the noise, estimated on the log scale, with information 2 per value."""
    data = misfit.data
    counts = [len(data.column(k)) for k in range(len(data.observables))]
    groups = {column: (sigma[k], counts[k]) for k, column in enumerate(data.observables)}
    if sigma_mode == "shared":
        groups = {", ".join(data.observables): (sigma[0], sum(counts))}
    meaning = "standard deviation of the noise" + (" of the logarithm" if misfit.noise == "lognormal" else "")
    return [
        Estimate.build(
            f"sigma({columns})",
            "sigma",
            float(value),
            float(1 / np.sqrt(2 * count)),
            log=True,
            free=True,
            unit="",
            description=meaning,
        )
        for columns, (value, count) in groups.items()
    ]


def _warnings(misfit: Misfit, likelihood: Likelihood, uncertainty: Uncertainty) -> list[str]:
    warnings = []
    if not likelihood.converged:
        warnings.append("the search has not converged: the numbers are those of its last iteration")
    if likelihood.at_floor:
        warnings.append(
            "a sigma is as small as the error of the solver: the model fits these data exactly, and standard errors "
            "mean little"
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
    return warnings + uncertainty.warnings
