"""Fits of models with tensors among their parameters: against closed forms, differences and known functions."""

import json
import math
import pickle
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from compilers import needs_compiler
from torchivp import FitResult, fit, solve_ivp
from torchivp.fitting import DataError, misfit, read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.data import read_doses
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.results import uncertainty
from torchivp.fitting.solving.inputs import read_inputs
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import LotkaVolterra, Model, ModuleModel, StochasticModel

pytestmark = needs_compiler

COUNT = 4


class Waves(Model):
    """`y' = slope + sum_i w_i cos(pi i t)`, whose solution is linear in all parameters."""

    states: ClassVar = {"y": "what is measured"}
    default_state = (0.0,)
    positive = ()
    meanings: ClassVar = {"w": "heights"}

    def __init__(self, first=0):
        super().__init__(slope=0.3)
        self.w = nn.Parameter(torch.full((COUNT - first,), 0.1, dtype=torch.float64))
        self.first = first

    def forward(self, t, y):
        waves = (math.pi * torch.arange(self.first, COUNT, dtype=y.dtype) * t[..., None]).cos()
        return (self.slope + (self.w * waves).sum(-1))[..., None].expand(y.shape)


T = np.linspace(0, 1, 13)


def design(first):
    """The derivatives of the solution by slope and heights, [13, n]."""
    return np.stack([T, *(np.sin(np.pi * i * T) / (np.pi * i) if i else T for i in range(first, COUNT))], 1)


HEIGHTS = np.array([0.5, -0.4, 0.8, 0.1])
MEASURED = design(0) @ np.array([0.2, *HEIGHTS]) + 0.05 * np.random.default_rng(0).standard_normal(len(T))


def fitted(first=1, **options):
    given = {"initial": {"y": 0.0}, "sigma": 0.05, "rtol": 1e-6, "shooting": "single", "backend": "fused", **options}
    return fit(Waves(first), {"time": T, "y": MEASURED}, **given)


@pytest.mark.parametrize("prior", [None, 0.4])
def test_a_linear_model_with_a_tensor_has_the_estimates_of_regression(prior):
    """And its scalar the standard error that the whole information leaves it, with a ridge for priors."""
    result = fitted(priors={"w": (0.0, prior)} if prior else {})
    x = design(1)
    precision = x.T @ x / 0.05**2
    if prior:
        precision += np.diag([0.0] + [prior**-2] * (COUNT - 1))
    expected = np.linalg.solve(precision, x.T @ MEASURED / 0.05**2)
    assert result.converged
    np.testing.assert_allclose(result.theta, expected, atol=2e-2 * np.sqrt(np.diag(np.linalg.inv(precision))).min())
    error = math.sqrt(np.linalg.inv(precision)[0, 0])
    assert result["slope"].standard_error == pytest.approx(error, rel=1e-5)
    assert result["slope"].upper - result["slope"].value == pytest.approx(1.959964 * error, rel=1e-5)
    (direction,) = result.determined()
    assert direction.combination == "slope"
    typical = result.uncertainty.magnitudes[0]
    assert direction.standard_error * typical == pytest.approx(error, rel=1e-5)
    low, high = result.band(T[5:7])
    covariance = x[5:7] @ np.linalg.inv(precision) @ x[5:7].T
    np.testing.assert_allclose((high - low)[:, 0], 2 * 1.959964 * np.sqrt(np.diag(covariance)), rtol=1e-4)


def test_what_a_tensor_can_take_the_place_of_is_not_determined():
    """A constant is a slope."""
    result = fitted(first=0, backend="eager")
    assert result["slope"].standard_error == math.inf
    assert "the data do not determine slope" in result.warnings
    determined = fitted(first=0, backend="eager", priors={"w": (0.0, 1.0)})
    assert determined["slope"].standard_error == pytest.approx(1.0, rel=1e-2)


def test_one_line_each():
    result = fitted()
    heights = result["w"]
    assert result.free_names == ["slope"]
    assert result.covariance.shape == result.correlation.shape == (1, 1)
    assert heights.kind == "tensor"
    assert heights.value == pytest.approx(np.linalg.norm(result.model.w.detach().numpy()), rel=1e-12)
    assert math.isnan(heights.standard_error)
    assert heights.description == "heights: norm of 3 numbers"
    assert list(result.to_frame().index) == ["slope", "w", "y(0)"]
    assert "w[" not in result.summary() + result._repr_html_() + json.dumps(result.dictionary()["estimates"])
    assert "model,  # Waves with the tensors that it began with" in result.call
    assert result.n_free == COUNT


