"""Fits whose numbers could be wrong without a word: each with the right value, or with what is said."""

import math
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from simulated import simulate
from torchivp import Scheduled
from torchivp.fitting import fit, read_data
from torchivp.fitting.choices import list_quantities
from torchivp.fitting.levels import read_levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.quantities import Quantity
from torchivp.fitting.results.uncertainty import Evidence, fisher_uncertainty
from torchivp.fitting.searching import trust
from torchivp.fitting.searching.optimise import Likelihood, Minimum
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Model


class Growth(Model):
    states: ClassVar = {"size": ""}
    default_state = (1.0,)

    def __init__(self, rate=1.0, capacity=5.0):
        super().__init__(rate=rate, capacity=capacity)

    def forward(self, t, y):
        return self.rate * y * (1 - y / self.capacity)


class Decay(Model):
    states: ClassVar = {"amount": ""}
    default_state = (1.0,)

    def __init__(self, rate=1.0):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return -self.rate * y


class Rise(Decay):
    def forward(self, t, y):
        return self.rate * y


class Infusion(Model):
    """200 mg in half an hour, three times."""

    states: ClassVar = {"concentration": "mg/l"}
    default_state = (0.0,)

    def __init__(self, clearance=5.0, volume=30.0):
        super().__init__(clearance=clearance, volume=volume)

    def forward(self, t, y):
        on = ((t >= 0) & (t < 0.5)) | ((t >= 24) & (t < 24.5)) | ((t >= 48) & (t < 48.5))
        return torch.where(on, 400.0, 0.0) / self.volume - self.clearance / self.volume * y


class Chain(Model):
    states: ClassVar = {"a": "", "b": ""}
    default_state = (1.0, 0.5)

    def __init__(self, k=1.0, m=0.5):
        super().__init__(k=k, m=m)

    def flows(self, t, y):
        return -self.k * y[..., 0], self.k * y[..., 0] - self.m * y[..., 1]

    def forward(self, t, y):
        return torch.stack(self.flows(t, y), -1)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count)


def holds(result, **truth: float) -> None:
    """Whether the intervals hold what is true, about, and nothing is to be warned of."""
    assert result.converged
    assert result.warnings == []
    for name, value in truth.items():
        estimate = result[name.replace("_0", "(0)")]
        reach = estimate.upper - estimate.lower
        assert estimate.lower - reach < value < estimate.upper + reach, name
        assert reach < value, name


def test_growth_over_twelve_decades_with_lognormal_noise():
    t = np.linspace(0, 40, 41)
    size = 1e12 / (1 + (1e12 - 1) * np.exp(-t)) * np.exp(0.05 * noise(41))
    result = fit(Growth(), pd.DataFrame({"time": t, "size": size}), noise="lognormal")
    holds(result, rate=1.0, capacity=1e12, size_0=1.0)
    assert 0.03 < result["sigma(size)"].value < 0.06


def test_decay_over_fourteen_decades_with_lognormal_noise():
    t = np.linspace(0, 32.2, 40)
    data = pd.DataFrame({"time": t, "amount": np.exp(-t + 0.05 * noise(40))})
    holds(fit(Decay(0.3), data, noise="lognormal"), rate=1.0, amount_0=1.0)


def test_a_signal_that_grows_from_far_below_its_noise():
    t = np.linspace(0, 19.6, 30)
    data = pd.DataFrame({"time": t, "amount": 5e-4 * np.exp(t) + 1000 * noise(30)})
    result = fit(Rise(0.5), data, start={"rate": 0.9, "amount": 1e-3})
    exact = pd.DataFrame({"time": t, "amount": result["amount(0)"].value * np.exp(result["rate"].value * t)})
    np.testing.assert_allclose(result.predict(t)[:, 0], exact["amount"], atol=100)
    assert abs(result["rate"].value - 1.0) < 0.05


