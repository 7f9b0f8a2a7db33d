"""The century-old record of hares and lynxes, fitted from nothing but the names of its columns.

The expected numbers were found with other software. The optimum is also checked with SciPy's solver here.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp as scipy_solve_ivp

from torchivp.fitting import FitResult, fit
from torchivp.models import LotkaVolterra

DATA = Path(__file__).parents[2] / "examples" / "data" / "lynx_hare.csv"
MODEL_NAMES = ["alpha", "beta", "gamma", "delta", "prey(1900)", "predator(1900)"]


def fit_hares(**options) -> FitResult:
    return fit(LotkaVolterra(), DATA, time="year", observe=["hare", "lynx"], **options)


def scipy_residuals(result: FitResult, values: np.ndarray) -> np.ndarray:
    """Data minus SciPy's solution at `values`, on the scale of the noise, [T, 2]."""
    alpha, beta, gamma, delta, *y0 = values
    series = result.data.trajectories[0]
    solution = scipy_solve_ivp(
        lambda t, y: [alpha * y[0] - beta * y[0] * y[1], -gamma * y[1] + delta * y[0] * y[1]],
        (series.t[0], series.t[-1]),
        y0,
        method="DOP853",
        t_eval=series.t,
        rtol=1e-11,
        atol=1e-11,
    )
    if result.noise == "lognormal":
        return np.log(series.values) - np.log(solution.y.T)
    return series.values - solution.y.T


def scipy_nll(result: FitResult, values: np.ndarray, sigma: np.ndarray) -> float:
    """The negative log-likelihood by SciPy's solution."""
    residuals = scipy_residuals(result, values)
    nll = np.sum(0.5 * (residuals / sigma) ** 2 + np.log(sigma) + 0.5 * np.log(2 * np.pi))
    return nll + (np.log(result.data.trajectories[0].values).sum() if result.noise == "lognormal" else 0.0)


@pytest.fixture(scope="module")
def lognormal() -> FitResult:
    return fit_hares(noise="lognormal")


@pytest.fixture(scope="module")
def least_squares() -> FitResult:
    return fit_hares(sigma="shared")


@pytest.fixture(scope="module")
def normal() -> FitResult:
    return fit_hares()


@pytest.fixture(params=["lognormal", "least_squares", "normal"])
def result(request) -> FitResult:
    return request.getfixturevalue(request.param)


def values(result: FitResult, names=MODEL_NAMES) -> np.ndarray:
    return np.array([result[name].value for name in names])


def test_lognormal_noise(lognormal):
    assert lognormal.converged
    (warning,) = lognormal.warnings
    assert warning.startswith("the residuals of hare resemble the ones before them")
    expected = [0.540014, 0.0271561, 0.796599, 0.0237020, 34.599, 5.8437, 0.21838, 0.22008]
    np.testing.assert_allclose(values(lognormal, [each.name for each in lognormal.estimates]), expected, rtol=1e-4)
    assert lognormal.nll == pytest.approx(122.92595, abs=1e-5)
    errors = [lognormal[name].scale_error for name in ("alpha", "beta", "gamma", "delta")]
    np.testing.assert_allclose(errors, [0.102, 0.131, 0.097, 0.128], atol=6e-4)


def test_least_squares(least_squares):
    assert least_squares.converged
    np.testing.assert_allclose(values(least_squares)[:4], [0.481199, 0.0248318, 0.926018, 0.0275330], rtol=1e-5)
    assert sum(least_squares.rss.values()) == pytest.approx(594.7446, abs=1e-3)
    assert least_squares["sigma(hare, lynx)"].value == pytest.approx(np.sqrt(594.7446 / 42), rel=1e-6)


def test_scipy_finds_the_same_likelihood(result):
    assert scipy_nll(result, values(result), result.sigma) == pytest.approx(result.nll, abs=1e-6)


def test_any_step_away_is_less_likely(result):
    at = values(result)
    best = scipy_nll(result, at, result.sigma)
    for i in range(len(at)):
        for factor in (0.999, 1.001):
            assert scipy_nll(result, at * np.where(np.arange(len(at)) == i, factor, 1.0), result.sigma) > best
    for k in range(2):
        for factor in (0.99, 1.01):
            assert scipy_nll(result, at, result.sigma * np.where(np.arange(2) == k, factor, 1.0)) > best or (
                len(result.sizes) == 1
            )


def test_the_sigmas_are_the_root_mean_squares_of_the_residuals(result):
    squares = np.array([result.rss[column] for column in ("hare", "lynx")])
    if len(result.sizes) == 1:
        np.testing.assert_allclose(result.sigma, np.sqrt(squares.sum() / 42), rtol=1e-6)
    else:
        np.testing.assert_allclose(result.sigma, np.sqrt(squares / 21), rtol=1e-6)


