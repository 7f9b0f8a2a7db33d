"""From a start to the maximum of the likelihood, with tolerances of the solves that the noise allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchivp.ensembles.executors import Workers
from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.priors import penalty
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.searching.columns import likeliest_by_column
from torchivp.fitting.searching.descent import Descent, Optimiser
from torchivp.fitting.searching.multistart import Attempt, best_minimum, search_from_many, starts_of
from torchivp.fitting.searching.optimise import Likelihood, Minimum, Search, Weighing
from torchivp.fitting.searching.start import Start, find_start
from torchivp.fitting.searching.stiffness import choose_method, choose_method_for_many
from torchivp.fitting.searching.trust import SMALLEST_RTOL, check_solves
from torchivp.fitting.searching.within_limits import onto_limits
from torchivp.solution import SolveError

_SEARCH_STEPS, _SEARCH_STEPS_PER_TIME = 500, 10  # the search for a start takes no more, in all and per data time,
_MARGIN = 10  # or than this many times those of the start that the user gave,
_MARGIN_OF_DEFAULTS = 2  # or of the model's defaults,
_MOST_SEARCH_STEPS = 10_000  # which count only if they can be solved from in so few
_AT_ODDS = 2.0  # what priors may lose where data agree with them
_ATTEMPTS = 3  # how often to fit with smaller tolerances before giving up
_BELIEF = 0.1  # how much priors count beside data that are weighed by their scatter; noise is a tenth of it or so
_LIKELIER = 1e-3  # logarithm of the likelihood that is another maximum's, and not what more accurate solves gain
_BRIEFLY = 30  # iterations
_TIGHTEN = 1e-2  # by what factor they shrink each time


@dataclass(frozen=True)
class Maximum:
    """The maximum that was found.

    Attributes:
        likelihood: the maximum.
        doubts: what is wrong with the solves there, in words.
        rivals: what is to be said of other maxima.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        attempts: the starts that were asked for, the most likely first.
        normals: the slopes by theta of the constraints that hold it back, [m, n_free].
        active: these constraints in words.
    """

    likelihood: Likelihood
    doubts: list[str]
    rivals: list[str]
    floor: NDArray[np.float64]
    attempts: list[Attempt]
    normals: NDArray[np.float64] | None = None
    active: tuple[str, ...] = ()


def find_maximum(search: Search, maximise: Callable[[Search], Maximum], automatic: bool) -> Maximum:
    """Find the maximum of the likelihood, with tolerances that the noise allows.

    The size of the noise is not known before. So the solves at the maximum are compared with more accurate ones, and
    where these differ, all is done again with smaller tolerances.

    Args:
        search: what is maximised.
        maximise: finds the maximum at given tolerances.
        automatic: whether the tolerances may be changed.

    Raises:
        RuntimeError: the model cannot be solved from any start.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        maximum = maximise(search)
        verdict = check_solves(search.misfit, search.levels, maximum.likelihood)
        tighter = search.misfit.accuracy.scaled(_TIGHTEN, _TIGHTEN)
        if not (attempts_left and automatic and verdict.inaccurate) or tighter.rtol < SMALLEST_RTOL:
            return replace(maximum, doubts=verdict.sentences)
        search.misfit = search.misfit.at_accuracy(tighter)
    raise AssertionError("the last attempt returns")


