"""Fits by other optimisers than least squares, against closed forms and SciPy's regression."""

import functools
import re
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import curve_fit

from compilers import needs_compiler
from torchivp import fit
from torchivp.fitting import misfit as misfits
from torchivp.fitting import read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.data import read_doses
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.inputs import read_inputs
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Equations, Model, StochasticModel

GROWTH = "size' = r*size*(1 - size/K)\nr = 1\nK = 6\nsize(0) = 0.5\npositive: size"
T = np.linspace(0, 8, 25)
START = {"r": 0.6, "K": 6.0, "size": 0.8}


def logistic(t, r, k, first):
    return k / (1 + (k / first - 1) * np.exp(-r * t))


SIZES = logistic(T, 0.9, 5.0, 0.4) + 0.1 * np.random.default_rng(0).standard_normal(len(T))


def grown(optimiser, **options):
    table = {"time": T, "size": SIZES}
    return fit(Equations(GROWTH), table, start=START, optimiser=optimiser, backend="fused", **options)


@needs_compiler
@pytest.mark.parametrize(
    "optimiser",
    [
        "l-bfgs",
        "bfgs",
        "SLSQP",
        "TNC",
        "trust-constr",
        "Nelder-Mead",
        "COBYQA",
        functools.partial(torch.optim.LBFGS, line_search_fn="strong_wolfe"),
        functools.partial(torch.optim.Adam, lr=0.1),
    ],
    ids=lambda each: each if isinstance(each, str) else each.func.__name__,
)
def test_every_optimiser_finds_the_optimum_of_a_regression(optimiser):
    result = grown(optimiser, max_iterations=800)
    expected, covariance = curve_fit(logistic, T, SIZES, [0.6, 6.0, 0.8], xtol=1e-12)
    assert result.converged, result.warnings
    for name, value, error in zip(("r", "K", "size(0)"), expected, np.sqrt(np.diag(covariance)), strict=True):
        assert result[name].value == pytest.approx(value, abs=0.05 * error)
        likely = error * np.sqrt((len(T) - 3) / len(T))  # with the variance that makes the data most likely
        assert result[name].standard_error == pytest.approx(likely, rel=0.02)
    left = SIZES - logistic(T, *expected)
    assert result.sigma[0] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-3)


@needs_compiler
def test_a_search_that_was_stopped_has_not_converged():
    result = grown(functools.partial(torch.optim.Adam, lr=0.01), max_iterations=5)
    assert not result.converged
    assert "    optimiser=functools.partial(torch.optim.adam.Adam, lr=0.01)," in result.call
    assert "import functools" in result.call
    assert "the search has not converged: the numbers are those of its last iteration" in result.warnings


@needs_compiler
def test_bounds_and_priors_hold():
    """As least squares has them."""
    options = {"bounds": {"K": (5.9, 8.0)}, "priors": {"r": (0.5, 0.02)}}
    ours, theirs = grown("l-bfgs", **options), grown("least-squares", **options)
    assert ours.converged
    assert ours["K"].value == pytest.approx(5.9, rel=1e-9)
    assert ours["r"].value == pytest.approx(theirs["r"].value, rel=1e-2)
    assert ours.nll + ours.penalty <= theirs.nll + theirs.penalty + 1e-6
    stepped = grown(functools.partial(torch.optim.Adam, lr=0.02), max_iterations=100, **options)
    assert stepped["K"].value == pytest.approx(5.9, rel=1e-9)
    with refused("optimiser='BFGS' knows no bounds: leave out bounds, or take optimiser='l-bfgs'"):
        grown("bfgs", **options)


ORAL = """
gut' = -ka*gut
body' = ka*gut - ke*body
ka = 1
ke = 0.3
gut(0) = 0
body(0) = 0.1
"""


@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_the_gradient_backwards_is_that_of_the_jacobian(method, monkeypatch):
    """Of two series with doses and a jump, of an observable that is a formula, with a tied parameter."""
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"time": np.linspace(0, end, count), "level": 1 + rng.random(count), "who": who})
        for who, end, count in (("a", 6.0, 7), ("b", 8.0, 5))
    ]
    model = Equations(ORAL).double()
    states = list(model.states)
    data = read_data(pd.concat(parts), states, trajectory="who", observe={"level": "scale * log(1 + body)"})
    doses = read_doses({"time": [0.0, 3.0], "amount": [4.0, 6.0], "state": ["gut", "gut"]}, ["a", "b"], states)
    choices = Choices(free="all", parameters={"scale": 2.0}, tied={"ke": "ka / 3"})
    quantities = list_quantities(model, data, choices)
    inputs = read_inputs([2.5], doses, ["a", "b"])
    misfit = Misfit(model, data, quantities, Accuracy(method, 1e-7, 1e-8, 1000), inputs)
    theta = quantities.theta() + 0.1
    found = misfit.predictions(theta)
    weights = rng.standard_normal(len(found.values))
    monkeypatch.setattr(misfits, "MANY_DIRECTIONS", 0)
    seen, gradient = misfit.pulled_back(theta, lambda one: weights * one.values)
    np.testing.assert_allclose(seen.values, found.values, rtol=1e-5)
    np.testing.assert_allclose(gradient, (weights * found.values) @ found.jacobian, rtol=1e-4, atol=1e-5)


