"""Backward differentiation formulas: coefficients, orders, stiff problems beside SciPy, rows, events, gradients."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import torch

from problems import double
from stiff_problems import STIFF, hires, robertson
from torchivp import ODE_METHODS, Event, odeint, odeint_event, solve_ivp
from torchivp.error_norm import ErrorNorm
from torchivp.methods.ode.bdf import BDF, BDFCarry

KAPPA = (0.0, -0.1850, -1 / 9, -0.0823, -0.0415, 0.0)
PRECISE = {"method": "bdf", "rtol": 1e-9, "atol": 1e-12}


def made(y):
    return BDF(y, torch.float64, ErrorNorm(1e-12, 1e-14, [slice(0, y.shape[1])], y.dtype))


def carry_of(method, solution, t, h, order):
    """What a step from `t` at this order starts from: the differences of a known solution at spacing `h`."""
    values = torch.stack([solution(t - i * h) for i in range(8)])
    differences = []
    for _ in range(7):
        values = values[:-1] - values[1:]
        differences.append(values[0])
    carry = method._begin(torch.zeros(1, len(values[0]), dtype=torch.float64), single=True)
    carry.last.order[:], carry.last.spacing[:], carry.last.equal[:] = order, h, order + 1
    return BDFCarry(torch.stack(differences).unsqueeze(0), torch.tensor([[h]], dtype=torch.float64), carry.last)


@pytest.mark.parametrize("ratio", [0.3, 1.7, 9.0])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_polynomials_of_the_order_are_solved_exactly_in_steps_of_other_sizes(order, ratio):
    """The past is interpolated, the formula is exact, and so is the solution within the step."""
    coefficients = np.arange(1.0, order + 2.0)

    def solution(t):
        return double(float(np.polynomial.polynomial.polyval(t, coefficients)))

    def func(t, y):
        slope = np.polynomial.polynomial.polyval(t, np.polynomial.polynomial.polyder(coefficients))
        return -3.0 * (y - solution(t)) + slope

    y = solution(0.5).unsqueeze(0)
    method = made(y)
    h = 0.1 * ratio
    step = method.step(func, 0.5, 0.5 + h, y, carry_of(method, solution, 0.5, 0.1, order))
    assert step.order == order
    assert torch.allclose(step.y1, solution(0.5 + h), rtol=1e-12, atol=0.0)
    assert step.error.abs().max() < 1e-11
    within = method.interpolant(func, step).evaluate([0.5 + 0.3 * h])
    assert torch.allclose(within, solution(0.5 + 0.3 * h), rtol=1e-12, atol=0.0)


def smooth(t):
    return double(np.exp(np.sin(t)))


def smooth_func(t, y):
    return torch.cos(t) * y


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_orders_of_the_error_estimates_and_of_the_result(order):
    """In one step, from exact values before it."""
    found = []
    for h in (0.04, 0.02):
        y = smooth(-0.3).unsqueeze(0)
        method = made(y)
        step = method.step(smooth_func, -0.3, -0.3 + h, y, carry_of(method, smooth, -0.3, h, order))
        estimates = {order: step.error, "result": step.y1 - smooth(-0.3 + h), **dict(step.others)}
        found.append({which: estimate.abs().item() for which, estimate in estimates.items()})
    assert set(found[0]) == {"result", *range(max(order - 1, 1), min(order + 1, 5) + 1)}
    for which in {"result", *range(max(order - 1, 1), order + 1)}:
        ratio = np.log2(found[0][which] / found[1][which])
        assert ratio == pytest.approx((order if which == "result" else which) + 1, abs=0.35)
    # Of the equation, which is larger than that of its solution by the weight of the state in it.
    weight = (1 - KAPPA[order]) * sum(1 / i for i in range(1, order + 1))
    assert found[1][order] == pytest.approx(weight * found[1]["result"], rel=0.25)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_orders_of_convergence_at_the_end_and_between_the_steps(order):
    errors = []
    for n in (20, 40):
        h, y = 1.0 / n, smooth(1.0).unsqueeze(0)
        method = made(y)
        carry, within = carry_of(method, smooth, 1.0, h, order), 0.0
        for i in range(n):
            step = method.step(smooth_func, 1.0 + i * h, 1.0 + (i + 1) * h, y, method.at_order(carry, order))
            y, carry = step.y1, step.carry
            t = 1.0 + (i + 0.4) * h
            within = max(within, (method.interpolant(smooth_func, step).evaluate([t]) - smooth(t)).abs().item())
        errors.append(((y - smooth(2.0)).abs().item(), within))
    for coarse, fine in zip(*errors, strict=True):
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.4)


def test_stiff_decay_to_a_slow_solution_at_every_order():
    """Prothero and Robinson's problem, from perturbed differences: the error is damped, whatever the stiffness."""
    for order in range(1, 6):
        y = double(0.0, 0.0).unsqueeze(0)
        rates = double(1e3, 1e9)

        def func(t, y, rates=rates):
            return rates * (torch.sin(t) - y) + torch.cos(t)

        method = made(y)
        carry = carry_of(method, lambda t: torch.sin(double(t, t)), 0.0, 0.05, order)
        carry = carry._replace(differences=carry.differences + 1e-3 * torch.arange(2))
        for i in range(60):
            step = method.step(func, 0.05 * i, 0.05 * (i + 1), y, method.at_order(carry, order))
            y, carry = step.y1, step.carry
        bound = {1: 1e-4, 2: 1e-5}.get(order, 1e-6)
        assert (y - torch.sin(double(3.0))).abs().max() < bound


