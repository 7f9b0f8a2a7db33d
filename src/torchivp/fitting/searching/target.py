"""What `least_squares` is given: residuals and their Jacobian, and where it need not go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.predictions import Predictions
from torchivp.fitting.searching.linear_model import ON_BOUND, explained

if TYPE_CHECKING:
    from torchivp.fitting.searching.optimise import Search, Weighing


# A solve that fails counts as residuals of this many sigmas, from which any step back is an improvement.
_FAILED = 1e6

# What a step may still gain when the search ends, in units of the tolerance of the cost. A quantity that is 1e-6
# standard errors away from its optimum costs 1e-12.
_GAIN = 1e-3

_CREEPING = 0.1  # the part of what steps may promise that the last one gained where promises are not kept


class Settled(Exception):
    """The search is where it wants to be, at this cost."""

    def __init__(self, cost: float):
        super().__init__(cost)
        self.cost = cost


class Target:
    """Residuals as functions of the typical changes away from the start, for `least_squares`.

    In these variables its first trust region has radius one: quantities on the log scale start with changes of less
    than a factor e.

    The search ends where a linear model would lessen the cost by far less than the tolerance. This is the test of
    D. M. Bates and D. G. Watts, "A relative offset orthogonality convergence criterion for nonlinear least squares",
    Technometrics 23 (1981). Those of `least_squares` need steps that succeed, and at the optimum none does, since the
    error of the solver and rounding decide about it. Quantities that their bounds hold back do not count.
    """

    def __init__(
        self,
        search: Search,
        origin: NDArray[np.float64],
        weighing: Weighing,
        stage: str,
        horizon: float,
        tolerance: float,
        prior_width: float,
        known: Predictions | None,
        held: NDArray[np.bool_] | None,
        rest: float,
    ):
        quantities = search.misfit.quantities
        self.search = search
        self.origin = origin
        self.weighing = weighing
        self.stage = stage
        self.horizon = horizon
        self.tolerance, self.rest, self._cost = tolerance, rest, np.inf
        self.moved = np.arange(len(origin)) if held is None else np.flatnonzero(~held)
        self.magnitudes = quantities.magnitudes[self.moved]
        self.bounds = tuple(
            (end[self.moved] - origin[self.moved]) / self.magnitudes for end in (quantities.lower, quantities.upper)
        )
        self.prior = np.eye(len(self.moved)) / prior_width
        self.latest = known if known is not None and np.array_equal(known.theta, origin) else self._predictions(origin)
        if self.latest is not None and not weighing.levels.possible(self.latest):
            self.latest = None
        self.accepted = self.latest
        self._last: tuple[Predictions, tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None
        self.count = 0 if self.latest is None else self._weighed(self.latest)[0].size

    def _predictions(self, theta: NDArray[np.float64]) -> Predictions | None:
        found = self.search.misfit.predictions(theta, self.horizon)
        return found if found is not None and self.weighing.levels.possible(found) else None

    def _theta(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = self.origin.copy()
        theta[self.moved] += self.magnitudes * u
        return np.clip(theta, self.search.misfit.quantities.lower, self.search.misfit.quantities.upper)

    def residuals(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = self._theta(u)
        if self.latest is None or not np.array_equal(theta, self.latest.theta):
            self.latest = self._predictions(theta)
        known = self.weighing.priors(self.search.misfit.quantities, theta)[0]
        tail = np.concatenate([np.minimum(known, _FAILED), self.prior @ u])
        if self.latest is None:
            return np.concatenate([np.full(self.count, _FAILED), tail])
        return np.concatenate([self._weighed(self.latest)[0].ravel(), tail])

    def _weighed(self, found: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The residuals of predictions and their slopes, those of the last ones kept."""
        if self._last is None or self._last[0] is not found:
            self._last = found, self.weighing.levels.least_squares(found, self.weighing.sizes)
        return self._last[1]

    def jacobian(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The Jacobian at the point where the residuals were last computed, which the search has accepted.

        Raises:
            Settled: the search need not go on from there.
        """
        assert self.latest is not None, "the search accepts only points where the model can be solved"
        self.accepted = self.latest
        self.search.report(self.stage, self.latest)
        slopes = self.weighing.levels.residual_jacobian(self.latest, self.weighing.sizes)
        of_data = (slopes[..., self.moved] * self.magnitudes).reshape(-1, len(u))
        known = self.weighing.priors(self.search.misfit.quantities, self.latest.theta)[1][:, self.moved]
        known = known * self.magnitudes
        jacobian, values = np.concatenate([of_data, known, self.prior]), self.residuals(u)
        gradient = jacobian.T @ values
        lower, upper = (np.abs(u - end) < ON_BOUND for end in self.bounds)
        free = ~((lower & (gradient > 0)) | (upper & (gradient < 0)))
        cost = float(np.sum(values**2))
        hope, gained, self._cost = explained(jacobian[:, free], values), self._cost - cost, cost
        slow = gained <= 2 * _CREEPING * self.rest
        if hope <= _GAIN * self.tolerance * cost or (slow and hope <= 2 * self.rest):
            raise Settled(cost)
        return jacobian
