"""Rosenbrock methods: their tableaus, stability, stiff problems, and gradients through their steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from problems import Counting, double
from stiff_problems import STIFF, robertson
from torchivp import ODE_METHODS, Backsolve, Checkpointed, Event, GridSteps, Outcome, solve_ivp
from torchivp.methods.ode.rosenbrock import Rosenbrock
from torchivp.methods.ode.tableau import StagePolynomials

ORDERS = {"rosenbrock23": (2, 2, 2), "rodas4": (4, 3, 3), "rodas5p": (5, 4, 4)}
RODAS4 = ODE_METHODS["rodas4"].tableau


def damped(t, y, p):
    """A driven pendulum, with a component drawn fast towards another."""
    a, b, c = y.unbind(-1)
    t = t.reshape(a.shape)
    return torch.stack((b, -torch.sin(a) * p[0] - p[1] * b + torch.cos(t * p[0]), 200 * p[1] * (a * b - c)), -1)


START, P = double(1.0, 0.5, 0.2), double(1.3, 0.4)


def end_of(method, y0, p, t1=1.5, **options):
    options = {"step_size": 0.1} | options
    return solve_ivp(damped, (0.2, t1), y0, args=(p,), method=method, **options).y[-1]


SAME_STEPS = {
    "step_size": None,
    "controller": GridSteps(lambda times: [*(0.2 + 0.1 * i for i in range(1, 13)), times.end]),
}
"""Those of a step size of 0.1 from 0.2 to 1.5, but that the last ends on the end."""


def differences(f, x, h=1e-4):
    """The derivative of f by finite differences of the fourth order, one column for each entry of x."""
    columns = []
    for i in range(len(x)):
        e = torch.zeros_like(x)
        e[i] = h
        columns.append((8 * (f(x + e) - f(x - e)) - f(x + 2 * e) + f(x - 2 * e)) / (12 * h))
    return torch.stack(columns, -1)


def stability(method, z):
    """The factor of one step for y' = z y with a step of 1."""
    tableau = ODE_METHODS[method].tableau
    gammas = tableau.gammas
    beta, ones = tableau.alpha + gammas, np.ones(len(tableau.b))
    return 1 + z * (np.array(tableau.b) @ gammas) @ np.linalg.solve(np.eye(len(beta)) - z * beta, ones)


# ---- tableaus --------------------------------------------------------------------------------------------------------


def test_orders_and_names():
    found = {
        name: (m.order, m.error_order, m.tableau.dense.order)
        for name, m in ODE_METHODS.items()
        if issubclass(m, Rosenbrock)
    }
    assert found == ORDERS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"c": (0, 0.386, 0.21, 0.64, 1, 1)}, "rows of alpha must sum to the nodes c"),
        ({"d": (0.25, -0.1043, 0.1035, -0.0363, 0, 0)}, "rows of Gamma must sum to d"),
        ({"order": 5}, "b must have order 5"),
        ({"embedded_order": 4}, "b_embedded must have order 4"),
        ({"dense": StagePolynomials(1, b=[[b] for b in RODAS4.b_embedded])}, "dense.b must equal b"),
        ({"dense": replace(RODAS4.dense, order=4)}, "dense.b must have order 4"),
    ],
)
def test_a_wrong_tableau_is_refused(change, sentence):
    with pytest.raises(ValueError, match=f"inconsistent Rosenbrock tableau: .*{sentence}"):
        replace(RODAS4, **change)


@pytest.mark.parametrize("method", ORDERS)
def test_stable_wherever_the_solution_decays_and_damped_at_infinity(method):
    assert all(abs(stability(method, 1j * y)) < 1 + 1e-12 for y in np.geomspace(1e-3, 1e6, 40))
    assert all(abs(stability(method, -x)) < 1 for x in np.geomspace(1e-3, 1e6, 40))
    assert abs(stability(method, -1e9)) < 1e-7


