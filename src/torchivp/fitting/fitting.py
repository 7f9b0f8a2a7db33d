"""The door to fitting: `fit`."""

from __future__ import annotations

import copy
import math
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.api.fused import Backend, check_backend
from torchivp.checks import check_positive
from torchivp.events.event import Scheduled
from torchivp.fitting.call import python_call
from torchivp.fitting.data import DataError, Dataset, read_data
from torchivp.fitting.inputs import read_inputs
from torchivp.fitting.kernels import ModelKernel
from torchivp.fitting.misfit import Accuracy, Misfit, Noise, SigmaMode
from torchivp.fitting.optimise import Likelihood, Minimum, Search
from torchivp.fitting.progress import Progress, show_progress
from torchivp.fitting.quantities import Quantities, list_quantities
from torchivp.fitting.result import Estimate, FitResult
from torchivp.fitting.start import find_start
from torchivp.fitting.trust import (
    SMALLEST_RTOL,
    check_derivatives,
    check_solves,
    no_better_than_constant,
    quantities_at_zero,
    worse_than_constant,
)
from torchivp.fitting.uncertainty import Uncertainty, fisher_uncertainty
from torchivp.fused.refusal import CannotFuse
from torchivp.methods import find_method
from torchivp.models.model import Model
from torchivp.solution import SolveError

_WORTH_COMPILING = 500
"""A solve of so many steps, of which a fit takes tens, takes longer than to compile a kernel."""