def test_bootstrap_profiles_and_checks_of_gradients_are_those_of_a_regression():
    result = fitted()
    found = result.profile("slope")
    assert (found.lower, found.upper) == pytest.approx((result["slope"].lower, result["slope"].upper), abs=2e-3)
    scatter = result.bootstrap(20)
    assert scatter.names == ["slope"]
    assert 0.6 < scatter.standard_errors["slope"] / result["slope"].standard_error < 1.5
    check = result.check_gradient()
    assert check.good
    assert set(check.errors) == {"slope", "w"}


def test_files_keep_a_fit_and_a_report_shows_it(tmp_path):
    result = fitted()
    again = FitResult.load(result.save(tmp_path / "waves.fit"))
    assert torch.equal(again.model.w, result.model.w)
    np.testing.assert_allclose(again.predict(T[:3]), result.predict(T[:3]), rtol=1e-12)
    result.to_json(tmp_path / "waves.json")
    numbers = FitResult.load(tmp_path / "waves.json")
    assert numbers.summary() == result.summary()
    page = result.report(tmp_path / "report", interactive=False).read_text(encoding="utf-8")
    assert "Tensors" in page
    assert page.count("heights: norm of 3 numbers") == 1


def test_a_fit_that_is_repeated_from_its_journal_ends_at_the_same_bits(tmp_path):
    whole = fitted()
    first = fitted(checkpoint=tmp_path / "journal")
    half = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(half[: len(half) // 2])
    second = fitted(checkpoint=tmp_path / "journal")
    np.testing.assert_array_equal(first.theta, whole.theta)
    np.testing.assert_array_equal(second.theta, whole.theta)


class Grazed(nn.Module):
    """Growth less what an unknown function of the size takes, and waste: a module like any other."""

    states: ClassVar = {"size": 0.3, "waste": 0.1}

    def __init__(self, width=2):
        super().__init__()
        torch.manual_seed(0)
        self.rate = nn.Parameter(torch.tensor(1.1))
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, t, y):
        size, waste = y[..., :1], y[..., 1:]
        taken = size * self.net(size)
        return torch.cat([self.rate * size - taken, taken - 0.5 * waste], -1)


@pytest.mark.parametrize(("backend", "rows"), [("eager", 2), ("eager", 9), ("fused", 9)])
def test_derivatives_are_differences(backend, rows):
    """With an infusion and a dose, in few rows and in many, whose derivatives come another way."""
    names = [f"s{i}" for i in range(rows)]
    table = {"time": [], "size": [], "who": []}
    for name in names:
        table["time"] += [0.5, 1.3]
        table["size"] += [1.0, 1.1]
        table["who"] += [name] * 2
    model = ModuleModel(Grazed(), Grazed.states).double()
    data = read_data(table, list(model.states), trajectory="who", observe={"size": "log(size + waste)"})
    doses = {"time": [0.6, 1.2], "amount": [0.3, 0.5], "duration": [0.3, 0.0], "state": ["waste", "size"]}
    inputs = read_inputs([], read_doses(doses, names, list(model.states)), names)
    quantities = list_quantities(model, data, Choices(start={"size": 0.4}, fixed={"waste": 0.2}))
    found = Misfit(model, data, quantities, Accuracy("dopri5", 1e-7, 1e-7, 1000), inputs)
    if backend == "fused":
        found.compile()
    theta = quantities.theta()
    jacobian = found.predictions(theta).jacobian
    h = 1e-3
    some = [0, 1, 4, 7]
    steps = h * np.eye(len(theta))[some]
    plus, minus = (found.predictions_at(theta + sign * steps) for sign in (1, -1))
    differences = np.stack([(a.values - b.values) / (2 * h) for a, b in zip(plus, minus, strict=True)], 1)
    np.testing.assert_allclose(jacobian[:, some], differences, rtol=1e-4, atol=1e-5)
    values, gradient = found._solved_backwards(theta, lambda one: one.values)
    np.testing.assert_allclose(gradient, values @ jacobian, rtol=1e-5, atol=1e-6)


class Functional(Model):
    """Lotka-Volterra, where it is not known what a predator eats of so much prey."""

    states: ClassVar = {"prey": "population of the prey", "predator": "population of the predators"}
    default_state = (0.44249296, 4.6280594)
    positive = ("alpha", "gain", "delta")

    def __init__(self):
        super().__init__(alpha=1.0, gain=1.0, delta=1.0)
        torch.manual_seed(1)
        self.eaten = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, t, y):
        prey, predator = y.unbind(-1)
        eaten = self.eaten(prey[..., None])[..., 0] * predator
        return torch.stack((self.alpha * prey - eaten, self.gain * eaten - self.delta * predator), -1)