def maximise(search: Search, given: bool, executor: Workers = None) -> Maximum:
    """Find the start and the maximum of the likelihood, first with solves of little accuracy.

    Args:
        search: what is maximised.
        given: whether the user has given start values.
        executor: who searches from many starts.

    Raises:
        RuntimeError: the model cannot be solved from any start.
    """
    if search.choose_method:
        search.misfit = choose_method(search.misfit, search.misfit.quantities.theta())
    misfit, exact = search.misfit, search.misfit.accuracy
    scale, floor = _data_scale(misfit, search.levels), 10 * _data_size(misfit, search.levels)
    weighing = Weighing(search.levels.rough(scale), np.ones(0), _BELIEF)
    factor = max(1.0, search.rtol / exact.rtol)
    coarse, fine = (1e-6, 1e-9) if misfit.quantities.single.all() else (1e-5, 1e-6)
    while True:
        rough = exact.scaled(factor)
        search.misfit = misfit.at_accuracy(replace(rough, max_steps=_search_steps(misfit.at_accuracy(rough), given)))
        start, attempts = _begin(search, weighing, given, rough.rtol * floor, executor)
        begin = start.best
        if begin.found is None:
            raise RuntimeError(_unsolvable(search, given))
        if factor == 1.0 or search.starts is not None or search.agrees(begin, misfit, weighing):
            break
        factor = max(1.0, _TIGHTEN * factor)  # the search has fitted the errors of its solves
        search.rtol = factor * exact.rtol
    if search.choose_method:
        misfit = choose_method(misfit, begin.theta)
        search.misfit = search.misfit.at_accuracy(replace(search.misfit.accuracy, method=misfit.accuracy.method))
    roughly = search.maximise_likelihood(
        begin.theta, rough.rtol * floor, "maximum likelihood, roughly", tolerance=coarse, known=begin.found
    )
    if penalty(misfit.quantities, begin.theta) > _AT_ODDS:
        roughly = _nearer_to_priors(search, roughly, weighing, rough.rtol * floor, coarse)
    if misfit.quantities.single.all():
        roughly = likeliest_by_column(search, roughly, weighing, rough.rtol * floor, coarse)
    search.misfit = misfit
    best = roughly.minimum.theta if np.isfinite(roughly.nll) else begin.theta
    likelihood = search.maximise_likelihood(best, exact.rtol * floor, "maximum likelihood", tolerance=fine)
    if not np.isfinite(likelihood.nll):
        raise RuntimeError(
            f"the model cannot be solved accurately enough at the best start: {misfit.failure}: loosen rtol"
        )
    likelihood = _no_worse_than_start(search, likelihood, exact.rtol * floor)
    likelihood = search.onto_bounds(likelihood, exact.rtol * floor, "maximum likelihood, on bounds", tolerance=fine)
    ended = onto_limits(search, likelihood, exact.rtol * floor)
    likelihood = ended.likelihood
    if attempts and search.cost(likelihood) < _cost(search, attempts[0]) - _LIKELIER:
        best = likelihood.minimum.theta  # where the best start led in the end
        attempts = [replace(attempts[0], theta=best, nll=likelihood.nll), *attempts[1:]]
    rivals = [_rival(misfit.quantities, rival) for rival in start.rivals]
    return Maximum(likelihood, [], rivals, exact.rtol * floor, attempts, ended.normals, ended.active)


def _begin(
    search: Search, weighing: Weighing, given: bool, floor: NDArray[np.float64], executor: Workers
) -> tuple[Start, list[Attempt]]:
    """Where to begin, and the attempts from many starts; by solves that are as accurate it is searched for once."""
    accurate = search.misfit.accuracy.method, round(np.log10(search.misfit.accuracy.rtol), 6)
    if accurate not in search.begun:
        if search.starts is None:
            search.begun[accurate] = find_start(search, weighing, given), []
        else:
            if search.choose_method:
                search.misfit = choose_method_for_many(search.misfit, starts_of(search.misfit, search.starts))
            attempts = search_from_many(search, weighing, floor, search.starts, executor)
            search.begun[accurate] = Start(best_minimum(search, attempts), []), attempts
    return search.begun[accurate]


def _nearer_to_priors(
    search: Search, likelihood: Likelihood, weighing: Weighing, floor: NDArray[np.float64], tolerance: float
) -> Likelihood:
    """A maximum of the density a posteriori, or a better one where priors are believed, and data explained less."""
    believed, stage = replace(weighing, belief=1.0), "maximum likelihood, nearer to the priors"
    theta = likelihood.minimum.theta
    way = search.minimise(theta, believed, stage, tolerance=1e-3, max_iterations=_BRIEFLY)
    if way.found is None:
        return likelihood
    other = search.maximise_likelihood(way.theta, floor, stage, tolerance=tolerance, known=way.found)
    return other if search.cost(other) < search.cost(likelihood) else likelihood


def _cost(search: Search, attempt: Attempt) -> float:
    return attempt.nll + penalty(search.misfit.quantities, attempt.theta)


def _no_worse_than_start(search: Search, likelihood: Likelihood, floor: NDArray[np.float64]) -> Likelihood:
    """The likelihood, or if the start itself is likelier, its maximum from there.

    The search for a start weighs residuals by the scatter of the data, and may leave the basin of a likelier optimum.
    """
    theta = search.misfit.quantities.theta()
    found = search.misfit.predictions(theta)
    if found is None or not search.levels.possible(found):
        return likelihood
    at_start = search.levels.nll(found, search.levels.estimate(found, floor))
    if not at_start + penalty(search.misfit.quantities, theta) < search.cost(likelihood):
        return likelihood
    again = search.maximise_likelihood(theta, floor, "maximum likelihood, from the start", tolerance=1e-9, known=found)
    return again if search.cost(again) < search.cost(likelihood) else likelihood