_SEARCH_RTOL = 1e-5  # the search for the start solves no more accurately than this
_SEARCH_STEPS, _SEARCH_STEPS_PER_TIME = 500, 10  # nor in more steps, in all and per data time,
_MARGIN = 10  # or than this many times those of the start that the user gave,
_MARGIN_OF_DEFAULTS = 2  # or of the model's defaults,
_MOST_SEARCH_STEPS = 10_000  # which count only if they can be solved from in so few
_ATTEMPTS = 3  # how often to fit with smaller tolerances before giving up
_TIGHTEN = 1e-2  # by what factor they shrink each time


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
    atol: float | Sequence[float] | None = None,
    max_step: float = math.inf,
    max_steps: int = 100_000,
    jump_times: Sequence[float] = (),
    schedule: Scheduled | Sequence[Scheduled] | Mapping[str, Scheduled | Sequence[Scheduled]] | None = None,
    max_iterations: int = 200,
    backend: Backend = "auto",
    progress: bool | Progress = False,
) -> FitResult:
    """Estimate the parameters and initial states of a model from data, by maximum likelihood.

    Each observed value is the state plus normal noise, or the state times lognormal noise. Parameters and initial
    states that the model declares positive are estimated on the log scale. The residuals are minimised by a
    trust-region Gauss-Newton method (SciPy's `least_squares`) with the exact Jacobian of the numerical solution; the
    standard deviations of the noise are estimated with the rest. No start values are needed: see
    `torchivp.fitting.start.find_start` for how they are found.

    Args:
        model: an instance of `torchivp.models.Model`; it is not changed. What is solved is a copy in float64.
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
        atol: absolute tolerance, in the units of the states: a number, or one for each state. Default: for each state
            `rtol` times a tenth of its smallest value in the data or at the start. By default the tolerances shrink,
            `rtol` too, where the error of the solver is not small against the noise; give `atol` to hold them.
        max_step: no step is longer; at most as long as the shortest input, or solves step over it.
        max_steps: a solve that needs more step attempts counts as failed.
        jump_times: times at which the right-hand side jumps, such as the beginning and the end of an infusion: steps
            end on them.
        schedule: changes of the state at known times, such as doses: a `torchivp.Scheduled`, several, or a dict of
            these by the names of the trajectories. An observation at such a time is one of the state after it.
        max_iterations: the largest number of iterations of each search.
        backend: what solves the model: "eager", torch, operation by operation; "fused", one kernel compiled from the
            model, in which the derivatives are too (see "Compiled kernels" in the documentation), a ValueError if there
            is none; "auto", a kernel where there can be one and a solve is so long that it pays to compile it.
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
    names = [series.name for series in dataset.trajectories]
    inputs = read_inputs(jump_times, schedule, names)
    tolerance = _absolute_tolerance(atol, 0.1 * rtol, dataset, quantities, list(model.states))
    accuracy = Accuracy(method, rtol, tolerance, max_steps, check_positive("max_step", max_step))
    misfit = Misfit(copy.deepcopy(model).double(), dataset, quantities, noise, accuracy, inputs)
    misfit.check_gradient()
    misfit.kernel = _kernel(misfit, check_backend(backend), method)
    with show_progress(progress) as tell:
        search = Search(misfit, sigma, tell, max_iterations)
        likelihood, doubts, rivals = _estimate(search, given=start is not None, automatic=atol is None)
        doubts += check_derivatives(search.misfit, likelihood)
        doubts += worse_than_constant(search.misfit, likelihood)
    return _result(
        search, likelihood, doubts, rivals, python_call(fit, arguments, dataset), clock.perf_counter() - began
    )


def _kernel(misfit: Misfit, backend: Backend, method: str) -> ModelKernel | None:
    """The kernel that solves the model, if it is to be one."""
    if backend == "eager":
        return None
    if backend == "auto":
        try:
            rough = misfit.at_accuracy(replace(misfit.accuracy, max_steps=_WORTH_COMPILING))
            if rough.steps(misfit.quantities.theta()) < _WORTH_COMPILING:
                return None
        except SolveError:
            pass
    try:
        return ModelKernel(misfit.model, misfit.quantities, method)
    except CannotFuse as error:
        if backend == "fused":
            raise ValueError(f"backend='fused' has no kernel for this fit: {error}. Use backend='auto'") from None
        return None


def _check_arguments(model: Model, noise: str, sigma: str, method: str) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model must be a torchivp.models.Model, got {type(model).__name__}")
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {get_args(Noise)}, got {noise!r}")
    if sigma not in get_args(SigmaMode):
        raise ValueError(f"sigma must be one of {get_args(SigmaMode)}, got {sigma!r}")
    if find_method(method).error_order is None:
        raise ValueError(f"{method!r} takes fixed steps, and a fit needs an adaptive method such as 'dopri5'")


def _absolute_tolerance(
    given: float | Sequence[float] | None, factor: float, data: Dataset, quantities: Quantities, states: list[str]
) -> tuple[float, ...] | float:
    """The absolute tolerance of each state: as given, or `factor` times the smallest size that matters.

    An observed state matters down to its smallest value; it may grow from there, and then the error that it begins with
    grows along. What is not observed may matter wherever an observed state does.
    """
    if isinstance(given, Sequence):
        if len(given) != len(states):
            raise ValueError(f"atol must be a number, or one for each of {', '.join(states)}, got {len(given)} numbers")
        return tuple(map(float, given))
    if given is not None:
        return given
    sizes: dict[str, list[float]] = {state: [] for state in states}
    for k, state in enumerate(data.states):
        sizes[state] += np.abs(data.column(k)).tolist()
    for quantity in quantities.all:
        if quantity.kind == "initial state":
            sizes[quantity.key].append(abs(quantity.value))
    smallest = {state: min(filter(None, values), default=np.inf) for state, values in sizes.items()}
    observed = min(smallest[state] for state in data.states)
    of_all = observed if np.isfinite(observed) else 1.0
    least = [smallest[state] if state in data.states else min(smallest[state], of_all) for state in states]
    return tuple(factor * (size if np.isfinite(size) else of_all) for size in least)


def _estimate(search: Search, given: bool, automatic: bool) -> tuple[Likelihood, list[str], list[str]]:
    """Find the maximum of the likelihood, with tolerances that the noise allows.

    The size of the noise is not known before. So the solves at the maximum are compared with more accurate ones, and
    where these differ, all is done again with smaller tolerances.

    Args:
        search: what is maximised.
        given: whether the user has given start values.
        automatic: whether the tolerances may be changed.

    Returns:
        The maximum, what is wrong with the solves there, and what is to be said of other maxima.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        likelihood, rivals = _maximise(search, given)
        verdict = check_solves(search.misfit, likelihood)
        tighter = search.misfit.accuracy.scaled(_TIGHTEN, _TIGHTEN)
        if not (attempts_left and automatic and verdict.inaccurate) or tighter.rtol < SMALLEST_RTOL:
            return likelihood, verdict.sentences, rivals
        search.misfit = search.misfit.at_accuracy(tighter)
    raise AssertionError("the last attempt returns")


