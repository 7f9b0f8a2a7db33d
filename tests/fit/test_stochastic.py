"""Fits of stochastic models, against Gaussian densities in closed form."""

from typing import ClassVar

import numpy as np
import pandas
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import multivariate_normal

from compilers import needs_compiler
from torchivp import Scheduled, fit, sdeint
from torchivp.models import StochasticModel

T = np.array([0.0, 0.3, 0.5, 1.1, 1.2, 1.9, 2.5, 2.8, 3.6, 4.0, 4.1, 5.0, 5.6, 6.0, 6.9, 7.5])


class OrnsteinUhlenbeck(StochasticModel):
    states: ClassVar = {"x": "distance from rest"}
    default_state = (1.0,)
    positive = ("rate", "strength")

    def __init__(self, rate=1.0, rest=0.2, strength=0.5):
        super().__init__(rate=rate, rest=rest, strength=strength)

    def forward(self, t, y):
        return self.rate * (self.rest - y)

    def diffusion(self, t, y):
        return self.strength.expand_as(y)


class Stationary(OrnsteinUhlenbeck):
    def initial_covariance(self):
        return (self.strength**2 / (2 * self.rate)).reshape(1, 1)


class Growth(StochasticModel):
    """Geometric Brownian motion."""

    states: ClassVar = {"price": ""}
    default_state = (1.0,)
    positive = ("wobble",)

    def __init__(self, drift=0.1, wobble=0.3):
        super().__init__(drift=drift, wobble=wobble)

    def forward(self, t, y):
        return self.drift * y

    def diffusion(self, t, y):
        return self.wobble * y


class LogGrowth(Growth):
    """The logarithm of geometric Brownian motion, by Itô's formula."""

    states: ClassVar = {"log_price": ""}
    default_state = (0.0,)

    def forward(self, t, y):
        return (self.drift - 0.5 * self.wobble**2).expand_as(y)

    def diffusion(self, t, y):
        return self.wobble.expand_as(y)


class Predators(StochasticModel):
    states: ClassVar = {"prey": "", "predator": ""}
    default_state = (1.0, 1.0)
    noise_type = "general"

    def __init__(self, alpha=1.5, beta=1.0, gamma=1.2, common=0.1, own=0.15):
        super().__init__(alpha=alpha, beta=beta, gamma=gamma, common=common, own=own)

    def forward(self, t, y):
        prey, predator = y[..., 0], y[..., 1]
        return torch.stack([prey * (self.alpha - self.beta * predator), predator * (self.beta * prey - self.gamma)], -1)

    def diffusion(self, t, y):
        first = torch.stack([self.common * y[..., 0], self.own * y[..., 0]], -1)
        second = torch.stack([self.common * y[..., 1], torch.zeros_like(y[..., 1])], -1)
        return torch.stack([first, second], -2)


class Pendulum(StochasticModel):
    """A spring that is pushed at random."""

    states: ClassVar = {"x": "position", "v": "velocity"}
    default_state = (1.0, 0.0)
    noise_type = "general"

    def __init__(self, stiffness=2.0, damping=0.4, push=0.5):
        super().__init__(stiffness=stiffness, damping=damping, push=push)

    def forward(self, t, y):
        return torch.stack([y[..., 1], -self.stiffness * y[..., 0] - self.damping * y[..., 1]], -1)

    def diffusion(self, t, y):
        return torch.stack([torch.zeros_like(y[..., :1]), self.push.expand_as(y[..., :1])], -2)


def ou_moments(t, rate, rest, strength, x0, spread=0.0):
    """Mean and covariance of an Ornstein-Uhlenbeck process at times, from x0 with a variance at the first of them."""
    t = t - t[0]
    decay = np.exp(-rate * np.add.outer(t, t))
    apart = np.exp(-rate * np.abs(np.subtract.outer(t, t)))
    return rest + (x0 - rest) * np.exp(-rate * t), strength**2 / (2 * rate) * (apart - decay) + spread * decay


