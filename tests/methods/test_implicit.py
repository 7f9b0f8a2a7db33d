"""Implicit Runge-Kutta methods: stability, Newton's iteration, its linear solvers, and gradients through it."""

import math
import re
import warnings
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch

from problems import covering, double, sampled
from torchivp import ODE_METHODS, Checkpointed, Outcome, odeint, solve_ivp
from torchivp.methods import find_method
from torchivp.methods.implicit import linear
from torchivp.methods.implicit.gmres import gmres
from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

ORDERS = {
    "implicit_euler": 1,
    "implicit_midpoint": 2,
    "trapezoid": 2,
    "sdirk2": 2,
    "trbdf2": 2,
    "kvaerno3": 3,
    "kvaerno5": 5,
    "kencarp3": 3,
    "kencarp4": 4,
    "kencarp5": 5,
    "radau5": 5,
    "radauIIA3": 3,
    "radauIIA5": 5,
    "gl4": 4,
    "gl6": 6,
}
GAUSS = ["implicit_midpoint", "gl4", "gl6"]
L_STABLE = [name for name in ORDERS if name not in (*GAUSS, "trapezoid")]
TIGHT = {"rtol": 1e-12, "atol": 1e-14}


def pendulum(t, y, p):
    return torch.stack((y[1], -torch.sin(y[0]) * p[0] - p[1] * y[1] + torch.cos(t * p[0])))


def stiff(t, y):
    """Nonlinear, drawn towards cos t."""
    return -50 * (y - torch.cos(t)) - y**3


def robertson(t, y):
    first = -0.04 * y[0] + 1e4 * y[1] * y[2]
    third = 3e7 * y[1] ** 2
    return torch.stack((first, -first - third, third))


@cache
def scipy_radau(func, y0, t):
    found = scipy.integrate.solve_ivp(
        lambda t, y: func(torch.tensor(t), torch.from_numpy(y)).numpy(),
        (0.0, t),
        y0,
        method="Radau",
        rtol=1e-10,
        atol=1e-13,
    )
    return torch.from_numpy(found.y[:, -1])


def stability(method, z):
    """The factor of one step for y' = z y with a step of 1."""
    tableau = ODE_METHODS[method].tableau
    a = tableau.matrix
    ones = np.ones(len(a))
    return 1 + z * np.array(tableau.b) @ np.linalg.solve(np.eye(len(a)) - z * a, ones)


def test_orders_and_names():
    found = {name: m.order for name, m in ODE_METHODS.items() if issubclass(m, ImplicitRungeKutta)}
    assert found == ORDERS
    assert (ODE_METHODS["heun2"].order, ODE_METHODS["heun3"].order) == (2, 3)
    assert ODE_METHODS["heun2"].error_order is ODE_METHODS["heun3"].error_order is None


@pytest.mark.parametrize("method", ORDERS)
def test_stable_wherever_the_solution_decays(method):
    assert all(abs(stability(method, 1j * y)) < 1 + 1e-12 for y in np.geomspace(1e-3, 1e6, 40))
    assert all(abs(stability(method, -x)) < 1 for x in np.geomspace(1e-3, 1e6, 40))
    damped = abs(stability(method, -1e9))
    assert damped < 1e-6 if method in L_STABLE else damped == pytest.approx(1.0)