@pytest.mark.parametrize("method", ORDERS)
def test_a_solve_has_the_stability_of_the_tableau(method):
    y = solve_ivp(lambda t, y: -40.0 * y, (0.0, 1.0), double(1.0), method=method, step_size=0.25).y
    torch.testing.assert_close(y[:, 0], double(*[stability(method, -10.0) ** n for n in range(5)]), rtol=1e-11, atol=0)


# ---- stiff problems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("stiffness", [1e2, 1e6])
def test_prothero_and_robinson(method, stiffness):
    """y' = -k (y - cos t) - sin t, y = cos t: 20 steps, far longer than 1/k. It needs the derivative by time."""
    y = solve_ivp(
        lambda t, y: -stiffness * (y - torch.cos(t)) - torch.sin(t),
        (0.0, 2.0),
        double(1.0),
        method=method,
        step_size=0.1,
    ).y
    assert abs(y[-1].item() - math.cos(2.0)) < {"rosenbrock23": 2e-3, "rodas4": 2e-5, "rodas5p": 1e-6}[method]


@pytest.mark.parametrize("problem", STIFF)
@pytest.mark.parametrize(
    ("method", "rtol"), [("rosenbrock23", 1e-3), ("rodas4", 1e-4), ("rodas5p", 1e-3), ("rodas5p", 1e-5)]
)
def test_errors_stay_near_the_tolerance(method, rtol, problem):
    stiff = STIFF[problem]
    options = {"method": method, "rtol": rtol, "atol": rtol * stiff.atol_per_rtol}
    solution = solve_ivp(stiff.func, stiff.span, stiff.y0, t_eval=[stiff.span[1]], **options)
    # Without local extrapolation the errors of many steps add up.
    assert stiff.scaled_error(solution.y[-1], rtol) < (200 if method == "rosenbrock23" else 10)


@pytest.mark.parametrize("method", ORDERS)
def test_rows_of_mixed_stiffness_are_their_single_solves(method):
    rates = double(1e2, 1e4, 1e6)
    y0 = double(1.0, 0.0, 0.0).expand(3, 3).clone()
    options = {"method": method, "rtol": 1e-4, "atol": 1e-8}
    batch = solve_ivp(
        lambda t, y, k: robertson(t, y, 0.04, 3 * k, k), (0.0, 40.0), y0, args=(rates,), batch_dims=1, **options
    )
    for row, k in enumerate(rates):
        single = solve_ivp(lambda t, y, k=k: robertson(t, y, 0.04, 3 * k, k), (0.0, 40.0), y0[row], **options)
        torch.testing.assert_close(batch.y[row, : len(single.y)], single.y, rtol=1e-9, atol=1e-12)
        work = batch.stats[row]
        assert (work.factorisations, work.solves) != (0, 0)


def test_work_is_counted_and_a_rejected_step_keeps_its_jacobian():
    func = Counting(STIFF["van der Pol"].func)
    solution = solve_ivp(func, (0.0, 1.0), double(2.0, 0.0), method="rodas4", rtol=1e-3, atol=1e-3)
    stats = solution.stats
    tries = stats.accepted + stats.rejected
    assert stats.rejected > 5
    assert (stats.jacobians, stats.factorisations, stats.solves) == (stats.accepted, tries, 6 * tries)
    # A try evaluates five stages, an accepted step once more at its start; two evaluations size the first step.
    assert stats.evaluations == len(func.times) == 2 + 5 * tries + stats.accepted


@pytest.mark.parametrize("method", ORDERS)
def test_events_in_a_stiff_solve(method):
    """The fast component follows cos t, whose zero is at pi / 2."""
    solution = solve_ivp(
        lambda t, y: -1e4 * (y - torch.cos(t)) - torch.sin(t),
        (0.0, 3.0),
        double(1.0),
        events=Event(lambda t, y: y[0], terminal=True),
        method=method,
        rtol=1e-6,
        atol=1e-9,
    )
    assert solution.status.outcome is Outcome.EVENT
    assert abs(solution.t[-1].item() - math.pi / 2) < 1e-5


