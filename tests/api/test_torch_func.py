"""Solves inside the transforms of torch.func."""

import math
import re

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchivp import ODE_METHODS, SolveError, odeint, odeint_adjoint, odeint_dense, solve_ivp

D = torch.float64
METHODS = ["euler", "rk4", "bosh3", "dopri5", "dopri8"] + (["adams"] if "adams" in ODE_METHODS else [])
T = torch.tensor([0.0, 0.4, 1.0], dtype=D)
BATCH = torch.tensor([[1.0, 0.5], [0.1, -2.0], [-3.0, 0.0], [0.0, 0.0]], dtype=D)


def pendulum(t, y):
    return torch.stack((y[1], -torch.sin(y[0]) + torch.cos(t)))


def is_fixed(method):
    return ODE_METHODS[method].error_order is None


def solver(method, func=pendulum):
    options = {"step_size": 0.11} if is_fixed(method) else {}
    return lambda y0: odeint(func, y0, T, method=method, options=options, rtol=1e-9, atol=1e-10)


def close(method):
    """Fixed steps are the same steps in a batch; adaptive ones are sized for the whole of it."""
    return {"rtol": 1e-12, "atol": 1e-13} if is_fixed(method) else {"rtol": 1e-6, "atol": 1e-7}


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_states_agrees_with_a_loop(method):
    solve = solver(method)
    expected = torch.stack([solve(y) for y in BATCH])
    torch.testing.assert_close(vmap(solve)(BATCH), expected, **close(method))
    torch.testing.assert_close(vmap(solve, in_dims=1, out_dims=1)(BATCH.T), expected.transpose(0, 1), **close(method))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_within_vmap(method):
    solve = solver(method)
    grid = BATCH.reshape(2, 2, 2)
    expected = torch.stack([solve(y) for y in BATCH]).reshape(2, 2, 3, 2)
    torch.testing.assert_close(vmap(vmap(solve))(grid), expected, **close(method))


@pytest.mark.parametrize("method", METHODS)
def test_first_derivatives_agree_with_autograd(method):
    solve, y0, direction = solver(method), BATCH[0], torch.tensor([0.3, -0.7], dtype=D)
    expected = torch.autograd.functional.jacobian(solve, y0)
    tolerance = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(jacrev(solve)(y0), expected, **tolerance)
    forward = close(method) if not is_fixed(method) else tolerance
    torch.testing.assert_close(jacfwd(solve)(y0), expected, **forward)
    torch.testing.assert_close(jvp(solve, (y0,), (direction,))[1], expected @ direction, **forward)
    weights = torch.randn(3, 2, dtype=D)
    torch.testing.assert_close(vjp(solve, y0)[1](weights)[0], torch.einsum("ti,tij->j", weights, expected), **tolerance)
    torch.testing.assert_close(grad(lambda y: solve(y)[-1, 0])(y0), expected[-1, 0], **tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives_agree_with_autograd(method):
    last = lambda y: solver(method)(y)[-1, 0]
    expected = torch.autograd.functional.hessian(last, BATCH[0])
    torch.testing.assert_close(hessian(last)(BATCH[0]), expected, **close(method))
    if method in ("rk4", "dopri5"):
        torch.testing.assert_close(jacfwd(jacfwd(last))(BATCH[0]), expected, **close(method))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_for_each_entry_of_a_batch(method):
    last = lambda y: solver(method)(y)[-1, 0]
    expected = torch.stack([grad(last)(y) for y in BATCH])
    torch.testing.assert_close(vmap(grad(last))(BATCH), expected, **close(method))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_the_parameters_of_a_module(method):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2).double()

        def forward(self, t, y):
            return torch.tanh(self.linear(y))

    model, y0 = Field(), BATCH[0]
    models = [Field() for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)

    def loss(parameters):
        return solver(method, lambda t, y: functional_call(model, parameters, (t, y)))(y0)[-1].square().sum()

    expected = []
    for each in models:
        value = solver(method, each)(y0)[-1].square().sum()
        value.backward()
        expected.append(value.detach())
    torch.testing.assert_close(vmap(loss)(stacked).detach(), torch.stack(expected), **close(method))
    found = vmap(grad(loss))(stacked)
    for i, each in enumerate(models):
        for name, parameter in each.named_parameters():
            torch.testing.assert_close(found[name][i].detach(), parameter.grad, **close(method))


@pytest.mark.parametrize("method", METHODS)
def test_autograd_around_vmap(method):
    solve = solver(method)
    batch = BATCH.clone().requires_grad_()
    (found,) = torch.autograd.grad(vmap(solve)(batch)[:, -1, 0].sum(), batch)
    expected = torch.stack([torch.func.grad(lambda y: solve(y)[-1, 0])(y) for y in BATCH])
    torch.testing.assert_close(found, expected, **close(method))


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
def test_gradients_by_time(method):
    """y = y0 exp((sin 5t - sin 5 t0) / 5): the end and the start, each by itself, and all of the first step."""

    def solve(t):
        y0 = torch.ones((), dtype=D)
        return odeint(lambda t, y: y * torch.cos(5 * t), y0, t, method=method, rtol=1e-9, atol=1e-9)[-1]

    t = torch.tensor([0.2, 1.0], dtype=D)
    y = math.exp((math.sin(5.0) - math.sin(1.0)) / 5)
    expected = torch.tensor([-y * math.cos(1.0), y * math.cos(5.0)], dtype=D)
    torch.testing.assert_close(grad(solve)(t), expected, rtol=1e-6, atol=0)
    (found,) = torch.autograd.grad(solve(t.requires_grad_()), t)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_states_of_several_tensors():
    solve = lambda y: odeint(lambda t, y: {"a": -y["a"], "b": y["a"].sum() * y["b"]}, y, T, rtol=1e-8, atol=1e-8)
    batch = {"a": BATCH, "b": BATCH[:, 0]}
    found = vmap(solve)(batch)
    for i in range(len(BATCH)):
        expected = solve({"a": BATCH[i], "b": BATCH[i, 0]})
        torch.testing.assert_close({k: v[i] for k, v in found.items()}, expected, rtol=1e-5, atol=1e-6)


