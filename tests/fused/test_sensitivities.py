"""Forward sensitivities by a kernel, against gradients of the same steps and finite differences."""

import numpy as np
import pytest
import torch

from compilers import needs_compiler
from torchivp import ODE_METHODS, PIDController, solve_ivp
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.sensitivities import Directions, Sensitivities

pytestmark = needs_compiler

T = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
PAIR = ("heun", "adaptive_heun")
ALL = Directions((0, 1), (0, 2))


def pendulum(t, y, damping, unused, drive):
    angle, speed = y
    return torch.stack([speed, -torch.sin(angle) - damping * speed + drive * torch.cos(2.0 * t)])


@pytest.fixture(scope="module")
def kernel():
    return Sensitivities(pendulum, 2, 3, ODE_METHODS["tsit5"])


def solved(kernel, directions, rows=3, t=T, max_steps=1000):
    y0 = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)[:rows]
    parameters = torch.tensor([[0.1, 0.2, 0.3], [9.0, 9.0, 9.0], [0.5, 1.0, -0.5]], dtype=torch.float64)[:, :rows]
    found = kernel.solve(
        y0,
        parameters,
        0.0,
        t,
        directions,
        rtol=1e-6,
        atol=torch.tensor([1e-8, 1e-9], dtype=torch.float64),
        controller=PIDController(),
        max_steps=max_steps,
    )
    return y0, parameters, found


@pytest.mark.parametrize("rows", [1, 3])
def test_they_are_the_derivatives_of_the_steps_taken(kernel, rows):
    y0, parameters, (states, changes, steps) = solved(kernel, ALL, rows)
    for row in range(rows):
        start, values = y0[row].clone().requires_grad_(), parameters[:, row].clone().requires_grad_()
        atol = torch.tensor([1e-8, 1e-9], dtype=torch.float64)
        solution = solve_ivp(pendulum, (0.0, 3.0), start, t_eval=T, args=tuple(values), method="tsit5", atol=atol)
        assert solution.stats.accepted == steps[row]
        torch.testing.assert_close(states[row], solution.y.detach(), rtol=1e-10, atol=1e-11)
        for time in (2, 6):
            for state in range(2):
                by_start, by_value = torch.autograd.grad(solution.y[time, state], [start, values], retain_graph=True)
                expected = torch.cat([by_start, by_value[[0, 2]]])
                torch.testing.assert_close(changes[row, time, :, state], expected, rtol=1e-9, atol=1e-11)


def test_without_directions_there_are_the_states_alone(kernel):
    *_, (states, changes, _) = solved(kernel, Directions())
    *_, (same, _, _) = solved(kernel, ALL)
    assert changes.shape == (3, 7, 0, 2)
    torch.testing.assert_close(states, same, rtol=1e-10, atol=1e-11)


def test_parameters_that_are_not_used_are_known(kernel):
    assert kernel.used == {0, 2}


def test_methods_with_the_same_weights_are_told_apart():
    """`adaptive_heun` is `heun` but for the slope that its steps start from."""
    steps = [
        int(solved(Sensitivities(pendulum, 2, 3, ODE_METHODS[m]), Directions(), 1, max_steps=10**5)[2][2]) for m in PAIR
    ]
    single = [
        solve_ivp(
            pendulum,
            (0.0, 3.0),
            torch.tensor([1.0, 0.0], dtype=torch.float64),
            args=tuple(torch.tensor([0.1, 9.0, 0.5], dtype=torch.float64)),
            method=method,
            atol=torch.tensor([1e-8, 1e-9], dtype=torch.float64),
        ).stats.accepted
        for method in PAIR
    ]
    assert steps == single and steps[0] != steps[1]


def test_rows_that_fail_are_told(kernel):
    assert solved(kernel, ALL, max_steps=5)[2] is None


def test_more_directions_than_a_kernel_holds_are_refused():
    many = Sensitivities(lambda t, y, *p: -y * torch.stack(p).sum(), 1, 70, ODE_METHODS["tsit5"])
    with pytest.raises(CannotFuse, match="derivatives in 70 directions are more than the 64 of a kernel"):
        many.solve(
            torch.ones(1, 1, dtype=torch.float64),
            torch.ones(70, 1, dtype=torch.float64),
            0.0,
            T,
            Directions((), tuple(range(70))),
            rtol=1e-6,
            atol=torch.tensor([1e-9], dtype=torch.float64),
            controller=PIDController(),
            max_steps=100,
        )


def test_a_linear_equation_has_its_closed_form():
    """y = y0 exp(-k t): dy/dk = -t y."""
    kernel = Sensitivities(lambda t, y, k: -k * y, 1, 1, ODE_METHODS["dopri8"])
    y0 = torch.tensor([[2.0]], dtype=torch.float64)
    found = kernel.solve(
        y0,
        torch.tensor([[0.7]], dtype=torch.float64),
        0.0,
        T,
        Directions((0,), (0,)),
        rtol=1e-12,
        atol=torch.tensor([1e-14], dtype=torch.float64),
        controller=PIDController(),
        max_steps=1000,
    )
    assert found is not None
    states, changes, _ = (x.numpy() for x in found)
    decay = np.exp(-0.7 * T.numpy())
    np.testing.assert_allclose(states[0, :, 0], 2.0 * decay, rtol=1e-10)
    np.testing.assert_allclose(changes[0, :, 0, 0], decay, rtol=1e-10)
    np.testing.assert_allclose(changes[0, :, 1, 0], -2.0 * T.numpy() * decay, rtol=1e-9, atol=1e-12)
