"""Profile likelihoods, against closed forms and against curves computed without torchivp."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from compilers import needs_compiler
from torchivp.fitting import fit
from torchivp.models import Model

T = np.linspace(0.0, 4.0, 9)


class Line(Model):
    """A straight line, linear in its slope and in where it begins."""

    states: ClassVar = {"y": ""}
    default_state = (1.0,)
    positive = ()

    def __init__(self, slope: float = 1.0):
        super().__init__(slope=slope)

    def forward(self, t, y):
        return self.slope + 0.0 * y


class Decay(Model):
    states: ClassVar = {"y": ""}
    default_state = (1.0,)

    def __init__(self, rate: float = 0.5):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return -self.rate * y


class Product(Model):
    """A decay at a rate that is a product, so that neither factor is determined."""

    states: ClassVar = {"y": ""}
    default_state = (1.0,)

    def __init__(self):
        super().__init__(a=0.5, b=1.0)

    def forward(self, t, y):
        return -self.a * self.b * y


class Saturating(Model):
    """Michaelis' and Menten's rate: far below saturation only vmax/km matters, and km may be as large as it likes."""

    states: ClassVar = {"s": ""}
    default_state = (1.0,)

    def __init__(self):
        super().__init__(vmax=3.0, km=4.0)

    def forward(self, t, y):
        return -self.vmax * y / (self.km + y)


def noisy(values, size, seed=0) -> pd.DataFrame:
    return pd.DataFrame({"time": T, "y": values + size * np.random.default_rng(seed).normal(size=len(T))})


def fit_quickly(model, data, **options):
    given = {"backend": "eager", "rtol": 1e-6, "method": "dopri5", "shooting": "single"}
    return fit(model, data, **{**given, **options})


LINE = noisy(1.0 + 0.5 * T, 0.2)


def test_the_profile_of_a_linear_model_with_known_noise_is_a_parabola():
    result = fit_quickly(Line(), LINE, sigma=0.2, start={"slope": 0.4})
    design = np.stack([T, np.ones_like(T)], 1)
    covariance = 0.2**2 * np.linalg.inv(design.T @ design)
    for name, variance in zip(("slope", "y(0)"), np.diag(covariance), strict=True):
        found = result.profile(name)
        exact = result.nll + 0.5 * (found.values - result[name].value) ** 2 / variance
        np.testing.assert_allclose(found.nll, exact, atol=1e-6)
        half = stats.norm.ppf(0.975) * np.sqrt(variance)
        assert found.fall == pytest.approx(stats.chi2.ppf(0.95, 1) / 2)
        assert found.upper - result[name].value == pytest.approx(half, rel=2e-3)
        assert result[name].value - found.lower == pytest.approx(half, rel=2e-3)
        assert not found.open and not found.warnings
        steps = np.abs(np.diff(found.nll[np.abs(found.nll - result.nll) < 0.9 * found.fall]))
        assert 0.1 < steps.max() < 0.3 and len(found.values) < 45


@pytest.mark.parametrize("level", [0.68, 0.95])
def test_with_the_noise_estimated_the_interval_is_that_of_regression(level):
    result = fit_quickly(Line(), LINE, start={"slope": 0.4})
    regression = stats.linregress(T, LINE["y"])
    half = stats.t.ppf(0.5 * (1 + level), len(T) - 2) * regression.stderr
    found = result.profile("slope", level)
    assert (found.lower, found.upper) == pytest.approx((regression.slope - half, regression.slope + half), rel=1e-3)
    if level == 0.95:
        assert (found.lower, found.upper) == pytest.approx((result["slope"].lower, result["slope"].upper), rel=1e-3)
    squares = len(T) / 2 * np.log1p((found.values - regression.slope) ** 2 / regression.stderr**2 / (len(T) - 2))
    np.testing.assert_allclose(found.nll - result.nll, squares, atol=1e-6)


def test_a_profile_that_is_no_parabola():
    data = noisy(2.0 * np.exp(-0.8 * T), 0.3, seed=2)
    result = fit_quickly(Decay(), data, sigma=0.3, start={"rate": 0.6})
    y = data["y"].to_numpy()

    def nll(rate):  # with the best initial value, which is linear
        curve = np.exp(-rate * T)
        return 0.5 * np.sum((y - (y @ curve) / (curve @ curve) * curve) ** 2) / 0.3**2

    best = optimize.minimize_scalar(nll, bounds=(0.1, 3.0), method="bounded", options={"xatol": 1e-10})
    limit = best.fun + stats.chi2.ppf(0.95, 1) / 2
    ends = [optimize.brentq(lambda rate: nll(rate) - limit, *bracket) for bracket in ((1e-6, best.x), (best.x, 20.0))]
    found = result.profile("rate")
    assert (found.lower, found.upper) == pytest.approx(ends, rel=2e-3)
    np.testing.assert_allclose(found.nll - result.nll, [nll(rate) - best.fun for rate in found.values], atol=1e-5)
    np.testing.assert_allclose(np.exp(found.thetas[:, 0]), found.values)


def test_the_only_free_quantity_needs_no_search():
    result = fit_quickly(Decay(), noisy(np.exp(-0.5 * T), 0.05), fixed={"y": 1.0}, start={"rate": 0.6})
    found = result.profile("rate")
    assert (found.lower, found.upper) == pytest.approx((result["rate"].lower, result["rate"].upper), rel=0.02)
    assert result.profiles()["rate"].lower == found.lower


def test_what_the_data_do_not_determine_has_an_open_interval():
    result = fit_quickly(Product(), noisy(np.exp(-0.5 * T), 0.05), start={"a": 0.4})
    found = result.profile("a")
    assert (found.lower, found.upper) == (0.0, np.inf)
    assert found.open_below is not None and found.open_below.startswith("down to ")
    assert found.open_above is not None and "log-likelihood rises by less than 0.001 of the 2.6" in found.open_above
    assert len(found.values) < 20
    assert np.ptp(found.nll) < 1e-4
    assert found.sentence.startswith("a = ") and "; open below: down to " in found.sentence


def test_a_bound_that_comes_first_leaves_the_interval_open():
    result = fit_quickly(Product(), noisy(np.exp(-0.5 * T), 0.05), start={"a": 0.4}, bounds={"a": (0.2, 3.0)})
    found = result.profile("a")
    assert (found.lower, found.upper) == pytest.approx((0.2, 3.0))
    assert found.open_above is not None and found.open_above.startswith("the bound 3 comes first, where the negative ")


def test_an_interval_may_be_open_on_one_side():
    curve = 4.0 * special.lambertw(np.exp((1.0 - 3.0 * T) / 4.0) / 4.0).real  # Schnell and Mendoza's solution
    data = noisy(curve, 0.02, seed=0).rename(columns={"y": "s"})
    result = fit_quickly(Saturating(), data, fixed={"s": 1.0}, start={"vmax": 3.0, "km": 4.0})
    found = result.profile("km")
    assert found.open_below is None and 0 < found.lower < found.estimate
    assert found.open_above is not None and found.upper == np.inf


def test_counts_have_the_profile_of_their_probabilities():
    counts = np.array([3.0, 5.0, 2.0, 7.0, 4.0, 1.0, 3.0, 6.0, 2.0])
    result = fit_quickly(
        Line(), pd.DataFrame({"time": T, "y": counts}), noise="poisson", fixed={"slope": 0.0}, start={"y": 4.0}
    )
    total, n = counts.sum(), len(counts)

    def rise(mean):
        return n * mean - total * np.log(mean) - (total - total * np.log(total / n))

    limit = stats.chi2.ppf(0.95, 1) / 2
    ends = [optimize.brentq(lambda mean: rise(mean) - limit, *ends) for ends in ((0.5, total / n), (total / n, 20.0))]
    found = result.profile("y(0)")
    assert (found.lower, found.upper) == pytest.approx(ends, rel=1e-3)
    np.testing.assert_allclose(found.nll - result.nll, rise(found.values), atol=1e-8)


def test_with_two_sigmas_the_intervals_are_those_of_the_one_that_matters():
    data = pd.DataFrame({"time": T, "y": LINE["y"], "z": 5.0 + 0.5 * T + 40.0 * np.sin(9 * T)})
    both = fit_quickly(
        Line(), data, observe={"y": "y", "z": "y + shift"}, parameters={"shift": 4.0}, start={"slope": 0.5}
    )
    alone = fit_quickly(Line(), LINE)
    one, same = both.profile("slope"), alone.profile("slope")
    assert (one.lower, one.upper) == pytest.approx((same.lower, same.upper), rel=0.02)


def test_at_a_bound_the_interval_goes_one_way():
    data = noisy(np.exp(-0.5 * T), 0.05)
    result = fit_quickly(Decay(), data, fixed={"y": 1.0}, start={"rate": 0.7}, bounds={"rate": (0.6, 2.0)}, sigma=0.05)
    found = result.profile("rate")
    assert result["rate"].value == pytest.approx(0.6) and found.lower == pytest.approx(0.6)
    assert found.open_below is not None and found.open_below.startswith("the bound 0.6 comes first")

    def nll(rate):
        return 0.5 * np.sum((data["y"] - np.exp(-rate * T)) ** 2) / 0.05**2

    end = optimize.brentq(lambda rate: nll(rate) - nll(0.6) - stats.chi2.ppf(0.95, 1) / 2, 0.6, 2.0)
    assert found.upper - 0.6 == pytest.approx(end - 0.6, rel=5e-3)


@needs_compiler
@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    """The profiles are no parabolas, and nine data leave much to Student's distribution."""
    curve, options = 2.0 * np.exp(-0.8 * T), {"start": {"rate": 0.8}, "backend": "fused"}
    truth = {"rate": 0.8, "y(0)": 2.0}
    covered = np.zeros(len(truth))
    for seed in range(200):
        found = fit_quickly(Decay(), noisy(curve, 0.3, seed), **options).profiles()
        covered += [found[name].lower <= value <= found[name].upper for name, value in truth.items()]
    assert np.all((covered >= 180) & (covered <= 198)), covered / 200


