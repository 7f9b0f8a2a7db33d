"""Where to start: candidates from the data or around the model's defaults, and the way from there to the optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.results.residual_checks import look_like_noise
from torchivp.fitting.searching.matching import Matching, smooth
from torchivp.fitting.searching.optimise import Minimum, Search, Weighing
from torchivp.fitting.searching.shooting import Joined, shoot
from torchivp.fitting.searching.spread import spread

_STARTS = 128  # random starts that are looked at
_REFINED = 12  # of them, how many are refined on the beginning of the data
_FOLLOWED = 4  # of those, how many are followed to the end of the data
_SCREENING_RTOL = 1e-3  # with which the random starts are looked at
_EXACT = 1e-5  # the fraction of the variance of the data below which what is left counts as nothing
_LITTLE = 0.5  # the fraction of that of an observable that is left where a minimum explains little
_ALMOST_ALL = 0.1  # and where it explains so much that one way to it is enough, if the rest looks like noise
_GROWTH, _LEAST_GROWTH = 1.5, 1.05  # how much more data a growing horizon takes each time
_ALMOST_ALL_DATA = 0.8  # from where on it takes all
_LOST, _LOSS = 0.05, 5.0  # more unexplained than this, and than so many times as before, is a wrong way
_PAIRS = 30  # residuals with a predecessor that it takes to see in them that they are noise


@dataclass(frozen=True)
class Start:
    """What the search has found.

    Attributes:
        best: the best minimum; its predictions are None if the model could be solved from no candidate.
        rivals: others that are as good, and further from the model's defaults.
    """

    best: Minimum
    rivals: list[Minimum]


@dataclass(frozen=True)
class _Candidate:
    """Where a search may begin, and how.

    Attributes:
        theta: where.
        name: what the user is told that it is.
        way: on all data at once; on the beginning of the data first, at least so much of them as `beginning` says; or
            by multiple shooting.
        beginning: a fraction of the data.
        joined: where segments were joined by solves of another accuracy.
    """

    theta: NDArray[np.float64]
    name: str
    way: Literal["at once", "growing", "segments"] = "at once"
    beginning: float = 0.1
    joined: Joined | None = None


def find_start(search: Search, weighing: Weighing, given: bool) -> Start:
    """Find the quantities that minimise the squared residuals.

    Where every state is observed, the first candidates come from integral matching; further ones, and all of them
    otherwise, are the model's defaults and random starts around them that explain the beginning of the data best.
    Candidates are refined on all data at once, and on a horizon that grows from the beginning of the data to their
    end; the latter finds the optimum where the cost has many local minima, as it has for oscillations and chaos. Where
    a candidate explains little on all data at once, multiple shooting goes on from it, and what that finds is refined
    on all data too, so that the optimum is one of the same cost whatever the way. The search is settled when an optimum
    leaves little and what it leaves looks like noise, when two ways lead to the same best optimum that explains half or
    leaves noise, or when the model fits exactly. Where states are hidden, other
    values of theirs may explain the data as well, so that the other candidates are still refined on all data at once.
    Where all of this explains little, as it may if the beginning of the data says nothing, the last candidates are
    random starts that explain all data best. Of optima that are equally good, the one nearest to the model's defaults
    is the best.

    Args:
        search: what is minimised.
        weighing: what makes residuals of predictions, such that a constant would leave residuals of size one.
        given: whether the user has given start values, which are then the only candidate.
    """
    misfit = search.misfit
    hidden = set(misfit.model.states) != set(misfit.data.states)
    found: list[Minimum] = []
    best, settled = Minimum(misfit.quantities.theta(), np.inf, False), False

    def leaves(much: float) -> bool:
        return not settled and _unexplained(best, weighing) > much

    for candidate in _candidates(search, weighing, given, leaves):
        if candidate.way == "growing" and not settled:
            minimum = _extend_horizon(search, candidate, weighing)
        elif candidate.way == "segments":
            minimum = _by_segments(search, candidate, weighing)
        else:
            minimum = on_all_data(search, candidate.theta, weighing, candidate.name)
        if minimum.found is None:
            continue
        exact = _EXACT * len(minimum.found.values)
        same = np.isfinite(best.cost) and abs(minimum.cost - best.cost) <= 1e-3 * best.cost
        left, noise = _unexplained(minimum, weighing), _looks_like_noise(minimum, misfit, weighing)
        settled |= (same and (left < _LITTLE or noise)) or (noise and left < _ALMOST_ALL)
        found.append(minimum)
        best = min(best, minimum, key=lambda each: each.cost)
        settled |= best.cost <= exact
        if settled and not hidden:
            break
    return _nearest(search, weighing, best, found)


def _unexplained(minimum: Minimum, weighing: Weighing) -> float:
    """The fraction of the variance of an observable that a minimum leaves, of the one that it explains worst."""
    if minimum.found is None:
        return np.inf
    return float(weighing.mean_squares(minimum.found).max())


def _looks_like_noise(minimum: Minimum, misfit: Misfit, weighing: Weighing) -> bool:
    """Whether the residuals of all observables at a minimum for all data know nothing of the ones before them.

    Those of a wrong minimum do: there the model runs out of step with the data, and in again.
    """
    found = minimum.found
    assert found is not None, "a minimum that was found has predictions"
    tables = found.measured.tables(weighing.residuals(found).sum(0), misfit.data)
    return minimum.converged and look_like_noise(tables, _PAIRS)


def _nearest(search: Search, weighing: Weighing, best: Minimum, found: list[Minimum]) -> Start:
    """Of the minima that are as good as the best, the one nearest to the model's defaults, and those apart from it."""
    if best.found is None:
        return Start(best, [])
    quantities = search.misfit.quantities
    exact = _EXACT * len(best.found.values)
    as_good = [each for each in found if each.cost <= max(1.01 * best.cost, exact)]

    def distance(minimum: Minimum) -> float:
        return float(np.linalg.norm((minimum.theta - quantities.theta()) / quantities.magnitudes))

    # What comes out at the same place by another way is as near but for rounding, and then the smaller cost counts.
    nearest = min(as_good, key=lambda each: (round(distance(each), 2), each.cost))
    assert nearest.found is not None, "a minimum that was found has predictions"
    _, slopes = weighing.levels.least_squares(nearest.found, weighing.sizes)
    scaled = slopes[0][:, None] * nearest.found.jacobian
    noise = np.sqrt(max(nearest.cost, exact) / len(nearest.found.values))
    rivals: list[Minimum] = []
    for each in as_good:
        ways = [each.theta - other.theta for other in [nearest, *rivals]]
        far = all(np.abs(way / quantities.magnitudes).max() > 0.1 for way in ways)
        # What the data do not determine leads far away, but changes nothing.
        if far and all(np.linalg.norm(scaled @ way) > 5 * noise for way in ways):
            rivals.append(each)
    return Start(nearest, rivals)