def _maximise(search: Search, given: bool) -> tuple[Likelihood, list[str]]:
    """Find the start and the maximum of the likelihood, first with solves of little accuracy.

    Returns:
        The maximum, and what is to be said of others.
    """
    misfit, exact = search.misfit, search.misfit.accuracy
    scale, floor = _data_scale(misfit, search.sigma_mode), 10 * _data_size(misfit)
    factor = max(1.0, _SEARCH_RTOL / exact.rtol)
    while True:
        rough = exact.scaled(factor)
        search.misfit = misfit.at_accuracy(replace(rough, max_steps=_search_steps(misfit.at_accuracy(rough), given)))
        start = find_start(search, scale, given)
        begin = start.best
        if begin.residuals is None:
            raise RuntimeError(_unsolvable(search.misfit, given))
        if factor == 1.0 or search.agrees(begin, misfit, scale):
            break
        factor = max(1.0, _TIGHTEN * factor)  # the search has fitted the errors of its solves
    roughly = search.maximise_likelihood(
        begin.theta, rough.rtol * floor, "maximum likelihood, roughly", tolerance=1e-6, known=begin.residuals
    )
    search.misfit = misfit
    likelihood = search.maximise_likelihood(
        roughly.minimum.theta, exact.rtol * floor, "maximum likelihood", tolerance=1e-9
    )
    if not np.isfinite(likelihood.nll):
        raise RuntimeError(
            f"the model cannot be solved accurately enough at the best start: {misfit.failure}: loosen rtol"
        )
    return likelihood, [_rival(misfit.quantities, rival) for rival in start.rivals]


def _rival(quantities: Quantities, minimum: Minimum) -> str:
    values = quantities.values(torch.tensor(minimum.theta)).tolist()
    listed = [f"{each.name} = {value:.4g}" for each, value in zip(quantities.all, values, strict=True) if each.free]
    return (
        f"a second optimum explains the data as well, {', '.join(listed)}; the one reported is nearer to the "
        "defaults of the model: if it is not the one meant, give start"
    )


def _search_steps(misfit: Misfit, given: bool) -> int:
    """How many steps a solve of the search may take.

    A random start may need any number of steps, which would make the search slow. So there is a limit, set by the
    number of the data and by what the first start needs, that of the user or of the model's defaults.
    """
    accuracy = misfit.accuracy
    longest = max(misfit.data.trajectories, key=lambda trajectory: len(trajectory.t))
    span = max(trajectory.t[-1] - trajectory.t[0] for trajectory in misfit.data.trajectories)
    steps = _SEARCH_STEPS + min(_SEARCH_STEPS_PER_TIME * len(longest.t), _MOST_SEARCH_STEPS)
    steps += int(2 * span / accuracy.max_step)
    try:
        trial = misfit if given else misfit.at_accuracy(replace(accuracy, max_steps=_MOST_SEARCH_STEPS))
        margin = _MARGIN if given else _MARGIN_OF_DEFAULTS
        steps = max(steps, margin * trial.steps(misfit.quantities.theta()))
    except SolveError:
        pass
    return min(steps, accuracy.max_steps)


def _unsolvable(misfit: Misfit, given: bool) -> str:
    """Why no start could be solved from."""
    misfit.residuals(misfit.quantities.theta(), derivatives=False)
    if given:
        return f"the model cannot be solved from the start that was given: {misfit.failure}"
    return (
        "the model cannot be solved from any start: give start={name: value, ...}. From the defaults of the model: "
        f"{misfit.failure}"
    )


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