def test_standard_errors_come_from_the_curvature_of_the_sum_of_squares(result):
    at = np.log(values(result))

    def scaled(theta):
        return (scipy_residuals(result, np.exp(theta)) / result.sigma).ravel()

    step = 1e-5
    jacobian = np.stack([(scaled(at + d) - scaled(at - d)) / (2 * step) for d in step * np.eye(6)], axis=1)
    np.testing.assert_allclose(result.covariance, np.linalg.inv(jacobian.T @ jacobian), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(np.diag(result.correlation), 1.0)
    errors = [result[name].scale_error for name in result.free_names]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(result.covariance)))


def test_information_criteria(lognormal):
    assert (lognormal.n_data, lognormal.n_free) == (42, 8)
    assert lognormal.aic == pytest.approx(2 * 122.92595 + 16, abs=1e-4)
    assert lognormal.aicc == pytest.approx(lognormal.aic + 2 * 8 * 9 / (42 - 9))
    assert lognormal.bic == pytest.approx(2 * 122.92595 + 8 * np.log(42), abs=1e-4)


def test_intervals_are_symmetric_on_the_log_scale(lognormal):
    alpha = lognormal["alpha"]
    assert alpha.lower * alpha.upper == pytest.approx(alpha.value**2)
    # About Student's t with 42 values less 6 free quantities, the sigmas unbiased accordingly.
    expected = stats.t.isf(0.025, 36) * np.sqrt(42 / 36) * alpha.scale_error
    assert np.log(alpha.upper / alpha.value) == pytest.approx(expected, rel=0.01)
    assert alpha.standard_error == pytest.approx(alpha.value * alpha.scale_error)


def test_residuals(lognormal):
    series = lognormal.data.trajectories[0]
    expected = (np.log(series.values) - np.log(lognormal.predict(series.t))) / lognormal.sigma
    np.testing.assert_allclose(lognormal.residuals(), expected)
    np.testing.assert_allclose((lognormal.residuals() ** 2).mean(0), 1.0, rtol=1e-6)


def test_predictions_come_in_the_order_of_the_times(lognormal):
    t = np.array([1905.5, 1900.0, 1905.5, 1930.0])
    states = lognormal.predict(t)
    np.testing.assert_allclose(states[1], values(lognormal)[4:])
    np.testing.assert_allclose(states[0], states[2])
    np.testing.assert_allclose(states[3], lognormal.predict(1930.0)[0], rtol=1e-6)


@pytest.mark.parametrize("count", [5, 300], ids=["few", "many"])
def test_the_band_is_that_of_the_delta_method(lognormal, count):
    t = np.linspace(1900, 1920, count)
    lower, upper = lognormal.band(t)
    states = lognormal.predict(t)
    theta, step = lognormal.theta, 1e-4
    slopes = []
    for d in step * np.eye(len(theta)):
        ends = [np.exp(theta + sign * d) for sign in (1, -1)]
        series = [np.log(self_states(lognormal, end, t)) for end in ends]
        slopes.append((series[0] - series[1]) / (2 * step))
    g = np.stack(slopes, axis=-1)
    error = np.sqrt(np.einsum("tsi,ij,tsj->ts", g, lognormal.covariance, g))
    student = stats.t.isf(0.025, 36) * np.sqrt(42 / 36)
    # Of the two sigmas one may matter more to a state than to the other.
    np.testing.assert_allclose(np.log(upper / states), student * error, rtol=0.06)
    np.testing.assert_allclose(np.log(states / lower), np.log(upper / states), rtol=1e-10)


def self_states(result: FitResult, at: np.ndarray, t: np.ndarray) -> np.ndarray:
    alpha, beta, gamma, delta, *y0 = at
    return scipy_solve_ivp(
        lambda _, y: [alpha * y[0] - beta * y[0] * y[1], -gamma * y[1] + delta * y[0] * y[1]],
        (1900, 1920),
        y0,
        method="DOP853",
        t_eval=t,
        rtol=1e-11,
        atol=1e-11,
    ).y.T


def test_the_prediction_band_holds_the_data(result):
    series = result.data.trajectories[0]
    lower, upper = result.prediction_band(series.t)
    inside = (series.values > lower) & (series.values < upper)
    assert inside.mean() > 0.88
    curve_lower, curve_upper = result.band(series.t)
    assert np.all(upper > curve_upper)
    assert np.all(lower < curve_lower)


def test_the_fitted_model_is_a_copy(lognormal):
    assert lognormal.model.values()["alpha"] == pytest.approx(0.540014, rel=1e-5)
    assert lognormal.misfit.model.values() == LotkaVolterra().values(), "which the fit started from"
