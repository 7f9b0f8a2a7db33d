"""The bootstrap: how much estimates scatter when the data are drawn again from the fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchivp.ensembles.executors import Workers, check_executor
from torchivp.fitting.data import Dataset, import_pandas
from torchivp.fitting.levels import Levels, Part
from torchivp.fitting.measured import Measured
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.progress import Progress, show_progress, silent, tell_part
from torchivp.fitting.results.profiles import check_refits
from torchivp.fitting.searching.optimise import Search
from torchivp.fitting.searching.within_limits import onto_limits
from torchivp.fitting.solving.elsewhere import Elsewhere, by_portions
from torchivp.models.stochastic_model import StochasticModel
from torchivp.references import Sources

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult

Kind = Literal["parametric", "residual"]
_TOLERANCE = 1e-7  # of the searches, but with tensors
_TOLERANCE_OF_TENSORS = 1e-6


@dataclass(frozen=True)
class Bootstrap:
    """Estimates from data that were drawn again.

    Attributes:
        kind: how they were drawn, "parametric" or "residual".
        names: of the quantities: the free parameters and initial states, then the sizes of the noise.
        fitted: their values in the fit, [n_free].
        estimates: their values from each set of data, [n, n_free]; NaN where the fit failed.
        failures: why it did, by the number of the set.
    """

    kind: Kind
    names: list[str]
    fitted: NDArray[np.float64]
    estimates: NDArray[np.float64] = field(repr=False)
    failures: dict[int, str]
    sources: ClassVar[Sources] = {"bootstrap": ("DavisonHinkley1997",)}

    @property
    def succeeded(self) -> NDArray[np.float64]:
        """The estimates without those that failed, [m, n_free]."""
        return self.estimates[~np.isnan(self.estimates).any(1)]

    @property
    def standard_errors(self) -> dict[str, float]:
        """The standard deviation of the estimates by name; NaN if fewer than two succeeded."""
        found = self.succeeded
        spread = found.std(0, ddof=1) if len(found) > 1 else np.full(len(self.names), np.nan)
        return dict(zip(self.names, spread.tolist(), strict=True))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a quantity: what holds the middle of its estimates.

        Args:
            name: one of `names`.
            level: the share of the estimates in it.

        Raises:
            ValueError: there is no such quantity, `level` is no probability, or no fit succeeded.
        """
        if name not in self.names:
            raise ValueError(f"no estimate is called {name!r}; there are {', '.join(self.names)}")
        if not 0 < level < 1:
            raise ValueError(f"level must be a probability such as 0.95, got {level}")
        found = self.succeeded[:, self.names.index(name)]
        if not len(found):
            raise ValueError(f"no fit of the bootstrap succeeded, so that there is no interval: {self.failures[0]}")
        low, high = np.quantile(found, [0.5 * (1 - level), 0.5 * (1 + level)])
        return float(low), float(high)

    def to_frame(self, level: float = 0.95) -> Any:
        """A pandas DataFrame with a row for each quantity: estimate, bias, standard error and percentile interval."""
        ends = [self.interval(name, level) for name in self.names]
        columns = {
            "estimate": self.fitted,
            "bias": self.succeeded.mean(0) - self.fitted,
            "standard_error": list(self.standard_errors.values()),
            "lower": [low for low, _ in ends],
            "upper": [high for _, high in ends],
        }
        return import_pandas().DataFrame(columns, index=import_pandas().Index(self.names, name="name"))


def bootstrap(
    result: FitResult,
    n: int,
    kind: Kind = "parametric",
    seed: int = 0,
    executor: Workers = None,
    progress: bool | Progress = False,
) -> Bootstrap:
    """Fit data that are drawn again; see `FitResult.bootstrap`."""
    if isinstance(result.model, StochasticModel) or result.random is not None:
        raise ValueError(
            "the bootstrap draws data from one curve for each trajectory, which "
            f"{'a stochastic model' if result.random is None else 'a fit with random effects'} has not: take the "
            "intervals of the estimates, or simulate and fit data sets of your own"
        )
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'parametric' or 'residual', got {kind!r}")
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n must be a whole number of data sets to draw, 1 or more, got {n!r}")
    check_refits(result, "the bootstrap")
    names = [*result.free_names, *result.levels.names]
    sets = _Sets(kind, seed)
    with show_progress(progress) as tell:
        tell_part(tell, "bootstrap", 0, n)
        if check_executor(executor) is None:
            estimates, failures = sets.refit(result, range(n), tell)
        else:
            sets.draws(result)  # refuses here what it would refuse there
            estimates, failures = np.full((n, len(names)), np.nan), {}
            sent = Elsewhere(result, sets)
            for part, found in by_portions(_refit_elsewhere, sent, n, executor, "the sets of data", each=4):
                estimates[part] = found[0]
                failures |= found[1]
                tell_part(tell, "bootstrap", part.stop, n)
    fitted = np.concatenate([_single_values(result, result.theta), result.sizes])
    return Bootstrap(kind, names, fitted, estimates, failures)


