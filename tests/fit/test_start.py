"""When the search for the start of a fit has seen enough."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.interpolate import make_smoothing_spline
from scipy.linalg import expm

from compilers import needs_compiler
from torchivp.fitting import fit, read_data
from torchivp.fitting.choices import list_quantities
from torchivp.fitting.levels import read_levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.searching import maximise, multistart, start
from torchivp.fitting.searching.optimise import Minimum, Search, Weighing
from torchivp.fitting.searching.smoothing import Smoothing
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Equations, Model


class Level(Model):
    states: ClassVar = {"level": ""}
    default_state = (0.0,)

    def __init__(self):
        super().__init__(rate=1.0)

    def forward(self, t, y):
        return self.rate - y


WAYS, COUNT = 5, 60
NOISE = np.random.default_rng(1).standard_normal(COUNT)
WAVE = np.sin(np.linspace(0, 12, COUNT))  # what a model leaves that runs out of step with its data


@pytest.mark.parametrize(
    ("pattern", "left", "ways"),
    [(NOISE, 0.05, 1), (NOISE, 0.3, 2), (NOISE, 0.8, 2), (WAVE, 0.05, 2), (WAVE, 0.3, 2), (WAVE, 0.8, WAYS)],
    ids=lambda value: {id(NOISE): "noise", id(WAVE): "wave"}.get(id(value), str(value)),
)
def test_the_search_ends_at_an_optimum_that_explains_enough_or_leaves_noise(pattern, left, ways, monkeypatch):
    """One way to it is enough if it explains nine tenths and leaves noise; two if it explains half or leaves noise.

    All ways lead to the same optimum here, which leaves this fraction of the variance of the data.
    """
    data = read_data(pd.DataFrame({"time": np.arange(COUNT), "level": NOISE}), ["level"])
    quantities = list_quantities(Level(), data)
    misfit = Misfit(Level(), data, quantities, Accuracy("dopri5", 1e-3, 1e-3, 100))
    levels = read_levels(data, "normal", "separate", misfit.measured())
    values = pattern * np.sqrt(left / np.mean(pattern**2))
    predictions = Predictions(
        quantities.theta(), NOISE + values, np.zeros((COUNT, len(quantities.free))), misfit.measured()
    )
    tried = []

    def minimise(search, theta, weighing, name):
        tried.append(name)
        return Minimum(theta, float(np.sum(values**2)), True, predictions)

    candidates = [start._Candidate(quantities.theta(), f"start {i}") for i in range(WAYS)]
    monkeypatch.setattr(start, "_candidates", lambda *_: iter(candidates))
    monkeypatch.setattr(start, "on_all_data", minimise)
    found = start.find_start(
        Search(misfit, levels, lambda *_: None, 100), Weighing(levels.rough(np.ones(1)), np.ones(0)), given=False
    )
    assert found.best.found is predictions
    assert len(tried) == ways


GIVEN = {"k": 0.6, "m": 0.38, "s": 0.099}


@needs_compiler
@pytest.mark.parametrize(
    ("by_column", "options"),
    [(False, {"start": GIVEN}), (True, {}), (True, {"starts": 3})],
    ids=["start", "", "starts"],
)
def test_a_fit_finds_the_likelier_of_two_optima(by_column, options, monkeypatch):
    """A bound parts them; residuals that are weighed by the scatter of the data know one.

    A fit ends no worse than at its start; and elsewhere one column is believed more than the other for a while.
    """
    if not by_column:
        monkeypatch.setattr(maximise, "likeliest_by_column", lambda search, likelihood, *_: likelihood)
    t = np.linspace(0, 10, 21)
    slopes = np.array([[-1.0, 0, 0.1], [0.8, -0.1, 0], [0, 0, 0]])
    states = np.array([(expm(slopes * x) @ [1, 0, 1])[:2] for x in t])
    random = np.random.default_rng(0)
    for _ in range(9):
        noise = random.normal(size=states.shape)
    c, d = (states + 0.01 * noise).T
    model = Equations("c' = -(k + m)*c + s\nd' = k*c - 0.1*d\nk = 0.5\nm = 0.2\ns = 0.1\nc(0) = 1\nd(0) = 0")
    bounds = {"k": (0.1, 0.6), "m": (1e-6, 2)}
    options = options | {"fixed": {"c": 1.0, "d": 0.0}, "bounds": bounds, "backend": "fused", "method": "dopri5"}
    found = fit(model, {"time": t, "c": c, "d": d}, **options)
    assert found.nll == pytest.approx(-73.9089663588437, abs=1e-5), "by L-BFGS-B from there"
    assert found["m"].value == pytest.approx(0.38337, abs=1e-4)
    if found.attempts:
        assert found.attempts[0].nll == found.nll


def test_where_columns_look_like_noise_none_is_believed_more(monkeypatch):
    t = np.linspace(0, 3, 31)
    noise = 0.01 * np.random.default_rng(0).standard_normal((2, 31))
    data = {"time": t, "y": np.exp(-0.5 * t) + noise[0], "z": 2 * np.exp(-0.5 * t) + noise[1]}
    model = Equations("y' = -k*y\nz' = -k*z\nk = 0.6\ny(0) = 1\nz(0) = 2")
    options = {"fixed": {"y": 1.0, "z": 2.0}, "backend": "eager", "method": "dopri5", "rtol": 1e-6}
    stages = set()
    fit(model, data, progress=lambda stage, *_: stages.add(stage), **options)
    assert stages
    assert not any("column by column" in stage for stage in stages)


def test_many_starts_compare_what_priors_say_too(monkeypatch):
    t = np.linspace(0, 3, 13)
    model = Equations("y' = -k*y\nk = 0.6\ny(0) = 1\nreal: k")
    options = {"fixed": {"y": 1.0}, "priors": {"k": (0.5, 0.1)}, "backend": "eager", "method": "dopri5", "rtol": 1e-6}
    search = fit(model, {"time": t, "y": np.exp(-0.5 * t) + 0.01 * np.cos(9 * t)}, **options).search
    likelier, in_all = (
        multistart.Attempt(np.array([k]), np.array([k]), nll, True) for k, nll in ((1.0, 1.0), (0.5, 1.1))
    )
    led = [multistart._Led(each, 1) for each in (likelier, in_all)]
    monkeypatch.setattr(multistart._Starts, "search", lambda *_: led)
    found = multistart.search_from_many(search, None, None, 2)
    assert found == [in_all, likelier], "k = 1 is five standard deviations from what is known of it"


@needs_compiler
@pytest.mark.parametrize("rate", [5.0, 50.0, 200.0])
def test_priors_are_weighed_with_the_noise_and_not_with_the_scatter_of_the_data(rate):
    """The prior of k has its mode at zero; the best place is that of the closed solution on a grid."""
    t = np.linspace(0, 5, 21)
    y = 0.1 / 0.6 + (2 - 0.1 / 0.6) * np.exp(-0.6 * t) + 0.05 * np.random.default_rng(0).standard_normal(21)
    model = Equations("y' = -k*y + s\nk = 0.5\ns = 0.2\ny(0) = 2\nreal: s")
    options = {"fixed": {"y": 2.0}, "backend": "fused", "method": "dopri5"}
    found = fit(model, {"time": t, "y": y}, priors={"k": torch.distributions.Exponential(rate)}, **options)

    def cost(k):
        slope = -np.expm1(-k * t) / k  # by s, which is the best one
        left = y - 2 * np.exp(-k * t)
        left = left - slope * (slope @ left) / (slope @ slope)
        return 0.5 * 21 * (np.log(2 * np.pi * np.mean(left**2)) + 1) + rate * k

    assert found.nll + found.penalty == pytest.approx(min(map(cost, np.geomspace(1e-6, 3, 4000))), abs=2e-3)


@pytest.mark.parametrize("count", [6, 40])
def test_smooth_curves_are_those_of_generalised_cross_validation(count):
    """As SciPy draws them, which computes the degrees of freedom in another way."""
    rng = np.random.default_rng(0)
    s, how = np.sort(rng.uniform(0, count, count)), Smoothing()
    for v in (np.sin(s / 3) + 0.1 * rng.standard_normal(count), np.cos(s / 4) + 0.3 * rng.standard_normal(count)):
        np.testing.assert_allclose(how.curve(s, v)(s), make_smoothing_spline(s, v)(s), atol=1e-4)


def test_the_start_is_searched_for_once_at_each_accuracy(monkeypatch):
    """The solves become more accurate, as the noise turns out to be small against their errors."""
    seen, find = [], maximise.find_start

    def counted(search, *arguments):
        seen.append(search.misfit.accuracy.rtol)
        return find(search, *arguments)

    monkeypatch.setattr(maximise, "find_start", counted)
    t = np.linspace(0, 10, 21)
    data = {"time": t, "y": np.exp(-t + 1e-5 * np.random.default_rng(0).standard_normal(21))}
    model = Equations("y' = -k*y\nk = 0.5\ny(0) = 1\npositive: y")
    found = fit(model, data, noise="lognormal", rtol=1e-6, method="dopri5", backend="eager")
    assert found.misfit.accuracy.rtol < 1e-6, "solves became more accurate"
    assert seen == pytest.approx([1e-5])
    assert found["k"].value == pytest.approx(1.0, abs=2e-5)