def _candidates(
    search: Search, weighing: Weighing, given: bool, leaves: Callable[[float], bool]
) -> Iterator[_Candidate]:
    """Where to begin; `leaves` says whether the candidates so far led to nothing that leaves less than a fraction."""
    misfit = search.misfit

    def ways(theta: NDArray[np.float64], name: str, growing: bool = True) -> Iterator[_Candidate]:
        if search.shooting != "multiple":
            yield _Candidate(theta, name)
        if search.shooting == "multiple" or (search.shooting == "auto" and leaves(_ALMOST_ALL)):
            yield _Candidate(theta, name, "segments")
        if growing and search.shooting != "multiple":
            yield _Candidate(theta, name, "growing")

    default, number = misfit.quantities.theta(), 0
    if search.joined is not None:
        yield _Candidate(search.joined.theta, "the segments before", "segments", joined=search.joined)
    if given:
        yield from ways(default, "start 1")
        if search.shooting != "multiple" and leaves(_LITTLE):
            yield _Candidate(default, "start 1", "growing", beginning=0.01)
        return
    if set(misfit.model.states) == set(misfit.data.states) and not misfit.inputs.any:
        for number, theta in enumerate(_matched(search), 1):
            yield from ways(theta, f"start {number}")
    if not number:
        number = 1
        yield from ways(default, "the defaults of the model", growing=False)
    for theta in _screened(search, weighing, _first_horizon(misfit)):
        number += 1
        yield _Candidate(theta, f"start {number}", "segments" if search.shooting == "multiple" else "growing")
    if leaves(_LITTLE):
        for theta in _screened(search, weighing, 1.0):
            number += 1
            yield _Candidate(theta, f"start {number}", "segments" if search.shooting == "multiple" else "at once")


def _by_segments(search: Search, candidate: _Candidate, weighing: Weighing) -> Minimum:
    """Join segments, and go on from there on all data at once; if one path loses them, as chaos may, bit by bit."""
    joined = shoot(search, candidate.joined or candidate.theta, weighing, f"{candidate.name}, multiple shooting")
    if joined is None:
        return Minimum(candidate.theta, np.inf, False)
    if search.joined is None or joined.left <= search.joined.left:
        search.joined = joined
    found = search.misfit.predictions(joined.theta)
    if found is not None and weighing.levels.possible(found):
        cost = np.sum(weighing.residuals(found) ** 2)
        if cost <= max(_LOST * len(found.values), _LOSS * joined.left):
            return on_all_data(search, joined.theta, weighing, candidate.name, found)
    return _extend_horizon(search, replace(candidate, theta=joined.theta), weighing)