@dataclass(frozen=True)
class _Sets:
    """Sets of data, drawn again.

    Attributes:
        kind: how.
        seed: of the random numbers.
    """

    kind: Kind
    seed: int

    def draws(self, result: FitResult) -> tuple[Callable[[np.random.Generator], Drawn], Measured]:
        """What draws values, and what they are values of."""
        found = result.misfit.predictions(result.theta)
        assert found is not None, "the model has been solved at the optimum"
        draw = _parametric(result, found) if self.kind == "parametric" else _residual(result, found)
        return draw, found.measured

    def refit(
        self, result: FitResult, numbers: Sequence[int], tell: Progress = silent
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """The estimates from some of the sets, [len(numbers), n_free], and why others failed."""
        draw, measured = self.draws(result)
        estimates = np.full((len(numbers), len(result.free_names) + len(result.levels.names)), np.nan)
        failures = {}
        for k, number in enumerate(numbers):
            values = draw(np.random.default_rng([self.seed, number]))  # whose set is the same whatever n
            try:
                estimates[k], nll = _refit(result, _with_values(result.data, measured, *values))
                tell("bootstrap", number + 1, nll)
            except _Failed as failure:
                failures[number] = str(failure)
            tell_part(tell, "bootstrap", k + 1, len(numbers))
        return estimates, failures


def _refit_elsewhere(task: tuple[Elsewhere[FitResult], slice]) -> tuple[NDArray[np.float64], dict[int, str]]:
    """The estimates from a portion of the sets, in a worker."""
    result, sets = task[0].get()
    return sets.refit(result, range(task[1].start, task[1].stop))


class _Failed(Exception):
    """A set of data cannot be fitted; the message says why."""


Drawn = tuple[NDArray[np.float64], NDArray[np.int8]]
"""New values, and which of them are limits."""


def _refit(result: FitResult, data: Dataset) -> tuple[NDArray[np.float64], float]:
    """The estimates from data of the same shape, by a search that starts from the optimum, [n_free], and their nll.

    Raises:
        _Failed: the search failed.
    """
    misfit = result.misfit.with_data(data)
    levels = Levels(result.levels.groups)
    search: Search = replace(result.search, misfit=misfit, levels=levels, progress=silent, iterations=0)
    tolerance = _TOLERANCE if misfit.quantities.single.all() else _TOLERANCE_OF_TENSORS
    likelihood = search.maximise_likelihood(result.theta, result.floor, "bootstrap", tolerance=tolerance)
    likelihood = onto_limits(search, likelihood, result.floor).likelihood
    if not np.isfinite(likelihood.nll):
        raise _Failed(f"the model cannot be solved for these data: {misfit.failure}")
    if not likelihood.converged:
        raise _Failed(f"the search has not converged within {search.max_iterations} iterations")
    return np.concatenate([_single_values(result, likelihood.minimum.theta), likelihood.sizes]), likelihood.nll


def _single_values(result: FitResult, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of the free quantities that are no tensors, [n]."""
    quantities = result.misfit.quantities
    return quantities.free_values(theta)[quantities.single]


def _parametric(result: FitResult, found: Predictions) -> Callable[[np.random.Generator], Drawn]:
    """Draw values from the noise around the fitted curves."""
    parts = result.levels.parts(found.measured)
    limits = [_limits(part) for part in parts]

    def draw(rng: np.random.Generator) -> Drawn:
        values, censored = found.measured.y.copy(), np.zeros(len(found.values), dtype=np.int8)
        for number, (part, ends) in enumerate(zip(parts, limits, strict=True)):
            sizes = part.sizes(result.sizes) * _inflation(result, part, number)
            drawn = part.group.noise.draw(found.values[part.which], sizes, rng)
            values[part.which], censored[part.which] = _behind_limits(drawn, *ends)
        return values, censored

    return draw


def _inflation(result: FitResult, part: Part, number: int) -> float:
    """By how much the noise is larger than the likelihood says, whose curve follows some of it."""
    if not part.group.count or not part.group.noise.regression:
        return 1.0
    return float(np.sqrt(result.uncertainty.counts[number] / result.uncertainty.freedom[number]))


def _limits(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Below and above what each value of a part would be a limit, [n].

    A value that was a limit has this limit. The limits of others are not known; where all those on a side are the same,
    it is taken to be theirs too.
    """
    ends = []
    for side in (-1, 1):
        of = part.censored == side
        known = np.unique(part.y[of])
        end = np.full(len(part.y), known[0] if len(known) == 1 else side * np.inf)
        end[of] = part.y[of]
        ends.append(end)
    return ends[0], ends[1]


def _behind_limits(values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> Drawn:
    """The values with limits in the places of those that lie beyond them."""
    return np.clip(values, low, high), np.where(values < low, -1, np.where(values > high, 1, 0)).astype(np.int8)


def _residual(result: FitResult, found: Predictions) -> Callable[[np.random.Generator], Drawn]:
    """Draw values whose standardised residuals are those of the fit, in random places."""
    measured, parts = found.measured, result.levels.parts(found.measured)
    for part in parts:
        if not part.group.noise.regression:
            raise ValueError(
                f"kind='residual' draws residuals of normal and lognormal noise, not of {part.group.noise.name}: "
                "kind='parametric'"
            )
    if measured.censored.any():
        raise ValueError("kind='residual' needs residuals, which censored values do not have: kind='parametric'")
    standardised = result.levels.standardised(found, result.sizes)

    def draw(rng: np.random.Generator) -> Drawn:
        values = measured.y.copy()
        for number, part in enumerate(parts):
            z = standardised[part.which]
            chosen = rng.choice(z - z.mean(), len(z)) * _inflation(result, part, number)
            h, sigma = found.values[part.which], part.sizes(result.sizes)[:, 0]
            values[part.which] = h * np.exp(sigma * chosen) if part.group.noise.log else h + sigma * chosen
        return values, np.zeros(len(values), dtype=np.int8)

    return draw


def _with_values(data: Dataset, measured: Measured, values: NDArray[np.float64], censored: NDArray[np.int8]) -> Dataset:
    """The data with other values."""
    tables = measured.tables(values, data)
    limits = [np.nan_to_num(table).astype(np.int8) for table in measured.tables(censored.astype(np.float64), data)]
    every = [
        replace(series, values=table, censored=limit if limit.any() else None)
        for series, table, limit in zip(data.trajectories, tables, limits, strict=True)
    ]
    return replace(data, trajectories=every)