@pytest.mark.slow  # as the page on fitting does
def test_an_unknown_function_within_a_model_is_found():
    """With the numbers beside it, which the noise explains the errors of."""
    t = torch.linspace(0, 4, 41, dtype=torch.float64)
    true = LotkaVolterra(alpha=1.3, beta=0.9, gamma=1.8, delta=0.8)
    start = torch.tensor(Functional.default_state, dtype=torch.float64)
    with torch.no_grad():
        y = solve_ivp(true, (0, 4), start, t_eval=t, rtol=1e-9, atol=1e-9).y.numpy()
    noisy = y + 0.03 * np.random.default_rng(0).standard_normal(y.shape)
    table = {"time": t.numpy(), "prey": noisy[:, 0], "predator": noisy[:, 1]}
    result = fit(Functional(), table, priors={"eaten": (0.0, 1.0)}, backend="fused")
    assert result.converged, result.warnings
    for name, value in {"alpha": 1.3, "gain": 0.8 / 0.9, "delta": 1.8}.items():
        assert result[name].lower < value < result[name].upper
    assert result["alpha"].standard_error < 0.05
    prey = torch.linspace(0.2, 4.5, 20, dtype=torch.float64)
    with torch.no_grad():
        assert (result.model.eaten(prey[:, None])[:, 0] - 0.9 * prey).abs().max() < 0.4  # of 4
    np.testing.assert_allclose(result.sigma, 0.03, rtol=0.25)


TABLE = {"time": [0.0, 0.5, 1.0, 1.5, 2.0], "size": [0.3, 0.4, 0.6, 0.7, 0.8], "waste": [0.1, 0.1, 0.2, 0.2, 0.3]}


def grazed(module=None, **options):
    return fit(module or Grazed(), TABLE, backend="eager", max_iterations=2, shooting="single", rtol=1e-5, **options)


def test_a_plain_module_is_a_model():
    """It stays as it is, and so does its precision; the fitted one is beside it."""
    module = Grazed()
    before = [x.clone() for x in module.parameters()]
    result = grazed(module, priors={"net": (0, 1)})
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert isinstance(result.model, ModuleModel)
    assert result.model.module.rate.dtype == torch.float64
    assert result.model.module.rate.item() == result["rate"].value
    assert result["net.0.weight"].value == pytest.approx(result.model.module.net[0].weight.norm().item())
    assert list(result.priors) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    model = pickle.loads(pickle.dumps(ModuleModel(module, Grazed.states)))
    with torch.no_grad():
        model.net[0].bias.fill_(3.0)
    assert model.module.net[0].bias.tolist() == [3.0, 3.0]


def test_what_is_held_stays():
    module = Grazed()
    module.net[0].requires_grad_(False)
    chosen = torch.tensor([[0.5, -0.5]])
    result = grazed(module, fixed={"net.2.weight": chosen}, start={"net.2.bias": [0.25]}, priors={"net.2": (0.0, 0.1)})
    assert torch.equal(result.model.net[0].weight, module.net[0].weight.double())
    assert torch.equal(result.model.net[2].weight, chosen.double())
    assert not result["net.0.weight"].free
    assert not result["net.2.weight"].free
    assert result["net.2.bias"].free
    only = grazed(free=["rate", "net.0"])
    assert [each.name for each in only.estimates if each.free and each.kind == "tensor"] == [
        "net.0.weight",
        "net.0.bias",
    ]


def test_random_starts_leave_tensors_as_they_are():
    result = grazed(starts=2, priors={"net": (0, 1)})
    single = result.misfit.quantities.single
    begun = np.stack([attempt.start for attempt in result.attempts])
    assert np.ptp(begun[:, ~single], axis=0).max() == 0.0
    assert np.ptp(begun[:, single][:, 0]) > 0.1
    for value, parameter in zip(
        begun[0][~single], nn.utils.parameters_to_vector(Grazed().net.parameters()), strict=True
    ):
        assert value == pytest.approx(parameter.item(), rel=1e-6)


def test_many_numbers_are_found_by_their_gradient(monkeypatch):
    monkeypatch.setattr(misfit, "MANY_DIRECTIONS", 3)
    result = fitted(shooting="auto")
    assert result.solves > 20  # one for each value
    expected, *_ = np.linalg.lstsq(design(1), MEASURED, rcond=None)
    assert result.converged
    np.testing.assert_allclose(result.theta, expected, atol=2e-2)
    with pytest.raises(ValueError, match="the bootstrap fits again by least squares, and 4 numbers are free"):
        result.bootstrap(2)
    with pytest.raises(ValueError, match="starts takes optimiser='least-squares'"):
        fitted(shooting="auto", starts=2)


