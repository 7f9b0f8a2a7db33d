"""Which tensors receive a gradient, and that none receives it twice."""

import math
import warnings

import pytest
import torch

from torchivp import Scheduled, odeint, odeint_adjoint, solve_ivp
from torchivp.nn import NeuralODE

GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def one(value=1.0):
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, t, y):
        return -self.rate * self.frozen * y


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_parameters_of_a_module(gradient):
    model = Decay()
    solve_ivp(model, (0.0, 1.0), one().detach(), gradient=gradient, **TIGHT).y[-1].sum().backward()
    assert model.rate.grad.item() == pytest.approx(-math.exp(-0.5), rel=1e-7)
    assert model.unused.grad is None or not model.unused.grad.any()
    assert model.frozen.grad is None


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_leaves_in_a_closure_are_found(gradient):
    model, scale = Decay(), one(2.0)
    solve_ivp(lambda t, y: scale * model(t, y), (0.0, 1.0), one().detach(), gradient=gradient, **TIGHT).y[
        -1
    ].sum().backward()
    assert model.rate.grad.item() == pytest.approx(-2 * math.exp(-1), rel=1e-7)
    assert scale.grad.item() == pytest.approx(-0.5 * math.exp(-1), rel=1e-7)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_a_computed_tensor_in_a_closure_is_warned_about(gradient):
    log_rate = one(0.0)
    rate = log_rate.exp()
    with pytest.warns(UserWarning, match=r"its grad_fn is ExpBackward0.*args=\(tensor,\).*or use gradient='direct'"):
        solve_ivp(lambda t, y: -rate * y, (0.0, 1.0), one(), gradient=gradient)