@pytest.mark.parametrize("method", GAUSS)
def test_gauss_methods_are_symplectic(method):
    tableau = ODE_METHODS[method].tableau
    b, a = np.array(tableau.b), tableau.matrix
    weighted = b[:, None] * a
    np.testing.assert_allclose(weighted + weighted.T, np.outer(b, b), atol=1e-15)
    y = solve_ivp(
        lambda t, y: torch.stack((y[1], -y[0])), (0.0, 50.0), double(1.0, 0.0), method=method, step_size=0.5
    ).y
    torch.testing.assert_close(y.square().sum(1), torch.ones(101, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ORDERS)
def test_a_solve_has_the_stability_of_the_tableau(method):
    y = solve_ivp(lambda t, y: -40.0 * y, (0.0, 1.0), double(1.0), method=method, step_size=0.25, **TIGHT).y
    torch.testing.assert_close(y[:, 0], double(*[stability(method, -10.0) ** n for n in range(5)]), rtol=1e-11, atol=0)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("stiffness", [1e2, 1e6])
def test_prothero_and_robinson(method, stiffness):
    """y' = -k (y - cos t) - sin t, y = cos t: 20 steps, far longer than 1/k."""
    y = solve_ivp(
        lambda t, y: -stiffness * (y - torch.cos(t)) - torch.sin(t),
        (0.0, 2.0),
        double(1.0),
        method=method,
        step_size=0.1,
    ).y
    expected = 0.1 if method == "implicit_euler" else 5e-3 if ORDERS[method] == 2 else 5e-4
    assert abs(y[-1].item() - math.cos(2.0)) < expected


@pytest.mark.parametrize("method", [name for name in ORDERS if name != "kvaerno5"])
def test_robertson(method):
    """The equations of a step have a solution with negative concentrations too: it must not be found.

    Not with kvaerno5, whose iteration does not converge in steps of that size: it says so.
    """
    y = solve_ivp(robertson, (0.0, 10.0), double(1.0, 0.0, 0.0), method=method, step_size=0.1, rtol=1e-6, atol=1e-10).y
    tolerance = {"implicit_euler": 1e-2, "trapezoid": 5e-2, "implicit_midpoint": 1e-4, "kencarp5": 2e-5}
    expected = scipy_radau(robertson, (1.0, 0.0, 0.0), 10.0)
    torch.testing.assert_close(y[-1, ::2], expected[::2], rtol=tolerance.get(method, 1e-5), atol=0)
    torch.testing.assert_close(y.sum(1), torch.ones(101, dtype=torch.float64), rtol=1e-6, atol=0)


def stiff_van_der_pol(t, y):
    return torch.stack((y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]))


@pytest.mark.parametrize(("method", "tolerance"), [("radauIIA5", 1e-7), ("radauIIA3", 1e-5), ("sdirk2", 1e-4)])
def test_van_der_pol(method, tolerance):
    func = stiff_van_der_pol
    solution = solve_ivp(func, (0.0, 500.0), double(2.0, 0.0), method=method, step_size=2.0, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(solution.y[-1], scipy_radau(func, (2.0, 0.0), 500.0), rtol=tolerance, atol=0)
    assert solution.stats.evaluations < 10 * solution.stats.accepted


def test_a_function_that_is_not_holomorphic():
    """Complex states give what the same equations in pairs of real numbers give, at the same cost."""

    def func(t, y):
        return 1j * y.abs().square() * y - 0.3 * y.conj() + torch.cos(t)

    y0 = torch.tensor([1 + 0.5j, -0.3j], dtype=torch.complex128)
    for method in ORDERS:
        options = {"method": method, "step_size": 0.1, "rtol": 1e-10, "atol": 1e-12}
        plain = solve_ivp(func, (0.0, 2.0), y0, **options)
        pairs = solve_ivp(
            lambda t, y: torch.view_as_real(func(t, torch.view_as_complex(y))),
            (0.0, 2.0),
            torch.view_as_real(y0),
            **options,
        )
        torch.testing.assert_close(torch.view_as_real(plain.y), pairs.y, rtol=1e-10, atol=1e-11)
        assert plain.stats.evaluations == pytest.approx(pairs.stats.evaluations, rel=0.1)
        # Newton converges: with a Jacobian for holomorphic functions, it would by a constant factor at best.
        assert plain.stats.evaluations < 14 * len(ODE_METHODS[method].tableau.c) * plain.stats.accepted


@pytest.mark.parametrize("method", ORDERS)
def test_the_equations_are_solved_well_within_the_tolerance(method):
    options = {"method": method, "step_size": 0.1}
    loose = solve_ivp(stiff, (0.0, 2.0), double(2.0, 0.0), rtol=1e-4, atol=1e-4, **options).y
    exact = solve_ivp(stiff, (0.0, 2.0), double(2.0, 0.0), **TIGHT, **options).y
    assert (loose - exact).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("method", "rtol", "dtype"), covering(ORDERS, ["radauIIA5"], [1e-4, 1e-9, 0.0], [torch.float32, torch.float64])
)
def test_no_more_is_asked_for_than_rounding_allows(method, rtol, dtype):
    y0 = torch.tensor([2.0, 0.0], dtype=dtype)
    solution = solve_ivp(stiff, (0.0, 2.0), y0, method=method, step_size=0.05, rtol=rtol, atol=rtol / 1e3)
    exact = solve_ivp(stiff, (0.0, 2.0), y0.double(), method=method, step_size=0.05, **TIGHT)
    torch.testing.assert_close(solution.y[-1].double(), exact.y[-1], rtol=max(rtol, 1e-6), atol=1e-6)
    assert solution.stats.evaluations < 40 * 45