def on_all_data(
    search: Search, theta: NDArray[np.float64], weighing: Weighing, stage: str, known: Predictions | None = None
) -> Minimum:
    """Fit all data from a start, where the predictions may be known, roughly."""
    return search.minimise(theta, weighing, f"{stage}, all data", tolerance=1e-5, max_iterations=30, known=known)


def _extend_horizon(search: Search, candidate: _Candidate, weighing: Weighing) -> Minimum:
    """Fit the beginning of the data, then go on from there to more and more of them.

    Where more data are suddenly explained much worse, as those of chaos are when too many are added at once, fewer are.
    """
    horizon = _first_horizon(search.misfit, candidate.beginning)
    growth = _GROWTH
    last = _refine(search, candidate.theta, weighing, candidate.name, horizon)
    while last.found is not None and horizon < 1.0:
        wider = min(1.0, horizon * growth)
        if growth == _GROWTH and wider > _ALMOST_ALL_DATA:
            wider = 1.0
        if wider < 1.0:
            minimum = _refine(search, last.theta, weighing, candidate.name, wider)
        else:
            minimum = on_all_data(search, last.theta, weighing, candidate.name)
        lost = _unexplained(minimum, weighing) > max(_LOST, _LOSS * _unexplained(last, weighing))
        if lost and growth > _LEAST_GROWTH:
            growth = max(growth**0.5, _LEAST_GROWTH)
            continue
        last, horizon, growth = minimum, wider, min(_GROWTH, growth**1.5)
    return last


def _first_horizon(misfit: Misfit, least: float = 0.1) -> float:
    """The fraction of the data with twice as many values as there are free quantities, or the least one."""
    return min(1.0, max(least, 2 * len(misfit.quantities.free) / misfit.data.n_data))


def _refine(search: Search, theta: NDArray[np.float64], weighing: Weighing, stage: str, horizon: float) -> Minimum:
    """Fit the first part of the data roughly, holding back what it says nothing about."""
    stage = f"{stage}, first {horizon:.0%} of the data"
    return search.minimise(theta, weighing, stage, horizon=horizon, tolerance=1e-3, max_iterations=20, prior_width=30.0)


def _matched(search: Search) -> Iterator[NDArray[np.float64]]:
    """Candidates from integral matching along smooth curves, and along curves through the data."""
    for smoothing in (True, False):
        if smoothing not in search.matched:
            search.matched[smoothing] = _matched_along(search.misfit, search.levels, smoothing)
        yield from search.matched[smoothing]


def _matched_along(misfit: Misfit, levels: Levels, smoothing: bool) -> list[NDArray[np.float64]]:
    curves = smooth(misfit, levels, smoothing)
    if curves is None:
        return []
    matching = Matching(misfit, curves)
    return [] if matching.empty else _distinct(matching.estimates(_random(misfit), _FOLLOWED))[:2]


def _screened(search: Search, weighing: Weighing, horizon: float) -> Iterator[NDArray[np.float64]]:
    """Random starts, those that explain the first part of the data best once they are refined there."""
    starts = _random(search.misfit)
    accuracy = search.misfit.accuracy
    coarse = search.misfit.at_accuracy(replace(accuracy, rtol=max(accuracy.rtol, _SCREENING_RTOL)))
    costs = [
        np.sum(weighing.residuals(found) ** 2) if found is not None and weighing.levels.possible(found) else np.inf
        for found in coarse.predictions_at(starts, horizon)
    ]
    best = [starts[i] for i in np.argsort(costs)[:_REFINED] if np.isfinite(costs[i])]
    refined = search.side_by_side(
        [lambda one, theta=theta: _refine(one, theta, weighing, "random starts", horizon) for theta in best]
    )
    refined.sort(key=lambda minimum: minimum.cost)
    yield from _distinct([minimum.theta for minimum in refined if minimum.found is not None])[:_FOLLOWED]


def _distinct(candidates: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The candidates without those that are close to an earlier one."""
    kept: list[NDArray[np.float64]] = []
    for candidate in candidates:
        if all(np.abs(candidate - other).max() > 0.1 for other in kept):
            kept.append(candidate)
    return kept


def _random(misfit: Misfit) -> NDArray[np.float64]:
    """The default start, and points around it, further and further away, [_STARTS, n_free]."""
    start = misfit.quantities.theta()
    return start + np.arange(_STARTS)[:, None] / _STARTS * (spread(misfit, _STARTS) - start)