@pytest.mark.slow
def test_an_epidemic_that_begins_with_one_case_in_a_thousand_million():
    """The beginning of the data says nothing, and no epidemic at all is an optimum too, which most ways lead to."""

    class Epidemic(Model):
        states: ClassVar = {"susceptible": "", "infected": ""}
        default_state = (1e9, 1.0)

        def __init__(self, beta=1.0, gamma=1.0):
            super().__init__(beta=beta, gamma=gamma)

        def forward(self, t, y):
            susceptible, infected = y.unbind(-1)
            new = self.beta * susceptible * infected / 1e9
            return torch.stack([-new, new - self.gamma * infected], -1)

    data = simulate(Epidemic(0.6, 0.2), np.linspace(0, 120, 41))[["time", "infected"]]
    data["infected"] += 1e7 * noise(41)
    result = fit(Epidemic(), data, fixed={"susceptible": 1e9, "infected": 1.0}, rtol=1e-6)
    holds(result, beta=0.6, gamma=0.2)


def test_a_fit_that_explains_less_than_a_constant_is_none():
    t = np.linspace(0, 5, 12)
    data = pd.DataFrame({"time": t, "amount": np.exp(0.3 * t)})
    result = fit(Decay(), data, fixed={"amount": 1.0}, start={"rate": 0.1})
    assert not result.converged
    assert result.warnings[0].startswith(
        "the model explains less of amount than a constant would: this is a wrong opti"
    )
    assert "start={name: value, ...}" in result.warnings[0]


def test_a_fit_that_explains_no_more_than_a_constant_says_so():
    class Either(Decay):
        positive = ()

    t, pattern = np.arange(8.0), np.array([1, -1, -1, 1, 1, -1, -1, 1])
    result = fit(Either(), pd.DataFrame({"time": t, "amount": 1 + 0.1 * pattern}), start={"rate": 0.1})
    assert result.converged
    assert result["rate"].value == pytest.approx(0, abs=0.01)
    assert any(each.startswith("the model explains no more of amount than a constant") for each in result.warnings)


def test_an_error_of_the_solver_that_cannot_be_mended_is_reported():
    t = np.linspace(0, 10, 21)
    data = pd.DataFrame({"time": t, "amount": np.exp(-t + 0.01 * noise(21))})
    result = fit(Decay(), data, noise="lognormal", rtol=1e-3, atol=1e-4, start={"rate": 1.0})
    assert not result.converged
    assert "the error of the solver is not small against the noise" in result.warnings[0]
    assert "sigma in amount, row" in result.warnings[0]
    assert result.message.startswith("not converged to what the model says")
    mended = fit(Decay(), data, noise="lognormal", rtol=1e-3, start={"rate": 1.0})
    holds(mended, rate=1.0)
    assert mended.misfit.accuracy.rtol < 1e-3


def infused(t: np.ndarray) -> np.ndarray:
    total, k = np.zeros_like(t), 5 / 30
    for begin in (0, 24, 48):
        length = np.clip(t - begin, 0, 0.5)
        total += 400 / 30 / k * (1 - np.exp(-k * length)) * np.exp(-k * np.clip(t - begin - 0.5, 0, None))
    return total


HOURS = np.array([0, 1, 2, 4, 8, 12, 20, 25, 28, 32, 40, 47, 49, 52, 56, 64, 72.0])
INFUSIONS = pd.DataFrame({"time": HOURS, "concentration": infused(HOURS) + 0.05 * noise(17, 1)})
HELD = {"start": {"clearance": 4.0, "volume": 40.0}, "fixed": {"concentration": 0.0}, "rtol": 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("until", "options"), [(72, {"jump_times": [0.5, 24, 24.5, 48, 48.5]}), (12, {"max_step": 0.4})]
)
def test_short_inputs_are_seen(until, options):
    holds(fit(Infusion(), INFUSIONS[INFUSIONS["time"] <= until], **HELD, **options), clearance=5.0, volume=30.0)


