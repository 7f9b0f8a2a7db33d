"""Optimisation: nonlinear least squares at given sigmas, and maximum likelihood with the sigmas estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from torchivp.fitting.misfit import Misfit, Residuals, SigmaMode
from torchivp.fitting.progress import Progress

# A solve that fails counts as residuals of this many sigmas, from which any step back is an improvement.
_FAILED = 1e6

# The fraction of the variance of the data that the errors of a rough solve may make up.
_UNSEEN = 1e-4

# What a step may still gain when the search ends, in units of the tolerance of the cost. A quantity that is 1e-6
# standard errors away from its optimum costs 1e-12.
_GAIN = 1e-3

# A direction with a singular value this much smaller than the largest changes nothing.
_RANK = 1e-10


@dataclass
class Minimum:
    """Where a search ended.

    Attributes:
        theta: the free quantities, [n_free].
        cost: the sum of squared scaled residuals there; infinite if the model could not be solved at the start.
        converged: whether the search stopped because it found a minimum.
        residuals: the unscaled residuals there.
    """

    theta: NDArray[np.float64]
    cost: float
    converged: bool
    residuals: Residuals | None = None


@dataclass
class Likelihood:
    """A maximum of the likelihood.

    Attributes:
        minimum: the free quantities there, with residuals and Jacobian.
        sigma: the standard deviation of each observable, [n_observed].
        nll: the negative logarithm of the likelihood.
        converged: whether quantities and sigmas have settled.
        at_floor: whether a sigma is as small as the error of the solver, and so means nothing.
    """

    minimum: Minimum
    sigma: NDArray[np.float64]
    nll: float
    converged: bool
    at_floor: bool


@dataclass
class Search:
    """A least-squares search: what it needs to know, and what it has cost.

    Attributes:
        misfit: what is minimised.
        sigma_mode: whether all observables share a sigma; for the likelihood that is reported while it runs.
        progress: told of every iteration.
        max_iterations: the largest number of iterations of one search.
        iterations: the number of iterations so far.
    """

    misfit: Misfit
    sigma_mode: SigmaMode
    progress: Progress
    max_iterations: int
    iterations: int = field(default=0)

    def minimise(
        self,
        theta: NDArray[np.float64],
        sigma: NDArray[np.float64],
        stage: str,
        *,
        horizon: float = 1.0,
        tolerance: float,
        max_iterations: int | None = None,
        prior_width: float = np.inf,
        known: Residuals | None = None,
    ) -> Minimum:
        """Minimise the sum of squared residuals over sigma by a trust-region Gauss-Newton method.

        Args:
            theta: where to start, [n_free].
            sigma: what to divide the residuals of each observable by, [n_observed].
            stage: what the user is told that this is.
            horizon: the fraction of the data to use.
            tolerance: of the relative change of the cost and of the step, at which to stop.
            max_iterations: the largest number of iterations; default that of the search.
            prior_width: how far, in typical changes, a quantity may stray from the start for a penalty of 1; this
                keeps quantities in place that a short stretch of data says nothing about.
            known: the residuals at `theta` with the same horizon, which saves solving there again.

        Returns:
            Where the search ended; with infinite cost if the model could not be solved at `theta`.
        """
        target = _Target(self, theta, sigma, stage, horizon, tolerance, prior_width, known)
        if target.accepted is None:
            return Minimum(theta, np.inf, False)
        jacobian: Any = target.jacobian  # SciPy's annotation knows only names
        try:
            found = least_squares(
                target.residuals,
                np.zeros(len(theta)),
                jacobian,
                method="trf",
                ftol=tolerance,
                xtol=tolerance,
                gtol=1e-14,
                max_nfev=max_iterations or self.max_iterations,
            )
        except _Settled as settled:
            return Minimum(target.accepted.theta, settled.cost, True, target.accepted)
        return Minimum(target.accepted.theta, 2 * found.cost, found.status > 0, target.accepted)

    def maximise_likelihood(
        self,
        theta: NDArray[np.float64],
        floor: NDArray[np.float64],
        stage: str,
        *,
        tolerance: float,
        known: Residuals | None = None,
    ) -> Likelihood:
        """Maximise the likelihood by iteratively reweighted least squares.

        Minimise the scaled residuals, set each sigma to the root mean square residual, and repeat: the fixed point
        is where the derivatives of the likelihood with respect to quantities and sigmas vanish.

        Args:
            theta: where to start, [n_free], where the model can be solved.
            floor: the smallest sensible sigma of each observable, [n_observed].
            stage: what the user is told that this is.
            tolerance: of the relative change of the cost and of the step, at which to stop each of the searches; the
                sigmas count as settled when they change by less than a thousand times as much.
            known: the residuals at `theta`, which saves solving there again.
        """
        residuals = known or self.misfit.residuals(theta)
        if residuals is None:
            return Likelihood(Minimum(theta, np.inf, False), floor, np.inf, False, False)
        sigma = np.maximum(self.sigma(residuals), floor)
        nll, settled, minimum = np.inf, False, Minimum(theta, np.inf, False, residuals)
        for _ in range(self.max_iterations):
            minimum = self.minimise(minimum.theta, sigma, stage, tolerance=tolerance, known=residuals)
            assert minimum.residuals is not None, "the model has been solved where the search starts"
            residuals, last, last_nll = minimum.residuals, sigma, nll
            sigma = np.maximum(self.sigma(residuals), floor)
            nll = negative_log_likelihood(residuals, sigma)
            steady = np.abs(sigma / last - 1).max() < 1e3 * tolerance
            settled = bool(steady) or abs(nll - last_nll) < 1e-10 * max(1, abs(nll))
            if settled:
                break
        at_floor = bool(np.any(sigma <= floor))
        return Likelihood(minimum, sigma, nll, settled and minimum.converged, at_floor)

    def agrees(self, minimum: Minimum, exact: Misfit, sigma: NDArray[np.float64]) -> bool:
        """Whether a more exact misfit says of a minimum what the search has found.

        Args:
            minimum: where the search ended.
            exact: the misfit, solved more accurately.
            sigma: what the residuals were divided by, [n_observed].
        """
        residuals = exact.residuals(minimum.theta, derivatives=False)
        if residuals is None:
            return False
        cost = np.sum((residuals.values / sigma[residuals.observable]) ** 2)
        return bool(cost <= 2 * minimum.cost + _UNSEEN * len(residuals.values))

    def sigma(self, residuals: Residuals) -> NDArray[np.float64]:
        """The sigma of each observable that makes the residuals most likely, [n_observed]."""
        n_observed = len(self.misfit.data.observables)
        if self.sigma_mode == "shared":
            return np.full(n_observed, np.sqrt(np.mean(residuals.values**2)))
        return np.sqrt(residuals.mean_squares(n_observed))

    def report(self, stage: str, residuals: Residuals) -> None:
        """Tell the user of an iteration."""
        self.iterations += 1
        sigma = np.maximum(self.sigma(residuals), np.finfo(float).tiny)
        self.progress(stage, self.iterations, negative_log_likelihood(residuals, sigma))


def negative_log_likelihood(residuals: Residuals, sigma: NDArray[np.float64]) -> float:
    """Minus the logarithm of the density of the data, with independent residuals of a standard deviation each."""
    scale = sigma[residuals.observable]
    gaussian = np.sum(0.5 * (residuals.values / scale) ** 2 + np.log(scale) + 0.5 * np.log(2 * np.pi))
    return float(gaussian) + residuals.log_data


class _Settled(Exception):
    """The search is where it wants to be, at this cost."""

    def __init__(self, cost: float):
        super().__init__()
        self.cost = cost


class _Target:
    """Scaled residuals as functions of the typical changes away from the start, for `least_squares`.

    In these variables its first trust region has radius one: quantities on the log scale start with changes of less
    than a factor e.

    The search ends where a linear model would lessen the cost by far less than the tolerance. This is the test of
    D. M. Bates and D. G. Watts, "A relative offset orthogonality convergence criterion for nonlinear least squares",
    Technometrics 23 (1981). Those of `least_squares` need steps that succeed, and at the optimum none does, since the
    error of the solver and rounding decide about it.
    """

    def __init__(
        self,
        search: Search,
        origin: NDArray[np.float64],
        sigma: NDArray[np.float64],
        stage: str,
        horizon: float,
        tolerance: float,
        prior_width: float,
        known: Residuals | None,
    ):
        self.search = search
        self.origin = origin
        self.sigma = sigma
        self.stage = stage
        self.horizon = horizon
        self.tolerance = tolerance
        self.magnitudes = search.misfit.quantities.magnitudes
        self.prior = np.eye(len(origin)) / prior_width
        self.latest = known or search.misfit.residuals(origin, horizon)
        self.accepted = self.latest
        self.count = 0 if self.latest is None else len(self.latest.values)

    def residuals(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = self.origin + self.magnitudes * u
        if self.latest is None or not np.array_equal(theta, self.latest.theta):
            self.latest = self.search.misfit.residuals(theta, self.horizon)
        prior = self.prior @ u
        if self.latest is None:
            return np.concatenate([np.full(self.count, _FAILED), prior])
        return np.concatenate([self.latest.values / self.sigma[self.latest.observable], prior])

    def jacobian(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The Jacobian at the point where the residuals were last computed, which the search has accepted.

        Raises:
            _Settled: the search need not go on from there.
        """
        assert self.latest is not None, "the search accepts only points where the model can be solved"
        self.accepted = self.latest
        self.search.report(self.stage, self.latest)
        scaled = self.latest.jacobian * self.magnitudes / self.sigma[self.latest.observable][:, None]
        slopes, values = np.concatenate([scaled, self.prior]), self.residuals(u)
        directions, singular, _ = np.linalg.svd(slopes, full_matrices=False)
        determined = directions[:, singular > _RANK * singular.max()]
        if np.sum((determined.T @ values) ** 2) <= _GAIN * self.tolerance * np.sum(values**2):
            raise _Settled(float(np.sum(values**2)))
        return slopes
