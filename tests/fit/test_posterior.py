"""Samples a posteriori, against posteriors that are known in closed form or by quadrature."""

import io
import sys
from typing import ClassVar

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from scipy.signal import lfilter

from compilers import needs_compiler
from torchivp import fit
from torchivp.fitting import read_data
from torchivp.fitting.levels import read_levels
from torchivp.fitting.measured import measurements
from torchivp.fitting.noise import NOISE_MODELS
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.results.log_posterior import LogPosterior
from torchivp.fitting.results.posterior import autocorrelation_time
from torchivp.models import Model
from torchivp.plot import plot_posterior

emcee = pytest.importorskip("emcee")
pytestmark = needs_compiler

T = np.linspace(0.0, 5.0, 11)
DESIGN = np.stack([T, np.ones_like(T)], axis=1)  # of rate and y(0)
LINE = pandas.DataFrame({"time": T, "y": 1 + 0.7 * T + 0.5 * np.random.default_rng(0).standard_normal(11)})


class Drift(Model):
    """Linear in what is estimated, so that its posterior is known."""

    states: ClassVar = {"y": "position"}
    units: ClassVar = {"y": "m", "rate": "m/s"}
    default_state = (0.0,)
    positive = ()

    def __init__(self, rate: float = 0.3):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return self.rate + 0 * y


def fitted(data=LINE, **options):
    return fit(Drift(), data, **{"backend": "fused", "rtol": 1e-6, **options})


@pytest.fixture(scope="module")
def known_sigma():
    """With a prior on one of two quantities."""
    return fitted(sigma=0.5, priors={"rate": (0.4, 0.1)})


@pytest.fixture(scope="module")
def posterior(known_sigma):
    return known_sigma.sample(250, 60, walkers=128, seed=1)


def test_a_linear_model_has_the_posterior_of_the_textbook(posterior):
    precision = DESIGN.T @ DESIGN / 0.5**2 + np.diag([1 / 0.1**2, 0])
    covariance = np.linalg.inv(precision)
    mean = covariance @ (DESIGN.T @ LINE["y"] / 0.5**2 + [0.4 / 0.1**2, 0])
    samples = np.stack([posterior.samples[name].ravel() for name in ("rate", "y(0)")])
    sizes = np.array([posterior[name].effective_size for name in ("rate", "y(0)")])
    assert posterior.warnings == [] and (sizes > 1000).all()
    assert (np.abs(samples.mean(1) - mean) < 4 * np.sqrt(np.diag(covariance) / sizes)).all()
    np.testing.assert_allclose(np.cov(samples), covariance, atol=6 * covariance.max() / np.sqrt(sizes.min()))
    for k, name in enumerate(("rate", "y(0)")):
        assert posterior[name].deviation == pytest.approx(np.sqrt(covariance[k, k]), rel=4 / np.sqrt(2 * sizes[k]))
        ends = stats.norm.interval(0.95, mean[k], np.sqrt(covariance[k, k]))
        np.testing.assert_allclose([posterior[name].lower, posterior[name].upper], ends, atol=0.1 * np.ptp(ends))


def test_the_density_is_that_of_data_and_priors(known_sigma, posterior):
    point = posterior.points[3, 7]
    assert list(posterior.samples) == ["rate", "y(0)"]
    nll = -stats.norm.logpdf(LINE["y"], DESIGN @ point, 0.5).sum()
    assert posterior.nll[3, 7] == pytest.approx(nll, rel=1e-7)
    assert posterior.log_density[3, 7] == pytest.approx(stats.norm.logpdf(point[0], 0.4, 0.1) - nll, rel=1e-7)
    nowhere = LogPosterior(known_sigma.misfit, known_sigma.levels, known_sigma.floor)(np.full((1, 2), np.nan))
    assert nowhere.tolist() == [[-np.inf, np.inf]]


@pytest.mark.parametrize("kind", NOISE_MODELS)
def test_likelihoods_at_many_points_are_those_at_each(kind):
    table = {"time": [0.0, 1.0, 2.0], "a": [3.0, 5.0, 2.0], "b": [1.0, np.nan, 2.0], "b_sd": [0.5, 0.5, 0.1]}
    data = read_data(table, ["a", "b"], sigma={"b": "b_sd"})
    measured = measurements(data)
    levels = read_levels(data, {"a": kind}, "separate", measured)
    rng = np.random.default_rng(0)
    values, sizes = rng.uniform(1, 5, (4, 5)), rng.uniform(0.2, 2, (4, len(levels.names)))
    many = levels.nll_at(measured, values, sizes)
    each = [Predictions(np.ones(0), h, np.ones((5, 0)), measured) for h in values]
    np.testing.assert_allclose(many, [levels.nll(one, size) for one, size in zip(each, sizes, strict=True)], rtol=1e-14)
    values[1, 0] = np.inf
    assert np.isposinf(levels.nll_at(measured, values, sizes)[1])