def test_priors_count():
    flat = fit_quickly(Product(), noisy(np.exp(-0.5 * T), 0.05), start={"a": 0.4}, priors={"b": (1.0, 0.1)})
    found = flat.profile("b")
    assert not found.open
    assert found.lower == pytest.approx(1.0 - 0.196, abs=0.01) and found.upper == pytest.approx(1.0 + 0.196, abs=0.01)


def test_a_better_optimum_on_the_way_is_a_warning():
    result = fit_quickly(Decay(), noisy(np.exp(-0.5 * T), 0.05), start={"rate": 0.6})
    result.theta = result.theta + np.array([0.05, 0.0])  # off its optimum
    found = result.misfit.predictions(result.theta)
    assert found is not None
    result.nll = result.levels.nll(found, result.levels.estimate(found, result.floor))
    (warning,) = result.profile("rate").warnings
    assert warning.startswith("the profile of rate leads to a negative log-likelihood that is ")
    assert "so the fit was not at its optimum: fit again with start={'rate': " in warning


@pytest.mark.parametrize(
    ("constraint", "end", "why"),
    [
        ("a < 2", 2.0, "no larger values than 2 satisfy a < 2; there the negative log-likelihood has risen by less"),
        ("a < 2 or a < 1", np.inf, "the search finds no values of the others at which a < 2 or a < 1, beyond 1.9"),
        ("where(a < 2, b, sqrt(2 - a)) > 0", np.inf, "the search finds no values of the others at which where(a < 2"),
    ],
)
def test_where_a_constraint_does_not_hold_the_profile_ends(constraint, end, why):
    data = noisy(np.exp(-0.5 * T), 0.05)
    given = {"start": {"a": 0.4, "b": 1.0}, "fixed": {"y": 1.0}}
    found = fit_quickly(Product(), data, constraints=[constraint], **given).profile("a")
    assert found.open_above is not None and found.open_above.startswith(why)
    assert found.upper == pytest.approx(end) and 1.9 < found.values[-1] < 2.0


class Bursting(Decay):
    """Whose solution does not reach the end of the data where the rate is large."""

    def forward(self, t, y):
        return -self.rate * y / (self.rate < 0.75)


def test_where_the_model_cannot_be_solved_the_profile_ends():
    result = fit_quickly(Bursting(), noisy(np.exp(-0.5 * T), 0.2), fixed={"y": 1.0}, start={"rate": 0.6}, sigma=0.5)
    found = result.profile("rate")
    assert found.open_above is not None and found.open_above.startswith("the model cannot be solved beyond 0.7")


def test_what_has_no_profile_is_refused():
    result = fit_quickly(Decay(), noisy(np.exp(-0.5 * T), 0.05), start={"rate": 0.6})
    with pytest.raises(ValueError, match=r"no profile of 'sigma\(y\)': profiles are of the free .*: rate, y\(0\)"):
        result.profile("sigma(y)")
    with pytest.raises(ValueError, match=r"level must be a probability such as 0\.95, got 95"):
        result.profile("rate", level=95)
