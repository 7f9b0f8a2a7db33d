"""The way along a profile likelihood, away from the optimum, until its interval ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from torchivp.fitting.priors import penalty
from torchivp.fitting.progress import Progress, silent
from torchivp.fitting.searching.limits import Limits
from torchivp.fitting.searching.optimise import Likelihood, Search
from torchivp.fitting.searching.within_limits import onto_limits, search_within

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult

_RISE = 0.2  # by how much the negative log-likelihood is to change from one point to the next,
_STEPS = 10  # or by this part of what ends the interval, if that is more
_GROWTH = 2.0  # a step is at most so many times as long as the one before
_FIRST = 1.0  # and the first one in typical changes, on the log and logit scales
_FURTHEST = 10.0  # how far to go, in typical changes,
_FURTHEST_ERRORS = 5.0  # or in half widths of the interval of the Fisher information, if that is further,
_FURTHEST_LOG = 25.0  # but on the log and logit scales no further than this
_FAILURES = 8  # how often a step is halved since the model cannot be solved at its end
_WIDTH = 1e-3  # the accuracy of the ends of the interval, in half widths
_TOLERANCE = 1e-7  # of the searches, but with tensors
_TOLERANCE_OF_TENSORS = 1e-6
_NEAR = 1e-6  # what constraints let come so near to where it goes, in typical changes, they do not hold back
_MOST_POINTS = 200  # on a side


@dataclass
class Point:
    """A point of a profile: the quantity on its scale, the others, and by how much the likelihood has fallen."""

    x: float
    theta: NDArray[np.float64]
    fall: float
    settled: bool = True

    @property
    def root(self) -> float:
        """The signed root of twice the fall, which is linear in x where the fall is a parabola."""
        return float(np.copysign(np.sqrt(2 * abs(self.fall)), self.fall))


@dataclass
class Side:
    """One side of a profile: its points, where the interval ends on the scale of estimation, or why it does not."""

    points: list[Point]
    end: float
    why: str | None = None


class _Unsolvable(Exception):
    """The model cannot be solved where the profile leads."""


class Walk:
    """The way along the profile of an entry of theta, away from the optimum.

    Args:
        result: the fit.
        entry: of theta.
        level: the probability of the interval.
        progress: told of every point.
    """

    def __init__(self, result: FitResult, entry: int, level: float, progress: Progress):
        self._progress, self._count = progress, 0
        self.search: Search = replace(result.search, progress=silent, iterations=0)
        quantities = self.search.misfit.quantities
        self.quantity, self._entry, self._floor = quantities.free[entry], entry, result.floor
        self._tolerance = _TOLERANCE if quantities.single.all() else _TOLERANCE_OF_TENSORS
        self.nll_min = result.nll + result.penalty
        self.start = Point(float(result.theta[entry]), result.theta, 0.0)
        self.limit = result.uncertainty.fall(entry, level)
        self._limit_root, self._rise = float(np.sqrt(2 * self.limit)), max(_RISE, self.limit / _STEPS)
        self._held = np.arange(len(result.theta)) == entry
        error = float(result.uncertainty.standard_errors()[entry])
        self._error = error if error > 0 else np.inf  # zero where bounds or constraints hold it
        self._slopes = np.zeros(len(result.theta))
        if 0 < error < np.inf:
            self._slopes = result.uncertainty.covariance[:, entry] / error**2
        self._slopes[entry] = 1.0
        self._limits, self._of_others = Limits(self.search.misfit), Limits(self.search.misfit, self._held)
        self._follows = bool(self.search.misfit.constraints) and self._limits.searchable
        self._bounds = float(quantities.lower[entry]), float(quantities.upper[entry])

    def side(self, sign: int) -> Side:
        """Go from the optimum until the interval ends, or for ever would not."""
        goal = self._goal(sign, self._furthest())
        points, step, failures = [self.start], self._first_step(), 0
        cap = np.inf
        end, constraints = self._edge(self.start, goal)
        while len(points) <= _MOST_POINTS:
            last = points[-1]
            if _same(last.x, end):
                if self._is_close(points):
                    goal = self._goal(sign, 2 * abs(last.x - self.start.x))
                end, constraints = self._edge(last, goal)  # of a set that is not convex it may be further from here
                if _same(last.x, end):
                    break
            x = last.x + sign * min(step, abs(end - last.x))
            point = self._at(x, self._ahead(points, x), last)
            if point is None:
                failures += 1
                if failures > _FAILURES:
                    return self._open(points, sign, self._lost(last, x))
                step = cap = 0.5 * abs(x - last.x)
                continue
            points.append(point)
            if point.fall >= self.limit:
                return self._ended(points, sign)
            step = min(self._next_step(points), cap)
        if constraints and _same(points[-1].x, end):
            return Side(points[1:], end, self._held_back(points[-1], sign, constraints))
        return self._open(points, sign, self._never(points[-1], sign))

    def _edge(self, point: Point, goal: float) -> tuple[float, list[str]]:
        """How far towards a goal constraints let the quantity go, and which do not let it go further."""
        if not self._follows:
            return goal, []
        theta, constraints = self._limits.furthest(point.theta, self._entry, goal)
        near = abs(goal - theta[self._entry]) <= _NEAR * self.quantity.magnitude
        if near or not constraints:  # nothing says that it ends there: the search on the way will tell
            return goal, []
        return float(theta[self._entry]), constraints

    def _furthest(self) -> float:
        """How far to go at first, on the scale of estimation."""
        half = _FURTHEST_ERRORS * self._error * self._limit_root
        return max(_FURTHEST * self.quantity.magnitude, half if np.isfinite(half) else 0.0)

    def _goal(self, sign: int, furthest: float) -> float:
        """Where to go, so far from the optimum or to the bound."""
        way = furthest if self.quantity.scale == "linear" else min(furthest, _FURTHEST_LOG)
        lower, upper = self._bounds
        return min(max(self.start.x + sign * way, lower), upper)

    def _is_close(self, points: Sequence[Point]) -> bool:
        """Whether the interval ends before twice as far from the optimum, if the root goes on as it did.

        Its half width by the Fisher information is no measure of it on the side on which a constraint is left.
        """
        if len(points) < 2:
            return False
        before, last = points[-2:]
        climb = (last.root - before.root) / abs(last.x - before.x)
        return self._limit_root - last.root < climb * abs(last.x - self.start.x)

    def _first_step(self) -> float:
        step = self._error * np.sqrt(2 * min(self._rise, self.limit))
        if self.quantity.scale == "linear" and np.isfinite(step):
            return step
        return min(step, _FIRST * self.quantity.magnitude)

    def _next_step(self, points: Sequence[Point]) -> float:
        """A step to where the likelihood has fallen by a step more, or to the limit, if the root goes on as it did."""
        before, last = points[-2:]
        h, climb = abs(last.x - before.x), last.root - before.root
        target = np.sqrt(2 * min(max(last.fall, 0.0) + self._rise, 1.02 * self.limit)) - last.root
        return float(np.clip(h * target / climb, 0.25 * h, _GROWTH * h)) if climb > 0 else _GROWTH * h

    def _ahead(self, points: Sequence[Point], x: float) -> NDArray[np.float64]:
        """Where the others may be at x, by the line through the last two points."""
        last = points[-1]
        if len(points) == 1:
            return last.theta + self._slopes * (x - last.x)
        before = points[-2]
        return last.theta + (last.theta - before.theta) * ((x - last.x) / (last.x - before.x))

    def _at(self, x: float, guess: NDArray[np.float64], near: Point) -> Point | None:
        """The point at x, searched for from a guess, or else from where a point nearby is; None if it is unsolvable."""
        for theta in (guess, near.theta):
            quantities = self.search.misfit.quantities
            theta = np.clip(theta, quantities.lower, quantities.upper)
            theta[self._entry] = x
            if self._follows:
                theta = self._of_others.nearest(theta)
            point = None if theta is None else self._minimised(x, theta)
            if point is not None:
                return point
        return None

    def _minimised(self, x: float, theta: NDArray[np.float64]) -> Point | None:
        """The best point from `theta` on, or None if the model cannot be solved there."""
        if self._held.all():  # there are no others
            theta, nll, settled = theta, self._nll(theta), True
        else:
            found = self._search_others(theta)
            theta, nll, settled = found.minimum.theta, found.nll, found.converged
        fall = nll + penalty(self.search.misfit.quantities, theta) - self.nll_min
        self._count += 1
        self._progress(f"profile of {self.quantity.name}", self._count, nll)
        return Point(x, theta, fall, settled) if np.isfinite(fall) else None

    def _search_others(self, theta: NDArray[np.float64]) -> Likelihood:
        """The maximum from `theta` on: along constraints that it is at, which often go on being active."""
        if self._of_others.at_constraint(theta):
            found = search_within(self.search, self._of_others, theta, self._floor)
            if found is not None and found.converged:
                return found
        found = self.search.maximise_likelihood(
            theta, self._floor, "profile", tolerance=self._tolerance, held=self._held
        )
        return onto_limits(self.search, found, self._floor, self._held).likelihood

    def _nll(self, theta: NDArray[np.float64]) -> float:
        """The smallest negative log-likelihood at `theta`, whatever the sizes of the noise."""
        levels, found = self.search.levels, self.search.misfit.predictions(theta, derivatives=False)
        if found is None or not levels.possible(found):
            return np.inf
        return levels.nll(found, levels.estimate(found, self._floor))

    def _ended(self, points: list[Point], sign: int) -> Side:
        """The side whose last point is beyond the end of the interval, with the end found."""
        inner, outer = points[-2:]
        found = {inner.x: inner, outer.x: outer}

        def root(x: float) -> float:
            if x not in found:
                near = min(found.values(), key=lambda point: abs(point.x - x))
                share = (x - inner.x) / (outer.x - inner.x)
                point = self._at(x, inner.theta + share * (outer.theta - inner.theta), near)
                if point is None:
                    raise _Unsolvable
                found[x] = point
            return found[x].root - self._limit_root

        width = _WIDTH * max(abs(inner.x - self.start.x), 0.1 * abs(outer.x - self.start.x))
        try:
            end, _ = brentq(root, inner.x, outer.x, xtol=width, full_output=True)
        except _Unsolvable:
            return self._open(points, sign, self._lost(inner, outer.x))
        every = sorted([*points[1:-2], *found.values()], key=lambda point: sign * point.x)
        return Side([point for point in every if point is not self.start], end)

    def _open(self, points: list[Point], sign: int, why: str) -> Side:
        bound = self._bounds[sign > 0]
        return Side(points[1:], bound if np.isfinite(bound) else sign * np.inf, why)

    def _never(self, last: Point, sign: int) -> str:
        """Why the interval does not end: a bound comes first, or the likelihood does not fall."""
        value, bound = self.quantity.from_scale(last.x), self._bounds[sign > 0]
        if np.isfinite(bound) and _same(last.x, bound):
            return (
                f"the bound {value:.4g} comes first, where the negative log-likelihood has risen by {self._risen(last)}"
            )
        return f"{'up' if sign > 0 else 'down'} to {value:.4g} the negative log-likelihood rises by {self._risen(last)}"

    def _held_back(self, last: Point, sign: int, limits: Sequence[str]) -> str:
        """That constraints leave no values beyond, so that the interval ends there."""
        return (
            f"no {'larger' if sign > 0 else 'smaller'} values than {self.quantity.from_scale(last.x):.4g} satisfy "
            f"{', '.join(limits)}; there the negative log-likelihood has risen by {self._risen(last)}"
        )

    def _risen(self, last: Point) -> str:
        return f"{f'{last.fall:.2g}' if last.fall > 1e-3 else 'less than 0.001'} of the {self.limit:.3g} that end it"

    def _lost(self, last: Point, x: float) -> str:
        """Why the walk cannot go on from the last point to x."""
        theta, value = last.theta.copy(), self.quantity.from_scale(last.x)
        theta[self._entry] = x
        if broken := self._limits.broken(theta):
            return (
                f"the search finds no values of the others at which {' and '.join(broken)}, beyond {value:.4g}: it can "
                "follow constraints that compare, such as 'a < b'"
            )
        return f"the model cannot be solved beyond {value:.4g}: {self.search.misfit.failure}"


def _same(x: float, end: float) -> bool:
    return abs(x - end) <= 1e-12 * max(1.0, abs(end))