def test_the_entry_that_needs_the_shortest_steps_sizes_them_for_all():
    def steps(rates):
        calls = []

        def func(t, y, rate):
            calls.append(t)
            return -rate * (y - torch.cos(rate * t))

        vmap(lambda rate: odeint(lambda t, y: func(t, y, rate), torch.ones(1, dtype=D), T))(rates)
        return len(calls)

    mild, wild = torch.ones(3, dtype=D), torch.tensor([1.0, 40.0, 1.0], dtype=D)
    assert steps(wild) > 3 * steps(mild)
    assert steps(wild) == pytest.approx(steps(wild[1:2]), rel=0.1)


def test_dense_output():
    found = vmap(lambda y: odeint_dense(pendulum, y, 0.0, 1.0)(T))(BATCH)
    torch.testing.assert_close(
        found, torch.stack([odeint_dense(pendulum, y, 0.0, 1.0)(T) for y in BATCH]), rtol=1e-5, atol=1e-6
    )


# ---- failures say why, as anywhere else ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [BATCH.abs(), BATCH.abs() * 0 + 1])
@pytest.mark.parametrize(
    "within", [lambda f: vmap(f), lambda f: vmap(grad(lambda y: f(y).sum()))], ids=["vmap", "vmap of grad"]
)
def test_a_failure_names_the_worst_element(batch, within):
    def blow_up(t, y):
        return torch.stack((-y[0], 100.0 * y[1] ** 2 + 1.0))

    with pytest.raises(SolveError, match=r"step size underflow at t = .* largest in y\[1\]"):
        within(lambda y: odeint(blow_up, y, T))(batch)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_failure_names_the_element_that_is_not_finite(method):
    """Only the last entry of the batch has a negative number under the root."""
    batch = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]], dtype=D)
    with pytest.raises(SolveError, match=re.escape("the derivative of y[1] is nan")):
        vmap(lambda y: odeint(lambda t, y: torch.sqrt(y), y, T, method=method))(batch)


# ---- what cannot work is refused -------------------------------------------------------------------------------------


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.ones((), dtype=D))

    def forward(self, t, y):
        return -self.rate * y


BACKWARD_PASSES = {
    "odeint_adjoint": lambda func, y: odeint_adjoint(func, y, T),
    "backsolve": lambda func, y: solve_ivp(func, (0.0, 1.0), y, t_eval=T, gradient="backsolve").y,
    "checkpointed": lambda func, y: solve_ivp(func, (0.0, 1.0), y, t_eval=T, gradient="checkpointed").y,
}


@pytest.mark.parametrize("door", BACKWARD_PASSES)
@pytest.mark.parametrize("func", [pendulum, Module()], ids=["function", "module"])
def test_backward_passes_of_their_own_are_refused(door, func):
    solve = lambda y: BACKWARD_PASSES[door](func, y)
    last = lambda y: solve(y)[-1, 0]
    calls = [
        lambda: grad(last)(BATCH[0]),
        lambda: vmap(grad(last))(BATCH),
        lambda: jacrev(solve)(BATCH[0]),
        lambda: vmap(solve)(BATCH.clone().requires_grad_()),
        lambda: grad(lambda batch: vmap(last)(batch).sum())(BATCH),
    ]
    if isinstance(func, Module):
        calls += [lambda: vmap(solve)(BATCH), lambda: jacfwd(solve)(BATCH[0])]
    for call in calls:
        with pytest.raises(ValueError, match=r"does not work inside torch\.func transforms .*: use gradient='direct'"):
            call()


@pytest.mark.parametrize("door", BACKWARD_PASSES)
def test_without_a_gradient_there_is_nothing_to_refuse(door):
    solve = lambda y: BACKWARD_PASSES[door](pendulum, y)
    expected = vmap(lambda y: odeint(pendulum, y, T))(BATCH)
    torch.testing.assert_close(vmap(solve)(BATCH), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        module = lambda y: BACKWARD_PASSES[door](Module(), y)
        torch.testing.assert_close(vmap(module)(BATCH)[:, -1], BATCH * math.exp(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [vmap, jacrev])
def test_scipys_solvers_are_refused(transform):
    with pytest.raises((RuntimeError, ValueError), match="do not work inside function transforms"):
        transform(lambda y: odeint(pendulum, y, T, method="scipy_solver"))(BATCH if transform is vmap else BATCH[0])