@pytest.mark.parametrize("name", STIFF)
def test_stiff_problems_are_precise_and_cost_no_more_than_by_scipy(name):
    problem, rtol = STIFF[name], 1e-5
    atol = rtol * problem.atol_per_rtol
    reference = scipy.integrate.solve_ivp(
        lambda t, y: problem.func(t, torch.from_numpy(y)).numpy(),
        problem.span,
        problem.y0.numpy(),
        method="BDF",
        rtol=rtol,
        atol=atol,
    )
    solution = solve_ivp(problem.func, problem.span, problem.y0, method="bdf", rtol=rtol, atol=atol)
    assert problem.scaled_error(solution.y[-1], rtol) < 50.0
    assert solution.stats.evaluations <= 1.3 * reference.nfev


def steps_of(func, span, y0, **options):
    """The steps that were tried."""
    tried = []

    class Watched(BDF):
        def step(self, func, t0, t1, y0, carry):
            step = super().step(func, t0, t1, y0, carry)
            tried.append(step)
            return step

    return solve_ivp(func, span, y0, method=Watched, **options), tried


def test_size_and_order_change_only_after_steps_of_one_size():
    _, tried = steps_of(smooth_func, (0.0, 10.0), double(1.0), rtol=1e-7, atol=1e-9)
    orders, sizes = [step.order for step in tried], [step.t1 - step.t0 for step in tried]
    assert orders[0] == 1 and max(orders) == 5
    assert all(abs(b - a) <= 1 for a, b in pairwise(orders))
    accepted = [i for i, step in enumerate(tried[:-1]) if tried[i + 1].t0 == step.t1]
    held = [i for i in accepted if tried[i].hold]
    assert len(held) > len(accepted) / 2
    assert all(orders[i + 1] == orders[i] and sizes[i + 1] == pytest.approx(sizes[i], rel=1e-9) for i in held[:-5])
    assert all(not step.others for step in tried if step.hold)


def test_the_highest_order_is_an_option():
    method = BDF.with_options(max_order=2)
    y0 = double(1.0)
    solution = solve_ivp(smooth_func, (0.0, 5.0), y0, method=method, rtol=1e-5, atol=1e-7)
    assert (solution.y[-1] - smooth(5.0)).abs().item() < 1e-3
    with pytest.raises(ValueError, match="max_order must be"):
        BDF.with_options(max_order=6)
    with pytest.raises(ValueError, match="leave step_size out"):
        solve_ivp(smooth_func, (0.0, 1.0), y0, method="bdf", step_size=0.1)


RATES = double(0.04, 0.4, 0.01, 4.0)


@pytest.mark.parametrize("dense", [False, True])
def test_rows_of_mixed_stiffness_are_their_single_solves(dense):
    """Their orders differ, and their numbers do not depend on which other rows there are."""
    y0, times = STIFF["ROBER"].y0.expand(4, 3), torch.logspace(-2, 1, 7, dtype=torch.float64)
    options = {"method": "bdf", "rtol": 1e-6, "atol": 1e-9, "dense_output": dense, "t_eval": times}
    rows = solve_ivp(robertson, (0.0, 10.0), y0, args=(RATES,), batch_dims=1, **options)
    some = solve_ivp(robertson, (0.0, 10.0), y0[1:3], args=(RATES[1:3],), batch_dims=1, **options)
    assert torch.equal(rows.y[1:3], some.y)
    for i in range(4):
        single = solve_ivp(robertson, (0.0, 10.0), y0[i], args=(RATES[i],), **options)
        assert torch.allclose(rows.y[i], single.y, rtol=1e-7, atol=1e-12)
        assert rows.stats[i].accepted == single.stats.accepted
        if dense:
            assert torch.allclose(rows.sol(3.3)[i], single.sol(3.3), rtol=1e-7, atol=1e-12)


