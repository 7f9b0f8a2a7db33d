"""Forward sensitivities by a kernel, against gradients of the same steps, dual numbers and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from compilers import needs_compiler
from stiff_problems import hires, robertson
from torchivp import ODE_METHODS, PIDController, solve_ivp
from torchivp.fused.sensitivities import Sensitivities

pytestmark = needs_compiler

FLOAT = torch.float64
T = torch.linspace(0.0, 3.0, 7, dtype=FLOAT)
ATOL = torch.tensor([1e-8, 1e-9], dtype=FLOAT)
Y0 = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=FLOAT)
PARAMETERS = torch.tensor([[0.1, 0.2, 0.3], [9.0, 9.0, 9.0], [0.5, 1.0, -0.5]], dtype=FLOAT)


def numbers(*values):
    return torch.tensor(values, dtype=FLOAT)


def pendulum(t, y, damping, unused, drive):
    angle, speed = y
    return torch.stack([speed, -torch.sin(angle) - damping * speed + drive * torch.cos(2.0 * t)])


@pytest.fixture(scope="module")
def kernel():
    return Sensitivities(pendulum, 2, 3, ODE_METHODS["tsit5"])


@pytest.fixture(scope="module")
def stiff_kernel():
    return Sensitivities(pendulum, 2, 3, ODE_METHODS["rodas5p"])


def unit_starts(rows, n, moving=()):
    """Tangents of all initial states, and those of parameters."""
    tangents = torch.zeros(rows, n + len(moving), n, dtype=FLOAT)
    tangents[:, :n] = torch.eye(n, dtype=FLOAT)
    return tangents


def solved(kernel, rows=3, moving=(0, 2), tangents=None, t=T, span=(0.0, 3.0), **options):
    """The pendulum's solutions; times are those of all rows, or one for each."""
    tangents = unit_starts(rows, 2, moving) if tangents is None else tangents
    t0, t1 = (torch.as_tensor(x, dtype=FLOAT).expand(rows) for x in span)
    options = {"rtol": 1e-6, "atol": ATOL, "controller": PIDController(), "max_steps": 1000} | options
    return kernel.solve(Y0[:rows], tangents, PARAMETERS[:, :rows], t0, t1, t.expand(rows, -1), moving, **options)


# --- the derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_they_are_the_derivatives_of_the_steps_taken(kernel, stiff_kernel, method, rows):
    found = solved(kernel if method == "tsit5" else stiff_kernel, rows)
    assert found.ok.all()
    for row in range(rows):
        start, values = Y0[row].clone().requires_grad_(), PARAMETERS[:, row].clone().requires_grad_()
        options = {"t_eval": T, "args": tuple(values), "method": method, "rtol": 1e-6, "atol": ATOL}
        solution = solve_ivp(pendulum, (0.0, 3.0), start, **options)
        assert solution.stats.accepted == found.steps[row]
        torch.testing.assert_close(found.states[row], solution.y.detach(), rtol=1e-10, atol=1e-11)
        for time in (2, 6):
            for state in range(2):
                by_start, by_value = torch.autograd.grad(solution.y[time, state], [start, values], retain_graph=True)
                expected = torch.cat([by_start, by_value[[0, 2]]])
                torch.testing.assert_close(found.tangents[row, time, :, state], expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(found.final[row], found.states[row, -1], rtol=0, atol=0)
        torch.testing.assert_close(found.final_tangents[row], found.tangents[row, -1], rtol=0, atol=0)


def growing(t, y, k0, k1, k2, k3):
    """Eight states that depend on time through exponentials, in a chain and with products."""
    drive = k0 * torch.exp(-k1 * t) + torch.exp(0.3 * torch.sin(t))
    coupled = k2 * y[:-1] * y[1:]
    zero = torch.zeros(1, dtype=y.dtype)
    return drive - k3 * y - torch.cat([coupled, zero]) + torch.cat([zero, coupled])


PROBLEMS = {
    "Robertson": (robertson, numbers(1.0, 0.0, 0.0), numbers(0.04, 3e7, 1e4), (0.0, 1e3), 1e-10),
    "HIRES": (hires, numbers(1.0, 0, 0, 0, 0, 0, 0, 0.0057), numbers(280.0), (0.0, 50.0), 1e-10),
    "eight states and time": (growing, torch.linspace(0.5, 2, 8, dtype=FLOAT), numbers(2, 0.7, 3, 1.5), (0, 4), 1e-9),
}
TIMES = 10


@pytest.mark.parametrize("method", ["rodas5p", "rosenbrock23", pytest.param("rodas4", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_of_stiff_problems_by_dual_numbers_through_the_step_loop(name, method):
    func, y0, k, span, atol = PROBLEMS[name]
    n, p, rtol = len(y0), len(k), 1e-4 if method == "rosenbrock23" else 1e-6
    t = torch.linspace(*span, TIMES, dtype=FLOAT)
    kernel = Sensitivities(func, n, p, ODE_METHODS[method])
    moving = tuple(range(p))
    found = kernel.solve(
        y0[None],
        unit_starts(1, n, moving),
        k[:, None],
        t[:1],
        t[-1:],
        t[None],
        moving,
        rtol=rtol,
        atol=torch.full((n,), atol, dtype=FLOAT),
        controller=PIDController(),
        max_steps=5000,
    )
    with forward_ad.dual_level():
        start = torch.cat([torch.eye(n, dtype=FLOAT), torch.zeros(p, n, dtype=FLOAT)])
        seeds = torch.cat([torch.zeros(n, p, dtype=FLOAT), torch.eye(p, dtype=FLOAT)])
        dual = forward_ad.make_dual(y0.repeat(n + p, 1), start)
        rates = forward_ad.make_dual(k.repeat(n + p, 1), seeds).unbind(-1)
        y = solve_ivp(
            lambda t, y, *k: torch.func.vmap(func)(t.expand(len(y), 1)[:, 0], y, *k),
            span,
            dual,
            args=rates,
            t_eval=t,
            method=method,
            rtol=rtol,
            atol=atol,
            batch_dims=1,
            max_steps=5000,
        )
        states, expected = forward_ad.unpack_dual(y.y)
    assert y.stats[0].accepted == found.steps[0]
    scale = found.states[0].abs().amax(0)
    assert float(((states[0] - found.states[0]).abs() / scale).max()) < 1e-8
    expected = expected.movedim(0, 1)
    scale = expected.abs().amax(0)  # of each direction and state
    assert float(((expected - found.tangents[0]).abs() / scale.clamp(min=1e-300)).max()) < 1e-6
