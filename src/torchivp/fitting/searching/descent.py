"""Other optimisers than least squares: those of SciPy's `minimize`, and those of torch, by the gradient alone.

What they minimise is the negative logarithm of the likelihood (with priors, of the density a posteriori), with the
sizes of the noise at each point those that make the data most likely. There the likelihood does not change with the
sizes, so that its gradient by the quantities is that at these sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from torchivp.fitting.predictions import Predictions
from torchivp.fitting.priors import penalty, prior_residuals
from torchivp.fitting.results.uncertainty import MOST_INFORMED
from torchivp.fitting.searching.linear_model import hoped_gain
from torchivp.fitting.searching.optimise import Likelihood, Minimum, Search
from torchivp.fitting.searching.stiffness import AUTO, choose_method

LEAST_SQUARES = "least-squares"

Optimiser = str | Callable[..., torch.optim.Optimizer]
"""The name of an optimiser, or what makes one of torch's from a list of tensors."""

_NAMES = {"l-bfgs": "L-BFGS-B"}
_BY_GRADIENT = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", "BFGS", "CG", "Newton-CG")
_BY_VALUE = ("Nelder-Mead", "Powell", "COBYLA", "COBYQA")
_WITHOUT_BOUNDS = ("BFGS", "CG", "Newton-CG")

AT_REST = 1e-4
"""What a step may still gain of the logarithm of the likelihood where a search has converged."""

STEEP = 1e6
"""By how much a place that cannot be solved counts as worse than the best one, relative to that."""

_FLAT = 1e-4  # a gradient per typical change below which torch's optimisers need not go on


def check_optimiser(optimiser: Any) -> None:
    """Refuse what is no optimiser.

    Raises:
        ValueError: the name of none; the message lists them.
        TypeError: neither a name nor something that makes one.
    """
    if isinstance(optimiser, str):
        known = [AUTO, LEAST_SQUARES, *_NAMES, *_BY_GRADIENT, *_BY_VALUE]
        if _scipy_name(optimiser) is None and optimiser not in (LEAST_SQUARES, AUTO):
            raise ValueError(
                f"optimiser={optimiser!r} is none of {', '.join(known)}, and no optimiser of torch, such as "
                "functools.partial(torch.optim.Adam, lr=0.01)"
            )
    elif not callable(optimiser) or isinstance(optimiser, torch.optim.Optimizer):
        raise TypeError(
            "optimiser must be a name such as 'l-bfgs', or make an optimiser of torch from a list of tensors, such as "
            f"functools.partial(torch.optim.Adam, lr=0.01), got {type(optimiser).__name__}"
        )


def _scipy_name(name: str) -> str | None:
    """The method of SciPy's that a name means; None if there is none."""
    methods = {each.lower(): each for each in (*_BY_GRADIENT, *_BY_VALUE)}
    return _NAMES.get(name.lower()) or methods.get(name.lower())


@dataclass
class Descent:
    """A search by an optimiser from the start values.

    Attributes:
        optimiser: as the user gave it.
        theta: where the last search ended, from which one by more accurate solves goes on.
    """

    optimiser: Optimiser
    theta: NDArray[np.float64] | None = field(default=None)

    def run(self, search: Search, floor: NDArray[np.float64]) -> Likelihood:
        """Find the maximum of the likelihood.

        Args:
            search: what is maximised.
            floor: the smallest sensible size of the noise of each observable, [n_observed].

        Raises:
            RuntimeError: the model cannot be solved from the start.
            ValueError: there are bounds, and the optimiser knows none.
        """
        quantities = search.misfit.quantities
        start = quantities.theta() if self.theta is None else self.theta
        if self.theta is None and search.choose_method:
            search.misfit = choose_method(search.misfit, start)
        goal = Goal(search, start, floor)
        if not np.isfinite(goal.value(np.zeros(len(start)))):
            raise RuntimeError(
                f"the model cannot be solved from the start: {goal.failure()}: give start={{name: value, ...}}"
            )
        if isinstance(self.optimiser, str):
            _by_scipy(goal, _scipy_name(self.optimiser) or "", search.max_iterations)
        else:
            _by_torch(goal, self.optimiser, search.max_iterations)
        self.theta = goal.best
        return goal.end()