def weighted_end(y0, rate, func, **options):
    y = solve_ivp(func, (0.0, 1.0), y0, args=(rate,), method="bdf", rtol=1e-8, atol=1e-10, **options).y[-1]
    return (y * torch.linspace(1.0, 2.0, y.shape[-1], dtype=y.dtype)).sum() * 1e2


@cache
def directional_derivative(name):
    """Of the weighted end along the direction (v, rate) in the initial state and the rate, by finite differences."""
    func, y0, rate, direction = perturbed(name)

    def along(s):
        return weighted_end(y0 + s * direction, double(rate * (1 + s)).squeeze(), func).item()

    h = 5e-3
    return (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)


def perturbed(name):
    """A stiff problem away from its start: func, the initial state, a rate, and a direction of the state."""
    y0 = STIFF[name].y0 + 0.01
    direction = torch.linspace(0.1, 0.3, len(y0), dtype=torch.float64)
    return {"ROBER": robertson, "HIRES": hires}[name], y0, {"ROBER": 0.04, "HIRES": 280.0}[name], direction


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("name", ["ROBER", "HIRES"])
def test_gradients_agree_with_finite_differences(name, gradient):
    func, y0, rate, direction = perturbed(name)
    leaves = y0.clone().requires_grad_(), double(rate).squeeze().requires_grad_()
    found = torch.autograd.grad(weighted_end(*leaves, func, gradient=gradient), leaves)
    along = ((found[0] * direction).sum() + rate * found[1]).item()
    assert along == pytest.approx(directional_derivative(name), rel=1e-5)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_gradients_of_rows_are_those_of_their_single_solves(gradient):
    y0, times, rates = STIFF["ROBER"].y0, double(0.1, 0.5), RATES[:2]
    options = {"method": "bdf", "rtol": 1e-6, "atol": 1e-9, "t_eval": times, "gradient": gradient}

    def gradients(rates, **more):
        rates = rates.clone().requires_grad_()
        y = solve_ivp(robertson, (0.0, 0.5), y0.expand(*rates.shape, 3), args=(rates,), **options, **more).y
        return torch.autograd.grad((y * double(1.0, 1e4, 1.0)).sin().sum(), rates)[0]

    rows = gradients(rates, batch_dims=1)
    for i in range(2):
        assert rows[i].item() == pytest.approx(gradients(rates[i]).item(), rel=1e-5)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_gradients_by_the_times(gradient):
    """By the start, the end and an output between them."""
    times = double(0.2, 0.9, 1.7, grad=True)
    options = {**PRECISE, "t_eval": times, "gradient": gradient}
    y = solve_ivp(smooth_func, times[[0, -1]], smooth(0.2), **options).y
    found = torch.autograd.grad(y[1:].sum(), times)[0]
    ends = times.detach()[1:]
    slopes = torch.cos(ends) * torch.exp(torch.sin(ends))
    expected = torch.cat((-torch.cos(times.detach()[:1]) * torch.exp(torch.sin(ends)).sum(), slopes))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_backsolve_of_a_problem_that_can_be_solved_backwards():
    rate = double(2.0, grad=True)
    y = solve_ivp(
        lambda t, y, k: -k * (y - torch.cos(t)), (0.0, 1.0), double(2.0), args=(rate,), gradient="backsolve", **PRECISE
    ).y[-1]
    exact = torch.autograd.functional.jacobian(
        lambda k: (
            (k * (k * np.cos(1.0) + np.sin(1.0)) + (2.0 - k * k / (1 + k * k)) * torch.exp(-k) * (1 + k * k))
            / (1 + k * k)
        ),
        rate.detach(),
    ).item()
    assert torch.autograd.grad(y.sum(), rate)[0].item() == pytest.approx(exact, rel=1e-6)


