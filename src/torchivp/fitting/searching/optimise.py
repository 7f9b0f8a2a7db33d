"""Optimisation: nonlinear least squares at given sizes of the noise, and maximum likelihood with these estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.priors import penalty, prior_residuals
from torchivp.fitting.progress import Progress, silent
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.searching.linear_model import ON_BOUND, linear_residuals
from torchivp.fitting.searching.target import Settled, Target
from torchivp.fitting.solving.together import side_by_side

if TYPE_CHECKING:
    from torchivp.fitting.searching.multistart import Attempt
    from torchivp.fitting.searching.shooting import Joined
    from torchivp.fitting.searching.start import Start

T = TypeVar("T")
Shooting = Literal["auto", "single", "multiple"]

# The fraction of the variance of the data that the errors of a rough solve may make up.
_UNSEEN = 1e-4

# With tensors, a search ends where a step promises so much of the logarithm of the likelihood, times the tolerance; the
# tolerance of the changes of cost and step is then so much smaller.
_REST, _NARROW = 1e4, 1e-2

# The data hardly tell a quantity from its bound if residuals change by less than this on the way, in all.
_HARDLY = 1.0


@dataclass(frozen=True)
class Weighing:
    """What residuals are made of predictions by: noise of given sizes.

    Attributes:
        levels: the noise.
        sizes: those of its sizes that are not known, [n_sizes].
        belief: by what residuals of priors are multiplied. Those of data are too small by that, about, where they are
            weighed by their scatter and not by their noise.
    """

    levels: Levels
    sizes: NDArray[np.float64]
    belief: float = 1.0

    def priors(
        self, quantities: Quantities, theta: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The residuals of priors, [m], and their derivatives by theta, [m, n_free]."""
        residuals, slopes = prior_residuals(quantities, theta)
        return self.belief * residuals, self.belief * slopes

    def residuals(self, found: Predictions) -> NDArray[np.float64]:
        """Half of whose squares sum to the negative log-likelihood but for a constant, [m, n]."""
        return self.levels.least_squares(found, self.sizes)[0]

    def mean_squares(self, found: Predictions) -> NDArray[np.float64]:
        """The mean square of the residuals of each observable, [n_observed]; zero without data."""
        squares, n = (self.residuals(found) ** 2).sum(0), len(self.levels.noises)
        counts = np.bincount(found.measured.observable, minlength=n)
        return np.bincount(found.measured.observable, squares, n) / np.maximum(counts, 1)


@dataclass
class Minimum:
    """Where a search ended.

    Attributes:
        theta: the free quantities, [n_free].
        cost: the sum of squared residuals there, those of priors included; infinite if the model could not be solved at
            the start.
        converged: whether the search stopped because it found a minimum.
        found: the predictions there.
    """

    theta: NDArray[np.float64]
    cost: float
    converged: bool
    found: Predictions | None = None


@dataclass
class Likelihood:
    """A maximum of the likelihood, or with priors of the density a posteriori.

    Attributes:
        minimum: the free quantities there, with predictions and Jacobian.
        sizes: those of the noise that are estimated, [n_sizes].
        nll: the negative logarithm of the likelihood.
        converged: whether quantities and sizes have settled.
        at_floor: whether a size is as small as the error of the solver, and so means nothing.
    """

    minimum: Minimum
    sizes: NDArray[np.float64]
    nll: float
    converged: bool
    at_floor: bool


