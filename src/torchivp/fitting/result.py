"""What a fit returns: estimates with their uncertainty, measures of fit, predictions with their bands."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchivp.fitting.data import Dataset, import_pandas
from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.misfit import Path as ModelPath
from torchivp.fitting.multistart import Attempt
from torchivp.fitting.optimise import Search
from torchivp.fitting.quantities import Kind, Quantity, Scale
from torchivp.fitting.random_effects.estimates import RandomEffects
from torchivp.fitting.residual_checks import Verdict, judge
from torchivp.fitting.uncertainty import Uncertainty
from torchivp.models.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Band = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A parameter, an initial state, a size of the noise, or what follows from these.

    Attributes:
        name: such as "alpha", "prey(1900)", "sigma(hare)".
        kind: "parameter", "initial state", "random" (a standard deviation between trajectories), "sigma" or "derived".
        value: the estimate, or the value at which it was held.
        standard_error: of the value, by the delta method; NaN if it was held, infinite if the data do not determine it.
        scale: the scale of estimation, "log", "linear" or "logit".
        scale_error: the standard error on that scale.
        lower: lower end of the 95 % interval; but for sigmas, it is symmetric on the scale of estimation.
        upper: its upper end.
        free: whether it was estimated.
        unit: its unit; may be empty.
        description: its meaning.
    """

    name: str
    kind: Kind
    value: float
    standard_error: float
    scale: Scale
    scale_error: float
    lower: float
    upper: float
    free: bool
    unit: str
    description: str

    @staticmethod
    def build(quantity: Quantity, value: float, scale_error: float, reach: float) -> Estimate:
        """The estimate of a quantity with its interval, from its standard error and half the width on its scale."""
        at = quantity.to_scale(value) if quantity.free else value
        with np.errstate(over="ignore"):
            lower, upper = (quantity.from_scale(at + side) for side in (-reach, reach))
        return Estimate(
            quantity.name,
            quantity.kind,
            value,
            abs(quantity.slope(value)) * scale_error if np.isfinite(scale_error) else scale_error,
            quantity.scale,
            scale_error,
            lower,
            upper,
            quantity.free,
            quantity.unit,
            quantity.description,
        )