def _result(
    search: Search, likelihood: Likelihood, doubts: list[str], rivals: list[str], call: str, seconds: float
) -> FitResult:
    misfit, minimum = search.misfit, likelihood.minimum
    data, quantities = misfit.data, misfit.quantities
    residuals = minimum.residuals
    assert residuals is not None, "a finite likelihood has residuals"
    scaled = residuals.jacobian / likelihood.sigma[residuals.observable][:, None]
    shared = search.sigma_mode == "shared"
    of_sigma = np.zeros_like(residuals.observable) if shared else residuals.observable
    uncertainty = fisher_uncertainty(scaled, of_sigma, quantities.free)
    nll = likelihood.nll
    sigmas = _sigma_estimates(misfit, search.sigma_mode, likelihood.sigma, uncertainty)
    n_free, n_data = len(quantities.free) + len(sigmas), data.n_data
    squares = np.bincount(residuals.observable, residuals.values**2, len(data.observables))
    ended = "converged" if likelihood.converged else f"not converged within {search.max_iterations} iterations"
    if likelihood.converged and doubts:
        ended = "not converged to what the model says (see the warnings)"
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
        converged=likelihood.converged and not doubts,
        message=f"{ended} after {search.iterations} iterations and {misfit.solves} solves in {seconds:.1f} s",
        warnings=doubts + rivals + _warnings(misfit, likelihood, uncertainty),
        iterations=search.iterations,
        solves=misfit.solves,
        seconds=seconds,
        covariance=uncertainty.covariance,
        correlation=uncertainty.correlation(),
        free_names=[quantity.name for quantity in quantities.free],
        sigma=likelihood.sigma,
        theta=minimum.theta,
        unscaled_residuals=residuals.by_trajectory(data),
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
    reaches = uncertainty.reach(np.eye(len(names))).tolist()
    errors = dict(zip(names, zip(uncertainty.standard_errors().tolist(), reaches, strict=True), strict=True))
    return [
        Estimate.build(
            quantity.name,
            quantity.kind,
            value,
            *errors.get(quantity.name, (np.nan, np.nan)),
            log=quantity.log,
            free=quantity.free,
            unit=quantity.unit,
            description=quantity.description,
        )
        for quantity, value in zip(quantities.all, values, strict=True)
    ]


def _sigma_estimates(
    misfit: Misfit, sigma_mode: SigmaMode, sigma: NDArray[np.float64], uncertainty: Uncertainty
) -> list[Estimate]:
    """The standard deviations of the noise, estimated on the log scale, with information 2 per value."""
    names = [", ".join(misfit.data.observables)] if sigma_mode == "shared" else misfit.data.observables
    meaning = "standard deviation of the noise" + (" of the logarithm" if misfit.noise == "lognormal" else "")
    errors = 1 / np.sqrt(2 * uncertainty.counts)
    return [
        Estimate(
            name=f"sigma({name})",
            kind="sigma",
            value=float(value),
            standard_error=float(value * error),
            scale="log",
            scale_error=float(error),
            lower=float(value * lower),
            upper=float(value * upper),
            free=True,
            unit="",
            description=meaning,
        )
        for name, value, error, (lower, upper) in zip(
            names, sigma, errors, uncertainty.sigma_factors().T, strict=sigma_mode == "separate"
        )
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
    at_zero = quantities_at_zero(misfit, likelihood, uncertainty.standard_errors())
    for name in at_zero:
        warnings.append(
            f"{name} is at its bound, zero: the model explains the data as well without it. If it may be negative, "
            f"leave it out of the positive of {type(misfit.model).__name__}, which names what is estimated on the log "
            "scale (by default all parameters)"
        )
    if not at_zero:  # which says as much
        warnings += no_better_than_constant(misfit, likelihood)
    said = [f"determine {name}" for name in at_zero]
    return warnings + [each for each in uncertainty.warnings if not any(f"{words}:" in f"{each}:" for words in said)]