@pytest.mark.parametrize("method", ORDERS)
def test_complex_states_are_pairs_of_real_numbers(method):
    """Of a function that is not holomorphic."""

    def func(t, y):
        return 1j * y.abs().square() * y - 30 * y.conj() + torch.cos(t)

    y0 = torch.tensor([1 + 0.5j, -0.3j], dtype=torch.complex128)
    pairs = solve_ivp(
        lambda t, y: torch.view_as_real(func(t, torch.view_as_complex(y))),
        (0.0, 0.3),
        torch.view_as_real(y0),
        method=method,
        step_size=0.02,
    )
    found = solve_ivp(func, (0.0, 0.3), y0, method=method, step_size=0.02)
    torch.testing.assert_close(torch.view_as_real(found.y), pairs.y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ORDERS)
def test_single_precision(method):
    y0 = torch.tensor([1.0, 0.0, 0.0])
    y = solve_ivp(robertson, (0.0, 1e5), y0, method=method, rtol=1e-3, atol=1e-7, t_eval=[1e5]).y
    torch.testing.assert_close(y[-1].double()[::2], STIFF["ROBER"].reference[::2], rtol=0, atol=2e-3)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_singular_matrix_means_a_shorter_step():
    """With a step of 1, I - dt gamma J vanishes."""
    gamma = ODE_METHODS["rodas4"].tableau.gamma
    controller = {"rtol": 1e-8, "atol": 1e-8, "first_step": 1.0}
    solution = solve_ivp(lambda t, y: y / gamma, (0.0, 1.0), double(1.0), method="rodas4", **controller)
    assert solution.stats.rejected >= 1
    assert solution.y[-1].item() == pytest.approx(math.exp(1 / gamma), rel=1e-6)
    fixed = solve_ivp(lambda t, y: y / gamma, (0.0, 1.0), double(1.0), method="rodas4", step_size=1.0, throw=False)
    assert fixed.status.outcome is Outcome.NON_FINITE


def test_a_jacobian_that_is_not_finite_gives_no_number():
    """d sqrt(y) / dy is infinite at zero."""
    solution = solve_ivp(lambda t, y: 1.0 + torch.sqrt(y), (0.0, 1.0), double(0.0), method="rodas5p", throw=False)
    assert solution.status.outcome is Outcome.NON_FINITE


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_function_that_autograd_does_not_see_is_refused(batch_dims):
    y0 = torch.ones((2,) * (batch_dims + 1), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"autograd does not see how func\(t, y\) depends on y: compute in torch"):
        solve_ivp(
            lambda t, y: torch.from_numpy(-y.detach().numpy()), (0.0, 1.0), y0, method="rodas4", batch_dims=batch_dims
        )


@pytest.mark.parametrize("method", ORDERS)
def test_a_slope_that_depends_on_nothing_is_none_of_these(method):
    y = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, 1.0), double(0.0, 1.0), method=method).y
    torch.testing.assert_close(y[-1], double(1.0, 2.0), rtol=1e-13, atol=0)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["direct", Checkpointed(checkpoints=3)])
@pytest.mark.parametrize("method", ORDERS)
def test_gradients_are_those_of_the_steps(method, gradient):
    """By the initial state, parameters and the end of the span, which is that of the last step."""
    y0, p, t1 = START.clone().requires_grad_(), P.clone().requires_grad_(), double(1.5).squeeze().requires_grad_()
    weights = double(0.3, -1.0, 2.0)
    y = solve_ivp(damped, (0.2, t1), y0, args=(p,), method=method, step_size=0.1, gradient=gradient).y[-1]
    found = torch.autograd.grad((y * weights).sum(), (y0, p, t1))
    by_start = weights @ differences(lambda x: end_of(method, x, P), START)
    by_p = weights @ differences(lambda x: end_of(method, START, x), P)
    by_end = weights @ differences(lambda x: end_of(method, START, P, x.item(), **SAME_STEPS), double(1.5)).squeeze()
    for one, other in zip(found, (by_start, by_p, by_end), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ORDERS)