def test_too_many_numbers_have_no_errors_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(misfit, "MANY_DIRECTIONS", 3)
    monkeypatch.setattr(uncertainty, "MOST_INFORMED", 3)
    monkeypatch.setattr("torchivp.fitting.searching.descent.MOST_INFORMED", 3)
    result = fitted(shooting="auto")
    assert result["slope"].standard_error == math.inf
    assert any("4 numbers are free, more than the 3 whose Fisher information" in each for each in result.warnings)
    assert np.isinf(result.band([1.0])).all()
    assert np.isnan(result.covariance).all()
    assert result.report(tmp_path, interactive=False).exists()
    with pytest.raises(ValueError, match="hold the tensors in fixed"):
        result.check_gradient()


def test_more_weights_than_data_are_told():
    result = grazed(Grazed(4))
    assert any("can follow every datum" in each for each in result.warnings)


class Walk(StochasticModel):
    """A random walk with a drift from a table."""

    states: ClassVar = {"size": ""}
    default_state = (0.3,)

    def __init__(self):
        super().__init__(strength=0.1)
        self.drift = nn.Parameter(torch.zeros(2))

    def forward(self, t, y):
        return self.drift[:1].expand_as(y)

    def diffusion(self, t, y):
        return self.strength.expand_as(y)


class Dropped(Grazed):
    def forward(self, t, y):
        return nn.functional.dropout(super().forward(t, y), 0.01)  # the same twice, nearly always


REFUSED = {
    "by names 'net', which is a tensor": {"by": {"net": "who"}},
    "tied names 'net.0.weight', which is a tensor": {"tied": {"net.0.weight": "rate"}},
    "fixed gives net the shape ()": {"fixed": {"net": 0.0}},
    "start gives net.0.bias the shape (3,), and there is net.0.bias of shape (2,)": {
        "start": {"net.0.bias": [1, 2, 3]}
    },
    "the constraint 'net > 0' uses 'net'; there are rate, size, waste": {"constraints": ["net > 0"]},
    "net.0.weight[0,0] is estimated on the log scale, so its start value must be positive": {"scale": {"net": "log"}},
    "net.0.weight[0,0] starts at -0.00748682, outside its bounds (0, 1)": {"bounds": {"net": (0, 1)}},
    "Did you mean 'net.0.bias'?": {"priors": {"net.0.bia": (0, 1)}},
    "parameters names 'net', which ModuleModel has already": {"parameters": {"net": 1.0}},
    "column 'size' is to observe 'net*size', which uses 'net'": {"observe": {"size": "net*size"}},
    "the formula of x uses 'net'; it may use rate, size": {"derived": {"x": lambda p: p.net}},
    "the model has 8 of them in tensors, more than 5": {"backend": "fused"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_tensors_are_not_for_is_refused(sentence, monkeypatch):
    monkeypatch.setattr("torchivp.fitting.solving.kernels.MANY_DIRECTIONS", 5)
    with pytest.raises((ValueError, DataError), match=re.escape(sentence)):
        fit(Grazed(), TABLE, **REFUSED[sentence])


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Linear(2, 2), "Linear does not name its states: torchivp.models.ModuleModel(module, states="),
        (Dropped(), "returns something else when it is called again with the same numbers"),
        (Walk(), "whose parameters are single numbers, and drift is a tensor"),
        (ModuleModel(nn.LazyLinear(2), ["size", "waste"]), "the parameter weight has no numbers yet"),
        (ModuleModel(nn.Linear(2, 2, dtype=torch.complex64), ["size", "waste"]), "must hold finite real numbers"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_models_that_cannot_be_fitted_are_refused(model, sentence):
    table = {key: TABLE[key] for key in ("time", "size")}
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        fit(model, table)


def test_random_effects_beside_a_tensor_are_refused():
    both = {"time": TABLE["time"] * 2, "size": TABLE["size"] * 2, "who": ["a"] * 5 + ["b"] * 5}
    options = {"trajectory": "who", "random": ["rate"], "initial": {"size": "shared"}, "backend": "eager"}
    with pytest.raises(ValueError, match="random estimates single numbers, and there is net"):
        fit(Grazed(), both, **options)


def test_samples_are_of_what_is_beside_held_tensors():
    with pytest.raises(ValueError, match="an ensemble of walkers cannot sample w"):
        fitted().sample(10)


def test_a_steady_state_of_a_network():
    """`y' = input - softplus(bias) y`, whose rest is the quotient; its derivatives are those of the fit."""

    class Rest(nn.Module):
        states: ClassVar = ("y",)

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.5]))

        def forward(self, t, y):
            return 2.0 - nn.functional.softplus(self.bias) * y

    rest = 2.0 / 0.8
    options = {"rtol": 1e-6, "method": "dopri5", "shooting": "single"}
    result = fit(Rest(), {"time": [0.0, 1.0, 2.0], "y": [rest, rest + 1e-3, rest - 1e-3]}, initial="steady", **options)
    assert nn.functional.softplus(result.model.module.bias).item() == pytest.approx(0.8, rel=1e-3)
