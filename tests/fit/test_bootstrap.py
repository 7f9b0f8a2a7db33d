"""The bootstrap of fits."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from torchivp.fitting import fit
from torchivp.models import Model

T = np.linspace(0.0, 4.0, 8)


class Line(Model):
    states: ClassVar = {"y": ""}
    default_state = (1.0,)
    positive = ()

    def __init__(self, slope: float = 1.0):
        super().__init__(slope=slope)

    def forward(self, t, y):
        return self.slope + 0.0 * y


def line(seed=0, size=0.2) -> pd.DataFrame:
    return pd.DataFrame({"time": T, "y": 1.0 + 0.5 * T + size * np.random.default_rng(seed).normal(size=len(T))})


def fit_line(data=None, **options):
    given = {"start": {"slope": 0.4}, "rtol": 1e-6, "backend": "eager", "method": "dopri5", "shooting": "single"}
    options = {**given, **options}
    return fit(Line(), line() if data is None else data, **options)


@pytest.fixture(scope="module")
def result():
    return fit_line()


@pytest.mark.parametrize("kind", ["parametric", "residual"])
def test_the_scatter_is_that_of_regression(result, kind):
    found = result.bootstrap(80, kind=kind, seed=1)
    assert found.estimates.shape == (80, 3) and not found.failures
    assert found.names == ["slope", "y(0)", "sigma(y)"]
    regression = stats.linregress(T, line()["y"])
    scatter = found.estimates[:, :2].std(0, ddof=1)
    # a standard deviation of 80 numbers is right to 8 %
    np.testing.assert_allclose(scatter, [regression.stderr, regression.intercept_stderr], rtol=0.3)
    np.testing.assert_allclose(found.estimates[:, 0].mean(), regression.slope, atol=4 * regression.stderr / 9)
    assert found.standard_errors["slope"] == scatter[0]
    np.testing.assert_allclose(found.interval("slope", 0.5), np.quantile(found.estimates[:, 0], [0.25, 0.75]))
    table = found.to_frame()
    assert table.loc["slope", "estimate"] == result["slope"].value
    assert table.loc["slope", "lower"] < result["slope"].value < table.loc["slope", "upper"]


def test_the_first_sets_are_the_same_however_many_follow(result):
    few, more, other = result.bootstrap(2), result.bootstrap(3), result.bootstrap(2, seed=5)
    np.testing.assert_array_equal(few.estimates, more.estimates[:2])
    assert not np.isclose(few.estimates, other.estimates).any()
    assert result.data.trajectories[0].values[0, 0] == line()["y"][0], "the data are left alone"


def test_values_beyond_a_limit_are_limits_again():
    data = line(size=0.5)
    limit = 1.6
    data["side"] = np.where(data["y"] < limit, "<", "")
    data["y"] = data["y"].clip(lower=limit)
    result = fit_line(data, censored={"y": "side"})
    assert (result.data.trajectories[0].censored == -1).sum() >= 2
    found = result.bootstrap(12, seed=2)
    assert np.isfinite(found.succeeded).all() and len(found.succeeded) + len(found.failures) == 12
    assert abs(found.succeeded[:, 0].mean() - result["slope"].value) < 2 * result["slope"].standard_error
    with pytest.raises(ValueError, match=r"needs residuals, which censored values do not have: kind='parametric'"):
        result.bootstrap(2, kind="residual")


def test_fits_that_fail_are_recorded(result, monkeypatch):
    monkeypatch.setattr(result.search, "max_iterations", 1)
    found = result.bootstrap(3)
    assert set(found.failures) <= {0, 1, 2} and found.failures
    assert all(words == "the search has not converged within 1 iterations" for words in found.failures.values())
    assert np.isnan(found.estimates[list(found.failures)]).all()
    if len(found.failures) == 3:
        with pytest.raises(ValueError, match="no fit of the bootstrap succeeded"):
            found.interval("slope")
        assert np.isnan(found.standard_errors["slope"])


def test_what_makes_no_sense_is_refused(result):
    with pytest.raises(ValueError, match="kind must be 'parametric' or 'residual', got 'wild'"):
        result.bootstrap(2, kind="wild")
    with pytest.raises(ValueError, match="n must be a whole number of data sets to draw, 1 or more, got 0"):
        result.bootstrap(0)
    found = result.bootstrap(1)
    with pytest.raises(ValueError, match="no estimate is called 'pitch'; there are slope, "):
        found.interval("pitch")
    with pytest.raises(ValueError, match=r"level must be a probability such as 0\.95, got 95"):
        found.interval("slope", 95)
    counts = fit_line(line().round().clip(lower=0), noise="student_t")
    with pytest.raises(ValueError, match="draws residuals of normal and lognormal noise, not of student_t"):
        counts.bootstrap(1, kind="residual")
