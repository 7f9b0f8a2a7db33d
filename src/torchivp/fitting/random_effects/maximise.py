"""The maximum of the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from torchivp.fitting.noise.model import RELATIVE_FLOOR
from torchivp.fitting.random_effects.effects import Effects
from torchivp.fitting.random_effects.laplace import LaplaceApproximation, Point
from torchivp.fitting.random_effects.modes import Floats, Joint, Population
from torchivp.fitting.searching.maximise import Maximum
from torchivp.fitting.searching.optimise import Likelihood, Minimum, Search
from torchivp.fitting.searching.trust import SMALLEST_RTOL, check_solves

_FIRST_OMEGA = 0.5  # in typical changes
_WARM_UP = 10  # steps of expectation and maximisation before the search
_LEAST_OMEGA, _LARGEST_OMEGA = 1e-4, 1e2  # in typical changes
_ROUGHLY = 1e-4  # what the effects may still gain meanwhile
_CLOSE = 0.5  # so near, in typical changes, effects and their curvature are told from one place at another
_SMALL, _NOTHING = 0.1, 1e-3  # an omega, in typical changes, and a gain of the log likelihood that may count as nothing
_STEP = 2e-3  # of the differences of the gradient, in typical changes
_NEWTON_STEPS = 4
_SETTLED = 1e-10  # what a step of Newton's may gain of the log likelihood where the search ends
_CONVERGED = 1e-5  # and where it counts as converged: the estimates are 0.005 standard errors from the maximum
_ON_BOUND = 1e-6
_TIGHTEN = 1e-2  # by what factor tolerances shrink where the solver's error is not small against the noise
_ATTEMPTS = 3


@dataclass(frozen=True)
class MarginalMaximum:
    """The maximum of the marginal likelihood.

    Attributes:
        maximum: the individual trajectories there, as what an ordinary fit ends with. Its `nll` is that of the data
            given the effects.
        point: the approximation there.
        hessian: its second derivatives, [n, n]; zero where a bound holds an entry.
        on_bound: which entries of x a bound holds, [n].
        effects: which quantities differ.
        scale: the sizes of typical changes of x, [n].
        active: which trajectories each effect acts on, [n_trajectories, q].
    """

    maximum: Maximum
    point: Point
    hessian: Floats
    on_bound: NDArray[np.bool_]
    effects: Effects
    scale: Floats
    active: NDArray[np.bool_]


def find_marginal_maximum(search: Search, effects: Effects, pooled: Maximum, automatic: bool) -> MarginalMaximum:
    """Find the maximum of the marginal likelihood, from that of a fit in which nothing differs between trajectories.

    A few steps of expectation and maximisation find about how large the effects are: N. M. Laird and J. H. Ware,
    "Random-effects models for longitudinal data", Biometrics 38 (1982). Then comes SciPy's L-BFGS-B, within the bounds,
    and Newton's method with the Hessian that the standard errors need, of central differences of the gradient.

    Args:
        search: which has found the pooled maximum. Its misfit becomes that of the individual trajectories.
        effects: which quantities differ.
        pooled: where to start.
        automatic: whether the tolerances of the solves may be changed.

    Raises:
        RuntimeError: the model cannot be solved at the pooled maximum with the effects that the data suggest.
    """
    base, likelihood, floor = search.misfit, pooled.likelihood, pooled.floor
    omega = _FIRST_OMEGA * effects.magnitudes
    population = Population(likelihood.minimum.theta, omega, np.maximum(likelihood.sizes, 1e-12))
    z = np.zeros((len(base.data.trajectories), len(effects.entries)))
    for attempts_left in reversed(range(_ATTEMPTS)):
        joint = Joint(base, search.levels, effects)
        run = _Run(search, LaplaceApproximation(joint), floor)
        found = run.maximise(population, z, pooled)
        search.misfit = joint.shifted(found.point.population, found.point.modes.z)
        verdict = check_solves(search.misfit, search.levels, found.maximum.likelihood)
        tighter = base.accuracy.scaled(_TIGHTEN, _TIGHTEN)
        if not (attempts_left and automatic and verdict.inaccurate) or tighter.rtol < SMALLEST_RTOL:
            return replace(found, maximum=replace(found.maximum, doubts=verdict.sentences))
        base, floor = base.at_accuracy(tighter), floor * _TIGHTEN
        population, z = found.point.population, found.point.modes.z
    raise AssertionError("the last attempt returns")


class _Run:
    """One search for the maximum.

    Args:
        search: counts iterations and tells of them.
        target: what is minimised.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
    """

    def __init__(self, search: Search, target: LaplaceApproximation, floor: Floats):
        self.search, self.target, self.floor = search, target, floor
        self.joint = target.joint
        quantities, magnitudes = self.joint.misfit.quantities, self.joint.effects.magnitudes
        self.scale = np.concatenate([quantities.magnitudes, np.ones(target.n_effects + target.n_sizes)])
        least = [
            RELATIVE_FLOOR if size == "relative" else max(floor[k] for k in group.observables)
            for group in search.levels.groups
            for size in group.noise.sizes[: group.count]
        ]
        lower = [quantities.lower, np.log(_LEAST_OMEGA * magnitudes), np.log(least)]
        upper = [quantities.upper, np.log(_LARGEST_OMEGA * magnitudes), np.full(len(least), np.inf)]
        self.lower, self.upper = np.concatenate(lower), np.concatenate(upper)

    def maximise(self, population: Population, z: Floats, pooled: Maximum) -> MarginalMaximum:
        """Find the maximum from a population and effects."""
        population, z = self._warm_up(population, z)
        first = self.target.at(np.clip(self.target.place(population), self.lower, self.upper), z)
        if first is None:
            failure, advice = self.joint.misfit.failure, "give start, or bounds of what differs"
            if failure.startswith("the constraint"):
                advice = "a search with random= cannot go along it: leave it out, or give bounds of what it compares"
            raise RuntimeError(
                "the model cannot be solved with the differences between trajectories that the data suggest: "
                f"{failure}: {advice}"
            )
        point = self._without_idle(self._quasi_newton(first))
        point, hessian, gain = self._newton(point)
        held = self._on_bound(point.x)
        sizes = point.population.sizes
        minimum = Minimum(point.population.theta, point.value, gain <= _CONVERGED, point.modes.found)
        nll = self.search.levels.nll(point.modes.found, sizes)
        at_floor = self.search.levels.at_floor(sizes, self.floor * (1 + 1e-6))
        likelihood = Likelihood(minimum, sizes, nll, gain <= _CONVERGED, at_floor)
        rivals = [f"without differences between trajectories, {each}" for each in pooled.rivals]
        maximum = replace(pooled, likelihood=likelihood, rivals=rivals, floor=self.floor, normals=None, active=())
        return MarginalMaximum(maximum, point, hessian, held, self.joint.effects, self.scale, self.active)

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which trajectories each effect acts on, [n_trajectories, q]."""
        return self.target.touched[:, self.joint.effects.entries]

    def _warm_up(self, population: Population, z: Floats) -> tuple[Population, Floats]:
        """Steps of expectation and maximisation, that of the quantities that do not differ left out."""
        entries, quantities = self.joint.effects.entries, self.joint.misfit.quantities
        count = np.maximum(self.active.sum(0), 1)
        for _ in range(_WARM_UP):
            modes = self.joint.modes(population, z, settled=_ROUGHLY)
            if modes is None:
                break
            eta, omega = modes.z * population.omega, population.omega
            weights = self.search.levels.weights(modes.found, population.sizes) ** 2
            curvature = self.joint.information(modes.found, weights) * np.multiply.outer(omega, omega)
            spread = np.diagonal(np.linalg.inv(curvature + np.eye(len(omega))), axis1=1, axis2=2) * omega**2
            theta, mean = population.theta.copy(), eta.sum(0) / count
            theta[entries] = np.clip(theta[entries] + mean, quantities.lower[entries], quantities.upper[entries])
            left = np.where(self.active, eta - mean, 0.0)
            variance = (left**2 + np.where(self.active, spread, 0.0)).sum(0) / count
            omega = np.maximum(np.sqrt(variance), 10 * _LEAST_OMEGA * self.joint.effects.magnitudes)
            sizes = self.search.levels.estimate(modes.found, self.floor)
            population, z = Population(theta, omega, sizes), left / omega
            self.search.report("differences between trajectories", modes.found)
        return population, z

    def _near(self, x: Floats, known: Point) -> Point | None:
        """The approximation at a place, that at another one being known; None where it is not finite."""
        x = np.clip(x, self.lower, self.upper)
        close = np.abs((x - known.x) / self.scale).max() < _CLOSE
        point = self.target.near(x, known) if close else self.target.at(x, known.modes.z)
        return point if point is not None and np.isfinite(point.value) and np.isfinite(point.gradient).all() else None

    def _quasi_newton(self, first: Point) -> Point:
        """Where L-BFGS-B ends."""
        best, latest = first, first

        def value(u: Floats) -> tuple[float, Floats]:
            nonlocal best, latest
            x = u * self.scale
            point = self._near(x, latest)
            if point is None:  # as bad as nothing else so far, and without a way out
                return first.value + first.penalty + 1e3 * (1 + abs(first.value)), np.zeros_like(u)
            latest = point
            if point.value + point.penalty < best.value + best.penalty:
                best = point
            return point.value + point.penalty, point.gradient * self.scale

        minimize(
            value,
            first.x / self.scale,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(self.lower / self.scale, self.upper / self.scale, strict=True)),
            options={"maxiter": self.search.max_iterations, "maxcor": 30, "ftol": 1e-11, "gtol": 1e-5},
            callback=lambda _: self.search.report("marginal likelihood", best.modes.found),
        )
        return best

    def _without_idle(self, point: Point) -> Point:
        """The point with those omegas at their smallest values that add nothing to the likelihood.

        On the log scale the likelihood is flat towards zero, so that the search stops on the way there.
        """
        for k, magnitude in enumerate(self.joint.effects.magnitudes.tolist()):
            if point.population.omega[k] > _SMALL * magnitude:
                continue
            x = point.x.copy()
            x[self.target.n_theta + k] = self.lower[self.target.n_theta + k]
            without = self._near(x, point)
            if without is not None and without.value + without.penalty <= point.value + point.penalty + _NOTHING:
                point = without
        return point

    def _newton(self, point: Point) -> tuple[Point, Floats, float]:
        """A few steps of Newton's method: where they end, the Hessian, and what another step would gain."""
        hessian = self._hessian(point)
        step, gain = self._step(point, hessian)
        for _ in range(_NEWTON_STEPS):
            if gain <= _SETTLED:
                break
            after = self._near(point.x + step, point)
            if after is None:
                break
            next_step, next_gain = self._step(after, hessian)
            if not next_gain < gain:
                break
            point, step, gain = after, next_step, next_gain
        return point, hessian, gain

    def _step(self, point: Point, hessian: Floats) -> tuple[Floats, float]:
        """A step of Newton's method, within the directions in which the Hessian is positive, and what it gains."""
        free = ~self._on_bound(point.x)
        values, vectors = np.linalg.eigh(hessian * np.multiply.outer(self.scale, self.scale))
        along = vectors.T @ np.where(free, point.gradient * self.scale, 0.0)
        sound = values > 1e-10 * values.max(initial=0.0)
        step = -vectors @ np.where(sound, along / np.where(sound, values, 1.0), 0.0)
        gain = 0.5 * float(np.sum(np.where(sound, along**2 / np.where(sound, values, 1.0), 0.0)))
        return np.where(free, step * self.scale, 0.0), gain if not (values < -1e-4 * values.max()).any() else np.inf

    def _hessian(self, point: Point) -> Floats:
        """The second derivatives at a point by central differences of the gradient; zero where a bound holds."""
        n, free = len(point.x), ~self._on_bound(point.x)
        hessian = np.zeros((n, n))
        for j in np.flatnonzero(free):
            width = np.zeros(n)
            width[j] = _STEP * self.scale[j]
            ends = [self.target.near(point.x + side * width, point) for side in (1, -1)]
            ahead, behind = (point if end is None else end for end in ends)
            if ahead is not behind:
                hessian[j] = (ahead.gradient - behind.gradient) / (ahead.x[j] - behind.x[j])
        hessian[:, ~free] = 0.0
        return 0.5 * (hessian + hessian.T)

    def _on_bound(self, x: Floats) -> NDArray[np.bool_]:
        """Which entries a bound holds, [n]."""
        gaps = np.minimum(x - self.lower, self.upper - x)
        return gaps < _ON_BOUND * self.scale
