"""A function of named states and parameters is a model."""

import copy
import functools
import pickle

import pytest
import torch
from torch.func import functional_call

from compilers import needs_compiler
from torchivp import solve_ivp
from torchivp.models import FunctionModel, LotkaVolterra

T = torch.zeros((), dtype=torch.float64)
STATES = {"prey": 30.0, "predator": 4.0}
VALUES = {"alpha": 0.5, "beta": 0.03, "gamma": 0.8, "delta": 0.02}


def by_name(t, y, p):
    return {
        "predator": p["delta"] * y.prey * y["predator"] - p.gamma * y.predator,
        "prey": p.alpha * y.prey - p.beta * y.prey * y.predator,
    }


def in_order(t, y, p):
    prey, predator = y
    alpha, beta, gamma, delta = p
    return [alpha * prey - beta * prey * predator, delta * prey * predator - gamma * predator]


def as_tensor(t, y, p):
    return torch.stack(in_order(t, y, p), -1)


@pytest.mark.parametrize("func", [by_name, in_order, as_tensor])
def test_it_is_the_model_of_its_function(func):
    model, same = FunctionModel(func, STATES, VALUES), LotkaVolterra(**VALUES)
    states = torch.rand(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(model(T, states), same(T, states))
    torch.testing.assert_close(model(T, states[0, 0]), same(T, states[0, 0]))
    named = {name: torch.tensor(2 * value, dtype=torch.float64) for name, value in VALUES.items()}
    torch.testing.assert_close(functional_call(model, named, (T, states)), functional_call(same, named, (T, states)))
    (slope,) = torch.autograd.grad(model(T, states).sum(), model.beta)
    torch.testing.assert_close(slope, -(states[..., 0] * states[..., 1]).sum())


def test_it_says_what_it_is():
    options = {"positive": ["alpha", "prey"], "units": {"alpha": "1/h"}, "meanings": {"beta": "b", "prey": "eaten"}}
    model = FunctionModel(by_name, STATES, VALUES, **options)
    assert model.states == {"prey": "eaten", "predator": "predator"} and model.default_state == (30.0, 4.0)
    assert model.units == {"alpha": "1/h"} and model.meanings == {"beta": "b"}
    assert model.is_positive("prey") and not model.is_positive("beta")
    assert model.values() == VALUES and all(each.dtype == torch.float64 for each in model.parameters())
    assert repr(model) == "FunctionModel(by_name, alpha=0.5, beta=0.03, gamma=0.8, delta=0.02)"
    assert FunctionModel(by_name, ["prey", "predator"], VALUES).default_state == (1.0, 1.0)
    assert FunctionModel(by_name, STATES, VALUES).is_positive("beta"), "by default, parameters are"
    assert repr(FunctionModel(lambda t, y, p: [-y.x], ["x"], {})) == "FunctionModel(<lambda>)"


def test_numbers_are_derivatives_too():
    model = FunctionModel(lambda t, y, p: [1.0, p.k, 0], ["x", "y", "z"], {"k": 2})
    torch.testing.assert_close(
        model(T, torch.zeros(4, 3).double()), torch.tensor([1.0, 2.0, 0.0]).double().expand(4, 3)
    )
    torch.testing.assert_close(model(T, torch.zeros(3).double()), torch.tensor([1.0, 2.0, 0.0]).double())


def test_it_is_copied_and_pickled():
    model = FunctionModel(by_name, STATES, VALUES)
    y = model.initial_state()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again(T, y).equal(model(T, y)) and again.states == model.states


@needs_compiler
def test_a_kernel_solves_it():
    model = FunctionModel(by_name, STATES, VALUES)
    ends = [solve_ivp(model, (0, 5), model.initial_state(), backend=each).y[-1] for each in ("fused", "eager")]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ({"prey": 1.0}, "derivatives of prey"),
        ({"prey": 1.0, "predator": 1.0, "wolf": 2.0}, "derivatives of prey, predator, wolf"),
        ([1.0], "1 derivatives"),
        (3.0, "float"),
        (None, "NoneType"),
        (torch.zeros(3), r"a tensor of shape \[3\] for states of shape \[2\]"),
    ],
)
def test_what_it_must_return(returned, got):
    def func(t, y, p):
        return returned

    words = f"func must return a derivative for each of prey, predator, in a dict by name, .* got {got}$"
    with pytest.raises(ValueError, match=words):
        FunctionModel(func, STATES, VALUES)(T, torch.zeros(2))


@pytest.mark.parametrize(
    ("func", "error", "message"),
    [
        (
            lambda t, y, p: [y.pray, y.prey],
            AttributeError,
            "there is no state 'pray'. Did you mean 'prey'. There are prey,",
        ),
        (lambda t, y, p: [y["pray"], 1], KeyError, "there is no state 'pray'. Did you mean 'prey'"),
        (lambda t, y, p: [p.alhpa, 1], AttributeError, "there is no parameter 'alhpa'. Did you mean 'alpha'"),
        (lambda t, y, p: [y[0], 1], KeyError, "there is no state 0. There are prey, predator"),
    ],
)
def test_a_misspelt_name_is_answered_with_those_there_are(func, error, message):
    with pytest.raises(error, match=message):
        FunctionModel(func, STATES, VALUES)(T, torch.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, STATES, VALUES), TypeError, r"func must be a function func\(t, y, p\), got int"),
        ((lambda t, y: y, STATES, VALUES), TypeError, r"called as func\(t, y, p\), with .*, but takes \(t, y\)"),
        ((by_name, "prey", VALUES), ValueError, "states must be names of states with initial values, got 'prey'"),
        ((by_name, {}, VALUES), ValueError, "states must be names of states with initial values, got {}"),
        ((by_name, STATES, {"prey": 1.0}), ValueError, "prey is both a state and a parameter"),
        ((by_name, STATES, {"func": 1.0}), ValueError, "no parameter can be called func, because FunctionModel has"),
        ((by_name, STATES, {"half": 1.0}), ValueError, "no parameter can be called half, because Module has"),
    ],
)
def test_what_makes_no_model_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FunctionModel(*arguments)


def test_names_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"units names 'pray', which is no state or parameter\. Did you mean 'prey'"):
        FunctionModel(by_name, STATES, VALUES, units={"pray": "kg"})
    with pytest.raises(
        ValueError, match=r"meanings names 'pray', which is no state or parameter\. Did you mean 'prey'"
    ):
        FunctionModel(by_name, STATES, VALUES, meanings={"pray": "kg"})


def test_any_callable_will_do():
    model = FunctionModel(functools.partial(lambda k, t, y, p: [k * y.x], 3.0), ["x"], {})
    assert model(T, torch.ones(1)).item() == 3 and repr(model) == "FunctionModel(partial)"
