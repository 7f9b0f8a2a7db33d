"""What a fit returns: estimates with their uncertainty, measures of fit, predictions with their bands."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from torchivp.fitting.data import Dataset, import_pandas
from torchivp.fitting.misfit import Misfit, Noise, SigmaMode
from torchivp.fitting.quantities import Kind
from torchivp.fitting.residual_checks import Verdict, judge
from torchivp.fitting.uncertainty import Uncertainty
from torchivp.models.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Band = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A parameter, an initial state or a sigma.

    Attributes:
        name: such as "alpha", "prey(1900)", "sigma(hare)".
        kind: "parameter", "initial state" or "sigma".
        value: the estimate, or the value at which it was held.
        standard_error: of the value, by the delta method; NaN if it was held, infinite if the data do not determine it.
        scale: the scale of estimation, "log" or "linear".
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
    scale: Literal["log", "linear"]
    scale_error: float
    lower: float
    upper: float
    free: bool
    unit: str
    description: str

    @staticmethod
    def build(
        name: str,
        kind: Kind,
        value: float,
        scale_error: float,
        reach: float,
        *,
        log: bool,
        free: bool,
        unit: str,
        description: str,
    ) -> Estimate:
        """The estimate with its interval, from its standard error and half the width on the scale of estimation."""
        with np.errstate(over="ignore"):
            lower, upper = (value * np.exp(-reach), value * np.exp(reach)) if log else (value - reach, value + reach)
        return Estimate(
            name,
            kind,
            value,
            abs(value) * scale_error if log else scale_error,
            "log" if log else "linear",
            scale_error,
            float(lower),
            float(upper),
            free,
            unit,
            description,
        )


@dataclass(repr=False)
class FitResult:
    """A model fitted to data by maximum likelihood.

    Attributes:
        model: the model with the estimated parameters: a copy.
        data: the data, with `trajectories`, `observables` and `time_name`.
        observed_states: the state that each observable observes.
        noise: "normal" or "lognormal".
        sigma_mode: "separate" or "shared".
        estimates: parameters, initial states and sigmas, free and held.
        nll: the negative log-likelihood: minus the logarithm of the density of the observed values.
        aic: Akaike's information criterion, 2 nll + 2 n_free.
        aicc: the same, corrected for small samples; infinite if n_data <= n_free + 1.
        bic: Schwarz' information criterion, 2 nll + n_free log(n_data).
        rss: the sum of squared residuals of each observable on the scale of the noise (of logarithms, if lognormal).
        n_data: the number of values.
        n_free: the number of free quantities, sigmas included.
        converged: whether the maximum was found.
        message: how the search ended, in a sentence.
        warnings: what to know before the numbers are used, and what is wrong with the residuals.
        verdict: whether the fit converged and its residuals look like noise, in a `sentence` and as `good`.
        iterations: the number of iterations of all searches.
        solves: the number of solves of the model.
        seconds: how long it took.
        covariance: of the free parameters and initial states on the scale of estimation, [n, n].
        correlation: their correlations, [n, n].
        free_names: their names, in the order of the rows.
        sigma: the standard deviation of the noise of each observable, [n_observed].
        theta: the free parameters and initial states on the scale of estimation, [n].
        unscaled_residuals: on the scale of the noise, [T, n_observed] for each trajectory; NaN where data are missing.
        call: the call of `fit` that gave it, as Python.
    """

    model: Model
    data: Dataset
    observed_states: list[str]
    noise: Noise
    sigma_mode: SigmaMode
    estimates: list[Estimate]
    nll: float
    aic: float
    aicc: float
    bic: float
    rss: dict[str, float]
    n_data: int
    n_free: int
    converged: bool
    message: str
    warnings: list[str]
    iterations: int
    solves: int
    seconds: float
    covariance: NDArray[np.float64]
    correlation: NDArray[np.float64]
    free_names: list[str]
    sigma: NDArray[np.float64]
    theta: NDArray[np.float64]
    unscaled_residuals: list[NDArray[np.float64]] = field(repr=False)
    misfit: Misfit = field(repr=False)
    uncertainty: Uncertainty = field(repr=False)
    call: str
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

    def predict(self, t: ArrayLike, trajectory: int = 0) -> NDArray[np.float64]:
        """The states of the fitted model.

        Args:
            t: times in any order, [T], none before the first data time of the trajectory.
            trajectory: the number of the trajectory.

        Returns:
            The states, [T, n_states].

        Raises:
            ValueError: a time lies before the first data time, or there is no such trajectory.
            SolveError: the model cannot be solved up to the last of the times.
        """
        times, position = self._times(t, trajectory)
        with torch.no_grad():
            states = self.misfit.states(torch.tensor(self.theta), trajectory, times)
        return states.numpy()[position]

    def band(self, t: ArrayLike, trajectory: int = 0) -> Band:
        """The pointwise 95 % confidence band of the states: where the curves lie.

        By the delta method, for positive states on the log scale. Arguments and errors as of `predict`.

        Returns:
            Its lower and upper edge, each [T, n_states]; infinitely wide where the data do not determine the curve.
        """
        states, derivatives = self._sensitivities(t, trajectory)
        log = np.array([self._is_log(state) for state in self.model.states])
        return _edges(states, self.uncertainty.reach(derivatives), log)

    def prediction_band(self, t: ArrayLike, trajectory: int = 0) -> Band:
        """The pointwise 95 % prediction band: where new observations fall.

        The band of the curve widened by the noise, for states that are observed; the band of the curve for the others.
        The noise of a state that several columns observe is that of the one with the largest sigma. Arguments, returns
        and errors as of `band`.
        """
        states, derivatives = self._sensitivities(t, trajectory)
        log = np.array([self._is_log(state) for state in self.model.states])
        noise = np.zeros((*states.shape, len(self.uncertainty.counts)))
        for k in np.argsort(self.sigma):
            i = list(self.model.states).index(self.observed_states[k])
            log[i] = self.noise == "lognormal"
            noise[:, i] = 0.0
            group = k if self.sigma_mode == "separate" else 0
            noise[:, i, group] = (self.sigma[k] * (states[:, i] if log[i] else 1.0)) ** 2
        return _edges(states, self.uncertainty.reach(derivatives, noise), log)

    def residuals(self, trajectory: int = 0) -> NDArray[np.float64]:
        """The residuals over sigma on the scale of the noise, [T, n_observed]; NaN where data are missing.

        Raises:
            ValueError: there is no such trajectory.
        """
        return self.unscaled_residuals[self._trajectory(trajectory)] / self.sigma

    def dictionary(self) -> dict[str, Any]:
        """The result as plain numbers, strings, lists and dicts; what is not finite is None."""
        plain = {
            "model": type(self.model).__name__,
            "source": self.data.source,
            "observables": dict(zip(self.data.observables, self.observed_states, strict=True)),
            "noise": self.noise,
            "sigma_mode": self.sigma_mode,
            "estimates": [dataclasses.asdict(estimate) for estimate in self.estimates],
            "rss": self.rss,
            "covariance": self.covariance.tolist(),
            "correlation": self.correlation.tolist(),
            "verdict": self.verdict.sentence,
        }
        scalars = "nll aic aicc bic n_data n_free converged message warnings iterations solves seconds free_names call"
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
                "unit": [estimate.unit if estimate.free else f"{estimate.unit} (held)" for estimate in self.estimates],
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

    def _sensitivities(self, t: ArrayLike, trajectory: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The states [T, n_states], and their derivatives with respect to theta, [T, n_states, n_free]."""
        times, position = self._times(t, trajectory)
        every = range(len(self.model.states))
        states, derivatives = self.misfit.sensitivities(self.theta, trajectory, times, every)
        return states[position], derivatives[position]

    def _is_log(self, state: str) -> bool:
        observed_log = self.noise == "lognormal" and state in self.observed_states
        return observed_log or self.model.is_positive(state)


def _edges(states: NDArray[np.float64], reach: NDArray[np.float64], log: NDArray[np.bool_]) -> Band:
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
