"""Samples of what a fit estimates, from its distribution a posteriori, by an ensemble of walkers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.checks import check_whole_number
from torchivp.fitting.assignments import read_formula
from torchivp.fitting.data import import_pandas
from torchivp.fitting.progress import Progress, show_progress, tell_part
from torchivp.fitting.quantities import Quantities, Quantity
from torchivp.fitting.results.log_posterior import LogPosterior
from torchivp.models.stochastic_model import StochasticModel
from torchivp.references import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchivp.fitting.results.result import FitResult

Floats = NDArray[np.float64]

_FEWEST_WALKERS = 64  # twice as many cost a fifth more, since their solves are rows of one
_LONG_ENOUGH = 20  # autocorrelation times, from which on the time itself is known to a fifth
_FORGOTTEN = 5  # autocorrelation times, after which the walkers know nothing of where they began
_WINDOW = 5  # autocorrelation times, which the sum of the autocorrelations takes in
_REDRAWS = 40  # how often a walker is brought nearer to the optimum until it has a density
_ON_BOUND = 1e-2  # how far, in typical changes, walkers begin from a bound on which the optimum is


@dataclass(frozen=True)
class Marginal:
    """What is known of one quantity when the others are whatever they may be.

    Attributes:
        name: such as "alpha", "prey(1900)" or "sigma(hare)".
        mean: of the samples.
        deviation: their standard deviation.
        median: the middle one.
        lower: the value below which 2.5 % of them lie.
        upper: the one above which 2.5 % lie.
        autocorrelation_time: how many draws of a walker are worth one that is independent of the others.
        effective_size: how many independent samples all of them are worth.
        unit: of the value.
    """

    name: str
    mean: float
    deviation: float
    median: float
    lower: float
    upper: float
    autocorrelation_time: float
    effective_size: float
    unit: str


@dataclass(repr=False)
class Posterior:
    """Samples from the distribution of what a fit estimates, given the data.

    `posterior["alpha"]` is the `Marginal` of a quantity.

    Attributes:
        samples: by name, the values of each quantity and of each size of the noise, [walkers, draws].
        log_density: the logarithm of the density on the scales of estimation, up to a constant, [walkers, draws].
        nll: the negative log-likelihood, [walkers, draws].
        marginals: a summary of each quantity and size.
        acceptance: the fraction of proposals that were accepted.
        seed: with which they were drawn.
        warmup: how many draws of each walker were left out.
        warnings: what to know before the samples are used.
        points: the samples on the scales of estimation, sizes on the log scale, [walkers, draws, n].
        quantities: what they are of.
        title: the model, and the source of the data.
    """

    samples: dict[str, NDArray[np.float64]]
    log_density: NDArray[np.float64]
    nll: NDArray[np.float64]
    marginals: list[Marginal]
    acceptance: float
    seed: int
    warmup: int
    warnings: list[str]
    points: NDArray[np.float64] = field(repr=False)
    quantities: Quantities = field(repr=False)
    title: str
    sources: ClassVar[Sources] = {"samples": ("TerBraak2006", "GoodmanWeare2010", "ForemanMackey2013")}

    def __getitem__(self, name: str) -> Marginal:
        """The summary of the quantity called `name`.

        Raises:
            KeyError: there is none of that name; the message lists the names.
        """
        for each in self.marginals:
            if each.name == name:
                return each
        raise KeyError(f"no quantity was sampled that is called {name!r}; there are {', '.join(self.samples)}")

    @property
    def walkers(self) -> int:
        """The number of walkers."""
        return self.points.shape[0]

    @property
    def draws(self) -> int:
        """The number of draws of each."""
        return self.points.shape[1]

    def derive(self, formula: Any) -> NDArray[np.float64]:
        """The samples of what follows from parameters and initial states.

        Args:
            formula: an expression such as "beta / gamma", or a function of an object with parameters and states, which
                stand for initial values, as attributes. It may use what is held, too.

        Returns:
            Its values, [walkers, draws]; [walkers, draws, n_trajectories] where trajectories differ.
        """
        names, function = read_formula("what is derived", formula, self.quantities.single_names)
        theta = torch.from_numpy(self.points[..., : len(self.quantities.free)])
        with torch.no_grad():
            own = self.quantities.locals(theta)
            values = function({name: own[..., self.quantities.names.index(name)] for name in names})
        values = values.expand(own.shape[:-1])
        return (values[..., 0] if bool((values == values[..., :1]).all()) else values).numpy()

    def summary(self) -> str:
        """The marginals as a table, and the warnings.

        Raises:
            ImportError: pandas is not installed.
        """
        table = import_pandas().DataFrame(
            {
                "": [each.name for each in self.marginals],
                "mean": [each.mean for each in self.marginals],
                "sd": [each.deviation for each in self.marginals],
                "2.5 %": [each.lower for each in self.marginals],
                "median": [each.median for each in self.marginals],
                "97.5 %": [each.upper for each in self.marginals],
                "autocorr. time": [f"{each.autocorrelation_time:.1f}" for each in self.marginals],
                "eff. size": [f"{each.effective_size:.0f}" for each in self.marginals],
                "unit": [each.unit for each in self.marginals],
            }
        )
        head = f"{self.title}: {self.walkers} walkers, {self.draws} draws of each, {self.acceptance:.0%} accepted"
        text = table.to_string(index=False, float_format="{:.6g}".format)
        return "\n".join([head, "", text, *(f"warning: {warning}" for warning in self.warnings)])

    def to_arviz(self) -> Any:
        """The samples for arviz: an `InferenceData`, or a `DataTree` where arviz is of version 1 or later.

        Each walker is a chain. The walkers of an ensemble follow each other, so that arviz's R-hat, which takes chains
        to be independent, says too little about them.

        Raises:
            ImportError: arviz is not installed.
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError("to_arviz() needs arviz, which is missing: pip install 'torchivp[bayes]'") from error
        groups: dict[str, Any] = {"posterior": self.samples, "sample_stats": {"lp": self.log_density, "nll": self.nll}}
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)

    def plot(self, names: Sequence[str] | None = None) -> Figure:
        """The marginals, and the samples of each two quantities, as `torchivp.plot.plot_posterior` draws them."""
        from torchivp.plot import plot_posterior

        return plot_posterior(self, names)

    def __repr__(self) -> str:
        values = ", ".join(f"{each.name}={each.mean:.4g}±{each.deviation:.2g}" for each in self.marginals)
        return f"Posterior({values}; {self.walkers} walkers, {self.draws} draws)"


