"""Adaptive implicit Runge-Kutta methods on stiff problems."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from problems import covering, double, sampled
from stiff_problems import STIFF, hires, robertson
from torchivp import ODE_METHODS, Outcome, PIDController, odeint, solve_ivp
from torchivp.error_norm import ErrorNorm
from torchivp.methods.implicit import dense, linear

ADAPTIVE = ["trbdf2", "kvaerno3", "kvaerno5", "kencarp3", "kencarp4", "kencarp5", "radau5"]

RADAU_OF_SCIPY = {
    # Evaluations and Jacobians of SciPy's Radau at rtol 1e-6.
    "ROBER": (1384, 37),
    "OREGO": (9692, 402),
    "HIRES": (1934, 75),
    "van der Pol": (7392, 205),
    "POLLU": (276, 12),
}


def solve(name, method, rtol, **options):
    problem = STIFF[name]
    end = [problem.span[1]]
    return solve_ivp(
        problem.func,
        problem.span,
        problem.y0,
        method=method,
        rtol=rtol,
        atol=rtol * problem.atol_per_rtol,
        t_eval=end,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "method", "rtol"),
    [(name, method, 1e-3) for name in STIFF for method in ADAPTIVE if (name, method) != ("OREGO", "trbdf2")]
    + [("POLLU", "kvaerno3", 1e-6), ("ROBER", "kvaerno5", 1e-6), ("HIRES", "kvaerno5", 1e-6)]
    + [("ROBER", "radau5", 1e-9), ("POLLU", "radau5", 1e-9), ("POLLU", "kvaerno5", 1e-9)],
)
def test_stiff_problems(name, method, rtol):
    """Also where an iteration with a Jacobian from before a fast transient would seem to converge."""
    assert STIFF[name].scaled_error(solve(name, method, rtol).final, rtol) < 50


@pytest.mark.parametrize("name", ["ROBER", "HIRES", "POLLU"])
def test_radau5_costs_no_more_than_that_of_scipy(name):
    solution = solve(name, "radau5", 1e-6)
    evaluations, jacobians = RADAU_OF_SCIPY[name]
    assert STIFF[name].scaled_error(solution.final, 1e-6) < 5
    assert solution.stats.evaluations < 1.1 * evaluations
    assert solution.stats.jacobians < 1.1 * jacobians


@pytest.mark.parametrize("method", ADAPTIVE)
def test_prothero_and_robinson(method):
    """A solution that hardly changes is followed in long steps, however stiff its neighbourhood is."""

    def func(t, y):
        return -1e6 * (y - torch.cos(t)) - torch.sin(t)

    solution = solve_ivp(func, (0.0, 10.0), double(1.0), method=method, rtol=1e-5, atol=1e-5)
    assert (solution.y[:, 0] - torch.cos(solution.t)).abs().max() < 1e-4
    assert solution.stats.accepted < 400


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_error_follows_the_tolerance(method):
    """On a problem that is not stiff and not autonomous, in reversed time."""

    def func(t, y):
        return torch.stack((y[1] * torch.cos(t), -y[0] * torch.cos(t)))

    exact = torch.stack((torch.sin(torch.sin(double(0.0, 3.0))), torch.cos(torch.sin(double(0.0, 3.0)))), 1)
    for rtol in (1e-3, 1e-5, 1e-7):
        solution = solve_ivp(func, (3.0, 0.0), exact[1], method=method, rtol=rtol, atol=rtol, t_eval=[0.0])
        assert (solution.y[0] - exact[0]).abs().max() < 50 * rtol


def test_the_error_estimates_have_their_orders():
    """Half the step, an error estimate smaller by two to the power of one more than its order."""
    norm = ErrorNorm(1e-12, 1e-12, [slice(0, 2)], torch.float64)
    y0 = double(0.3, 0.8).unsqueeze(0)
    for name in ADAPTIVE:
        method = ODE_METHODS[name]
        errors = []
        for dt in (0.1, 0.05):
            step = method(y0, torch.float64, norm).step(
                lambda t, y: torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1), 0.0, dt, y0, None
            )
            errors.append(step.error.norm().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(method.error_order + 1, abs=0.3), name


@pytest.mark.parametrize("method", sampled(ADAPTIVE))
def test_rows_are_solved_as_if_alone(method):
    """To the last bit, though they differ in stiffness, in their steps and in when they get new Jacobians."""
    k1, k2, k3 = double(0.04, 0.4, 0.01), double(3e7, 3e5, 3e6), double(1e4, 1e3, 1e5)
    y0 = double(1.0, 0.0, 0.0).expand(3, 3)

    def func(t, y, *rates):
        return robertson(t, y, *(rate.squeeze(-1) for rate in rates))

    def solved(rows):
        rates = [rate[rows, None] for rate in (k1, k2, k3)]
        options = {"method": method, "rtol": 1e-4, "atol": 1e-8, "batch_dims": 1, "t_eval": [100.0]}
        return solve_ivp(func, (0.0, 100.0), y0[rows], args=rates, **options)

    together = solved([0, 1, 2])
    for row in range(3):
        alone = solved([row])
        assert torch.equal(alone.y[0], together.y[row])
        for count in ("accepted", "rejected", "iterations"):
            assert getattr(alone.stats[0], count) == getattr(together.stats[row], count)
        rates = [rate[row].item() for rate in (k1, k2, k3)]
        single = solve_ivp(robertson, (0.0, 100.0), y0[0], args=rates, method=method, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(together.y[row, 0], single.final, rtol=1e-3, atol=1e-6)
        assert abs(single.stats.accepted - alone.stats[0].accepted) <= 0.2 * single.stats.accepted + 2


RATES = [0.04, 3e7, 1e4]


def end_of_robertson(rates, **options):
    solution = solve_ivp(robertson, (0.0, 4.0), double(1.0, 0.0, 0.0), args=rates, t_eval=[4.0], **options)
    return solution.y[0, 2]


@cache
def relative_derivatives():
    """By central differences of tight solves."""
    found = []
    for i in range(3):
        both = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            rates = [rate * factor if i == j else rate for j, rate in enumerate(RATES)]
            both.append(end_of_robertson(rates, method="radau5", rtol=1e-10, atol=1e-14).item())
        found.append((both[0] - both[1]) / 2e-4)
    return found


@pytest.mark.parametrize(
    ("method", "way"),
    sampled(
        itertools.product(["kvaerno3", "kvaerno5", "radau5"], ["direct", "checkpointed"]),
        covering(["kvaerno5"], ["radau5"], ["direct", "checkpointed"]),
    ),
)
def test_gradients_of_robertson(method, way):
    """With respect to the rate constants."""
    rates = [double(rate).squeeze(0).requires_grad_() for rate in RATES]
    rtol = 1e-6 if method == "kvaerno3" else 1e-7
    end = end_of_robertson(rates, method=method, rtol=rtol, atol=1e-4 * rtol, gradient=way)
    found = torch.autograd.grad(end, rates)
    relative = [gradient.item() * rate for gradient, rate in zip(found, RATES, strict=True)]
    assert relative == pytest.approx(relative_derivatives(), rel=1e-5)


def test_gradients_of_hires():
    y0 = STIFF["HIRES"].y0
    k = double(280.0).squeeze(0).requires_grad_()

    def end(k, **options):
        return solve_ivp(hires, (0.0, 1.0), y0, args=(k,), t_eval=[1.0], method="radau5", **options).y[0, 5]

    h = 280.0 * 1e-4
    exact = (end(280.0 + h, rtol=1e-9, atol=1e-13) - end(280.0 - h, rtol=1e-9, atol=1e-13)).item() / (2 * h)
    (found,) = torch.autograd.grad(end(k, rtol=1e-7, atol=1e-11), k)
    assert found.item() == pytest.approx(exact, rel=1e-5)


def test_the_work_is_counted(monkeypatch):
    made, jacobians = [], linear.jacobians
    monkeypatch.setattr(linear, "jacobians", lambda *args: made.append(1) or jacobians(*args))
    for method in ADAPTIVE:
        made.clear()
        stats = solve("ROBER", method, 1e-3).stats
        implicit = len(ODE_METHODS[method].tableau.c) - 1
        assert stats.jacobians == len(made)
        assert stats.jacobians < stats.factorisations < 3 * (stats.accepted + stats.rejected)
        assert stats.iterations <= stats.solves
        each = implicit if method == "radau5" else 1
        assert each * stats.iterations <= stats.evaluations <= each * stats.iterations + 2 * stats.jacobians + 30


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_step_that_is_tried_again_makes_no_new_jacobian(method):
    y0 = STIFF["HIRES"].y0.unsqueeze(0)
    made = ODE_METHODS[method](y0, torch.float64, ErrorNorm(1e-4, 1e-6, [slice(0, 8)], torch.float64))
    first = made.step(hires, 0.0, 2e-3, y0, None)
    again = made.step(hires, 0.0, 1e-3, y0, first.retry)
    assert first.work.jacobians == 1 and first.failure is None
    assert again.work.jacobians == 0 and again.work.factorisations == 1
    alone = made.step(hires, 0.0, 1e-3, y0, None)
    assert torch.equal(again.y1, alone.y1) and alone.work.jacobians == 1
    after = made.step(hires, 1e-3, 2e-3, again.y1, again.carry)
    assert after.work.jacobians == after.work.factorisations == 0


def test_a_step_whose_iteration_fails_is_tried_again_shorter():
    def func(t, y):
        return -1e3 * torch.sinh(20 * (y - torch.cos(t)))

    for method in ADAPTIVE:
        solution = solve_ivp(func, (0.0, 1.0), double(2.0), method=method, rtol=1e-4, atol=1e-6, first_step=0.5)
        assert solution.stats.rejected > 0
        assert (solution.final - math.cos(1.0)).abs().max() < 1e-3


def test_a_failure_that_no_shorter_step_mends_is_reported():
    def func(t, y):
        return torch.where(t < 0.5, -y, torch.full_like(y, math.nan))

    solution = solve_ivp(func, (0.0, 1.0), double(1.0), method="radau5", throw=False)
    assert solution.status.outcome is Outcome.NON_FINITE
    assert solution.status.t == pytest.approx(0.5, abs=1e-6)


def test_trbdf2_takes_fixed_steps_in_odeint_and_with_a_step_size():
    problem = STIFF["ROBER"]
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid = odeint(problem.func, problem.y0, t, method="trbdf2")
    fixed = solve_ivp(problem.func, (0.0, 1.0), problem.y0, method="trbdf2", step_size=0.1, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grid, fixed.y, rtol=1e-9, atol=1e-12)
    assert fixed.stats.accepted == 10 and fixed.stats.rejected == 0
    adaptive = solve_ivp(problem.func, (0.0, 1.0), problem.y0, method="trbdf2", controller=PIDController())
    assert adaptive.stats.accepted != 10


@pytest.mark.parametrize("method", ["radauIIA5", "gl4", "radau5"])
def test_decoupled_stages_have_the_same_solution(method, monkeypatch):
    """For large systems, one factorisation for each eigenvalue of the coefficients instead of one of all stages."""
    matrix = -torch.diag(torch.logspace(0, 3, 8, dtype=torch.float64)) + 0.1
    y0 = torch.ones(8, dtype=torch.float64)
    options = {"method": method, "step_size": 0.05, "rtol": 1e-10, "atol": 1e-12}
    together = solve_ivp(lambda t, y: y @ matrix - y**3, (0.0, 1.0), y0, **options)
    batch = solve_ivp(lambda t, y: y @ matrix - y**3, (0.0, 1.0), y0.expand(2, 8), batch_dims=1, **options)
    monkeypatch.setattr(dense, "_LEAST_DECOUPLED", 2)
    monkeypatch.setattr(dense, "_LEAST_DECOUPLED_ROWS", 2)
    decoupled = solve_ivp(lambda t, y: y @ matrix - y**3, (0.0, 1.0), y0, **options)
    rows = solve_ivp(lambda t, y: y @ matrix - y**3, (0.0, 1.0), y0.expand(2, 8), batch_dims=1, **options)
    torch.testing.assert_close(decoupled.y, together.y, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(rows.y, batch.y, rtol=1e-9, atol=1e-11)
    assert abs(decoupled.stats.evaluations - together.stats.evaluations) <= 0.05 * together.stats.evaluations


def test_complex_and_single_precision():
    """A complex state is a pair of real ones; single precision is as precise as it can be."""
    z0 = torch.tensor([1.0 + 1.0j], dtype=torch.complex128)
    for method in ADAPTIVE:
        solution = solve_ivp(lambda t, z: (-50 + 3j) * (z - torch.exp(1j * t)) + 1j * torch.exp(1j * t), (0.0, 2.0), z0,
                             method=method, rtol=1e-6, atol=1e-8)  # fmt: skip
        assert abs(solution.final.item() - np.exp(2j)) < 1e-4
        single = solve_ivp(lambda t, y: -50 * (y - torch.cos(t)), (0.0, 2.0), torch.ones(1), method=method, rtol=1e-4)
        exact = (2500 * math.cos(2.0) + 50 * math.sin(2.0)) / 2501
        assert single.final.item() == pytest.approx(exact, abs=5e-4)


def test_the_largest_number_of_iterations_is_what_was_asked_for():
    """Of few allowed, more steps are tried again."""
    problem = STIFF["ROBER"]
    few, many = (
        solve_ivp(
            problem.func,
            (0.0, 100.0),
            problem.y0,
            method=ODE_METHODS["kvaerno3"].with_options(max_iters=count),
            rtol=1e-4,
            atol=1e-8,
        ).stats
        for count in (2, 30)
    )
    assert few.rejected > many.rejected