def test_walkers_begin_within_a_bound_on_which_the_optimum_is():
    result = fitted(sigma=0.5, bounds={"rate": (None, 0.5)})
    assert result["rate"].value == pytest.approx(0.5)
    sampled = result.sample(150, 50, walkers=100)
    least_squares, scale = np.linalg.lstsq(DESIGN, LINE["y"], rcond=None)[0][0], np.sqrt(0.25 / (11 * T.var()))
    exact = stats.truncnorm(-np.inf, (0.5 - least_squares) / scale, least_squares, scale)
    assert sampled.samples["rate"].max() < 0.5
    assert sampled["rate"].mean == pytest.approx(
        exact.mean(), abs=4 * exact.std() / sampled["rate"].effective_size ** 0.5
    )
    assert sampled["rate"].deviation == pytest.approx(exact.std(), rel=0.1)


def test_a_size_of_the_noise_that_is_sampled_gives_student_s_distribution():
    result = fitted()
    sampled = result.sample(300, 80, walkers=200)
    freedom = len(T) - 2
    estimate, left, *_ = np.linalg.lstsq(DESIGN, LINE["y"], rcond=None)
    scale = np.sqrt(np.linalg.inv(DESIGN.T @ DESIGN)[0, 0] * left[0] / freedom)
    of_rate, of_sigma = sampled["rate"], sampled["sigma(y)"]
    exact = stats.t(freedom, estimate[0], scale)
    assert of_rate.mean == pytest.approx(estimate[0], abs=4 * exact.std() / np.sqrt(of_rate.effective_size))
    assert of_rate.deviation == pytest.approx(exact.std(), rel=0.1)
    np.testing.assert_allclose([of_rate.lower, of_rate.upper], exact.interval(0.95), atol=0.05)
    # Left over sigma squared has the chi-squared distribution, sigma being flat on the log scale.
    ends = np.sqrt(left[0] / stats.chi2(freedom).ppf([0.975, 0.5, 0.025]))
    np.testing.assert_allclose([of_sigma.lower, of_sigma.median, of_sigma.upper], ends, rtol=0.06)
    assert sampled.samples["sigma(y)"].min() > 0


@pytest.mark.parametrize("scale", ["logit", "log"])
def test_a_prior_is_a_density_of_the_value_on_any_scale_of_estimation(scale):
    """The scale decides how the walkers move, and not what they find."""
    data = pandas.DataFrame({"time": [0.0, 0.5, 1.0], "y": [0.0, 0.2, 0.1]})
    prior = torch.distributions.Beta(1.5, 2.0)
    options = {"fixed": {"y": 0.0}, "bounds": {"rate": (0.0, 1.0)}, "scale": {"rate": scale}, "sigma": 0.3}
    sampled = fitted(data, priors={"rate": prior}, **options).sample(150, 50, walkers=200)
    grid = np.linspace(0, 1, 4001)[1:-1]
    residuals = (data["y"].to_numpy()[:, None] - np.array([[0.0], [0.5], [1.0]]) * grid) / 0.3
    weights = stats.beta(1.5, 2.0).pdf(grid) * np.exp(-0.5 * (residuals**2).sum(0))
    weights /= weights.sum()
    mean = weights @ grid
    deviation = np.sqrt(weights @ (grid - mean) ** 2)
    found = sampled["rate"]
    assert found.mean == pytest.approx(mean, abs=4 * deviation / np.sqrt(found.effective_size))
    assert found.deviation == pytest.approx(deviation, rel=0.06)
    assert sampled.samples["rate"].min() > 0 and sampled.samples["rate"].max() < 1


def test_bounds_and_constraints_hold_where_nothing_else_does():
    """Without a prior, what is estimated on the linear scale is flat between its bounds."""
    data = pandas.DataFrame({"time": [0.0, 1.0, 2.0], "y": [0.0, 0.5, 1.0]})
    options = {"fixed": {"y": 0.0}, "bounds": {"rate": (0.0, 0.9), "other": (0.0, 1.0)}, "sigma": 100.0}
    options |= {"parameters": {"other": 0.2}, "scale": {"other": "linear"}, "constraints": ["other < rate"]}
    sampled = fitted(data, observe={"y": "y + 0*other"}, **options).sample(250, 80, walkers=200)
    rate, other = sampled.samples["rate"], sampled.samples["other"]
    assert (other < rate).all() and other.min() > 0 and rate.max() < 0.9
    assert rate.mean() == pytest.approx(0.6, abs=0.03)  # uniform on a triangle
    assert other.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(sampled.derive("rate - other"), rate - other)


def test_the_same_seed_gives_the_same_bits(known_sigma):
    first, again, other = (known_sigma.sample(20, 5, seed=seed) for seed in (7, 7, 8))
    np.random.rand()
    assert first.points.tobytes() == again.points.tobytes()
    assert first.log_density.tobytes() == again.log_density.tobytes()
    assert not np.array_equal(first.points, other.points)