def sample_posterior(
    result: FitResult, draws: int, warmup: int, walkers: int | None, seed: int, progress: bool | Progress
) -> Posterior:
    """Sample what a fit has estimated; `FitResult.sample` describes the arguments."""
    if result.random is not None or isinstance(result.model, StochasticModel):
        raise ValueError(
            "samples a posteriori are drawn where data are independent around one curve for each trajectory, unlike "
            f"{'those of a stochastic model' if result.random is None else 'with random effects'}: take the intervals "
            "of the estimates"
        )
    if not result.misfit.quantities.single.all():
        names = ", ".join(result.misfit.quantities.labels(~result.misfit.quantities.single))
        raise ValueError(
            f"an ensemble of walkers cannot sample {names}: weights of a network have many modes that mean the same. "
            "Hold the tensors at their estimates, fixed={name: tensor}, for samples of what is beside them"
        )
    emcee = _import_emcee()
    density = LogPosterior(result.misfit, result.levels, result.floor)
    n = len(density.names)
    check_whole_number("draws", draws, 1)
    check_whole_number("warmup", warmup, 0)
    check_whole_number("seed", seed, 0)
    hint = f": an ensemble needs two walkers for each of the {n} quantities and sizes that are sampled, and four in all"
    walkers = max(_FEWEST_WALKERS, 4 * n) if walkers is None else walkers
    check_whole_number("walkers", walkers, max(2 * n, 4), hint=hint)
    _check_proper(result)
    start = _start(result, density, walkers, np.random.default_rng(seed))
    with show_progress(progress) as tell:
        points, log_density, nll, moved = _walk(emcee, density, start, draws, warmup, seed, tell)
    values = density.values(points)
    units = [*(quantity.unit for quantity in result.misfit.quantities.free), *("" for _ in result.levels.names)]
    times = [autocorrelation_time(points[..., j]) for j in range(n)]
    named = list(zip(density.names, np.moveaxis(values, -1, 0), strict=True))
    acceptance = moved / (walkers * draws)
    return Posterior(
        samples={name: np.ascontiguousarray(each) for name, each in named},
        log_density=log_density,
        nll=nll,
        marginals=[_marginal(*each, time, unit) for each, time, unit in zip(named, times, units, strict=True)],
        acceptance=acceptance,
        seed=seed,
        warmup=warmup,
        warnings=_warnings(result, density.names, times, draws, warmup, acceptance),
        points=points,
        quantities=result.misfit.quantities,
        title=f"{type(result.model).__name__} given {result.data.source}",
    )