class Goal:
    """Minus the logarithm of the likelihood as a function of the typical changes from the start.

    Attributes:
        lower: the bounds of the changes, [n_free].
        upper: likewise.
        best: the best theta so far.
    """

    def __init__(self, search: Search, start: NDArray[np.float64], floor: NDArray[np.float64]):
        self._search, self._start, self._floor = search, start, floor
        self._quantities = search.misfit.quantities
        scale = self._quantities.magnitudes
        self.lower, self.upper = ((end - start) / scale for end in (self._quantities.lower, self._quantities.upper))
        self.best, self._least = start, np.inf
        self._latest: Predictions | None = None
        self._slope = np.inf  # the largest derivative at the best place, of those that no bound holds

    def failure(self) -> str:
        """Why there is no value at the start."""
        found = self._search.misfit.predictions(self._start, derivatives=False)
        if found is None:
            return self._search.misfit.failure
        return "it predicts what the noise does not allow"

    def value(self, u: NDArray[np.float64]) -> float:
        """Without the gradient."""
        theta = self._theta(u)
        found = self._search.misfit.predictions(theta, derivatives=False)
        return self._noted(theta, found)

    def value_and_gradient(self, u: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """With the gradient; zero where the model cannot be solved."""
        theta, levels = self._theta(u), self._search.levels

        def by_value(found: Predictions) -> NDArray[np.float64]:
            if not levels.possible(found):
                return np.zeros(len(found.values))
            residuals, slopes = levels.least_squares(found, levels.estimate(found, self._floor))
            return (residuals * slopes).sum(0)

        pulled = self._search.misfit.pulled_back(theta, by_value)
        value = self._noted(theta, None if pulled is None else pulled[0])
        if pulled is None or not np.isfinite(value):
            return self._least + STEEP * (1 + abs(self._least)), np.zeros(len(u))
        known, slopes = prior_residuals(self._quantities, theta)
        gradient = (pulled[1] + known @ slopes) * self._quantities.magnitudes
        if self.best is theta:
            held = ((u <= self.lower) & (gradient > 0)) | ((u >= self.upper) & (gradient < 0))
            self._slope = float(np.abs(np.where(held, 0.0, gradient)).max())
        return value, gradient

    def _theta(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = self._start + self._quantities.magnitudes * np.asarray(u, dtype=np.float64)
        return np.clip(theta, self._quantities.lower, self._quantities.upper)

    def _noted(self, theta: NDArray[np.float64], found: Predictions | None) -> float:
        """The value at predictions, which may be the best so far."""
        levels = self._search.levels
        if found is None or not levels.possible(found):
            return np.inf
        sizes = levels.estimate(found, self._floor)
        value = levels.nll(found, sizes) + penalty(self._quantities, theta)
        if not np.isfinite(value):
            return np.inf
        self._latest = found
        if value < self._least:
            self.best, self._least = theta, value
        return value

    def finite(self, u: NDArray[np.float64]) -> float:
        """The value, or one far above the best where there is none."""
        value = self.value(u)
        return value if np.isfinite(value) else self._least + STEEP * (1 + abs(self._least))

    def report(self) -> None:
        """Tell the user of an iteration."""
        if self._latest is not None:
            self._search.report("maximum likelihood", self._latest)

    def end(self) -> Likelihood:
        """The best place, and whether it is an optimum: whether a step from it could still gain something."""
        search, levels = self._search, self._search.levels
        informed = len(self.best) <= MOST_INFORMED
        found = search.misfit.predictions(self.best, derivatives=informed)
        if found is None:
            raise RuntimeError(f"the model cannot be differentiated where the search ended: {search.misfit.failure}")
        sizes = levels.estimate(found, self._floor)
        if informed:
            gain, cost = hoped_gain(search.misfit, levels, found, sizes)
            converged = gain <= AT_REST
        else:
            residuals = levels.least_squares(found, sizes)[0]
            cost = float(np.sum(residuals**2)) + 2 * penalty(self._quantities, self.best)
            converged = self._slope <= _FLAT
        return Likelihood(
            Minimum(self.best, cost, converged, found),
            sizes,
            levels.nll(found, sizes),
            converged,
            levels.at_floor(sizes, self._floor),
        )


def _by_scipy(goal: Goal, method: str, max_iterations: int) -> None:
    """Let a method of `scipy.optimize.minimize` do it; the goal knows the best place that it has seen."""
    bounded = bool(np.isfinite(goal.lower).any() or np.isfinite(goal.upper).any())
    if bounded and method in _WITHOUT_BOUNDS:
        raise ValueError(f"optimiser={method!r} knows no bounds: leave out bounds, or take optimiser='l-bfgs'")
    options: dict[str, Any] = {"maxiter": max_iterations}
    if method == "TNC":
        options = {"maxfun": max_iterations}
    if method == "L-BFGS-B":
        options |= {"maxfun": 20 * max_iterations, "ftol": 1e-14, "gtol": _FLAT, "maxcor": 20}
    by_gradient = method in _BY_GRADIENT
    minimize(
        goal.value_and_gradient if by_gradient else goal.finite,
        np.zeros(len(goal.best)),
        jac=by_gradient or None,
        method=method,
        bounds=list(zip(goal.lower, goal.upper, strict=True)) if bounded else None,
        callback=lambda *_: goal.report(),
        options=options,
    )


def _by_torch(goal: Goal, optimiser: Callable[..., torch.optim.Optimizer], max_iterations: int) -> None:
    """Take steps of an optimiser of torch, each within the bounds, until the gradient vanishes."""
    u = torch.zeros(len(goal.best), dtype=torch.float64, requires_grad=True)
    steps = optimiser([u])
    lower, upper = torch.from_numpy(goal.lower), torch.from_numpy(goal.upper)

    def closure() -> float:
        value, gradient = goal.value_and_gradient(u.detach().numpy().copy())
        u.grad = torch.from_numpy(np.array(gradient))
        return value

    for _ in range(max_iterations):
        steps.step(closure)
        with torch.no_grad():
            u.copy_(u.maximum(lower).minimum(upper))
        goal.report()
        assert u.grad is not None, "the closure sets it"
        held = ((u == lower) & (u.grad > 0)) | ((u == upper) & (u.grad < 0))
        if not bool((u.grad.masked_fill(held, 0.0).abs() > _FLAT).any()):
            break
    goal.value(u.detach().numpy())