@pytest.mark.parametrize("method", ORDERS)
def test_a_jacobian_serves_as_long_as_it_can(method, monkeypatch):
    made, jacobian = [], linear.jacobians
    monkeypatch.setattr(linear, "jacobians", lambda *args: made.append(1) or jacobian(*args))
    matrix = -torch.diag(double(1.0, 10.0, 100.0))
    solution = solve_ivp(
        lambda t, y: matrix @ y + torch.sin(t), (0.0, 10.0), double(1.0, 1.0, 1.0), method=method, step_size=0.1
    )
    assert len(made) == 1
    implicit = sum(row[i : i + 1] != (0,) and len(row) > i for i, row in enumerate(ODE_METHODS[method].tableau.a))
    assert solution.stats.evaluations < 2.1 * implicit * 100 + 10
    made.clear()
    t = torch.cat((torch.linspace(0, 1, 11), torch.linspace(1.02, 2, 50)))  # the step changes: factorised anew
    fixed = ODE_METHODS[method].at_steps(fixed=True)
    odeint(lambda t, y: matrix @ y, double(1.0, 1.0, 1.0), t.double(), method=fixed)
    assert len(made) == 1


def test_a_jacobian_that_is_out_of_date_is_replaced():
    def func(t, y):
        return -torch.exp(6 * t) * (y**3 - 1)

    for method in ORDERS:
        solution = solve_ivp(func, (0.0, 2.0), double(1.5), method=method, step_size=0.1)
        exact = solve_ivp(func, (0.0, 2.0), double(1.5), method=method, step_size=0.1, **TIGHT)
        torch.testing.assert_close(solution.y, exact.y, rtol=2e-7, atol=0)


def test_a_failure_says_what_to_do():
    method = find_method("radauIIA5").with_options(max_iters=1)
    solution = solve_ivp(stiff, (0.0, 2.0), double(2.0), method=method, step_size=0.5, throw=False)
    assert solution.status.outcome is Outcome.NOT_CONVERGED and solution.status.t == 0.0
    assert solution.message.startswith("Newton's iteration did not converge in 1 iterations (last correction ")
    assert (
        "times the tolerance): take smaller steps, or raise max_iters, in a step of 0.5 from t = 0" in solution.message
    )
    unsolvable = solve_ivp(lambda t, y: y**2 + 1, (0.0, 3.0), double(1.1), method="implicit_euler", step_size=1.0,
                           throw=False)  # fmt: skip
    assert unsolvable.message.startswith("Newton's iteration did not converge")
    diverging = solve_ivp(lambda t, y: torch.exp(y**2), (0.0, 2.0), double(1.1), method="radauIIA5", step_size=0.5,
                          throw=False)  # fmt: skip
    assert re.match(
        r"Newton's iteration diverged after \d+ iterations \(the correction is not finite\): take smaller steps, in a "
        r"step of 0\.5 from t = 0$",
        diverging.message,
    )


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_a_state_that_is_not_finite_costs_no_more_evaluations(method):
    calls = []

    def func(t, y):
        calls.append(t.item())
        return torch.sqrt(1.0 - t) * y

    solution = solve_ivp(func, (0.0, 100.0), double(1.0), method=method, step_size=0.1, throw=False)
    assert solution.status.outcome is Outcome.NON_FINITE and solution.status.t == pytest.approx(1.0, abs=0.11)
    assert max(calls) < 1.3


def test_options_are_checked():
    method = find_method("gl4")
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"max_iters must be a whole number of at least 1, got {value}"):
            method.with_options(max_iters=value)
    for value in (2.5, True, "many"):
        with pytest.raises(TypeError, match="max_iters must be a whole number of at least 1"):
            method.with_options(max_iters=value)
    with pytest.raises(ValueError, match="linear_solver must be one of 'auto', 'dense', 'sparse', 'krylov', got 'lu'"):
        method.with_options(linear_solver="lu")
    with pytest.raises(TypeError, match="GaussLegendre4 has no option 'tol'; its options: max_iters, linear_solver"):
        method.with_options(tol=1e-3)
    with pytest.raises(ValueError, match="has no error estimate and takes fixed steps"):
        solve_ivp(stiff, (0.0, 1.0), double(1.0), method="gl4")