def draw_ou(t=T, seed=0, x0=1.5):
    mean, covariance = ou_moments(t, 0.7, 0.3, 0.6, x0)
    root = np.linalg.cholesky(covariance + 1e-14 * np.eye(len(t)))
    return mean + root @ np.random.default_rng(seed).standard_normal(len(t))


def nll_at(result, theta):
    found = result.misfit.predictions(theta)
    return result.levels.nll(found, result.sizes), found


def slopes_at(result, theta):
    """The gradient of the negative log-likelihood, from the innovations and their derivatives."""
    found = result.misfit.predictions(theta)
    e, s = found.measured.y - found.values, found.variances
    return -(e / s) @ found.jacobian + 0.5 * (1 / s - e**2 / s**2) @ found.variance_jacobian


def check_slopes(result, theta, step=1e-5):
    numeric = [
        (nll_at(result, theta + d)[0] - nll_at(result, theta - d)[0]) / (2 * step) for d in step * np.eye(len(theta))
    ]
    np.testing.assert_allclose(slopes_at(result, theta), numeric, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def noisy():
    """Measurements with noise, one of them missing, of an Ornstein-Uhlenbeck process."""
    y = draw_ou() + 0.3 * np.random.default_rng(2).standard_normal(len(T))
    y[4] = np.nan
    return y, fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, backend="fused")


def noisy_nll(theta, y):
    rate, rest, strength, sigma = np.exp(theta[0]), theta[1], np.exp(theta[2]), np.exp(theta[3])
    mean, covariance = ou_moments(T, rate, rest, strength, y[0], sigma**2)
    seen = np.isfinite(y) & (T > 0)
    covariance = (covariance + sigma**2 * np.eye(len(T)))[seen][:, seen]
    return -multivariate_normal(mean[seen], covariance).logpdf(y[seen])


@needs_compiler
def test_likelihood_is_the_density_of_all_data_together(noisy):
    y, result = noisy
    assert result.free_names == ["rate", "rest", "strength", "sigma(x)"]
    np.testing.assert_allclose(result.nll, noisy_nll(result.theta, y), rtol=1e-6)
    for seed in range(3):
        theta = result.theta + 0.4 * np.random.default_rng(seed).standard_normal(4)
        np.testing.assert_allclose(nll_at(result, theta)[0], noisy_nll(theta, y), rtol=1e-6)


