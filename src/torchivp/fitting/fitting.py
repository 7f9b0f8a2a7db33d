"""The door to fitting: `fit`."""

from __future__ import annotations

import copy
import math
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torchivp.api.fused import Backend, check_backend
from torchivp.checks import check_positive
from torchivp.ensembles.executors import Workers, check_executor
from torchivp.events.event import Scheduled
from torchivp.fitting.arguments import (
    absolute_tolerance,
    check_arguments,
    check_descent,
    check_shooting,
    inputs_of,
    measurement_of,
    refuse_reading,
    split_sigma,
)
from torchivp.fitting.call import python_call
from torchivp.fitting.choices import Choices, Formula, check_enough, list_quantities
from torchivp.fitting.constraints import read_constraints
from torchivp.fitting.data import Dataset, TimeUnit, check_times, read_data
from torchivp.fitting.levels import Noise, Sigma, read_levels
from torchivp.fitting.measured import measurements
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.progress import Progress, show_progress
from torchivp.fitting.quantities import Quantities, Scale
from torchivp.fitting.random_effects.effects import find_effects, read_kinds
from torchivp.fitting.random_effects.maximise import find_marginal_maximum
from torchivp.fitting.results.assemble import assemble
from torchivp.fitting.results.derived import check_derived
from torchivp.fitting.results.result import FitResult
from torchivp.fitting.searching.descent import LEAST_SQUARES, Optimiser, check_optimiser
from torchivp.fitting.searching.maximise import Maximum, descend, find_maximum, maximise, maximise_innovations
from torchivp.fitting.searching.optimise import Search, Shooting
from torchivp.fitting.searching.scales import changes_at, seen_changes
from torchivp.fitting.searching.segments import check_segments
from torchivp.fitting.searching.stiffness import AUTO, EXPLICIT
from torchivp.fitting.searching.trust import check_derivatives, held_by_constraints, worse_than_constant
from torchivp.fitting.solving.inputs import Inputs, from_first_change
from torchivp.fitting.solving.journal import FitJournal
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.fitting.stochastic.filter import Filter
from torchivp.fitting.stochastic.measurement import Measurement
from torchivp.fused.refusal import CannotFuse
from torchivp.journal import identity_of_class
from torchivp.models.model import Model
from torchivp.models.module_model import as_model
from torchivp.models.stochastic_model import StochasticModel
from torchivp.solution import SolveError

_WORTH_COMPILING = 40
"""Of solves of so many steps a fit takes as many as last longer than to compile a kernel."""