def test_gradients_of_rows_are_those_of_the_single_solves(method):
    y0 = torch.stack((START, 2 * START, 0.5 * START)).requires_grad_()
    p = P.clone().requires_grad_()
    options = {"method": method, "rtol": 1e-3, "atol": 1e-5, "t_eval": [0.9, 1.5]}
    batch = solve_ivp(damped, (0.2, 1.5), y0, args=(p,), batch_dims=1, **options)
    found = torch.autograd.grad(batch.y.square().sum(), (y0, p))
    single = sum(solve_ivp(damped, (0.2, 1.5), y, args=(p,), **options).y.square().sum() for y in y0)
    for one, other in zip(found, torch.autograd.grad(single, (y0, p)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_second_derivatives():
    def loss(y0, p):
        return end_of("rodas4", y0, p, 0.6).square().sum()

    inputs = (START.clone().requires_grad_(), P.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(loss, inputs, rtol=1e-5, atol=1e-6)


def test_third_derivatives():
    """y' = -p y^2 from 1, one long step: against finite differences of second derivatives."""

    def second(p):
        p = p.clone().requires_grad_()
        y = solve_ivp(lambda t, y: -p * y**2, (0.0, 0.5), double(1.0), method="rodas4", step_size=0.5).y[-1]
        (first,) = torch.autograd.grad(y.sum(), p, create_graph=True)
        return torch.autograd.grad(first.sum(), p, create_graph=True)[0], p

    value, p = second(double(0.7))
    (third,) = torch.autograd.grad(value.sum(), p)
    expected = differences(lambda p: second(p)[0].detach(), double(0.7)).squeeze()
    torch.testing.assert_close(third.squeeze(), expected, rtol=1e-7, atol=0)


def test_transforms_of_torch_func_and_forward_mode():
    def f(y0):
        return end_of("rodas4", y0, P, 0.6)

    expected = differences(f, START)
    torch.testing.assert_close(torch.func.jacrev(f)(START), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.func.jacfwd(f)(START), expected, rtol=1e-8, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        v = double(1.0, -1.0, 0.5)
        dual = torch.autograd.forward_ad.make_dual(START, v)
        tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
        torch.testing.assert_close(tangent, expected @ v, rtol=1e-8, atol=1e-10)
    starts = torch.stack((START, 2 * START))
    together = torch.func.vmap(torch.func.jacrev(f))(starts)
    torch.testing.assert_close(together[0], expected, rtol=1e-8, atol=1e-10)
    hessian = torch.func.hessian(lambda y0: f(y0)[0])(START)
    torch.testing.assert_close(hessian, differences(lambda x: torch.func.jacrev(f)(x)[0], START), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_backsolve_uses_the_jacobian_of_the_adjoint_equations(batch_dims):
    """Without it the methods are of first order, and would take thousands of steps."""
    y0, p = double(1.0, 0.5).requires_grad_(), double(40.0).squeeze().requires_grad_()
    options = {"args": (p,), "method": "rodas5p", "t_eval": torch.linspace(0.0, 1.0, 11), "batch_dims": batch_dims}
    start = y0.expand(2, 2) if batch_dims else y0

    def func(t, y, p):
        a, b = y.unbind(-1)
        return torch.stack((p * (torch.cos(t.reshape(a.shape) + b) - a), -b), -1)

    solution = solve_ivp(func, (0.0, 1.0), start, gradient=Backsolve(), rtol=1e-8, atol=1e-10, **options)
    found = torch.autograd.grad(solution.y[..., -1, 0].sum(), (y0, p))
    exact = solve_ivp(func, (0.0, 1.0), start, rtol=1e-9, atol=1e-11, **options)
    for one, other in zip(found, torch.autograd.grad(exact.y[..., -1, 0].sum(), (y0, p)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    if not batch_dims:
        assert solution.stats.backward.accepted < 300