@pytest.mark.parametrize(
    ("method", "longest"), [("dopri5", "0.4 "), pytest.param("dopri8", "0.727 ", marks=pytest.mark.sweep)]
)
def test_solves_that_step_over_something_short_say_so(method, longest, monkeypatch):
    """Looked for four times less often than by default, which what lasts for a hundredth of the span does not need."""
    monkeypatch.setattr(trust, "_LOOKS", 500)

    class Sudden(Decay):
        """A pulse of a hundredth of the span that starts from nothing."""

        def forward(self, t, y):
            return torch.where((t > 50.3) & (t < 51.3), 1.0, 0.0) - self.rate * y

    t = np.linspace(0, 100, 21)
    data = pd.DataFrame({"time": t, "amount": 0.01 * noise(21)})
    options = {"start": {"rate": 0.1}, "fixed": {"amount": 0.0}, "rtol": 1e-5, "shooting": "single"}
    result = fit(Sudden(), data, method=method, **options)
    assert not result.converged
    assert f"solves step over something short: with steps of at most {longest}" in result.warnings[0]
    assert "give the times at which inputs begin and end in jump_times, or max_step" in result.warnings[0]


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
def test_the_check_of_the_solves_looks_at_the_right_hand_side_often_enough(method, monkeypatch):
    """And no more often: its steps are as long as the gaps between the nodes of the method allow."""

    class Watched(Decay):
        seen: ClassVar[list[float]] = []

        def forward(self, t, y):
            if t < 90:  # the last steps before the end are stretched a little
                self.seen.append(float(t))
            return super().forward(t, y)

    data = pd.DataFrame({"time": np.linspace(0, 100, 21), "amount": 1.0})
    dataset = read_data(data, ["amount"])
    quantities = list_quantities(Decay(), dataset)
    misfit = Misfit(Watched(1e-4), dataset, quantities, Accuracy(method, 1e-6, 1e-6, 10_000))
    levels = read_levels(dataset, "normal", "separate", misfit.measured())
    predictions = misfit.predictions(np.array([np.log(1e-4), 1.0]))
    monkeypatch.setattr(trust, "_LOOKS", 200)
    Watched.seen.clear()
    likelihood = Likelihood(Minimum(predictions.theta, 1.0, True, predictions), np.ones(1), 1.0, True, False)
    assert trust.check_solves(misfit, levels, likelihood).sentences == []
    assert np.diff(np.sort(Watched.seen)).max() == pytest.approx(100 / 200, rel=0.01)


@pytest.mark.parametrize("style", ["batches", "in place"])
def test_doses_are_scheduled(style):
    t = np.arange(0.0, 40.0, 2.5)
    amount = sum(3.0 * np.exp(-0.2 * np.clip(t - at, 0, None)) * (t >= at) for at in (0, 10, 20))

    def dose(_, y, value):
        if style == "batches":
            return y + value
        y = y.clone()
        y[0] = y[0] + value
        return y

    data = pd.DataFrame({"time": t, "amount": amount + 0.02 * noise(16)})
    doses = Scheduled([0.0, 10.0, 20.0], dose, torch.full((3,), 3.0, dtype=torch.float64))
    result = fit(Decay(0.4), data, schedule=doses, fixed={"amount": 0.0}, start={"rate": 0.4})
    holds(result, rate=0.2)
    exact = 3 * sum(np.exp(-result["rate"].value * (20 - at)) for at in (0, 10, 20))
    assert result.predict([20.0])[0, 0] == pytest.approx(exact, rel=1e-6), "the state after the dose"


def test_schedules_that_make_no_sense_are_refused():
    data = pd.DataFrame({"time": [0.0, 1.0, 2.0, 3.0], "amount": [1.0, 0.5, 0.2, 0.1]})
    with pytest.raises(TypeError, match=r"schedule must be a torchivp\.Scheduled, a list of these, or a dict"):
        fit(Decay(), data, schedule=[3.0])
    with pytest.raises(ValueError, match="max_step must be positive, got 0"):
        fit(Decay(), data, max_step=0)
    with pytest.raises(ValueError, match="jump_times must be finite"):
        fit(Decay(), data, jump_times=[math.nan])


class LooksAtTime(Chain):
    def forward(self, t, y):
        factor = 1.0 if t < 100 else 2.0
        return torch.stack(self.flows(t, y)) * factor * math.cos(0.0 * float(t))


class WritesInPlace(Chain):
    def forward(self, t, y):
        dy = torch.zeros(2, dtype=torch.float64)
        dy[0], dy[1] = self.flows(t, y)
        return dy