def maximise_innovations(search: Search) -> Maximum:
    """Find the maximum of the likelihood of a stochastic model from its start values.

    What is expected of each observation follows the observations before, so that a path cannot run out of step with
    them; one start is enough where the values of the parameters are of the right sizes.

    Raises:
        RuntimeError: the model cannot be solved from there.
    """
    if search.choose_method:
        search.misfit = choose_method(search.misfit, search.misfit.quantities.theta())
    misfit, exact = search.misfit, search.misfit.accuracy
    floor, theta = np.zeros(len(misfit.data.observables)), misfit.quantities.theta()
    search.misfit = misfit.at_accuracy(exact.scaled(max(1.0, search.rtol / exact.rtol)))
    roughly = search.maximise_likelihood(theta, floor, "maximum likelihood, roughly", tolerance=1e-6)
    search.misfit = misfit
    best = roughly.minimum.theta if np.isfinite(roughly.nll) else theta
    likelihood = search.maximise_likelihood(best, floor, "maximum likelihood", tolerance=1e-9)
    if not np.isfinite(likelihood.nll):
        raise RuntimeError(
            f"the moments of {type(misfit.model).__name__} cannot be solved from the start: {misfit.failure}: give "
            "start={name: value, ...}, or another sigma"
        )
    likelihood = search.onto_bounds(likelihood, floor, "maximum likelihood, on bounds", tolerance=1e-9)
    ended = onto_limits(search, likelihood, floor)
    return Maximum(ended.likelihood, [], [], floor, [], ended.normals, ended.active)


def descend(optimiser: Optimiser) -> Callable[[Search], Maximum]:
    """What finds the maximum by another optimiser than least squares, from the start values and no others."""
    descent = Descent(optimiser)

    def find(search: Search) -> Maximum:
        floor = search.misfit.accuracy.rtol * _data_size(search.misfit, search.levels)
        ended = onto_limits(search, descent.run(search, floor), floor)
        return Maximum(ended.likelihood, [], [], floor, [], ended.normals, ended.active)

    return find


def _rival(quantities: Quantities, minimum: Minimum) -> str:
    listed = [f"{name} = {value:.4g}" for name, value in quantities.single_values(minimum.theta).items()]
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


def _unsolvable(search: Search, given: bool) -> str:
    """Why no start could be solved from."""
    misfit, levels = search.misfit, search.levels
    if search.shooting == "multiple":
        return (
            "multiple shooting cannot solve a segment from the start, or the whole from where it led: "
            f"{misfit.failure}: give start={{name: value, ...}}, or leave out shooting='multiple'"
        )
    found = misfit.predictions(misfit.quantities.theta(), derivatives=False)
    if found is not None and not levels.possible(found):
        kinds = ", ".join(dict.fromkeys(noise.name for noise in levels.noises))
        smallest = int(found.values.argmin())
        column = misfit.data.observables[found.measured.observable[smallest]]
        return (
            f"at no start does the model predict what {kinds} noise allows: at the "
            f"{'given one' if given else 'defaults'}, {column} is {found.values[smallest]:.3g} somewhere: give "
            "start={name: value, ...}, leave out the data at which the model is zero, or take noise='normal'"
        )
    if given:
        return f"the model cannot be solved from the start that was given: {misfit.failure}"
    return (
        "the model cannot be solved from any start: give start={name: value, ...}. From the defaults of the model: "
        f"{misfit.failure}"
    )


def _data_size(misfit: Misfit, levels: Levels) -> NDArray[np.float64]:
    """The root mean square of each observable; 1 for logarithms, [n_observed]."""
    columns = [misfit.data.column(k) for k in range(len(misfit.data.observables))]
    sizes = [float(np.sqrt(np.mean(column**2))) or 1.0 for column in columns]
    return np.array([1.0 if noise.log else size for noise, size in zip(levels.noises, sizes, strict=True)])


def _data_scale(misfit: Misfit, levels: Levels) -> NDArray[np.float64]:
    """The standard deviation of each observable on the scale of the noise, [n_observed]; one for all if shared."""
    measured = misfit.measured()
    values = levels.transform(measured)
    scale = np.array([values[measured.of(k)].std() for k in range(len(levels.noises))])
    for group in levels.groups:
        own = list(group.observables)
        scale[own] = np.sqrt(np.mean(scale[own] ** 2))
    return np.where(scale > 0, scale, _data_size(misfit, levels))