def fit(
    model: Model,
    data: Any,
    *,
    time: str = "time",
    observe: Sequence[str] | Mapping[str, Any] | None = None,
    trajectory: str | None = None,
    long: tuple[str, str] | None = None,
    time_unit: TimeUnit | None = None,
    conditions: Any = None,
    censored: Mapping[str, str] | None = None,
    noise: Noise | Mapping[str, Noise] = "normal",
    sigma: Sigma | Mapping[str, Sigma] = "separate",
    free: str | Iterable[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
    initial: str | Mapping[str, Formula | float] | None = None,
    parameters: Mapping[str, float] | None = None,
    by: Mapping[str, str] | None = None,
    tied: Mapping[str, Formula] | None = None,
    random: Mapping[str, str] | Sequence[str] | None = None,
    scale: Mapping[str, Scale] | None = None,
    bounds: Mapping[str, Sequence[float]] | None = None,
    priors: Mapping[str, Any] | None = None,
    constraints: Sequence[str] = (),
    derived: Mapping[str, Formula] | None = None,
    method: str = "auto",
    rtol: float = 1e-8,
    atol: float | Sequence[float] | None = None,
    max_step: float = math.inf,
    max_steps: int = 100_000,
    jump_times: Sequence[float] = (),
    schedule: Scheduled | Sequence[Scheduled] | Mapping[str, Scheduled | Sequence[Scheduled]] | None = None,
    doses: Any = None,
    max_iterations: int = 200,
    starts: int | None = None,
    shooting: Shooting = "auto",
    executor: Workers = None,
    optimiser: Optimiser = AUTO,
    checkpoint: str | Path | None = None,
    backend: Backend = "auto",
    progress: bool | Progress = False,
) -> FitResult:
    """Estimate the parameters and initial states of a model from data, by maximum likelihood.

    Each observed value is a state, or a function of states and parameters, with noise. Parameters and initial states
    that the model declares positive are estimated on the log scale. The likelihood is maximised by a trust-region
    Gauss-Newton method (SciPy's `least_squares`) with the exact Jacobian of the numerical solution; the sizes of the
    noise are estimated with the rest. No start values are needed: "Where the search starts" in the
    documentation says how they are found.

    Args:
        model: an instance of `torchivp.models.Model`; it is not changed. What is solved is a copy in float64. That of a
            `StochasticModel` is a filter: see "Stochastic models" in the documentation. Tensors and networks in it (see
            "Networks in a model") begin as they are. An `nn.Module` with an attribute `states`, a dict of names and
            initial values, is taken for a `ModuleModel`.
        data: a table (see `read_data`): the path of a CSV, TSV, Parquet or Excel file, a pandas or Polars DataFrame, a
            dict of columns; or a `Dataset`, of which what says how to read a table (`time`, `observe`, ...) is refused.
        time: the name of the time column.
        observe: the observed columns: a dict from column to what it observes, which is a state, an expression in states
            and parameters such as "scale * (prey + predator)", or a function `lambda y, p: p.scale * y.prey`; or a
            list, of columns that are called like states, or else of one column per state in their order. Default: the
            columns called like states.
        trajectory: the column that tells time series with initial states of their own apart; None if there is one.
        long: (name column, value column) of a table in long form, with one measurement per row.
        time_unit: "days", "hours", ...: what dates in the time column are counted in, from the first of them.
        conditions: a second table with a row for each trajectory: numbers in columns that are called like parameters or
            states are their known values there, other columns can be named in `by`.
        censored: from an observed column to the column that says which of its values are limits ("<" or ">").
        noise: "normal", "lognormal", "proportional", "combined" (constant and proportional), "laplace", "student_t",
            "poisson" or "negative_binomial", or a `NoiseModel`; or a dict of these by observed column.
        sigma: the size of the noise: "separate" to estimate one per observed column, "shared" for one for all, a number
            that is known, or with `long` the name of a column that holds the standard deviation of each value; or a
            dict of these by observed column, without `long` names of columns among them. 0 for states of a
            `StochasticModel` that are measured exactly.
        free: the names of what to estimate (an initial state by the name of its state, all parameters of a part of the
            model by its name); "all"; or None for all parameters and the initial states of observed states, without
            tensors that require no gradient. What is not free is held at its value in `fixed`,
            in `start`, or else a parameter at its value in `model`, an observed initial state at its first datum,
            and another one at the default of the model.
        fixed: values at which to hold quantities, by name; of a tensor one of its shape.
        start: values from which to start, by name; with them, no others are tried.
        initial: what the initial states are, by state: a number, "shared" for one that all trajectories have in common,
            a formula in parameters and other initial states such as "763 - infected", or a function of an object that
            has these as attributes; or "steady" for the steady state of the model with its parameters. Default: each
            trajectory has its own.
        parameters: further parameters, of observables or formulas, with their start values.
        by: from a parameter to the column, of the trajectories or of `conditions`, for each of whose labels it has a
            value of its own.
        tied: from a parameter to the formula by which it follows from others.
        random: what differs between trajectories by chance: a dict from the name of a parameter, or of a state for its
            initial value, to "normal", "lognormal" or "logitnormal"; or a list of names, each normal on its scale of
            estimation. Estimated are the values of the population (medians), the standard deviations omega on these
            scales, and the values of each trajectory; bounds and priors are those of the population. The likelihood is
            the marginal one, by Laplace's approximation: see "Differences between subjects" in the documentation.
        scale: by name, the scale of estimation: "log", "linear" or "logit" (between its bounds).
        bounds: by name, (lower, upper), None for no bound; those of a tensor are of each of its entries. Likewise
            `scale` and `priors`.
        priors: by name, what is known beforehand of a value: a distribution of `torch.distributions`, or (mean,
            standard deviation) of a normal one. The maximum is then that of the density a posteriori.
        constraints: inequalities between parameters, such as "ka > ke".
        derived: formulas whose values are to be reported with their standard errors, such as {"R0": "beta / gamma"}.
        method: an adaptive ODE method; "auto" for "dopri5", or "rodas5p" where that takes ten times fewer steps, as it
            does for stiff models.
        rtol: relative tolerance of the solves.
        atol: absolute tolerance, in the units of the states: a number, or one for each state. Default: for each state
            `rtol` times a tenth of its smallest value in the data or at the start. By default the tolerances shrink,
            `rtol` too, where the error of the solver is not small against the noise; give `atol` to hold them.
        max_step: no step is longer; at most as long as the shortest input, or solves step over it.
        max_steps: a solve that needs more step attempts counts as failed.
        jump_times: times at which the right-hand side jumps, such as the beginning and the end of an infusion: steps
            end on them.
        schedule: changes of the state at known times: a `torchivp.Scheduled`, several, or a dict of these by the names
            of the trajectories. An observation at such a time is one of the state after it. A trajectory begins at its
            first change, if that is before its first time.
        doses: a table of doses, with the columns `time`, "amount", and if need be `trajectory` and "state": each adds
            its amount to the state (by default the first one of the model), at once, or with a "duration" or a "rate"
            as an infusion.
        max_iterations: the largest number of iterations of each search.
        starts: search from so many starts, spread within bounds and priors, or around the start values, instead of from
            as many as it takes to be sure; `result.attempts` says where each led.
        shooting: how the search for the start follows a path: "single", from its beginning to its end; "multiple", in
            segments that each begin near the data, until they join, from where the search goes on as otherwise; "auto",
            in segments where a path from the beginning explains little.
        executor: who searches from these `starts`: any `concurrent.futures.Executor`, a function that makes one, or a
            number of processes (see `torchivp.ensemble`); None for this process. Each worker searches from a part of
            them side by side; the result is the same to the last bit. `result.bootstrap` and `result.profiles` take one
            too.
        optimiser: "least-squares", the trust-region Gauss-Newton method; "l-bfgs", by the gradient alone, for hundreds
            of parameters; "auto" for the first, or for the second where the model has tensors and more than 100 numbers
            are free; the name of another method of `scipy.optimize.minimize` that needs no second derivatives; or
            what makes an optimiser of torch from a list of tensors, such as `functools.partial(torch.optim.Adam,
            lr=0.01)`. All but the first start from the values in `start` or in the model, and try no others; so does
            the first where tensors are free.
        checkpoint: a file to which all solves are written as they are made. A fit that was killed goes on from it when
            it is repeated with the same arguments, and ends at the same bits.
        backend: what solves the model: "eager", torch, operation by operation; "fused", one kernel compiled from the
            model, in which the derivatives are too (see "Compiled kernels" in the documentation), a ValueError if there
            is none; "auto", a kernel where there can be one and a solve is so long that it pays to compile it.
        progress: True to show on the terminal how the fit is getting on, or a function
            `progress(stage, iteration, nll)`.

    Returns:
        A `FitResult`. If the search did not converge, it says so: see `converged`, `message` and `warnings`.

    Raises:
        DataError: the data cannot be fitted: see `read_data`; or there are no more values than free quantities, or
            values that the noise does not allow.
        ValueError: an argument makes no sense; the message says how to mend it.
        TypeError: `model` is neither a `Model` nor a module with states.
        ImportError: a package that reads the table is not installed.
        RuntimeError: the model cannot be solved from any start.

    Examples:
        >>> import pandas, torchivp.models
        >>> from torchivp import fit
        >>> data = pandas.DataFrame({"time": [0, 1, 2, 3, 4], "angle": [1.0, -0.9, 0.5, -0.2, -0.2]})
        >>> fit(torchivp.models.Pendulum(), data, fixed={"velocity": 0.0}).free_names
        ['length', 'damping', 'angle(0)']
    """
    free = free if free is None or isinstance(free, str) else list(free)
    arguments = dict(locals())
    began = clock.perf_counter()
    model = arguments["model"] = as_model(model)
    check_arguments(model, method, max_iterations, starts, start)
    check_shooting(shooting, model, starts)
    if check_executor(executor) is not None and starts is None:
        raise ValueError(
            "executor= searches from many starts: give starts=100, or give it to result.bootstrap and result.profiles"
        )
    check_optimiser(optimiser)
    if optimiser not in (LEAST_SQUARES, AUTO):
        check_descent(model, starts=starts, shooting=shooting, random=random)
    modes, columns = split_sigma(sigma, long is not None)
    kinds = read_kinds(random, scale or {}, by or {})
    if isinstance(data, Dataset):
        refuse_reading(arguments, columns)
        dataset = data
    else:
        dataset = read_data(
            data,
            list(model.states),
            time=time,
            observe=observe,
            trajectory=trajectory,
            sigma=columns or None,
            censored=censored,
            long=long,
            conditions=conditions,
            time_unit=time_unit,
            names={*dict(model.named_parameters()), *(parameters or {}), *getattr(model, "definitions", {})},
        )
    inputs = inputs_of(dataset, list(model.states), jump_times, schedule, doses, time, trajectory)
    dataset = from_first_change(dataset, inputs)
    check_times(dataset)
    measurement = measurement_of(arguments, dataset, modes, kinds)
    dataset = measurement.data if measurement else dataset
    levels = measurement.levels() if measurement else read_levels(dataset, noise, modes, measurements(dataset))
    log_states = {state for state, kind in zip(dataset.states, levels.noises, strict=True) if state and kind.log}
    choices = Choices(
        free=free,
        fixed=fixed or {},
        start=start or {},
        parameters=parameters or {},
        scale=scale or {},
        bounds=bounds or {},
        priors=priors or {},
        by=by or {},
        tied=tied or {},
        initial=initial or {},
        random=kinds,
    )
    quantities = list_quantities(model, dataset, choices, log_states, measurement.quantities if measurement else ())
    effects = find_effects(kinds, quantities, dataset, levels)
    used = len(measurement.starts) if measurement else 0
    tensors = not quantities.single.all()
    check_enough(dataset, int(quantities.single.sum()) + len(levels.names) + len(kinds), used)
    check_positive("rtol", rtol)
    tolerance = absolute_tolerance(atol, 0.1 * rtol, dataset, quantities, list(model.states))
    accuracy = Accuracy(
        EXPLICIT if method == AUTO else method, rtol, tolerance, max_steps, check_positive("max_step", max_step)
    )
    misfit = _misfit(copy.deepcopy(model).double(), dataset, quantities, accuracy, inputs, measurement)
    misfit.constraints = read_constraints(constraints, quantities)
    check_derived(derived or {}, quantities)
    misfit.check_gradient()
    if shooting == "multiple":
        check_segments(misfit)
    _choose_solver(misfit, check_backend(backend), many=effects is not None or tensors)
    if optimiser == AUTO:
        optimiser = "l-bfgs" if tensors and misfit.many else LEAST_SQUARES
        if optimiser != LEAST_SQUARES:
            check_descent(model, starts=starts, shooting=shooting, random=random)
    with _journal(misfit, checkpoint, arguments), show_progress(progress) as tell:
        search = Search(
            seen_changes(misfit),
            levels,
            tell,
            max_iterations,
            choose_method=method == AUTO,
            starts=starts,
            shooting=shooting,
        )
        given = start is not None or tensors
        how = maximise_innovations if measurement else partial(maximise, given=given, executor=executor)
        if optimiser != LEAST_SQUARES:
            how = descend(optimiser)
        maximum = find_maximum(search, how, automatic=atol is None)
        marginal = None
        if effects is not None:
            marginal = find_marginal_maximum(search, effects, maximum, automatic=atol is None)
            maximum = marginal.maximum
        if marginal is None:
            search.misfit = changes_at(search.misfit, levels, maximum.likelihood)
        maximum = replace(maximum, doubts=_doubts(search, maximum))
        call = python_call(fit, arguments, dataset)
        return assemble(search, maximum, derived or {}, call, clock.perf_counter() - began, marginal)


def _doubts(search: Search, maximum: Maximum) -> list[str]:
    """Why what was found may not be the best that the model can do, in sentences; empty if nothing says so."""
    misfit, levels, likelihood = search.misfit, search.levels, maximum.likelihood
    return [
        *maximum.doubts,
        *check_derivatives(misfit, levels, likelihood),
        *worse_than_constant(misfit, levels, likelihood),
        *([] if maximum.active else held_by_constraints(misfit, levels, likelihood)),
        *levels.doubts(likelihood.minimum.found, misfit.data.observables),
    ]


@contextmanager
def _journal(misfit: Misfit, path: str | Path | None, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Keep a journal of all solves; what is asked of the result later is no part of it."""
    if path is None:
        yield
        return
    with closing(FitJournal(path, _identity(arguments, misfit))) as misfit.shared.journal:
        try:
            yield
        finally:
            misfit.shared.journal = None


def _identity(arguments: Mapping[str, Any], misfit: Misfit) -> list[Any]:
    """What tells a fit apart from others, whose solves are of no use to it."""
    left_out = ("data", "model", "progress", "checkpoint", "observe", "derived", "executor")
    said = {name: value for name, value in arguments.items() if name not in left_out}
    model, data, inputs = misfit.model, misfit.data, misfit.inputs
    series = [[getattr(one, each.name) for each in fields(one)] for one in data.trajectories]
    tensors = [(name, value.tolist()) for name, value in model.state_dict().items()]
    others = {name: value for name, value in vars(model).items() if not name.startswith(("_", "training"))}
    acting = [inputs.scheduled, inputs.infusions]  # a table of doses may be a file, or change in its place
    return [said, acting, series, data.observe, identity_of_class(type(model)), tensors, others, repr(model)]


def _misfit(
    model: Model,
    data: Dataset,
    quantities: Quantities,
    accuracy: Accuracy,
    inputs: Inputs,
    measurement: Measurement | None,
) -> Misfit:
    if measurement is None:
        return Misfit(model, data, quantities, accuracy, inputs)
    assert isinstance(model, StochasticModel), "a copy of one"
    return Filter(model, data, quantities, accuracy, inputs, measurement)


def _choose_solver(misfit: Misfit, backend: Backend, many: bool) -> None:
    """Let a kernel solve the model, if one is to; random effects and tensors take so `many` solves that it pays."""
    if backend == "eager":
        return
    # Those of the moments of a stochastic model are so many too.
    if backend == "auto" and not many and not isinstance(misfit.model, StochasticModel):
        try:
            rough = misfit.at_accuracy(replace(misfit.accuracy, max_steps=_WORTH_COMPILING))
            if rough.steps(misfit.quantities.theta()) < _WORTH_COMPILING:
                return
        except SolveError:
            pass
    try:
        misfit.compile()
    except CannotFuse as error:
        if backend == "fused":
            raise ValueError(f"backend='fused' has no kernel for this fit: {error}. Use backend='auto'") from None