def test_a_fit_with_a_checkpoint_can_be_sampled(tmp_path):
    options = {"sigma": 0.5, "priors": {"rate": (0.4, 0.1)}}
    with_file = fitted(checkpoint=tmp_path / "journal", **options).sample(5, 2)
    assert with_file.points.tobytes() == fitted(**options).sample(5, 2).points.tobytes()


def test_short_chains_are_a_warning(known_sigma):
    short = known_sigma.sample(10, 0)
    assert len(short.warnings) == 1
    assert short.warnings[0].startswith("the chains are short for an autocorrelation time of ")
    assert "draws=" in short.warnings[0] and "warning: the chains are short" in short.summary()


def test_autocorrelation_times_are_those_of_a_process_that_is_known():
    rng = np.random.default_rng(0)
    for time in (1.0, 9.0):
        ratio = (time - 1) / (time + 1)
        chains = lfilter([1], [1, -ratio], rng.standard_normal((32, 700)), axis=1)[:, 200:]
        assert autocorrelation_time(chains) == pytest.approx(time, rel=0.25)
    long = lfilter([1], [1, -ratio], rng.standard_normal((32, 5000)), axis=1)
    expected = emcee.autocorr.integrated_time(long.T)[0]
    assert autocorrelation_time(long) == pytest.approx(expected, rel=0.1)
    apart = chains + 100 * np.arange(32)[:, None]
    assert autocorrelation_time(apart) > 50
    assert np.isnan(autocorrelation_time(np.ones((3, 10))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"walkers": 3},
            "walkers must be a whole number of at least 4, got 3: an ensemble needs two walkers for each of",
        ),
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_arguments_without_sense_are_refused(known_sigma, options, message):
    with pytest.raises(ValueError, match=message):
        known_sigma.sample(**options)


def test_what_nothing_determines_is_refused():
    result = fitted(sigma=0.5, observe={"y": "y + 0*other"}, parameters={"other": 1.0})
    with pytest.raises(
        ValueError, match=r"there is no distribution to sample: nothing determines other\. Fit with priors"
    ):
        result.sample()


@pytest.mark.parametrize(("package", "call"), [("emcee", "sample"), ("arviz", "to_arviz")])
def test_a_package_that_is_missing_is_named(known_sigma, posterior, package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    owner = known_sigma if call == "sample" else posterior
    with pytest.raises(ImportError, match=rf"{call}\(\) needs {package}, .*pip install 'torchivp\[bayes\]'"):
        getattr(owner, call)()


def test_progress_hears_of_every_step(known_sigma, capfd):
    steps = []
    known_sigma.sample(3, 2, progress=lambda stage, step, nll: steps.append((stage, step, np.isfinite(nll))))
    assert [step[:2] for step in steps] == [("warming up", 1), ("warming up", 2), *(("sampling", k) for k in (3, 4, 5))]
    assert all(step[2] for step in steps)
    assert capfd.readouterr() == ("", "")


def test_the_summary_and_the_text(posterior):
    lines = posterior.summary().splitlines()
    assert lines[0].startswith("Drift given the DataFrame: 128 walkers, 250 draws of each, ")
    assert lines[2].split()[:3] == ["mean", "sd", "2.5"]
    assert lines[3].split()[0] == "rate" and lines[3].split()[-1] == "m/s"
    assert repr(posterior).startswith("Posterior(rate=0.") and repr(posterior).endswith("128 walkers, 250 draws)")
    with pytest.raises(KeyError, match="no quantity was sampled that is called 'rat'; there are rate, y\\(0\\)"):
        posterior["rat"]
    np.testing.assert_allclose(posterior.derive("2*rate"), 2 * posterior.samples["rate"])


def test_arviz_takes_the_samples(posterior):
    pytest.importorskip("arviz")
    tree = posterior.to_arviz()
    np.testing.assert_array_equal(tree["posterior"]["rate"].values, posterior.samples["rate"])
    np.testing.assert_array_equal(tree["sample_stats"]["lp"].values, posterior.log_density)
    assert tree["posterior"]["y(0)"].dims == ("chain", "draw")


def test_the_picture_shows_marginals_and_pairs(posterior):
    figure = posterior.plot()
    figure.savefig(io.BytesIO(), format="png")
    seen = [axes for axes in figure.axes if axes.get_visible()]
    assert len(seen) == 3
    assert [axes.get_xlabel() for axes in seen] == ["", "rate (m/s)", "y(0) (m)"]
    dots = seen[1].lines[0]
    assert len(dots.get_xdata()) <= 4000 and set(dots.get_ydata()) <= set(posterior.samples["y(0)"].ravel())
    assert len(plot_posterior(posterior, ["y(0)"]).axes) == 1
    with pytest.raises(KeyError, match="there are rate"):
        plot_posterior(posterior, ["speed"])
