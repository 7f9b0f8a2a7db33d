"""What a fit returns: estimates with their uncertainty, measures of fit, predictions with their bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.data import Dataset
from torchivp.fitting.levels import Levels
from torchivp.fitting.random_effects.estimates import RandomEffects
from torchivp.fitting.results.comparison import fingerprint
from torchivp.fitting.results.curves import FitCurves
from torchivp.fitting.results.residual_checks import Verdict, judge
from torchivp.fitting.results.summary import Estimate, FitSummary, text_of
from torchivp.fitting.results.uncertainty import Direction, Uncertainty
from torchivp.fitting.searching.multistart import Attempt
from torchivp.fitting.searching.optimise import Search
from torchivp.models.model import Model
from torchivp.references import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchivp.ensembles.executors import Workers
    from torchivp.fitting.progress import Progress
    from torchivp.fitting.results.bootstrap import Bootstrap
    from torchivp.fitting.results.gradient_check import GradientCheck
    from torchivp.fitting.results.posterior import Posterior
    from torchivp.fitting.results.profiles import Profile
    from torchivp.fitting.results.storing import StoredFit


@dataclass(repr=False, eq=False, kw_only=True)
class FitResult(FitCurves, FitSummary):
    """A model fitted to data by maximum likelihood.

    Attributes:
        model: the model with the estimated parameters: a copy.
        data: the data, with `trajectories`, `observables` and `time_name`.
        levels: the noise of the observables.
        sizes: those of its sizes that were estimated, [n_sizes]; of a stochastic model the variances of innovations,
            [n_data].
        estimates: parameters, initial states, what follows from them, and sigmas, free and held.
        nll: the negative log-likelihood: minus the logarithm of the density of the observed values.
        penalty: what the priors add to it, up to their largest densities.
        aic: Akaike's information criterion, 2 nll + 2 n_effective.
        aicc: the same, corrected for small samples; infinite if n_data <= n_effective + 1.
        bic: Schwarz' information criterion, 2 nll + n_effective log(n_data); NaN with priors, which it leaves out.
        rss: the sum of squared residuals of each observable on the scale of the noise (of logarithms, if lognormal).
        n_data: the number of values.
        n_free: the number of free quantities, sigmas included.
        n_effective: in how many directions the data could move them: one less for each bound that one is at, zero on
            the log scale among them, and for each constraint that is active, unless these say the same (M. Meyer and
            M. Woodroofe, "On the degrees of freedom in shape-restricted regression", Annals of Statistics 28 (2000):
            the expected number of these directions is that by which the maximum favours the model). With priors, a
            quantity counts only so far as data say more of it than its prior; NaN with priors and random effects, or
            where there are too many quantities to know.
        converged: whether the maximum was found.
        message: how the search ended, in a sentence.
        warnings: what to know before the numbers are used, and what is wrong with the residuals.
        notes: what was done to the data when they were read.
        verdict: whether the fit converged and its residuals look like noise, in a `sentence` and as `good`.
        iterations: the number of iterations of all searches.
        solves: the number of solves of the model.
        seconds: how long it took.
        covariance: of the free parameters and initial states on the scale of estimation, without tensors, [n, n].
        correlation: their correlations, [n, n].
        free_names: their names, in the order of the rows.
        theta: all that is free of parameters and initial states, on the scale of estimation; with the entries of
            tensors, [n_theta].
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
    standardised: list[NDArray[np.float64]]
    search: Search
    floor: NDArray[np.float64]
    attempts: list[Attempt]
    uncertainty: Uncertainty
    random: RandomEffects | None = None
    model_name: str = field(init=False)
    source: str = field(init=False)
    observables: dict[str, str] = field(init=False)
    noises: dict[str, str] = field(init=False)
    fingerprint: str = field(init=False)
    directions: list[Direction] = field(init=False)
    verdict: Verdict = field(init=False)

    def __post_init__(self):
        self.model_name, self.source = type(self.model).__name__, self.data.source
        self.observables = {name: text_of(self.data.observe[name]) for name in self.data.observables}
        self.noises = dict(zip(self.data.observables, (noise.name for noise in self.levels.noises), strict=True))
        self.fingerprint, self.directions = fingerprint(self.data), self.uncertainty.directions
        self.verdict = judge(self)
        self.warnings = self.warnings + self.verdict.findings

    @property
    def observed_states(self) -> list[str | None]:
        """The state that each observable is, None for a formula."""
        return self.data.states

    @property
    def priors(self) -> dict[str, str]:
        """The priors of the free quantities that have one, in words, by name."""
        quantities = self.misfit.quantities
        known = [(j, quantity.prior) for j, quantity in enumerate(quantities.free) if quantity.prior is not None]
        return {quantities.label(j): prior.text for j, prior in known}

    @property
    def solver(self) -> str:
        """How the model was solved at the optimum, in words."""
        accuracy = self.misfit.accuracy
        by = "a compiled kernel" if self.misfit.compiled else "the step loop"
        atol = ", ".join(f"{each:.2g}" for each in np.atleast_1d(accuracy.atol))
        return f"{accuracy.method} in {by}, rtol {accuracy.rtol:.2g}, atol {atol}"

    @property
    def sources(self) -> Sources:
        """What the fit was computed with, in words, and where that was published; `torchivp.cite` prints it."""
        from torchivp.fitting.results.sources import sources_of

        return sources_of(self)

    def residuals(self, trajectory: int | str = 0) -> NDArray[np.float64]:
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
            formula: an expression in parameters and (initial) states, such as "beta / gamma", or a function of an
                object that has these as attributes.

        Returns:
            The estimate; a list with one for each trajectory if they differ.
        """
        from torchivp.fitting.results.derived import derive

        found = derive(self.misfit, self.theta, self.uncertainty, name, formula)
        return found[0] if len(found) == 1 else found

    def sample(
        self,
        draws: int = 1000,
        warmup: int = 500,
        walkers: int | None = None,
        seed: int = 0,
        progress: bool | Progress = False,
    ) -> Posterior:
        """Samples of all that was estimated from its distribution given the data, the sizes of the noise among it.

        An ensemble of walkers explores the density, likelihood times priors, from around the optimum. Constraints and
        bounds hold. What has no prior is flat on its scale of estimation within its bounds, the sizes of the noise on
        the log scale. The solves of all walkers are rows of one, as accurate as those of the fit.

        Four of five moves are those of C. J. F. ter Braak, "A Markov chain Monte Carlo version of the genetic algorithm
        Differential Evolution", Statistics and Computing 16 (2006), the fifth that of J. Goodman and J. Weare,
        "Ensemble samplers with affine invariance", Comm. App. Math. Comp. Sci. 5 (2010), as emcee makes them:
        D. Foreman-Mackey et al., "emcee: the MCMC hammer", PASP 125 (2013).

        Args:
            draws: how many samples of each walker to keep.
            warmup: how many to leave out before.
            walkers: how many of them, at least two for each quantity; default four, and at least 64.
            seed: of the random numbers: the same seed, the same samples.
            progress: True to show on the terminal how it is getting on, or a function `progress(stage, step, nll)` that
                is told of every step with the mean negative log-likelihood of the walkers.

        Returns:
            A `Posterior`. Its `warnings` say whether the chains are long enough.

        Raises:
            ImportError: emcee is not installed.
            ValueError: neither data nor priors nor bounds determine what is to be sampled, or an argument makes no
                sense.
            RuntimeError: the model cannot be solved around the optimum.
        """
        from torchivp.fitting.results.posterior import sample_posterior

        return sample_posterior(self, draws, warmup, walkers, seed, progress)

    def profile(self, name: str, level: float = 0.95) -> Profile:
        """The profile likelihood of a free quantity, and the interval that follows from it.

        The quantity is moved away from its estimate, and at each value the others are estimated anew, until the
        log-likelihood has fallen by what ends the interval; that place is found to a thousandth of the half width.
        Where it does not fall so far within 10 typical changes (powers of e on the log scale, at most 25 of them) or
        5 half widths of the interval of the estimate, or where a bound comes first, the interval is open on that side.

        Args:
            name: one of `free_names`.
            level: the probability of the interval.

        Raises:
            ValueError: no free parameter or initial state is called so, or `level` is no probability.
        """
        from torchivp.fitting.results.profiles import profile

        return profile(self, name, level)

    def profiles(
        self,
        names: Sequence[str] | None = None,
        level: float = 0.95,
        executor: Workers = None,
        progress: bool | Progress = False,
    ) -> dict[str, Profile]:
        """The profile likelihoods of several quantities by name, by default of all that are free; see `profile`.

        Args:
            names: some of `free_names`.
            level: the probability of the intervals.
            executor: who computes, a quantity at a time: any `concurrent.futures.Executor`, a function that makes one,
                or a number of processes (see `torchivp.ensemble`); None for this process. The numbers are the same.
            progress: True to show on the terminal how many are done and how long the rest may take, or a function
                `progress(stage, point, nll)` that is told of every point; with an executor, of how many are done.

        Raises:
            ValueError: see `profile`.
        """
        from torchivp.fitting.results.profiles import profiles

        return profiles(self, names, level, executor, progress)

    def bootstrap(
        self,
        n: int,
        kind: Literal["parametric", "residual"] = "parametric",
        seed: int = 0,
        executor: Workers = None,
        progress: bool | Progress = False,
    ) -> Bootstrap:
        """How much the estimates scatter when the data are drawn again from the fit, and fitted from its optimum.

        With normal and lognormal noise, the noise that is drawn is `sqrt(values/degrees of freedom)` times as large as
        the sigmas, which the likelihood makes too small where values are few; intervals of estimates do the same (see
        `Uncertainty`). Values of an observable that were below or above a limit, and those drawn beyond it, are
        limits again; where its limits differ, only those that were. Source: A. C. Davison, D. V. Hinkley, "Bootstrap
        Methods and their Application", Cambridge University Press (1997), chapters 2 and 6.

        Args:
            n: how many sets of data to draw; some 1000 for intervals, 50 for standard errors.
            kind: "parametric" to draw from the noise around the fitted curves; "residual" to put the residuals of the
                fit, each observable's (or those of all that share a sigma), less their mean, in random places.
            seed: of the random numbers; set i is the same for every n.
            executor: who fits: any `concurrent.futures.Executor`, a function that makes one, or a number of processes
                (see `torchivp.ensemble`); None for this process. The numbers are the same.
            progress: True to show on the terminal how many sets are done and how long the rest may take, or a function
                `progress(stage, set, nll)` that is told of every set that was fitted.

        Returns:
            The estimates. A fit that fails is NaN there, and says why in `failures`.

        Raises:
            ValueError: n or kind makes no sense; or kind is "residual", and noise is neither normal nor lognormal, or a
                value is censored.
        """
        from torchivp.fitting.results.bootstrap import bootstrap

        return bootstrap(self, n, kind, seed, executor, progress)

    def check_gradient(self) -> GradientCheck:
        """Compare the Jacobian of the predictions at the optimum with differences, of more accurate solves.

        Returns:
            The largest relative error for each free quantity, and what that means in a sentence.
        """
        from torchivp.fitting.results.gradient_check import check_gradient

        return check_gradient(self)

    def save(self, path: str | Path) -> Path:
        """Store all of the fit in a file, from which `FitResult.load` makes a result that can predict.

        The file holds Python's pickle of the fit, so that the classes of its model and functions must be found by
        import when it is loaded. `to_json` stores the numbers alone, for any program and for ever.

        Args:
            path: of the file; overwritten.

        Returns:
            The path.

        Raises:
            ValueError: a part of the fit cannot be stored, such as a model whose class is defined within a function, or
                a lambda; the message names it.
        """
        from torchivp.fitting.results.storing import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> FitResult | StoredFit:
        """Read what `save` or `to_json` wrote.

        The file of `save` is a pickle: loading it can run any code that it names, so open those only that you trust. A
        fit solved by a kernel is solved by the step loop after that.

        Args:
            path: of the file.

        Returns:
            A `FitResult` from a file of `save`; from JSON a `StoredFit`, which has the numbers, `summary`, `to_frame`,
            `determined` and its place in `compare`, but cannot predict.

        Raises:
            ValueError: the file is neither, is of another format, or needs a class that is not there.
        """
        from torchivp.fitting.results.storing import load

        return load(path)

    def plot(self) -> Figure:
        """Data and fitted curves with their bands, as a matplotlib figure."""
        from torchivp.plot.fit import plot_fit

        return plot_fit(self)

    def report(
        self,
        folder: str | Path,
        command: str | None = None,
        profiles: bool | Mapping[str, Profile] = False,
        interactive: bool = True,
        progress: bool | Progress = False,
    ) -> Path:
        """Write a report on the fit.

        Args:
            folder: where to; made if need be.
            command: the command that made the fit, to be quoted.
            profiles: True to compute the profile likelihoods of all free quantities and show them, or those that were.
            interactive: whether the pictures on the page answer the pointer, which takes 2 MB of it for plotly.
            progress: True to show on the terminal how many profiles are done and how long the rest may take, or a
                function; see `profiles`.

        Returns:
            The path of the report.
        """
        from torchivp.fitting.report import write_report

        return write_report(self, folder, command, profiles, interactive, progress)