class LooksAtTheState(Chain):
    def forward(self, t, y):
        return torch.stack(self.flows(t, y)) * (1.0 if y[0] < 100 else 2.0)


class WritesInPlaceLater(Chain):
    def forward(self, t, y):
        return super().forward(t, y) if t < 2.5 else WritesInPlace.forward(self, t, y)


CHAINED = {"rtol": 1e-6, "method": "dopri5", "shooting": "single"}


@pytest.fixture(scope="module")
def chain():
    """A chain with noise, and its fit by a model that takes batches."""
    data = simulate(Chain(), np.linspace(0, 1, 9), noise=0.01)
    return data, fit(Chain(1.3, 0.4), data, start={"k": 1.02, "m": 0.49}, **CHAINED)


@pytest.mark.parametrize("style", [LooksAtTime, WritesInPlace, LooksAtTheState, WritesInPlaceLater])
def test_models_that_vmap_cannot_follow_are_fitted(style, chain):
    data, expected = chain
    result = fit(style(1.3, 0.4), data, start={"k": 1.02, "m": 0.49}, **CHAINED)
    assert result.converged
    for name in ("k", "m"):
        assert result[name].value == pytest.approx(expected[name].value, rel=1e-5)
        assert result[name].standard_error == pytest.approx(expected[name].standard_error, rel=1e-4)


class MakesATensor(Chain):
    def forward(self, t, y):
        return torch.tensor([float(flow) for flow in self.flows(t, y)], dtype=torch.float64)


class UsesNumPy(Chain):
    def forward(self, t, y):
        a, b = y.numpy()
        return torch.stack([-self.k * a, self.k * a - self.m * b])


class LosesOneState(Chain):
    def forward(self, t, y):
        return torch.stack([-self.k * y[0], self.k * y[0] - self.m * float(y[1])])


@pytest.mark.parametrize(("style", "names"), [(MakesATensor, "a, b, k, m"), (UsesNumPy, "a, b"), (LosesOneState, "b")])
def test_a_right_hand_side_without_a_gradient_is_refused(style, names):
    data = simulate(Chain(), np.linspace(0, 5, 9), noise=0.01)
    with pytest.raises(
        ValueError, match=f"the right-hand side of {style.__name__} depends on {names}.* is lost"
    ) as told:
        fit(style(), data)
    assert "torch.stack([...]) instead of torch.tensor([...])" in str(told.value)


def test_a_parameter_that_acts_through_a_comparison_is_reported(monkeypatch):
    monkeypatch.setattr(trust, "_LOOKS", 200)  # for short inputs, of which there are none

    class Lag(Decay):
        def __init__(self):
            super().__init__(0.5)
            self.register_parameter("lag", torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64)))

        def forward(self, t, y):
            return torch.where(t > self.lag, -self.rate * y, 0.0)

    t = np.linspace(0, 5, 21)
    data = pd.DataFrame({"time": t, "amount": np.exp(-0.5 * np.clip(t - 1.5, 0, None)) + 0.01 * noise(21)})
    options = {"rtol": 1e-5, "method": "dopri5", "shooting": "single"}
    result = fit(Lag(), data, start={"rate": 0.5}, **options)
    assert not result.converged
    assert "the model depends on lag in a way that has no derivative" in result.warnings[0]


@pytest.mark.slow
def test_a_start_that_takes_many_steps_is_as_good_as_any():
    class Oscillator(Model):
        states: ClassVar = {"x": "", "v": ""}
        default_state = (1.0, 0.0)

        def __init__(self, w=1.0):
            super().__init__(w=w)

        def forward(self, t, y):
            x, v = y.unbind(-1)
            return torch.stack([v, -self.w.square() * x], -1)

    t = np.linspace(0, 4, 8)  # which would allow 580 steps, and 700 are needed
    data = pd.DataFrame({"time": t, "x": np.cos(60 * t) + 0.01 * noise(8)})
    result = fit(Oscillator(), data, start={"w": 60.0}, fixed={"x": 1.0, "v": 0.0}, rtol=1e-5)
    assert result.converged
    assert result["w"].value == pytest.approx(60, rel=1e-4)


