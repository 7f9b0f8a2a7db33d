"""Fits of data simulated from known parameters."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import torchivp
from compilers import HERE
from simulated import simulate
from torchivp import solve_ivp
from torchivp.models import SIR, FitzHughNagumo, Lorenz, LotkaVolterra, Model, Pendulum, Robertson, VanDerPol


def fit(model: Model, data, **options):
    """By a kernel, which is shared, where the model is one of those that come with torchivp."""
    shared = HERE is not None and type(model).__module__.startswith("torchivp.models")
    return torchivp.fit(model, data, **{"backend": "fused" if shared else "auto", **options})


def largest_error(result, truth: Model) -> float:
    return max(abs(result[name].value / value - 1) for name, value in truth.values().items())


SWEEP = pytest.mark.sweep


@pytest.mark.parametrize(
    ("truth", "start", "t"),
    [
        pytest.param(
            FitzHughNagumo(), FitzHughNagumo(1.5, 1.5, 0.2, 1.0), np.linspace(0, 20, 41), id="FitzHugh-Nagumo"
        ),
        pytest.param(Lorenz(10, 28, 2.66), Lorenz(5, 15, 1), np.linspace(0, 2, 51), id="Lorenz"),
        pytest.param(VanDerPol(2.0), VanDerPol(0.5), np.linspace(0, 8, 33), id="van der Pol", marks=SWEEP),
        pytest.param(LotkaVolterra(), LotkaVolterra(5, 5, 5, 5), np.linspace(0, 10, 51), id="Lotka-Volterra"),
    ],
)
def test_exact_data_give_the_parameters_back(truth, start, t):
    result = fit(start, simulate(truth, t))
    assert largest_error(result, truth) < 1e-5
    assert any("a sigma is as small as the error of the solver" in warning for warning in result.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("start", [Lorenz(9, 20, 2), Lorenz(0.1, 0.1, 0.1)], ids=["near", "far"])
def test_a_long_chaotic_series_gives_the_parameters_back(start):
    truth = Lorenz(10, 28, 2.66)
    assert largest_error(fit(start, simulate(truth, np.linspace(0, 15, 1501))), truth) < 1e-5


@pytest.mark.slow
def test_a_chaotic_series_of_one_state_gives_the_parameters_back():
    truth = Lorenz(10, 28, 2.66)
    data = simulate(truth, np.linspace(0, 3, 151))[["time", "x"]]
    assert largest_error(fit(Lorenz(9, 20, 2), data), truth) < 1e-5


def test_an_epidemic_of_which_only_cases_are_observed():
    truth = SIR(0.4, 0.15)
    data = simulate(truth, np.arange(0.0, 60.0))[["time", "infected"]]
    result = fit(SIR(), data)
    assert largest_error(result, truth) < 1e-5
    assert result["susceptible(0)"].free is False
    assert any("default of the model: susceptible(0), removed(0)" in warning for warning in result.warnings)
    known = fit(SIR(), data, fixed={"susceptible": 0.99, "removed": 0.0})
    assert not any("default of the model" in warning for warning in known.warnings)


def test_an_epidemic_with_lognormal_noise_and_its_start_unknown():
    truth = SIR(0.4, 0.15)
    data = simulate(truth, np.arange(0.0, 60.0, 2.0), noise=0.1, lognormal=True)[["time", "infected"]]
    result = fit(SIR(), data, noise="lognormal", free=["beta", "gamma", "infected"], fixed={"removed": 0.0})
    assert result.converged
    for name, value in {**truth.values(), "infected(0)": 0.01, "sigma(infected)": 0.1}.items():
        assert abs(np.log(result[name].value / value)) < 3 * result[name].scale_error


@pytest.mark.slow
def test_an_oscillator_of_which_one_noisy_state_is_observed():
    truth = VanDerPol(2.0)
    data = simulate(truth, np.linspace(0, 20, 81), noise=0.1)[["time", "position"]]
    result = fit(VanDerPol(0.5), data, free="all")
    assert result.converged
    for name, value in {"mu": 2.0, "position(0)": 2.0, "velocity(0)": 0.0, "sigma(position)": 0.1}.items():
        assert abs(result[name].value - value) < 3.5 * result[name].standard_error


def test_several_trajectories_share_parameters():
    truth = Pendulum(0.7, 0.3)
    t = np.linspace(0, 4, 21)
    parts = [
        simulate(truth, t, (1.0, 0.0), noise=0.02, seed=1).assign(run="slow"),
        simulate(truth, t[5:], (2.5, -1.0), noise=0.02, seed=2).assign(run="fast"),
    ]
    result = fit(Pendulum(), pd.concat(parts), trajectory="run")
    assert [trajectory.name for trajectory in result.data.trajectories] == ["slow", "fast"]
    expected = {"length": 0.7, "damping": 0.3, "angle(0)[slow]": 1.0, "angle(1)[fast]": 2.5, "velocity(1)[fast]": -1.0}
    for name, value in expected.items():
        assert abs(result[name].value - value) < 3.5 * result[name].standard_error
    assert result.predict([1.0, 2.0], trajectory=1).shape == (2, 2)
    expected = (parts[1][["angle", "velocity"]] - result.predict(t[5:], 1)) / result.sigma
    np.testing.assert_allclose(result.residuals(1), expected, atol=1e-4)
    lone = fit(Pendulum(), parts[0].drop(columns="run"), start=truth.values(), rtol=1e-6)
    assert result["length"].standard_error < lone["length"].standard_error


def test_missing_values_are_left_out():
    truth = LotkaVolterra(0.5, 0.03, 0.8, 0.02)
    data = simulate(truth, np.arange(0.0, 20.0), (30.0, 5.0), noise=0.1, lognormal=True)
    data.loc[::3, "prey"] = np.nan
    data.loc[5:8, "predator"] = np.nan
    result = fit(LotkaVolterra(), data, noise="lognormal")
    assert result.converged
    assert result.n_data == 13 + 16
    assert np.isnan(result.residuals()[::3, 0]).all()
    expected = (np.log(data[["prey", "predator"]]) - np.log(result.predict(data["time"]))) / result.sigma
    np.testing.assert_allclose(result.residuals(), expected, atol=1e-5)
    assert largest_error(result, truth) < 0.25


def test_what_is_held_stays_where_it_is():
    truth = LotkaVolterra()
    data = simulate(truth, np.linspace(0, 5, 31), noise=0.02)
    result = fit(LotkaVolterra(beta=0.9), data, free=["alpha", "gamma", "predator"], fixed={"delta": 1.02})
    assert result.free_names == ["alpha", "gamma", "predator(0)"]
    assert [result[name].value for name in ("beta", "delta")] == [0.9, 1.02]
    assert result["prey(0)"].value == data["prey"][0], "an observed initial state is held at its first datum"
    assert np.isnan(result["delta"].standard_error)
    assert result.n_free == 5


def test_start_values_are_used():
    data = simulate(LotkaVolterra(), np.linspace(0, 5, 21), noise=0.02)
    stages = []
    start = {**LotkaVolterra().values(), "prey": 1.0, "predator(0)": 1.0}
    result = fit(LotkaVolterra(9, 9, 9, 9), data, start=start, progress=lambda stage, *_: stages.append(stage))
    assert result.converged
    assert largest_error(result, LotkaVolterra()) < 0.1
    assert {stage.split(",")[0] for stage in stages} == {"start 1", "maximum likelihood"}


def test_no_second_way_is_tried_where_the_first_leaves_nothing_but_noise():

    class Swing(Model):
        states: ClassVar = {"angle": "", "velocity": ""}
        default_state = (1.0, 0.0)

        def __init__(self, frequency=1.0):
            super().__init__(frequency=frequency)

        def forward(self, t, y):
            angle, velocity = y.unbind(-1)
            return torch.stack([velocity, -(self.frequency**2) * angle], -1)

    data = simulate(Swing(1.0), np.linspace(0, 20, 61), noise=0.05)
    stages, fixed = [], {"angle": 1.0, "velocity": 0.0}
    result = fit(
        Swing(),
        data,
        fixed=fixed,
        start={"frequency": 1.1},
        rtol=1e-6,
        progress=lambda stage, *_: stages.append(stage),
    )
    assert result.converged
    assert abs(result["frequency"].value - 1.0) < 4 * result["frequency"].standard_error
    assert not any("first" in stage for stage in stages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_in_another_precision_is_fitted_in_double_precision(dtype):
    class Chain(Model):
        states: ClassVar = {"a": "", "b": ""}
        default_state = (1.0, 0.0)

        def __init__(self):
            super().__init__(rate=1.0)
            self.register_buffer("flows", torch.tensor([[-1.0, 1.0], [0.0, -0.5]]))

        def forward(self, t, y):
            return self.rate * (y @ self.flows)

    data = simulate(Chain().double(), np.linspace(0, 3, 10), noise=0.01)
    options = {"start": {"rate": 0.8}, "fixed": {"a": 1.0, "b": 0.0}, "rtol": 1e-6}
    model = Chain().to(dtype)
    result, expected = fit(model, data, **options), fit(Chain().double(), data, **options)
    assert result["rate"].value == expected["rate"].value
    assert result["rate"].standard_error == expected["rate"].standard_error
    assert result.model.values()["rate"] == pytest.approx(expected["rate"].value, rel=1e-15)
    assert model.rate.dtype == dtype, "the model that was given is not changed"


def test_what_the_data_do_not_determine_is_named():
    data = simulate(LotkaVolterra(), np.linspace(0, 6, 31), noise=0.01)[["time", "prey"]]
    result = fit(LotkaVolterra(), data, start=LotkaVolterra().values(), free="all", rtol=1e-6)
    assert result.warnings == ["the data do not determine the combination 0.71 log predator(0) -0.71 log beta"] or (
        result.warnings == ["the data do not determine the combination 0.71 log beta -0.71 log predator(0)"]
    )
    assert result["beta"].standard_error == np.inf
    assert (result["beta"].lower, result["beta"].upper) == (0, np.inf)
    assert np.isfinite(result["gamma"].standard_error)
    lower, upper = result.band(np.linspace(0, 6, 5))
    assert np.isfinite(upper[:, 0]).all()
    assert np.isinf(upper[1:, 1]).all()
    assert (lower[1:, 1] == 0).all()
    assert result.dictionary()["estimates"][1]["upper"] is None


def test_a_parameter_without_effect_is_named():
    data = simulate(SIR(0.4, 0.15), np.arange(0.0, 40.0, 2.0), noise=0.002)[["time", "infected"]]

    class Vaccinated(SIR):
        def __init__(self):
            super().__init__()
            self.register_parameter("unused", type(self.beta)(self.beta.detach().clone()))

    result = fit(Vaccinated(), data, start={"beta": 0.5}, rtol=1e-6, method="dopri5")
    assert "the data do not determine unused" in result.warnings
    assert result["unused"].standard_error == np.inf
    assert np.isfinite(result.band([10.0])[1]).all()


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = LotkaVolterra(0.5, 0.03, 0.8, 0.02)
    hits = []
    for seed in range(15):
        data = simulate(truth, np.arange(0.0, 25.0), (30.0, 5.0), noise=0.15, lognormal=True, seed=seed)
        result = fit(LotkaVolterra(), data, noise="lognormal", start=truth.values(), rtol=1e-6)
        assert result.converged
        hits.extend(result[name].lower < value < result[name].upper for name, value in truth.values().items())
    assert 0.85 < np.mean(hits) <= 1.0, "60 correlated trials of probability 0.95"


@pytest.mark.slow
def test_the_rate_constants_of_robertson():
    """Over six decades of time, from the wrong ones by factors of two to three."""
    truth, t = Robertson(), np.logspace(-2, 4, 19)
    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    with torch.no_grad():
        exact = solve_ivp(truth, (0.0, t[-1]), start, t_eval=t.tolist(), method="radau5", rtol=1e-9, atol=1e-13).y
    noisy = exact.numpy() * np.exp(0.01 * np.random.default_rng(1).standard_normal(exact.shape))
    data = pd.DataFrame({"time": t, **dict(zip(truth.states, noisy.T, strict=True))})
    data = pd.concat([pd.DataFrame({"time": [0.0], "a": [1.0]}), data])
    result = fit(
        Robertson(),
        data,
        method="rodas5p",
        noise="lognormal",
        free=list(truth.values()),
        fixed={"a": 1.0, "b": 0.0, "c": 0.0},
        start={"k1": 0.1, "k2": 1e7, "k3": 3e3},
        rtol=1e-6,
        atol=1e-12,
    )
    assert result.converged and not result.warnings
    for name, value in truth.values().items():
        assert abs(np.log(result[name].value / value)) < 3 * result[name].scale_error < 0.03