@needs_compiler
def test_estimates_and_errors_are_those_of_the_closed_form(noisy):
    y, result = noisy
    best = minimize(noisy_nll, result.theta + 0.2, (y,), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    best = minimize(noisy_nll, best.x, (y,), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    assert result.converged and result.n_free == 4 and result.n_data == len(T) - 2
    np.testing.assert_allclose(result.theta, best.x, rtol=1e-4, atol=1e-4)
    step = 1e-4 * np.eye(4)

    def curvature(a, b):
        corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        return sum(p * q * noisy_nll(result.theta + p * a + q * b, y) for p, q in corners) / 4e-8

    observed = np.array([[curvature(a, b) for b in step] for a in step])
    # That of the innovations is expected before each of them, the other one observed: alike, not the same.
    np.testing.assert_allclose(np.diag(result.covariance), np.diag(np.linalg.inv(observed)), rtol=0.6)


@needs_compiler
def test_prediction_is_the_mean_given_the_data_so_far(noisy):
    y, result = noisy
    rate, rest, strength, sigma = (result[name].value for name in result.free_names)
    times = [0.0, 1.2, 1.5, 4.1, 9.0]
    predicted = result.predict(times[::-1])[::-1, 0]
    for time, found in zip(times, predicted, strict=True):
        mean, covariance = ou_moments(np.append(T, time), rate, rest, strength, y[0], sigma**2)
        seen = np.flatnonzero(np.isfinite(y) & (time >= T) & (T > 0))
        gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + sigma**2 * np.eye(len(seen)), covariance[seen, -1])
        np.testing.assert_allclose(found, mean[-1] + gain @ (y[seen] - mean[seen]), rtol=1e-5)
    lower, upper = result.band(times)
    seen_lower, seen_upper = result.prediction_band(times)
    assert (seen_lower < lower).all() and (upper < seen_upper).all() and (predicted > lower[:, 0]).all()
    spread = strength / np.sqrt(2 * rate)  # far from the data
    assert upper[-1, 0] - lower[-1, 0] > 2 * 1.96 * 0.95 * spread
    assert result.sigma == [result["sigma(x)"].value]
    np.testing.assert_allclose(np.nanmean(result.residuals() ** 2), 1.0, rtol=0.15)


@needs_compiler
def test_exact_data_start_at_their_first_values():
    x, other = draw_ou(), draw_ou(T[:9], seed=3, x0=-1.0)
    data = pandas.concat(
        [
            pandas.DataFrame({"time": T, "x": x, "series": "a"}),
            pandas.DataFrame({"time": T[:9], "x": other, "series": "b"}),
        ]
    )
    result = fit(OrnsteinUhlenbeck(), data, trajectory="series", sigma=0, backend="fused")

    def nll(theta):
        total = 0.0
        for t, values in ((T, x), (T[:9], other)):
            mean, covariance = ou_moments(t, np.exp(theta[0]), theta[1], np.exp(theta[2]), values[0])
            total -= multivariate_normal(mean[1:], covariance[1:, 1:]).logpdf(values[1:])
        return total

    assert result.free_names == ["rate", "rest", "strength"] and result.n_data == len(T) + 9 - 2
    np.testing.assert_allclose(result.nll, nll(result.theta), rtol=1e-6)
    best = minimize(nll, result.theta + 0.1, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    np.testing.assert_allclose(result.theta, best.x, atol=1e-5)
    check_slopes(result, result.theta + np.array([0.2, -0.1, 0.1]))
    assert np.isnan(result.residuals(1)[0, 0]) and np.isfinite(result.residuals(1)[1:]).all()
    np.testing.assert_allclose(result.predict(T[3:5]), x[3:5, None])


@needs_compiler
def test_initial_covariance_may_depend_on_parameters():
    y = draw_ou()
    model = {"initial": {"x": "rest"}, "sigma": 0.3, "backend": "fused"}
    result = fit(Stationary(), {"time": T, "x": y}, **model)

    def nll(theta):
        rate, rest, strength = np.exp(theta[0]), theta[1], np.exp(theta[2])
        mean, covariance = ou_moments(T, rate, rest, strength, rest, strength**2 / (2 * rate))
        return -multivariate_normal(mean, covariance + 0.09 * np.eye(len(T))).logpdf(y)

    np.testing.assert_allclose(result.nll, nll(result.theta), rtol=1e-6)
    check_slopes(result, result.theta + np.array([0.2, -0.1, 0.1]))
    exact = fit(Stationary(), {"time": T, "x": y}, initial={"x": "rest"}, sigma=0, backend="fused")
    assert exact.n_data == len(T)  # the first value is no longer known


@needs_compiler
def test_hidden_states_of_a_linear_system():
    t = np.linspace(0.0, 4.0, 9)
    x = np.exp(-0.2 * t) * np.cos(1.4 * t) + 0.3 * np.cumsum(np.random.default_rng(7).standard_normal(9))
    data = {"time": t, "x": x, "error": 0.1 + 0.02 * np.arange(9)}
    held = {"fixed": {"x": 1.0, "v": -0.1, "damping": 0.4}, "backend": "fused"}
    result = fit(Pendulum(), data, observe={"x": "x"}, sigma={"x": "error"}, **held)

    def nll(theta):
        """By the joint distribution of all positions: covariances by Van Loan's matrix exponential."""
        (k, push), c = np.exp(theta), 0.4
        drift, noise = np.array([[0.0, 1.0], [-k, -c]]), np.diag([0.0, push**2])
        flows = [expm(drift * s) for s in t]
        blocks = [expm(np.block([[-drift, noise], [np.zeros((2, 2)), drift.T]]) * s) for s in t]
        spreads = [block[2:, 2:].T @ block[:2, 2:] for block in blocks]
        covariance = np.empty((9, 9))
        for i in range(9):
            for j in range(i + 1):
                covariance[i, j] = covariance[j, i] = (flows[i - j] @ spreads[j])[0, 0]  # times are equidistant
        mean = [(flow @ [1.0, -0.1])[0] for flow in flows]
        return -multivariate_normal(mean, covariance + np.diag(data["error"] ** 2)).logpdf(x)

    assert result.n_data == 9 and np.isnan(result.sigma).all()
    for theta in (result.theta, result.theta + np.array([0.3, -0.2])):
        np.testing.assert_allclose(nll_at(result, theta)[0], nll(theta), rtol=1e-6)
    best = minimize(nll, result.theta + 0.1, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    np.testing.assert_allclose(result.theta, best.x, atol=1e-4)
    lower, upper = result.prediction_band(t)
    assert (upper - lower > 2 * 1.96 * 0.18).all()  # the measurements are taken to be as exact as they are on average


@needs_compiler
def test_logarithm_of_geometric_brownian_motion_is_exact():
    steps = np.random.default_rng(2).standard_normal(len(T) - 1)
    gaps = np.diff(T)
    x = np.concatenate([[0.0], np.cumsum((0.15 - 0.02) * gaps + 0.2 * np.sqrt(gaps) * steps)])
    result = fit(LogGrowth(), {"time": T, "log_price": x}, sigma=0, backend="fused")
    # Increments are independent: the estimates of their mean and variance per time are these.
    slope = (x[-1] - x[0]) / (T[-1] - T[0])
    variance = np.mean((np.diff(x) - slope * gaps) ** 2 / gaps)
    np.testing.assert_allclose(result["wobble"].value, np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(result["drift"].value, slope + variance / 2, rtol=1e-5)
    nll = 0.5 * np.sum(np.log(2 * np.pi * variance * gaps)) + 0.5 * len(gaps)
    np.testing.assert_allclose(result.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(result["wobble"].scale_error, np.sqrt(1 / (2 * len(gaps))), rtol=1e-5)


@needs_compiler
def test_geometric_brownian_motion_itself_is_approximated_by_its_first_moments():
    x = np.exp(np.cumsum(0.1 * np.random.default_rng(4).standard_normal(8)))
    t = np.arange(8.0)
    result = fit(Growth(), {"time": t, "price": x}, sigma=0, backend="fused")
    drift, wobble = 0.07, 0.2
    # P' = 2 drift P + (wobble m)²: to first order in wobble² what the lognormal distribution has.
    mean = x[:-1] * np.exp(drift)
    variance = wobble**2 * mean**2
    expected = 0.5 * np.sum((x[1:] - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    np.testing.assert_allclose(nll_at(result, np.array([drift, np.log(wobble)]))[0], expected, rtol=1e-6)


@needs_compiler
def test_derivatives_with_hidden_states_formulas_and_several_trajectories():
    rng = np.random.default_rng(5)
    t = np.linspace(0, 2, 6)
    data = pandas.concat(
        [
            pandas.DataFrame(
                {"time": t, "prey": 1 + 0.2 * rng.random(6), "catch": 1.5 + 0.2 * rng.random(6), "pond": pond}
            )
            for pond in "ab"
        ]
    )
    data.loc[data.index == 3, "prey"] = np.nan
    result = fit(
        Predators(),
        data,
        trajectory="pond",
        observe={"prey": "prey", "catch": "effort*prey*predator"},
        parameters={"effort": 1.4},
        initial={"predator": "shared"},
        sigma={"prey": 0.05},
        priors={"sigma(catch)": (0.1, 0.02)},
        fixed={"gamma": 1.2, "beta": 1.0},
        max_iterations=1,
        backend="fused",
    )
    assert not result.converged
    check_slopes(result, result.theta + 0.03 * rng.standard_normal(len(result.theta)))
    assert np.isfinite(result.predict(t)).all() and np.isfinite(result.prediction_band([0.1, 1.9])).all()


@needs_compiler
def test_jumps_of_the_drift_are_seen():
    class Pushed(OrnsteinUhlenbeck):
        def forward(self, t, y):
            return torch.where(t < 2.0, self.rest, -self.rest).expand_as(y)

    x = np.array([0.0, 0.5, 1.4, 1.0, 0.2])
    t = np.array([0.0, 1.0, 1.8, 3.0, 4.0])
    free = {"fixed": {"rate": 1.0}, "jump_times": [2.0]}
    result = fit(Pushed(), {"time": t, "x": x}, sigma=0, backend="fused", **free)
    signs = np.array([1.0, 0.8, 0.2 - 1.0, -1.0])
    gaps = np.diff(t)
    rest = np.sum(signs * np.diff(x) / gaps) / np.sum(signs**2 / gaps)
    np.testing.assert_allclose(result["rest"].value, rest, rtol=1e-6)


@needs_compiler
def test_step_loop_and_kernel_agree():
    x = {"time": T[:4], "x": draw_ou()[:4]}
    result = fit(OrnsteinUhlenbeck(), x, sigma=0.2, free="rest", backend="fused")
    theta, misfit = result.theta + 0.1, result.misfit
    kernel = misfit.predictions(theta)
    misfit.use(misfit.step_loop)
    loop = misfit.predictions(theta)
    for name in ("values", "jacobian", "variances", "variance_jacobian"):
        np.testing.assert_allclose(getattr(loop, name), getattr(kernel, name), rtol=1e-7, atol=1e-9)


@needs_compiler
def test_measurements_that_seem_exact():
    y = draw_ou()
    result = fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, fixed={"rest": 0.3}, backend="fused")
    exact = fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, fixed={"rest": 0.3}, sigma=0, backend="fused")
    assert result["sigma(x)"].value < 1e-3
    assert (
        "sigma(x) is at its bound, zero: the noise of the model alone explains the data as well" in result.warnings[0]
    )
    np.testing.assert_allclose(result.nll, exact.nll, rtol=1e-5)
    assert np.isfinite(result.band(T)).all()


def test_sdeint_draws_paths():
    model = OrnsteinUhlenbeck()
    names = {"drift": "forward", "diffusion": "diffusion"}
    with torch.no_grad():
        paths = sdeint(model, torch.ones(2000, 1, dtype=torch.float64), [0.0, 1.0], dt=0.05, names=names, method="srk")
    mean, covariance = ou_moments(np.array([0.0, 1.0]), 1.0, 0.2, 0.5, 1.0)
    assert abs(paths[-1].mean() - mean[-1]) < 0.04 and abs(paths[-1].var() / covariance[-1, -1] - 1) < 0.15


X = {"time": T, "x": np.sin(T)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "poisson"}, "is a stochastic model, whose measurements have normal noise, got noise='poisson'"),
        ({"noise": {"x": "lognormal"}}, r"fit the logarithms of the data, observe=\{'log_x': 'log\(x\)'\}"),
        ({"sigma": -1.0}, "or 0 for a state that is observed exactly, got -1.0"),
        ({"sigma": {"y": 0}}, "sigma names 'y', but the observables are x"),
        ({"sigma": 0, "observe": {"x": "2*x"}}, "measured exactly, which only a state can be"),
        (
            {"schedule": Scheduled([1.0], lambda t, y: y + 1)},
            "schedule changes of the state at known times would change",
        ),
        ({"doses": {"time": [1.0], "amount": [1.0]}}, "doses changes of the state at known times would change"),
        ({"start": {"sigma(x)": -1.0}}, "estimated on the log scale, so its start value must be positive"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        fit(OrnsteinUhlenbeck(), X, **options)


def test_exact_values_that_cannot_be():
    twice = {"time": [0.0, 1.0, 1.0, 2.0, 3.0], "x": [1.0, 1.1, 1.2, 1.0, 0.9]}
    with pytest.raises(ValueError, match="holds two values at one time, and sigma says that both are exact"):
        fit(OrnsteinUhlenbeck(), twice, sigma=0)
    with pytest.raises(ValueError, match="sigma says that a and b both are exactly x: leave one out"):
        fit(OrnsteinUhlenbeck(), {"time": T, "a": T, "b": T}, observe={"a": "x", "b": "x"}, sigma=0)
    below = {"time": T, "x": np.sin(T), "limit": ["<"] + [""] * (len(T) - 1)}
    with pytest.raises(ValueError, match="limits of detection are no values that the filter"):
        fit(OrnsteinUhlenbeck(), below, censored={"x": "limit"})


def test_diffusion_of_the_wrong_kind():
    class Matrix(OrnsteinUhlenbeck):
        def diffusion(self, t, y):
            return self.strength.expand(1, 1)

    class Spread(OrnsteinUhlenbeck):
        def initial_covariance(self):
            return self.strength

    class Lost(OrnsteinUhlenbeck):
        def diffusion(self, t, y):
            return torch.full_like(y, self.strength.item())

    class Undefined(StochasticModel):
        states: ClassVar = {"x": ""}
        default_state = (1.0,)

    with pytest.raises(
        ValueError, match=r"noise_type is 'diagonal', .* shape \(1,\), one number for each state, got \(1, 1\)"
    ):
        fit(Matrix(), X)
    with pytest.raises(ValueError, match=r"Spread.initial_covariance must return the shape \(1, 1\), got \(\)"):
        fit(Spread(), X)
    with pytest.raises(ValueError, match="of Lost depends on strength, but its derivative"):
        fit(Lost(), X)
    with pytest.raises(NotImplementedError, match="Undefined must define diffusion"):
        fit(Undefined(), X)


@needs_compiler
def test_free_initial_state_that_meets_its_value_exactly():
    y = draw_ou() + 0.2 * np.random.default_rng(1).standard_normal(len(T))
    free = {"start": {"x": 1.0, "sigma(x)": 1e-4}, "fixed": {"rate": 0.7, "rest": 0.3}}
    result = fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, backend="fused", **free)
    assert "x(0)" in result.free_names and not result.converged
    assert "a value of x is met exactly, and the likelihood grows without bound" in result.warnings[0]
    known = fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, free=["rest", "x"], sigma=0.2, backend="fused")
    assert known.converged and known.n_data == len(T)


def test_no_noise_that_reaches_an_exact_value():
    class Still(OrnsteinUhlenbeck):
        def diffusion(self, t, y):
            return 0.0 * self.strength.expand_as(y)

    with pytest.raises(
        RuntimeError,
        match=r"of Still cannot be solved from the start: the variance of x at time 0\.3 given .* is not positive",
    ):
        fit(Still(), X, sigma=0, backend="eager", rtol=1e-4, atol=1e-4)


@needs_compiler
def test_the_best_place_on_a_constraint_and_the_profile_along_it_are_those_of_the_exact_likelihood():
    """The variances of the innovations depend on what is estimated, so that the gradient is not that of regression."""
    y = draw_ou()
    given = {
        "fixed": {"rest": 0.3, "x": 1.5},
        "sigma": 0.3,
        "bounds": {"rate": (0.1, 3.0)},
        "backend": "fused",
        "start": {"strength": 0.3},
    }
    found = fit(OrnsteinUhlenbeck(), {"time": T, "x": y}, constraints=["strength < 0.4*rate"], **given)

    def nll(rate, strength):
        mean, covariance = ou_moments(T, rate, 0.3, strength, 1.5)
        return -multivariate_normal(mean, covariance + 0.09 * np.eye(len(T))).logpdf(y)

    def along(rate):  # the strength is as large as it may be, or less
        inner = minimize_scalar(lambda s: nll(rate, s), bounds=(1e-3, 0.4 * rate), method="bounded")
        return min(inner.fun, nll(rate, 0.4 * rate))

    best = minimize_scalar(along, bounds=(0.1, 3.0), method="bounded", options={"xatol": 1e-8})
    assert found.converged and any("strength < 0.4*rate is active" in each for each in found.warnings)
    assert found["rate"].value == pytest.approx(best.x, rel=2e-3)
    assert found.nll == pytest.approx(best.fun, abs=1e-4)
    profile = found.profile("rate")
    assert not profile.warnings
    for i in range(0, len(profile.values), 4):
        assert profile.nll[i] == pytest.approx(along(profile.values[i]), abs=2e-3)