def _walk(
    emcee: Any, density: LogPosterior, start: Floats, draws: int, warmup: int, seed: int, tell: Progress
) -> tuple[Floats, Floats, Floats, int]:
    """Points [walkers, draws, n], log densities and negative log-likelihoods, and how often a walker has moved.

    The samples of emcee's `DESnookerMove` (3.1.6) are too narrow, so that there are none of its moves.
    """
    walkers, n = start.shape
    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.StretchMove(), 0.2)]
    sampler = emcee.EnsembleSampler(walkers, n, density, vectorize=True, moves=moves)
    sampler.random_state = np.random.RandomState(np.random.MT19937(seed)).get_state()
    points, log_density, nll = np.empty((walkers, draws, n)), np.empty((walkers, draws)), np.empty((walkers, draws))
    last, moved = start, 0
    steps = sampler.sample(start, iterations=warmup + draws, store=False, skip_initial_state_check=True)
    tell_part(tell, "samples", 0, warmup + draws)
    for step, state in enumerate(steps, start=-warmup):
        tell("sampling" if step >= 0 else "warming up", step + warmup + 1, float(np.mean(state.blobs)))
        if step >= 0:
            points[:, step], log_density[:, step], nll[:, step] = state.coords, state.log_prob, state.blobs
            moved += int((state.coords != last).any(1).sum())
        last = state.coords.copy()
        tell_part(tell, "samples", step + warmup + 1, warmup + draws)
    return points, log_density, nll, moved


def _import_emcee() -> Any:
    try:
        import emcee
    except ImportError as error:
        raise ImportError("sample() needs emcee, which is missing: pip install 'torchivp[bayes]'") from error
    return emcee


def _check_proper(result: FitResult) -> None:
    """Refuse to sample what neither data nor priors nor bounds hold, of which there is no distribution.

    Raises:
        ValueError: the message names it.
    """
    free, undetermined = result.misfit.quantities.free, result.uncertainty.undetermined
    for direction in undetermined.T:
        moved = [quantity for quantity, part in zip(free, direction, strict=True) if abs(part) > 1e-3]
        loose = [quantity.name for quantity in moved if quantity.prior is None and not _is_between(quantity)]
        if loose:
            raise ValueError(
                f"there is no distribution to sample: nothing determines {', '.join(loose)}. Fit with "
                f"priors={{{loose[0]!r}: (mean, standard deviation)}} or bounds={{{loose[0]!r}: (lower, upper)}}, or "
                "hold it in fixed"
            )


def _is_between(quantity: Quantity) -> bool:
    """Whether a quantity has two bounds that are finite on its scale of estimation."""
    return bool(np.isfinite(quantity.ends).all())