def test_derivatives_forward_and_of_higher_order():
    def end(k):
        return (
            solve_ivp(lambda t, y: -k * y * y, (0.0, 1.0), double(1.0), method="bdf", rtol=1e-7, atol=1e-9).y[-1].sum()
        )

    k = torch.tensor(1.5, dtype=torch.float64)  # y = 1 / (1 + k)
    assert torch.func.jvp(end, (k,), (torch.ones_like(k),))[1].item() == pytest.approx(-1 / 2.5**2, rel=1e-5)
    assert torch.func.grad(torch.func.grad(end))(k).item() == pytest.approx(2 / 2.5**3, rel=1e-4)
    many = torch.func.vmap(end)(torch.stack((k, 2 * k)))
    assert torch.allclose(many, double(1 / 2.5, 1 / 4.0), rtol=1e-5)


@pytest.mark.parametrize("batched", [False, True])
def test_events_within_stiff_steps(batched):
    """Of rows too, whose steps end on the event; the gradient of its time is exact."""
    rate = double(1e4, grad=True)

    def func(t, y, k):  # quickly to cos t
        return -k * (y - torch.cos(t)) - torch.sin(t)

    y0 = double(1.0).expand(2, 1) if batched else double(1.0)
    solution = solve_ivp(
        func,
        (0.0, 5.0),
        y0,
        args=(rate,),
        events=Event(lambda t, y, k: y[..., 0], terminal=True),
        batch_dims=1 if batched else 0,
        **PRECISE,
    )
    assert torch.allclose(solution.events.t, double(np.pi / 2), rtol=1e-8)
    # y = cos t, up to 1/k**2: the event does not depend on the rate.
    assert torch.autograd.grad(solution.events.t.sum(), rate)[0].abs().item() < 1e-7


def test_odeint_event():
    t, y = odeint_event(
        lambda t, y: -50.0 * (y - torch.cos(t)) - torch.sin(t),
        double(1.0),
        double(0.0).squeeze(),
        event_fn=lambda t, y: y[0] - 0.5,
        **PRECISE,
    )
    assert t.item() == pytest.approx(np.pi / 3, rel=1e-8) and y[-1].item() == pytest.approx(0.5, rel=1e-8)


def test_a_jump_restarts_at_order_one():
    def func(t, y):
        return -100.0 * (y - torch.where(t < 1.0, 1.0, 2.0))

    orders = {}

    class Watched(BDF):
        def step(self, func, t0, t1, y0, carry):
            step = super().step(func, t0, t1, y0, carry)
            orders[t0] = step.order
            return step

    times, jump = double(0.0, 1.0, 2.0), {"jump_t": double(1.0)}
    solution = odeint(func, double(0.0), times, method=Watched, rtol=1e-8, atol=1e-10, options=jump)
    assert torch.allclose(solution[1:, 0], double(1.0, 2.0), atol=1e-7)
    assert orders[0.0] == orders[1.0] == 1 < max(orders.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_other_dtypes(dtype):
    rate = torch.tensor(-200.0 if not dtype.is_complex else -200.0 + 3.0j, dtype=dtype)
    tolerance = 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-8
    y0 = torch.ones(2, dtype=dtype)
    solution = solve_ivp(
        lambda t, y: rate * (y - torch.cos(t)) - torch.sin(t),
        (0.0, 3.0),
        y0,
        method="bdf",
        rtol=tolerance,
        atol=tolerance,
    )
    assert solution.y.dtype == dtype
    assert (solution.y[-1] - np.cos(3.0)).abs().max() < 20 * tolerance


def test_backward_in_time():
    solution = solve_ivp(
        lambda t, y: 500.0 * (y - torch.cos(t)) - torch.sin(t), (2.0, -1.0), double(np.cos(2.0)), **PRECISE
    )
    assert solution.y[-1].item() == pytest.approx(np.cos(1.0), rel=1e-7)


def test_required_times_close_together_do_not_spoil_the_differences():
    times = [0.5, 0.5 + 1e-11, 0.5 + 1e-6]
    solution = odeint(
        smooth_func,
        double(1.0),
        double(0.0, 2.0),
        method="bdf",
        rtol=1e-7,
        atol=1e-9,
        options={"step_t": double(*times)},
    )
    assert (solution[-1] - smooth(2.0)).abs().item() < 1e-5


def test_where_newton_cannot_converge_the_solve_says_so():
    def func(t, y):
        return torch.where(t < 0.5, -y, torch.full_like(y, torch.nan))

    with pytest.raises(RuntimeError, match=r"t = 0\.5"):
        solve_ivp(func, (0.0, 1.0), double(1.0), method="bdf")


def test_names():
    assert ODE_METHODS["bdf"] is BDF and BDF.order == 5