def solve_with_computed(door, y0, **options):
    """Solve with a rate that is computed from a leaf; returns the leaf and the state at the end."""
    log_rate = one(0.0)
    rate = log_rate.exp()
    if "adjoint_params" in options:
        options["adjoint_params"] = (rate,)
    return log_rate, door(lambda t, y: -rate * y, y0, torch.tensor([0.0, 1.0]), **TIGHT, **options)[-1]


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
@pytest.mark.parametrize("moving", [True, False])
def test_the_warning_names_arguments_that_the_called_function_has(door, moving):
    y0 = one() if moving else one().detach()
    first = "Use odeint_adjoint, and name" if door is odeint else "Name"
    with pytest.warns(UserWarning, match=rf"is ExpBackward0.* {first} it.*adjoint_params=.*other than scipy") as caught:
        _, y = solve_with_computed(door, y0, method="scipy_solver")
    assert len(caught) == 1
    assert "gradient=" not in str(caught[0].message) and y.requires_grad == moving


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"method": "scipy_solver", "adjoint_params": ()}, {"adjoint_params": ()}, {}])
def test_a_gradient_that_is_right_is_not_warned_about(options):
    log_rate, y = solve_with_computed(odeint_adjoint, one().detach(), **options)
    (found,) = torch.autograd.grad(y.sum(), log_rate)
    assert found.item() == pytest.approx(-math.exp(-1), rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_odeint_sees_computed_tensors():
    log_rate, y = solve_with_computed(odeint, one())
    assert torch.autograd.grad(y.sum(), log_rate)[0].item() == pytest.approx(-math.exp(-1), rel=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("named", ["args", "params"])
def test_a_computed_tensor_that_is_named(gradient, named):
    log_rate = one(0.0)
    rate = log_rate.exp()
    func = (lambda t, y, rate: -rate * y) if named == "args" else (lambda t, y: -rate * y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = solve_ivp(func, (0.0, 1.0), one().detach(), gradient=gradient, **{named: (rate,)}, **TIGHT).y
    y[-1].sum().backward()
    assert log_rate.grad.item() == pytest.approx(-math.exp(-1), rel=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_parameter_reached_by_several_ways_is_counted_once_for_each(gradient):
    """y0, args and func all depend on one parameter p: y = p exp(-(p + p^2) t)."""
    model = Decay()
    y0, square = 1.0 * model.rate, model.rate**2

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decay = model

        def forward(self, t, y, square):
            return self.decay(t, y) - square * y

    solve_ivp(Both(), (0.0, 1.0), y0, args=(square,), gradient=gradient, **TIGHT).y[-1].sum().backward()
    expected = (1 - 0.5 * (1 + 2 * 0.5)) * math.exp(-0.75)
    assert model.rate.grad.item() == pytest.approx(expected, abs=1e-7)


def test_only_the_named_parameters():
    model = Decay()
    y0 = one()
    odeint_adjoint(model, y0, torch.tensor([0.0, 1.0]), adjoint_params=()).sum().backward()
    assert model.rate.grad is None and y0.grad is not None


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_a_parameter_that_matters_only_later(gradient):
    class Late(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

        def forward(self, t, y):
            return -self.rate * y if t > 0.5 else 0.0 * y

    model = Late()
    solve_ivp(model, (0.0, 1.0), one(), gradient=gradient, **TIGHT).y[-1].sum().backward()
    assert model.rate.grad.item() == pytest.approx(-0.5 * math.exp(-0.25), rel=1e-4)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_func_that_does_not_depend_on_the_state(gradient):
    y0, slope = one(), one(3.0)
    solve_ivp(lambda t, y: slope + 0 * t, (0.0, 2.0), y0, gradient=gradient).y[-1].sum().backward()
    assert y0.grad.item() == pytest.approx(1.0) and slope.grad.item() == pytest.approx(2.0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_func_without_any_gradient(gradient):
    y0 = one()
    constant = torch.ones(1, dtype=torch.float64)
    solve_ivp(lambda t, y: constant, (0.0, 2.0), y0, gradient=gradient).y[-1].sum().backward()
    assert y0.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_func_that_differentiates_inside(gradient):
    """A Hamiltonian system whose field is the gradient of an energy."""
    stiffness = one(4.0)

    def func(t, y):
        with torch.enable_grad():
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            energy = 0.5 * (stiffness * y[0] ** 2 + y[1] ** 2).sum()
            (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack((slope[1], -slope[0]))

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solve_ivp(func, (0.0, 1.0), y0, gradient=gradient, **TIGHT).y[-1, 0].backward()  # cos(sqrt(k) t)
    assert y0.grad[0].item() == pytest.approx(math.cos(2), abs=1e-6)
    assert stiffness.grad.item() == pytest.approx(-math.sin(2) / 4, abs=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nothing_is_recorded_without_gradients(gradient):
    model = Decay()
    with torch.no_grad():
        assert not solve_ivp(model, (0.0, 1.0), one(), gradient=gradient).y.requires_grad
    frozen = model.requires_grad_(False)
    assert not solve_ivp(frozen, (0.0, 1.0), one().detach(), gradient=gradient).y.requires_grad


LISTS = {
    "t_eval": lambda f, y0, t: solve_ivp(f, (0.0, 1.0), y0, t_eval=[0.1, t, 2 * t], **TIGHT).y[1:].sum(0),
    "t_eval of rows": lambda f, y0, t: (
        solve_ivp(f, (0.0, 1.0), y0, t_eval=[0.1, t, 2 * t], batch_dims=1, **TIGHT).y[:, 1:].sum(1)
    ),
    "t_eval of each row": lambda f, y0, t: (
        solve_ivp(f, (0.0, 1.0), y0, t_eval=[[0.1, t, 2 * t]] * 2, batch_dims=1, **TIGHT).y[:, 1:].sum(1)
    ),
    "t_eval with events": lambda f, y0, t: solve_ivp(
        f, (0.0, 1.0), y0, t_eval=[t, 2 * t], events=lambda t, y: t - 0.5, **TIGHT
    ).y.sum(0),
    "dense output": lambda f, y0, t: solve_ivp(f, (0.0, 1.0), y0, dense_output=True, **TIGHT).sol([t, 2 * t]).sum(0),
    "dense output of rows": lambda f, y0, t: (
        solve_ivp(f, (0.0, 1.0), y0, dense_output=True, batch_dims=1, **TIGHT).sol([t, 2 * t]).sum(1)
    ),
    "odeint": lambda f, y0, t: odeint(f, y0, [0.0, t, 2 * t])[1:].sum(0),
    "a layer": lambda f, y0, t: NeuralODE(f, output="trajectory", **TIGHT)(y0, [0.0, t, 2 * t])[1:].sum(0),
    "a layer with times of each sample": lambda f, y0, t: NeuralODE(f, output="trajectory", **TIGHT)(
        y0, [[0.0, t, 2 * t]] * 2
    )[:, 1:].sum(1),
}
"""The solution at t and 2 t, added, of the same problem in each of two rows; the times are lists with tensors."""


@pytest.mark.parametrize("where", LISTS)
def test_lists_of_times_with_tensors_have_gradients(where):
    y0, t = torch.ones(2, 1, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    LISTS[where](lambda t, y: -y, y0, t).sum().backward()
    assert t.grad.item() == pytest.approx(-2 * (math.exp(-0.4) + 2 * math.exp(-0.8)), rel=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_lists_of_scheduled_times_and_doses_with_tensors_have_gradients(gradient):
    t, dose = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 3.0))
    doses = Scheduled([0.2, t], lambda t, y, dose: y + dose, values=[1.0, dose])
    y0 = torch.ones(1, dtype=torch.float64)
    solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, events=doses, gradient=gradient, **TIGHT).final.sum().backward()
    assert t.grad.item() == pytest.approx(3 * math.exp(-0.6), rel=1e-7)
    assert dose.grad.item() == pytest.approx(math.exp(-0.6), rel=1e-7)


@pytest.mark.parametrize("named", ["bp", "bc", "bcp", "cb", "pq", "c", "bcpq"])
@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_a_named_tensor_that_was_computed_from_another_counts_once(named, gradient):
    """y' = -(b + c) y with b = p q + p and c = b^2; what is not named of them reaches the rest by itself."""
    p, q = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.6, 0.3))
    b = p * q + p
    tensors = {"p": p, "q": q, "b": b, "c": b**2}
    func = lambda t, y: -(tensors["b"] + tensors["c"]) * y
    params = [tensors[name] for name in (named if named != "c" else "bc")]
    y = solve_ivp(func, (0.0, 0.8), torch.ones(1, dtype=torch.float64), params=params, gradient=gradient, **TIGHT).y[-1]
    expected = torch.exp(-0.8 * (b + b**2))
    for create_graph in (False, True):
        found = torch.autograd.grad(y.sum(), (p, q), create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, (p, q), retain_graph=True), rtol=1e-6, atol=0)
