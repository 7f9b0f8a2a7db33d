"""Each model solves its equations, written here a second time in NumPy, and says what it is."""

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp as scipy_solve_ivp
from torch import Tensor

import torchivp
from torchivp.models import MODELS, SIR, LotkaVolterra, Model, Pendulum, Robertson, find_model

EQUATIONS = {
    "fitzhugh-nagumo": lambda y, a, b, epsilon, current: [
        y[0] - y[0] ** 3 / 3 - y[1] + current,
        epsilon * (y[0] + a - b * y[1]),
    ],
    "lorenz": lambda y, sigma, rho, beta: [
        sigma * (y[1] - y[0]),
        y[0] * (rho - y[2]) - y[1],
        y[0] * y[1] - beta * y[2],
    ],
    "lotka-volterra": lambda y, alpha, beta, gamma, delta: [
        alpha * y[0] - beta * y[0] * y[1],
        -gamma * y[1] + delta * y[0] * y[1],
    ],
    "pendulum": lambda y, length, damping: [y[1], -damping * y[1] - 9.80665 / length * np.sin(y[0])],
    "robertson": lambda y, k1, k2, k3: [
        -k1 * y[0] + k3 * y[1] * y[2],
        k1 * y[0] - k3 * y[1] * y[2] - k2 * y[1] ** 2,
        k2 * y[1] ** 2,
    ],
    "sir": lambda y, beta, gamma: [
        -beta * y[0] * y[1] / sum(y),
        beta * y[0] * y[1] / sum(y) - gamma * y[1],
        gamma * y[1],
    ],
    "van-der-pol": lambda y, mu: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
}

each_model = pytest.mark.parametrize("name", MODELS)


def solve(model: Model, t1: float, y0: Tensor | None = None, **options) -> np.ndarray:
    with torch.no_grad():
        start = model.initial_state() if y0 is None else y0
        return torchivp.solve_ivp(model, (0.0, t1), start, method="dopri8", rtol=1e-10, atol=1e-12, **options).y.numpy()


@each_model
def test_its_solution_is_that_of_scipy(name):
    model = MODELS[name]()
    t1 = 0.01 if name == "robertson" else 3.0
    values = model.values()
    reference = scipy_solve_ivp(
        lambda t, y: EQUATIONS[name](y, **values), (0, t1), model.default_state, "Radau", rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(solve(model, t1)[-1], reference.y[:, -1], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("lotka-volterra", (1.02634476758, 0.909691078136)),
        ("fitzhugh-nagumo", (-1.95404595294, 0.994344373784)),
    ],
)
def test_it_ends_where_the_benchmarks_of_sciml_do(name, end):
    np.testing.assert_allclose(solve(MODELS[name](), 10.0)[-1], end, rtol=1e-8)


@each_model
def test_it_takes_batches(name):
    model = MODELS[name]()
    states = torch.rand(5, 2, len(model.states), dtype=torch.float64)
    t = torch.zeros((), dtype=torch.float64)
    together = model(t, states)
    singly = torch.stack([model(t, state) for state in states.flatten(0, 1)]).reshape(states.shape)
    torch.testing.assert_close(together, singly)


@each_model
def test_it_says_what_it_is(name):
    model = MODELS[name]()
    assert set(model.meanings) == set(model.values()), "every parameter has a meaning"
    assert set(model.units) <= set(model.values()) | set(model.states)
    assert set(model.positive or ()) <= set(model.values()) | set(model.states)
    assert all(parameter.dtype == torch.float64 and parameter.ndim == 0 for parameter in model.parameters())
    assert repr(model).startswith(type(model).__name__ + "(" + next(iter(model.values())))
    assert find_model(name) is MODELS[name]


def test_the_population_of_sir_is_constant():
    assert np.ptp(solve(SIR(), 50.0, torch.tensor([990.0, 10.0, 0.0]).double()).sum(1)) < 1e-6