@dataclass(repr=False)
class FitResult:
    """A model fitted to data by maximum likelihood.

    Attributes:
        model: the model with the estimated parameters: a copy.
        data: the data, with `trajectories`, `observables` and `time_name`.
        levels: the noise of the observables.
        sizes: those of its sizes that were estimated, [n_sizes].
        estimates: parameters, initial states, what follows from them, and sigmas, free and held.
        nll: the negative log-likelihood: minus the logarithm of the density of the observed values.
        penalty: what the priors add to it, up to their largest densities.
        aic: Akaike's information criterion, 2 nll + 2 n_free.
        aicc: the same, corrected for small samples; infinite if n_data <= n_free + 1.
        bic: Schwarz' information criterion, 2 nll + n_free log(n_data).
        rss: the sum of squared residuals of each observable on the scale of the noise (of logarithms, if lognormal).
        n_data: the number of values.
        n_free: the number of free quantities, sigmas included.
        converged: whether the maximum was found.
        message: how the search ended, in a sentence.
        warnings: what to know before the numbers are used, and what is wrong with the residuals.
        notes: what was done to the data when they were read.
        verdict: whether the fit converged and its residuals look like noise, in a `sentence` and as `good`.
        iterations: the number of iterations of all searches.
        solves: the number of solves of the model.
        seconds: how long it took.
        covariance: of the free parameters and initial states on the scale of estimation, [n, n].
        correlation: their correlations, [n, n].
        free_names: their names, in the order of the rows.
        theta: the free parameters and initial states on the scale of estimation, [n].
        standardised: the residuals over sigma, [T, n_observed] for each trajectory; NaN where data are missing.
        search: what has found it.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        attempts: with `starts`, where each start led, the most likely first.
        call: the call of `fit` that gave it, as Python.
        random: how trajectories differ by chance; None if that was not asked for. Where it was, `nll` is that of the
            marginal likelihood, and predictions, bands and residuals are those of trajectories with their own values.
    """

    model: Model
    data: Dataset
    levels: Levels
    sizes: NDArray[np.float64]
    estimates: list[Estimate]
    nll: float
    penalty: float
    aic: float
    aicc: float
    bic: float
    rss: dict[str, float]
    n_data: int
    n_free: int
    converged: bool
    message: str
    warnings: list[str]
    notes: list[str]
    iterations: int
    solves: int
    seconds: float
    covariance: NDArray[np.float64]
    correlation: NDArray[np.float64]
    free_names: list[str]
    theta: NDArray[np.float64]
    standardised: list[NDArray[np.float64]] = field(repr=False)
    search: Search = field(repr=False)
    floor: NDArray[np.float64]
    attempts: list[Attempt] = field(repr=False)
    uncertainty: Uncertainty = field(repr=False)
    call: str
    random: RandomEffects | None = field(default=None, repr=False)
    verdict: Verdict = field(init=False)

    def __post_init__(self):
        self.verdict = judge(self)
        self.warnings = self.warnings + self.verdict.findings

    def __getitem__(self, name: str) -> Estimate:
        """The estimate called `name`.

        Raises:
            KeyError: there is none of that name; the message lists the names.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        raise KeyError(f"no estimate is called {name!r}; there are {', '.join(each.name for each in self.estimates)}")

    @property
    def misfit(self) -> Misfit:
        """Model and data."""
        return self.search.misfit

    @property
    def observed_states(self) -> list[str | None]:
        """The state that each observable is, None for a formula."""
        return self.data.states

    @property
    def noise(self) -> str:
        """The kind of noise, or the kinds of the observables in their order."""
        kinds = [noise.name for noise in self.levels.noises]
        return kinds[0] if len(set(kinds)) == 1 else ", ".join(kinds)

    @property
    def sigma(self) -> NDArray[np.float64]:
        """The first size of the noise of each observable, [n_observed]: mostly its standard deviation."""
        return self.levels.per_observable(self.sizes)

    def predict(self, t: ArrayLike, trajectory: int = 0, population: bool = False) -> NDArray[np.float64]:
        """The states of the fitted model.

        Args:
            t: times in any order, [T], none before the first data time of the trajectory.
            trajectory: the number of the trajectory.
            population: of a fit with random effects, whether to predict a trajectory with the values of the population
                instead of its own: the typical one with its conditions and doses.

        Returns:
            The states, [T, n_states].

        Raises:
            ValueError: a time lies before the first data time, there is no such trajectory, or there are no random
                effects.
            SolveError: the model cannot be solved up to the last of the times.
        """
        path, position = self._path(t, trajectory, derivatives=False, population=population)
        return path.states[position]

    def observe(self, t: ArrayLike, trajectory: int = 0, population: bool = False) -> NDArray[np.float64]:
        """The observables of the fitted model, without noise, [T, n_observed]; else as `predict`."""
        path, position = self._path(t, trajectory, derivatives=False, population=population)
        return path.observables[position]

    def band(self, t: ArrayLike, trajectory: int = 0) -> Band:
        """The pointwise 95 % confidence band of the states: where the curves lie.

        By the delta method, for positive states on the log scale. Arguments and errors as of `predict`.

        Returns:
            Its lower and upper edge, each [T, n_states]; infinitely wide where the data do not determine the curve.
        """
        path, position = self._path(t, trajectory)
        assert path.state_slopes is not None, "derivatives were asked for"
        log = np.array([self._is_log(state) for state in self.model.states])
        return _edges(path.states[position], self.uncertainty.of(trajectory).reach(path.state_slopes[position]), log)

    def observable_band(self, t: ArrayLike, trajectory: int = 0) -> Band:
        """The pointwise 95 % confidence band of the observables, each [T, n_observed]; else as `band`."""
        path, position = self._path(t, trajectory)
        reach = self.uncertainty.of(trajectory).reach(path.observable_slopes[position])
        return _edges(path.observables[position], reach, self._log_observables())

    def prediction_band(self, t: ArrayLike, trajectory: int = 0) -> Band:
        """The pointwise 95 % prediction band: where new observations fall, each [T, n_observed].

        The band of the curve and the noise together. Arguments and errors as of `band`.
        """
        path, position = self._path(t, trajectory)
        h, slopes = path.observables[position], path.observable_slopes[position]
        log = np.array([noise.log for noise in self.levels.noises])
        uncertainty = self.uncertainty.of(trajectory)
        lower, upper = _edges(h, uncertainty.reach(slopes), self._log_observables())
        number = {k: i for i, k in enumerate(self._groups_with_data())}
        for k, group in enumerate(self.levels.of_observable):
            noise, known = self.levels.noises[k], self.levels.groups[group].known
            if noise.name in ("normal", "lognormal") and known is None:
                # The noise is estimated, so that its share of the width has the same Student's distribution.
                added = np.zeros((len(h), len(uncertainty.counts)))
                added[:, number[group]] = (self.sigma[k] * (h[:, k] if noise.log else 1.0)) ** 2
                reach = uncertainty.reach(slopes[:, k], added)
                lower[:, k], upper[:, k] = _edges(h[:, k], reach, log[k])
            else:
                sizes = self._sizes_of(group, len(h))
                for edge, level, sign in ((lower, 0.025, -1), (upper, 0.975, 1)):
                    gap = np.hypot(edge[:, k] - h[:, k], noise.quantiles(h[:, k], sizes, level) - h[:, k])
                    edge[:, k] = h[:, k] + sign * gap
        return lower, upper

    def _groups_with_data(self) -> list[int]:
        return [self.levels.groups.index(part.group) for part in self.levels.parts(self.misfit.measured())]

    def _sizes_of(self, group: int, count: int) -> NDArray[np.float64]:
        one = self.levels.groups[group]
        own = one.known if one.known is not None else self.sizes[one.first : one.first + one.count]
        return np.broadcast_to(np.asarray(own, dtype=np.float64), (count, len(own)))

    def residuals(self, trajectory: int = 0) -> NDArray[np.float64]:
        """The residuals over sigma on the scale of the noise, [T, n_observed]; NaN where data are missing.

        Where the noise is not normal or lognormal, they are the quantiles of the standard normal distribution at which
        the values lie in theirs.

        Raises:
            ValueError: there is no such trajectory.
        """
        return self.standardised[self._trajectory(trajectory)]

    def derive(self, name: str, formula: Any) -> Estimate | list[Estimate]:
        """A quantity that follows from the estimates, with its standard error by the delta method.

        Args:
            name: what to call it.
            formula: an expression in parameters and (initial) states, such as "beta / gamma", or a function of an object
                that has these as attributes.

        Returns:
            The estimate; a list with one for each trajectory if they differ.
        """
        from torchivp.fitting.assemble import derive

        found = derive(self.misfit, self.theta, self.uncertainty, name, formula)
        return found[0] if len(found) == 1 else found

    def dictionary(self) -> dict[str, Any]:
        """The result as plain numbers, strings, lists and dicts; what is not finite is None."""
        plain = {
            "model": type(self.model).__name__,
            "source": self.data.source,
            "observables": {name: _text(self.data.observe[name]) for name in self.data.observables},
            "noise": dict(zip(self.data.observables, (noise.name for noise in self.levels.noises), strict=True)),
            "estimates": [dataclasses.asdict(estimate) for estimate in self.estimates],
            "rss": self.rss,
            "covariance": self.covariance.tolist(),
            "correlation": self.correlation.tolist(),
            "verdict": self.verdict.sentence,
        }
        scalars = "nll penalty aic aicc bic n_data n_free converged message warnings notes iterations solves seconds free_names call"
        return _finite({**plain, **{name: getattr(self, name) for name in scalars.split()}})

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON, also written to the file `path` if one is given."""
        text = json.dumps(self.dictionary(), indent=2, ensure_ascii=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def summary(self) -> str:
        """The result as text: the estimates in a table, the measures of fit, the verdict and the warnings.

        Raises:
            ImportError: pandas is not installed.
        """
        table = import_pandas().DataFrame(
            {
                "": [estimate.name for estimate in self.estimates],
                "estimate": [estimate.value for estimate in self.estimates],
                "std. error": [estimate.standard_error for estimate in self.estimates],
                "95 % from": [estimate.lower for estimate in self.estimates],
                "to": [estimate.upper for estimate in self.estimates],
                "unit": [
                    each.unit if each.free or each.kind == "derived" else f"{each.unit} (held)"
                    for each in self.estimates
                ],
            }
        )
        head = (
            f"{type(self.model).__name__} fitted to {self.data.source}: {self.n_data} values, {self.noise} noise, "
            f"{self.n_free} free quantities"
        )
        fit = (
            f"negative log-likelihood {self.nll:.6g}, AIC {self.aic:.6g}, AICc {self.aicc:.6g}, BIC {self.bic:.6g}\n"
            f"{self.message}\n{self.verdict.sentence}"
        )
        warnings = [f"warning: {warning}" for warning in self.warnings]
        text = table.to_string(index=False, float_format="{:.6g}".format, na_rep="")
        return "\n".join([head, "", text, "", fit, *warnings])

    def plot(self) -> Figure:
        """Data and fitted curves with their bands, as a matplotlib figure."""
        from torchivp.plot.fit import plot_fit

        return plot_fit(self)

    def report(self, folder: str | Path, command: str | None = None) -> Path:
        """Write a report on the fit.

        Args:
            folder: where to; made if need be.
            command: the command that made the fit, to be quoted.

        Returns:
            The path of the report.
        """
        from torchivp.fitting.report import write_report

        return write_report(self, folder, command)

    def __repr__(self) -> str:
        values = ", ".join(f"{estimate.name}={estimate.value:.6g}" for estimate in self.estimates)
        return f"FitResult({values}; nll={self.nll:.6g}, {'converged' if self.converged else 'not converged'})"

    def _trajectory(self, trajectory: int) -> int:
        count = len(self.data.trajectories)
        if not 0 <= trajectory < count:
            raise ValueError(f"there is no trajectory {trajectory}: they are numbered from 0 to {count - 1}")
        return trajectory

    def _times(self, t: ArrayLike, trajectory: int) -> tuple[list[float], NDArray[np.intp]]:
        """The times in order, each once, and where each of the given ones stands among them."""
        first = self.data.trajectories[self._trajectory(trajectory)].t[0]
        times, position = np.unique(np.atleast_1d(np.asarray(t, dtype=np.float64)), return_inverse=True)
        if times[0] < first:
            raise ValueError(f"cannot predict at {times[0]:g}, before the first data time {first:g}")
        return times.tolist(), position

    def _path(
        self, t: ArrayLike, trajectory: int, derivatives: bool = True, population: bool = False
    ) -> tuple[ModelPath, NDArray[np.intp]]:
        """The path of a trajectory at the times in order, and where each of the given ones stands among them."""
        if population and self.random is None:
            raise ValueError(
                "population=True is for fits with random effects, fit(..., random={name: 'lognormal'}); this one has "
                "none: leave it out"
            )
        times, position = self._times(t, trajectory)
        misfit = self.misfit.shifted(None) if population else self.misfit
        return misfit.path(self.theta, trajectory, times, derivatives), position

    def _is_log(self, state: str) -> bool:
        observed = [noise for of, noise in zip(self.data.states, self.levels.noises, strict=True) if of == state]
        return self.model.is_positive(state) or any(noise.log for noise in observed)

    def _log_observables(self) -> NDArray[np.bool_]:
        """Which observables have bands on the log scale, [n_observed]."""
        each = zip(self.data.states, self.levels.noises, strict=True)
        return np.array([noise.log or (state is not None and self._is_log(state)) for state, noise in each])


def _text(observed: Any) -> str:
    """What an observable is, in words."""
    return observed if isinstance(observed, str) else getattr(observed, "__name__", "a function")


def _edges(states: NDArray[np.float64], reach: NDArray[np.float64], log: NDArray[np.bool_] | np.bool_) -> Band:
    """The edges of bands that reach as far to both sides, on the log scale for the states where `log`."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        factor = np.exp(np.where(log, reach / np.abs(states), 0.0))
        return np.where(log, states / factor, states - reach), np.where(log, states * factor, states + reach)


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