def _start(result: FitResult, density: LogPosterior, walkers: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Walkers around the optimum, as far from it as its standard errors say, where there is a density, [walkers, n]."""
    free, count = result.misfit.quantities.free, len(result.theta)
    magnitudes = np.array([quantity.magnitude for quantity in free])
    directions = result.uncertainty.undetermined * magnitudes[:, None]
    covariance = result.covariance + directions @ directions.T
    covariance[np.diag_indices(count)] += np.where(np.diag(covariance) > 0, 0.0, (_ON_BOUND * magnitudes) ** 2)
    variances, vectors = np.linalg.eigh(covariance)
    root = np.zeros((len(density.names), len(density.names)))
    root[:count, :count] = vectors * np.sqrt(np.maximum(variances, 0.0))
    errors = [result[name].scale_error for name in result.levels.names]
    usual = [error if np.isfinite(error) and 0 < error < 1 else 0.5 for error in errors]
    root[range(count, len(root)), range(count, len(root))] = usual
    centre = np.clip(np.concatenate([result.theta, np.log(result.sizes)]), density.lower, density.upper)
    points, bad, reach = np.empty((walkers, len(root))), np.arange(walkers), 1.0
    for _ in range(_REDRAWS):
        drawn = centre + reach * rng.standard_normal((len(bad), len(root))) @ root.T
        drawn = np.where(drawn < density.lower, 2 * density.lower - drawn, drawn)
        points[bad] = np.where(drawn > density.upper, 2 * density.upper - drawn, drawn)
        bad = bad[~np.isfinite(density(points[bad])[:, 0])]
        if not len(bad):
            return points
        reach *= 0.8
    raise RuntimeError(
        f"the density of {len(bad)} of {walkers} walkers vanishes however close to the optimum they begin: "
        f"{density.misfit.failure}"
    )


def autocorrelation_time(chains: NDArray[np.float64]) -> float:
    """The integrated autocorrelation time of chains [walkers, draws] of one quantity: NaN where it never changes.

    The autocovariances of all walkers about their common mean, summed over a window of five times the result: A. Sokal,
    "Monte Carlo methods in statistical mechanics" (1997). Chains that have not mixed have a long one.
    """
    draws = chains.shape[1]
    centred = chains - chains.mean()
    spectrum = np.abs(np.fft.rfft(centred, n=2 * draws, axis=1)) ** 2
    covariances = np.fft.irfft(spectrum, axis=1)[:, :draws].mean(0)
    if covariances[0] <= 0:
        return float("nan")
    times = 2 * np.cumsum(covariances / covariances[0]) - 1
    wide_enough = np.flatnonzero(np.arange(draws) >= _WINDOW * times)
    return float(max(times[wide_enough[0] if len(wide_enough) else -1], 1.0))


def _marginal(name: str, values: NDArray[np.float64], time: float, unit: str) -> Marginal:
    lower, median, upper = np.quantile(values, [0.025, 0.5, 0.975]).tolist()
    deviation = float(values.std(ddof=1)) if values.size > 1 else float("nan")
    return Marginal(name, float(values.mean()), deviation, median, lower, upper, time, values.size / time, unit)


def _warnings(
    result: FitResult, names: list[str], times: list[float], draws: int, warmup: int, acceptance: float
) -> list[str]:
    warnings = []
    if not result.converged:
        warnings.append(f"the fit has {result.message}: the walkers began around what may be no optimum")
    longest = float(np.nan_to_num(times, nan=draws).max())
    slowest = names[int(np.nan_to_num(times, nan=draws).argmax())]
    enough, warm = int(np.ceil(_LONG_ENOUGH * longest)), int(np.ceil(_FORGOTTEN * longest))
    if draws < enough or warmup < warm:
        warnings.append(
            f"the chains are short for an autocorrelation time of {longest:.0f} draws (that of {slowest}): take "
            f"draws={max(draws, enough)}, warmup={max(warmup, warm)}"
        )
    if acceptance < 0.1:
        warnings.append(
            f"only {acceptance:.1%} of the proposals were accepted: the distribution may be far from a normal one; "
            "take more walkers, another scale or narrower priors"
        )
    return warnings