def test_the_mass_of_robertson_is_constant():
    assert np.ptp(solve(Robertson(), 0.1).sum(1)) < 1e-12


def test_the_pendulum_loses_energy():
    y = solve(Pendulum(length=2.0, damping=0.5), 10.0)
    energy = y[:, 1] ** 2 / 2 - 9.80665 / 2.0 * np.cos(y[:, 0])
    assert np.all(np.diff(energy) < 1e-9)


def test_what_is_positive():
    assert LotkaVolterra().is_positive("alpha")
    assert LotkaVolterra().is_positive("prey")
    assert not SIR().is_positive("removed")
    assert Pendulum().is_positive("length"), "by default, parameters are"
    assert not Pendulum().is_positive("angle"), "by default, states are not"


def test_parameters_are_arguments():
    assert LotkaVolterra(0.5, delta=2.0).values() == {"alpha": 0.5, "beta": 1.0, "gamma": 3.0, "delta": 2.0}


@pytest.mark.parametrize("name", ["lotka-voltera", "Lotka-Volterra"])
def test_an_unknown_model_is_named_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"unknown model .* Did you mean 'lotka-volterra'\? The models are .*pendulum"):
        find_model(name)


class Decay(Model):
    states: ClassVar = {"amount": "what is left"}
    default_state = (1.0,)

    def __init__(self, **parameters: float):
        super().__init__(**parameters)


def test_a_parameter_must_be_finite():
    with pytest.raises(ValueError, match="parameter rate must be a finite number, got nan"):
        Decay(rate=float("nan"))


def test_a_name_must_not_be_used_twice():
    with pytest.raises(ValueError, match="amount is both a state and a parameter"):
        Decay(amount=1.0)


@pytest.mark.parametrize("name", ["half", "to", "type", "training", "forward", "T_destination"])
def test_a_parameter_must_not_be_called_like_an_attribute_of_torch(name):
    words = f"Decay: no parameter can be called {name}, because (Module|Model) has .* of that name: rename it, {name}_$"
    with pytest.raises(ValueError, match=words):
        Decay(**{name: 1.0})


@pytest.mark.parametrize("name", ["values", "units", "meanings", "default_state"])
def test_a_parameter_must_not_be_called_like_an_attribute_of_a_model(name):
    with pytest.raises(ValueError, match=f"no parameter can be called {name}, because (Model|Decay) has an attribute"):
        Decay(**{name: 1.0})


@pytest.mark.parametrize("name", ["k.1", "", "2k", "k-1"])
def test_a_parameter_must_have_a_name_that_an_attribute_can_have(name):
    with pytest.raises(ValueError, match=f"a parameter becomes an attribute, so '{name}' must be a name of Python's"):
        Decay(**{name: 1.0})


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (
            {"states": ("x", "v"), "default_state": (1.0, 0.0)},
            "Body must say which states it has and where they begin by default, got states = ('x', 'v'): write "
            'states = {"x": "what x is", "v": "what v is"} and default_state = (1.0, 1.0) in the class',
        ),
        ({}, 'got no states: write states = {"x": "what x is"} and default_state = (1.0,) in the class'),
        ({"states": {"x": "place"}}, "got states = {'x': 'place'}: write states = "),
    ],
)
def test_a_class_must_name_its_states(attributes, sentence):
    with pytest.raises(TypeError, match=re.escape(sentence)):
        type("Body", (Model,), attributes)(rate=1.0)


def test_the_default_state_must_fit(monkeypatch):
    monkeypatch.setattr(Decay, "default_state", (1.0, 2.0))
    with pytest.raises(ValueError, match="2 numbers for 1 states: give one for each of amount"):
        Decay(rate=1.0)


def test_a_model_must_define_its_right_hand_side():
    with pytest.raises(NotImplementedError, match=r"Decay must define forward\(t, y\)"):
        Decay(rate=1.0)(torch.zeros(()), torch.ones(1))