@dataclass
class Search:
    """A least-squares search: what it needs to know, and what it has cost.

    Attributes:
        misfit: what is minimised.
        levels: the noise.
        progress: told of every iteration.
        max_iterations: the largest number of iterations of one search.
        choose_method: whether the method of the solves may be changed where another is cheaper.
        starts: from how many starts to search; None for as many as it takes.
        shooting: whether a search may, or is to, begin with multiple shooting.
        iterations: the number of iterations so far.
        rtol: the search for the start solves no more accurately than this; less once it has fitted the errors of its
            solves.
        matched: candidates from integral matching, along smooth curves or not, since they are the same in every search.
        joined: where multiple shooting has left least.
        begun: where to begin, and the attempts from many starts, by the method of the solves and the logarithm of rtol.
    """

    misfit: Misfit
    levels: Levels
    progress: Progress
    max_iterations: int
    choose_method: bool = False
    starts: int | None = None
    shooting: Shooting = "auto"
    iterations: int = field(default=0)
    rtol: float = 1e-5
    matched: dict[bool, list[NDArray[np.float64]]] = field(default_factory=dict)
    joined: Joined | None = None
    begun: dict[tuple[str, float], tuple[Start, list[Attempt]]] = field(default_factory=dict)

    def minimise(
        self,
        theta: NDArray[np.float64],
        weighing: Weighing,
        stage: str,
        *,
        horizon: float = 1.0,
        tolerance: float,
        max_iterations: int | None = None,
        prior_width: float = np.inf,
        known: Predictions | None = None,
        held: NDArray[np.bool_] | None = None,
        rest: float = 0.0,
    ) -> Minimum:
        """Minimise the sum of squared residuals by a trust-region Gauss-Newton method, within the bounds.

        Args:
            theta: where to start, [n_free].
            weighing: what makes residuals of predictions.
            stage: what the user is told that this is.
            horizon: the fraction of the data to use.
            tolerance: of the relative change of the cost and of the step, at which to stop.
            max_iterations: the largest number of iterations; default that of the search.
            prior_width: how far, in typical changes, a quantity may stray from the start for a penalty of 1; this
                keeps quantities in place that a short stretch of data says nothing about.
            known: the predictions at `theta` with the same horizon, which saves solving there again.
            held: which entries of theta stay where they are, [n_free].
            rest: the search also ends where a linear model promises to lessen half the cost by less than this, and the
                last step has not kept such a promise.

        Returns:
            Where the search ended; with infinite cost if the model could not be solved at `theta`.
        """
        theta = np.clip(theta, self.misfit.quantities.lower, self.misfit.quantities.upper)
        target = Target(self, theta, weighing, stage, horizon, tolerance, prior_width, known, held, rest)
        if target.accepted is None:
            return Minimum(theta, np.inf, False)
        jacobian: Any = target.jacobian  # SciPy's annotation knows only names
        try:
            found = least_squares(
                target.residuals,
                np.zeros(len(target.moved)),
                jacobian,
                bounds=target.bounds,
                method="trf",
                ftol=tolerance,
                xtol=tolerance,
                gtol=1e-14,
                max_nfev=max_iterations or self.max_iterations,
            )
        except Settled as settled:
            return Minimum(target.accepted.theta, settled.cost, True, target.accepted)
        return Minimum(target.accepted.theta, 2 * found.cost, found.status > 0, target.accepted)

    def maximise_likelihood(
        self,
        theta: NDArray[np.float64],
        floor: NDArray[np.float64],
        stage: str,
        *,
        tolerance: float,
        known: Predictions | None = None,
        held: NDArray[np.bool_] | None = None,
    ) -> Likelihood:
        """Maximise the likelihood by iteratively reweighted least squares.

        Minimise the residuals at given sizes of the noise, choose the sizes that make these most likely, and repeat:
        the fixed point is where the derivatives of the likelihood with respect to quantities and sizes vanish.

        Args:
            theta: where to start, [n_free], where the model can be solved.
            floor: the smallest sensible size of the noise of each observable, [n_observed].
            stage: what the user is told that this is.
            tolerance: of the relative change of the cost and of the step, at which to stop each of the searches; the
                sizes count as settled when they change by less than a thousand times as much.
            known: the predictions at `theta`, which saves solving there again.
            held: which entries of theta stay where they are, [n_free].
        """
        # Valleys of networks are long, and nobody asks where in them a search ends: it does where little can be gained,
        # which tells an end from a plateau.
        rest, narrow = (0.0, 1.0) if self.misfit.quantities.single.all() else (_REST * tolerance, _NARROW)
        found = known or self.misfit.predictions(theta)
        n_sizes = len(self.levels.names)
        if found is None or not self.levels.possible(found):
            return Likelihood(Minimum(theta, np.inf, False), np.ones(n_sizes), np.inf, False, False)
        sizes = self.levels.estimate(found, floor)
        nll, settled, minimum = np.inf, False, Minimum(theta, np.inf, False, found)
        for _ in range(self.max_iterations):
            weighing = Weighing(self.levels, sizes)
            minimum = self.minimise(
                minimum.theta, weighing, stage, tolerance=narrow * tolerance, known=found, held=held, rest=rest
            )
            assert minimum.found is not None, "the model has been solved where the search starts"
            found, last, last_nll = minimum.found, sizes, nll
            sizes = self.levels.estimate(found, floor)
            nll = self.levels.nll(found, sizes)
            steady = np.abs(sizes / last - 1).max(initial=0.0) < 1e3 * tolerance
            settled = bool(steady) or (minimum.converged and abs(nll - last_nll) < 1e-10 * max(1, abs(nll)))
            if settled:
                break
        return Likelihood(minimum, sizes, nll, settled and minimum.converged, self.levels.at_floor(sizes, floor))

    def cost(self, likelihood: Likelihood) -> float:
        """What is minimised: minus the logarithm of the likelihood, with priors of the density a posteriori."""
        return likelihood.nll + penalty(self.misfit.quantities, likelihood.minimum.theta)

    def onto_bounds(
        self, likelihood: Likelihood, floor: NDArray[np.float64], stage: str, tolerance: float
    ) -> Likelihood:
        """The likelihood with quantities on bounds that they tend to, and from which the data hardly tell them.

        On the log scale a rate that is best at its lower bound changes less and less on the way there, so that searches
        end before; and a step of `least_squares` that meets a bound is cut short for all quantities. So these are held
        on their bounds while the others are searched. Arguments are as of `maximise_likelihood`.
        """
        way = self._way_to_bounds(likelihood)
        if way is None or not (0 < np.isfinite(way).sum() < len(way)):
            return likelihood
        held = np.isfinite(way)
        theta = likelihood.minimum.theta + np.where(held, way, 0.0)
        again = self.maximise_likelihood(theta, floor, stage, tolerance=tolerance, held=held)
        if not self.cost(again) < self.cost(likelihood):
            return likelihood
        left = self._way_to_bounds(again)
        if left is not None and (np.abs(left / self.misfit.quantities.magnitudes)[held] < ON_BOUND).all():
            return again
        return self.maximise_likelihood(again.minimum.theta, floor, stage, tolerance=tolerance)  # some go back inside

    def _way_to_bounds(self, likelihood: Likelihood) -> NDArray[np.float64] | None:
        """How far it is to the bounds that quantities tend to, if the data hardly tell them from these; else NaN."""
        found, quantities = likelihood.minimum.found, self.misfit.quantities
        if found is None:
            return None
        values, jacobian = linear_residuals(self.misfit, self.levels, found, likelihood.sizes)
        ends = np.where(jacobian.T @ values > 0, quantities.lower, quantities.upper)
        way = np.where(np.isfinite(ends), ends - found.theta, np.inf)
        near = np.isfinite(way)
        changes = way[near] / quantities.magnitudes[near]
        near[near] &= np.linalg.norm(jacobian[:, near] * changes, axis=0) < _HARDLY
        return np.where(near, way, np.nan)

    def side_by_side(self, parts: Sequence[Callable[[Search], T]], alike: bool = False) -> list[T]:
        """Parts of this search that do not depend on each other, whose solves are rows of one; what they return.

        With `alike` the numbers of each are the same to the last bit with any others beside it.
        """
        copies = [replace(self, iterations=0) for _ in parts]

        def runs(part: Callable[[Search], T], own: Search) -> Callable[[Misfit], T]:
            def run(misfit: Misfit) -> T:
                own.misfit = misfit
                return part(own)

            return run

        found = side_by_side(self.misfit, [runs(part, own) for part, own in zip(parts, copies, strict=True)], alike)
        self.iterations += sum(own.iterations for own in copies)
        return found

    def agrees(self, minimum: Minimum, exact: Misfit, weighing: Weighing) -> bool:
        """Whether a more exact misfit says of a minimum what the search has found.

        Args:
            minimum: where the search ended.
            exact: the misfit, solved more accurately.
            weighing: what made the residuals.
        """
        found = exact.predictions(minimum.theta, derivatives=False)
        if found is None or not weighing.levels.possible(found):
            return False
        cost = np.sum(weighing.residuals(found) ** 2)
        return bool(cost <= 2 * minimum.cost + _UNSEEN * len(found.values))

    def report(self, stage: str, found: Predictions) -> None:
        """Tell the user of an iteration."""
        self.iterations += 1
        if self.progress is silent:
            return
        sizes = self.levels.estimate(found, np.full(len(self.levels.noises), np.finfo(float).tiny))
        self.progress(stage, self.iterations, self.levels.nll(found, sizes))