WAYS = [("direct", "dense"), (Checkpointed(2), "dense"), ("direct", "krylov")]


@pytest.mark.parametrize(
    ("method", "way"),
    sampled(covering(ORDERS, ["sdirk2", "radauIIA3"], WAYS)),
    ids=str,
)
def test_gradients(method, way):
    """Of the state, the times, a parameter that func captures and one that it is given; and their gradients."""
    gradient, linear_solver = way
    method = find_method(method).with_options(linear_solver=linear_solver)

    def run(y0, t, captured, passed):
        captured = captured.clone() if gradient == "direct" else captured

        def func(t, y, passed):
            return pendulum(t, y, torch.stack((captured, passed)))

        args, params = (passed,), None if gradient == "direct" else (captured,)
        return solve_ivp(func, (t[0], t[-1]), y0, t_eval=t, args=args, method=method, step_size=0.4, gradient=gradient,
                         params=params, **TIGHT).y  # fmt: skip

    inputs = [double(1.0, 0.5), double(0.0, 0.5, 0.7), double(1.3)[0], double(0.2)[0]]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(run, inputs, rtol=1e-6, atol=1e-8, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, rtol=1e-5, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_gradients_of_complex_states(method):
    def run(y0, p):
        def func(t, y):
            return p * y.abs().square() * y - 0.3 * y.conj()

        return torch.view_as_real(solve_ivp(func, (0.0, 0.5), y0, method=method, step_size=0.25, **TIGHT).y)

    inputs = [torch.tensor([1 + 0.5j], dtype=torch.complex128), torch.tensor(0.2 + 1j, dtype=torch.complex128)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(run, inputs, rtol=1e-6, atol=1e-8, fast_mode=True)


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_gradients_do_not_change_with_the_tolerance_of_newton(method):
    """They are those of the exact stages: not of iterations, however few."""
    grads = []
    for rtol in (1e-3, 1e-12):
        y0 = double(2.0, 0.5, grad=True)
        y = solve_ivp(stiff, (0.0, 1.0), y0, method=method, step_size=0.1, rtol=rtol, atol=rtol).y
        grads.append(torch.autograd.grad(y[1:3].sum(), y0)[0])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


def test_no_graph_is_built_without_a_gradient():
    y0, p = double(1.0, 0.5), double(1.3, 0.2, grad=True)
    assert not solve_ivp(
        pendulum, (0.0, 1.0), y0, args=(p.detach(),), method="radauIIA5", step_size=0.1
    ).y.requires_grad
    with torch.no_grad():
        assert not solve_ivp(pendulum, (0.0, 1.0), y0, args=(p,), method="radauIIA5", step_size=0.1).y.requires_grad


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_krylov_equals_dense(method, monkeypatch):
    """On a system of 30 equations; "auto" takes the one for small systems and the other for large ones."""

    def heat(t, y):
        return 40 * torch.nn.functional.pad(y[2:] - 2 * y[1:-1] + y[:-2], (1, 1)) + y - y**3

    y0 = torch.sin(torch.linspace(0, 3, 30, dtype=torch.float64))

    def run(linear_solver):
        chosen = find_method(method).with_options(linear_solver=linear_solver)
        start = y0.clone().requires_grad_()
        y = solve_ivp(heat, (0.0, 0.2), start, method=chosen, step_size=0.1, rtol=1e-9, atol=1e-11).y
        return y.detach(), torch.autograd.grad(y[-1].square().sum(), start)[0]

    dense, krylov = run("dense"), run("krylov")
    for a, b in zip(dense, krylov, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert torch.equal(run("auto")[0], dense[0])
    monkeypatch.setattr(linear, "LARGEST_DENSE", 29)
    assert torch.equal(run("auto")[0], krylov[0])


def test_gmres():
    torch.manual_seed(0)
    matrix = torch.eye(150, dtype=torch.float64) * 4 + torch.randn(150, 150, dtype=torch.float64) / 4
    right = torch.randn(3, 150, dtype=torch.float64) * double([1.0], [1e3], [0.0])
    for tolerance in (1e-3, 1e-12):
        x = gmres(lambda v: v @ matrix.T, right, tolerance)
        residual = right - x @ matrix.T
        assert (residual.norm(dim=1) <= 1.01 * tolerance * right.norm(dim=1)).all()
        single = gmres(lambda v: torch.mv(matrix, v), right[1], tolerance)
        assert (right[1] - matrix @ single).norm() <= 1.01 * tolerance * right[1].norm()
    assert torch.equal(gmres(lambda v: v, torch.zeros(1, 5), 1e-3), torch.zeros(1, 5))
    assert torch.equal(gmres(lambda v: v, torch.zeros(5), 1e-3), torch.zeros(5))
    singular = torch.diag(torch.arange(4.0))
    assert gmres(lambda v: v @ singular, torch.ones(1, 4), 1e-3).isfinite().all()
    assert gmres(lambda v: v * torch.nan, right, 1e-3).isfinite().all()


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_function_transforms(method):
    def run(y0, p):
        return solve_ivp(pendulum, (0.0, 1.0), y0, args=(p,), method=method, step_size=0.5, **TIGHT).y[-1]

    y0, p = double(1.0, 0.5), double(1.3, 0.2)
    several = torch.stack((y0, 2 * y0, -y0))
    torch.testing.assert_close(torch.func.vmap(run, (0, None))(several, p), torch.stack([run(y, p) for y in several]))
    reverse = torch.autograd.functional.jacobian(run, (y0, p))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own
        for found in (torch.func.jacfwd(run, (0, 1))(y0, p), torch.func.jacrev(run, (0, 1))(y0, p)):
            torch.testing.assert_close(found, reverse, rtol=1e-11, atol=1e-12)
        second = torch.func.jacfwd(torch.func.jacfwd(run, 1), 1)(y0, p)
    expected = torch.stack([torch.autograd.functional.hessian(lambda p, i=i: run(y0, p)[i], p) for i in range(2)])
    torch.testing.assert_close(second, expected, rtol=1e-10, atol=1e-11)


TURN = double([-1.0, 2.0], [-2.0, -1.0])


def turned(method, p, y0):
    """The end of five steps of 0.1 for y' = p TURN y: those of the closed form, with the stability function."""
    a, b = (torch.from_numpy(np.array(x)) for x in (ODE_METHODS[method].tableau.matrix, ODE_METHODS[method].tableau.b))
    z, one = 0.1 * p * TURN, torch.eye(2, dtype=torch.float64)
    stages = torch.linalg.inv(torch.eye(2 * len(b), dtype=torch.float64) - torch.kron(a, z))
    factor = one + torch.kron(b.unsqueeze(0), z) @ stages @ one.repeat(len(b), 1)
    return torch.linalg.matrix_power(factor, 5) @ y0


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_jacobians_for_each_entry_of_a_batch(method):
    """Two vmaps at work, one of them in the Jacobian. That of y' = A y is the same for every state."""
    fixed = ODE_METHODS[method].at_steps(fixed=True)

    def run(p, y0):
        return odeint(lambda t, y: p * (TURN @ y), y0, torch.linspace(0, 0.5, 6, dtype=D), method=fixed, **TIGHT)[-1]

    def right(p, y0):
        return turned(method, p, y0)

    D, vmap, jacrev, jacfwd = torch.float64, torch.func.vmap, torch.func.jacrev, torch.func.jacfwd
    p, y0 = double(0.5, 1.0, 7.0), double([1.0, 0.5], [-2.0, 0.0], [0.3, -4.0])
    if method == "implicit_euler":
        expected = torch.linalg.matrix_power(torch.linalg.inv(torch.eye(2, dtype=D) - 0.1 * TURN), 5)
        torch.testing.assert_close(right(p[1], torch.eye(2, dtype=D)), expected)
    for transform, which in ((jacrev, 1), (jacfwd, 1), (torch.func.hessian, 0)):
        found = vmap(transform(run, which))(p, y0)
        expected = torch.stack([transform(right, which)(*each) for each in zip(p, y0, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found = jacrev(lambda y0: vmap(run)(p, y0))(y0)
    expected = torch.block_diag(*[turned(method, each, torch.eye(2, dtype=D)) for each in p])
    torch.testing.assert_close(found.reshape(6, 6), expected, rtol=1e-10, atol=1e-12)


class Square(torch.autograd.Function):
    """Its backward pass looks at a value, as no batch can."""

    @staticmethod
    def forward(y):
        return y * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return 2 * y * grad if grad.abs().max().item() > 0 else None


@pytest.mark.parametrize(
    ("method", "gradient"), sampled(covering(ORDERS, ["sdirk2", "gl4"], ["direct", "checkpointed", "backsolve"]))
)
def test_a_backward_pass_that_cannot_be_batched(method, gradient):
    """A Jacobian is then found row by row: where autograd looks for anomalies, and where a function of the user's does
    what only works for one cotangent."""

    def run(func):
        y0 = double(1.0, 0.5, grad=True)
        y = solve_ivp(func, (0.0, 0.3), y0, method=method, step_size=0.1, gradient=gradient).y
        return y.detach(), torch.autograd.grad(y[-1].square().sum(), y0)[0]

    def plain(t, y):
        return torch.cos(t) - y.flip(0) * (y * y)

    expected = run(plain)
    torch.testing.assert_close(run(lambda t, y: torch.cos(t) - y.flip(0) * Square.apply(y)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # autograd would warn of an attempt that fails
        with torch.autograd.set_detect_anomaly(True):
            torch.testing.assert_close(run(plain), expected)


def test_a_backward_pass_that_cannot_be_batched_within_transforms():
    def run(func):
        return lambda y0: solve_ivp(func, (0.0, 0.3), y0, method="radauIIA5", step_size=0.1).y[-1].sum()

    y0 = double(1.0, 0.5)
    found = torch.func.grad(run(lambda t, y: -Square.apply(y)))(y0)
    torch.testing.assert_close(found, torch.func.grad(run(lambda t, y: -y * y))(y0))


def test_an_error_in_a_backward_pass_comes_through():
    class Broken(Square):
        @staticmethod
        def backward(ctx, grad):
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        solve_ivp(lambda t, y: -Broken.apply(y), (0.0, 0.3), double(1.0), method="gl4", step_size=0.1)


def test_krylov_is_refused_within_transforms():
    method = find_method("gl4").with_options(linear_solver="krylov")
    with pytest.raises(RuntimeError, match="linear_solver='krylov' does not work within transforms"):
        torch.func.vmap(lambda y0: solve_ivp(stiff, (0.0, 1.0), y0, method=method, step_size=0.5).y)(
            double(1.0, 2.0)[:, None]
        )


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_a_function_that_differentiates(method):
    """As Hamiltonian networks do; with and without a gradient of the solve, and in inference mode."""

    def func(t, y):
        with torch.inference_mode(False), torch.enable_grad():
            y = y if y.requires_grad else y.clone().requires_grad_()
            energy = y[1] ** 2 / 2 - torch.cos(y[0])
            (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack((slope[1], -slope[0]))

    def plain(t, y):
        return torch.stack((y[1], -torch.sin(y[0])))

    options = {"method": method, "step_size": 0.1}
    expected = solve_ivp(plain, (0.0, 1.0), double(1.0, 0.5), **options).y
    torch.testing.assert_close(solve_ivp(func, (0.0, 1.0), double(1.0, 0.5), **options).y.detach(), expected)
    torch.testing.assert_close(solve_ivp(func, (0.0, 1.0), double(1.0, 0.5, grad=True), **options).y.detach(), expected)
    with torch.inference_mode():
        inferred = solve_ivp(plain, (0.0, 1.0), double(1.0, 0.5), **options)
        plain_cost = inferred.stats.evaluations
    torch.testing.assert_close(inferred.y.clone(), expected)
    assert plain_cost == solve_ivp(plain, (0.0, 1.0), double(1.0, 0.5), **options).stats.evaluations


@pytest.mark.parametrize("method", sampled(ORDERS))
def test_a_function_that_uses_its_memory_again(method):
    memory = torch.empty(2, dtype=torch.float64)

    def func(t, y):
        if y.requires_grad:
            return stiff(t, y)
        return memory.copy_(stiff(t, y))

    for t_eval in (None, [0.55, 1.0]):
        options = {"method": method, "step_size": 0.1, "t_eval": t_eval}
        expected = solve_ivp(stiff, (0.0, 1.0), double(2.0, 0.5), **options).y
        assert torch.equal(solve_ivp(func, (0.0, 1.0), double(2.0, 0.5), **options).y, expected)


def test_a_tableau_of_one_s_own():
    """Lobatto IIIC: not diagonally implicit, and a matrix that is not a collocation's; stages at equal distances."""

    class LobattoIIIC(ImplicitRungeKutta):
        """Order 4."""

        tableau = ButcherTableau(
            order=4,
            c=(0, 1 / 2, 1),
            a=((1 / 6, -1 / 3, 1 / 6), (1 / 6, 5 / 12, -1 / 12), (1 / 6, 2 / 3, 1 / 6)),
            b=(1 / 6, 2 / 3, 1 / 6),
        )

    errors = [
        abs(solve_ivp(lambda t, y: -y * torch.cos(t), (0.0, 2.0), double(1.0), method=LobattoIIIC, step_size=h,
                      **TIGHT).y[-1].item() - math.exp(-math.sin(2.0)))
        for h in (0.2, 0.1)
    ]  # fmt: skip
    assert 13 < errors[0] / errors[1] < 18
    with pytest.raises(ValueError, match=r"inconsistent Butcher tableau: .*b must have order 3"):
        ButcherTableau(order=3, c=(1,), a=((1,),), b=(1,))


def decayed(p, method):
    """Of y' = -p y^2 from 1 to 1 / (1 + p), nearly."""
    func = lambda t, y: -p * y * y
    return odeint(func, double(1.0), [0.0, 1.0], method=method, options={"step_size": 0.5}, **TIGHT)[-1, 0]


@pytest.mark.parametrize("method", ["implicit_euler", "sdirk2", "trapezoid", "gl6"])
def test_a_third_derivative_is_refused_by_autograd(method):
    p = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(decayed(p, method), p, create_graph=True)
    (second,) = torch.autograd.grad(first, p, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated twice, not three times"):
        torch.autograd.grad(second, p)


def test_a_third_derivative_of_a_single_step_is_refused_too():
    y0 = double(1.0, grad=True)
    y = odeint(lambda t, y: -(y**2), y0, [0.0, 0.5], method="implicit_euler")[-1]
    (first,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated twice, not three times"):
        torch.autograd.grad(second.sum(), y0)


@pytest.mark.parametrize(
    ("method", "transform"),
    covering(["sdirk2", "trapezoid", "gl6"], ["implicit_euler"], [torch.func.grad, torch.func.jacfwd]),
)
def test_a_third_derivative_by_transforms(method, transform):
    first = transform(lambda p: decayed(p, method))
    second = transform(first)
    p, step = torch.tensor(0.7, dtype=torch.float64), 1e-4
    expected = (second(p + step) - second(p - step)) / (2 * step)
    torch.testing.assert_close(transform(second)(p), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["implicit_euler", "radauIIA5"])
def test_autograd_over_a_transform_has_the_right_third_derivative(method):
    def last(y):
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return odeint(lambda t, y: -(y**3), y.reshape(1), t, method=method, rtol=1e-12, atol=1e-12)[-1, 0]

    def second(y):
        return torch.autograd.grad(torch.func.grad(last)(y), y, create_graph=True)[0]

    def at(y):
        return torch.tensor(y, dtype=torch.float64, requires_grad=True)

    y, h = at(0.8), 1e-4
    (third,) = torch.autograd.grad(second(y), y)
    assert abs(third - (second(at(0.8 + h)) - second(at(0.8 - h))) / (2 * h)) < 1e-6


def test_a_batch_that_needs_no_gradient_is_solved_once_with_its_jacobians():
    """Where gradients are enabled, what func uses is watched for; the state of an implicit method is no such thing."""
    y0 = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    calls = []

    def rows(t, y):
        calls.append(t)
        return torch.stack(robertson(t, y.unbind(-1)).unbind(), -1)

    counts = []
    for enabled in (False, True):
        calls.clear()
        with torch.set_grad_enabled(enabled):
            solve_ivp(rows, (0.0, 1.0), y0, method="radauIIA5", step_size=0.1, batch_dims=1)
        counts.append(len(calls))
    assert counts[1] == counts[0] + 1  # func is looked at once before the solve


def test_products_with_jacobians_are_right_in_inference_mode():
    """There, no graph is made unless one asks for it: without the products there would be many more iterations."""
    method = ODE_METHODS["bdf"].with_options(linear_solver="krylov")

    def run():
        return solve_ivp(lambda t, y: -50 * y**3 - y, (0, 1), torch.ones(2, dtype=torch.float64), method=method)

    with torch.inference_mode():
        found = run()
    assert found.stats == run().stats