COUNT = 6


class Hats(Model):
    """`y' = sum_i w_i hat(t - i)`, whose solution is linear in its parameters."""

    states: ClassVar = {"y": ""}
    default_state = (0.0,)
    positive = ()

    def __init__(self):
        super().__init__(**{f"w{i}": 0.1 for i in range(COUNT)})

    def forward(self, t, y):
        weights = torch.stack([getattr(self, f"w{i}") for i in range(COUNT)])
        hats = (1 - (t - torch.arange(COUNT, dtype=t.dtype)).abs()).clamp_min(0)
        return (weights * hats).sum().expand(y.shape)


def integrated_hat(x):
    """The integral of a hat from before it to x."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)


@needs_compiler
def test_many_parameters_by_gradients_backwards(monkeypatch):
    """As many as there are hats, and against linear regression."""
    monkeypatch.setattr(misfits, "MANY_DIRECTIONS", 3)
    t, centres = np.linspace(0, COUNT - 1, 2 * COUNT + 11), np.arange(COUNT)
    design = integrated_hat(t[:, None] - centres) - integrated_hat(-centres)
    rng = np.random.default_rng(3)
    data = design @ rng.standard_normal(COUNT) + 0.05 * rng.standard_normal(len(t))
    result = fit(
        Hats(),
        {"time": t, "y": data},
        fixed={"y": 0.0},
        sigma=0.05,
        optimiser="l-bfgs",
        backend="fused",
        method="dopri5",
        rtol=1e-5,
        atol=1e-6,
        jump_times=centres[1:-1].tolist(),
    )
    expected, *_ = np.linalg.lstsq(design, data, rcond=None)
    assert not any("not converged" in each for each in result.warnings)
    np.testing.assert_allclose([result[f"w{i}"].value for i in range(COUNT)], expected, atol=2e-3)


class Brownian(StochasticModel):
    states: ClassVar = {"x": ""}
    default_state = (0.0,)
    noise_type = "diagonal"

    def __init__(self):
        super().__init__(pull=1.0)

    def forward(self, t, y):
        return -self.pull * y

    def diffusion(self, t, y):
        return torch.ones_like(y)


def refused(words, error=ValueError):
    return pytest.raises(error, match=re.escape(words))


def test_what_is_no_optimiser_is_refused():
    with refused("optimiser='sgd' is none of auto, least-squares, l-bfgs, L-BFGS-B, TNC, SLSQP, trust-constr, BFGS"):
        grown("sgd")
    with refused("optimiser must be a name such as 'l-bfgs', or make an optimiser of torch", TypeError):
        grown(3)
    with refused("starts takes optimiser='least-squares', since other optimisers go from the start values and nowhere"):
        fit(Equations(GROWTH), {"time": T, "size": SIZES}, optimiser="l-bfgs", starts=4)
    with refused("shooting takes optimiser='least-squares'"):
        grown("l-bfgs", shooting="multiple")
    with refused("a StochasticModel is fitted by optimiser='least-squares': leave out optimiser"):
        fit(Brownian(), {"time": T, "x": SIZES}, optimiser="l-bfgs")


@needs_compiler
def test_many_combinations_that_the_data_do_not_determine_are_counted():
    """Many rates of which only the sum matters."""

    class Redundant(Model):
        states: ClassVar = {"y": ""}
        default_state = (1.0,)
        positive = ()

        def __init__(self):
            super().__init__(**{f"k{i}": 0.02 for i in range(22)})

        def forward(self, t, y):
            return -torch.stack([getattr(self, f"k{i}") for i in range(22)]).sum() * y

    t = np.linspace(0, 3, 40)
    data = np.exp(-0.66 * t) + 0.01 * np.random.default_rng(0).standard_normal(40)
    result = fit(Redundant(), {"time": t, "y": data}, fixed={"y": 1.0}, optimiser="l-bfgs", backend="fused")
    assert result.converged
    assert sum(result[f"k{i}"].value for i in range(22)) == pytest.approx(0.66, abs=0.02)
    (told,) = [each for each in result.warnings if "do not determine" in each]
    assert told.startswith("the data do not determine, or hardly, 21 combinations of 22 free quantities: the standard")