def test_a_quantity_at_its_bound_is_named():
    t = np.linspace(0, 5, 20)
    data = pd.DataFrame({"time": t, "amount": 5 * np.exp(-0.3 * t) + 0.05 * noise(20)})
    result = fit(Rise(), data)
    warning, pattern = result.warnings
    assert pattern.startswith("the residuals of amount resemble"), "and nothing else about the fit"
    assert warning.startswith("rate is at its bound, zero: the model explains the data as well without it")
    assert "leave it out of the positive of Rise" in warning


def test_two_columns_of_a_state_do_not_add_their_noise():
    t = np.linspace(0, 3, 20)
    amount = 2 * np.exp(-0.7 * t)
    data = pd.DataFrame({"time": t, "fine": amount + 0.05 * noise(20), "coarse": amount + 0.2 * noise(20, 1)})
    result = fit(Decay(), data, observe={"fine": "amount", "coarse": "amount"}, start={"rate": 0.7})
    lower, upper = result.prediction_band([1.0])
    sigma = result["sigma(coarse)"].value
    assert 1.96 * sigma < (upper - lower)[0, 1] / 2 < 2.4 * sigma


def test_intervals_are_those_of_regression():
    """By a linear model, whose intervals are known: Student's t, and the chi-squared distribution for sigma."""
    t = np.arange(6.0)
    design = np.stack([np.ones(6), t], axis=1)
    y = 1 + 2 * t + noise(6)
    beta, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
    ml = np.sqrt(rss[0] / 6)

    free = [Quantity(name, "parameter", name, None, 1.0, True, "linear", 1.0, "", "") for name in "ab"]
    uncertainty = fisher_uncertainty([Evidence(design / ml, 6, True)], free, np.zeros(2, dtype=bool))
    unbiased = rss[0] / 4 * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(uncertainty.reach(np.eye(2)), 2.776445 * np.sqrt(np.diag(unbiased)), rtol=1e-6)
    low, high = ml * np.array(uncertainty.sigma_factors(0))
    np.testing.assert_allclose([low, high], np.sqrt(rss[0] / np.array([11.143287, 0.484419])), rtol=1e-5)
    new = uncertainty.reach(np.array([[1.0, 2.5]]), np.array([[ml**2]]))
    at = np.array([1.0, 2.5])
    np.testing.assert_allclose(new, 2.776445 * np.sqrt(rss[0] / 4 + at @ unbiased @ at), rtol=1e-6)
    assert beta.shape == (2,)


def test_a_second_optimum_is_reported():
    """Absorption and elimination may change places (flip-flop kinetics)."""

    class Oral(Model):
        states: ClassVar = {"gut": "mg", "central": "mg/l"}
        default_state = (100.0, 0.0)

        def __init__(self, ka=1.0, clearance=3.0, volume=20.0):
            super().__init__(ka=ka, clearance=clearance, volume=volume)

        def forward(self, t, y):
            gut, central = y.unbind(-1)
            absorbed = self.ka * gut
            return torch.stack([-absorbed, (absorbed - self.clearance * central) / self.volume], -1)

    t = np.array([0, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24])
    ka, k = 0.8, 4 / 25
    central = 4 * ka / (ka - k) * (np.exp(-k * t) - np.exp(-ka * t)) + 0.03 * noise(12)
    result = fit(Oral(), pd.DataFrame({"time": t, "central": central}), fixed={"gut": 100.0, "central": 0.0}, rtol=1e-6)
    assert result.converged
    assert result["ka"].value == pytest.approx(0.8, rel=0.1), "the one nearest to the defaults"
    (warning,) = result.warnings
    assert warning.startswith("a second optimum explains the data as well, ka = 0.1")


def test_a_long_series_of_one_state_costs_steps_not_points():
    t = np.linspace(0, 8, 20_000)
    data = pd.DataFrame({"time": t, "size": 4 / (1 + 19 * np.exp(-1.1 * t)) + 0.05 * noise(20_000)})
    result = fit(Growth(), data, rtol=1e-6)
    holds(result, rate=1.1, capacity=4.0, size_0=0.2)
