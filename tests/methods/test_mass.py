"""Constant mass matrices, `M dy/dt = func(t, y)`: regular ones, and singular ones of problems of index one."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch

from problems import covering, double
from stiff_problems import STIFF
from torchivp import ODE_METHODS, Event, Scheduled, solve_ivp

REGULAR = double((2.0, 1.0, 0.0), (1.0, 3.0, -1.0), (0.5, 0.0, 1.0))
SINGULAR = double((1.0, 0.0), (0.0, 0.0))
MIXING = double((2.0, 1.0), (1.0, 3.0))
MIXED = double((1.0, 0.5), (-0.3, 1.0))
ADAPTIVE = ["rodas4", "rodas5p", "radau5", "bdf"]
FIXED = ["implicit_euler", "sdirk2", "radauIIA3", "radauIIA5"]


def damped(t, y):
    """Without mass matrix a non-linear system with three time scales."""
    x, v, w = y.unbind(-1)
    return torch.stack((v, -x - 0.3 * v + 0.1 * w * w, torch.cos(t.reshape(t.shape[:1])) - 2.0 * w), -1)


def damped_by_mass(t, y):
    return (REGULAR * damped(t, y).unsqueeze(-2)).sum(-1)  # a product of matrices may depend on how many rows there are


def reaction(t, y):
    """x' = x z and an equation for z, not linear, of which x = exp(sin t), z = cos t is the solution."""
    x, z = y.unbind(-1)
    t = t.reshape(t.shape[:1])
    c, s = torch.cos(t), torch.sin(t)
    return torch.stack((x * z, z + z**3 * x**2 - (c + c**3 * torch.exp(2 * s))), -1)


def mixed_reaction(t, w):
    """The same with equations and unknowns mixed, so that the mass matrix is full."""
    return reaction(t, w @ MIXED.T) @ MIXING.T


def learned(t, y, p):
    x, z = y.unbind(-1)
    t = t.reshape(t.shape[:1])
    force, rate, level = p[..., 2] * torch.sin(t), p[..., 0], p[..., 1]
    return torch.stack((force - rate * x * z, z + z**3 * x**2 - level * (1 + t)), -1)


def mixed_learned(t, w, p):
    return learned(t, w @ MIXED.T, p) @ MIXING.T


def exact(t):
    t = torch.as_tensor(t, dtype=torch.float64)
    return torch.stack((torch.exp(torch.sin(t)), torch.cos(t)), -1)


MIXED_MASS = MIXING @ SINGULAR @ MIXED


# --- regular ---


@pytest.mark.parametrize("method", ["dopri5", "rk4", "adams", "rosenbrock23", "rodas5p", "kvaerno5", "radau5", "bdf"])
def test_a_regular_mass_divides_func(method):
    y0, options = double(1.0, 0.0, 0.5), {"step_size": 0.05} if method == "rk4" else {}
    solution = solve_ivp(damped_by_mass, (0.0, 2.0), y0, method=method, mass=REGULAR, **options)
    expected = solve_ivp(damped, (0.0, 2.0), y0, method=method, **options)
    assert torch.allclose(solution.final, expected.final, rtol=1e-9, atol=1e-11)


def test_a_regular_mass_divides_func_of_rows_and_any_structure():
    y0 = torch.stack((double(1.0, 0.0, 0.5), double(0.3, 0.2, -0.5)))
    rows = solve_ivp(damped_by_mass, (0.0, 2.0), y0, mass=REGULAR.numpy(), batch_dims=1)
    for row, start in enumerate(y0):
        one = solve_ivp(damped_by_mass, (0.0, 2.0), start[None], mass=REGULAR, batch_dims=1)
        assert torch.allclose(rows.final[row], one.final[0], rtol=1e-10)
        assert torch.allclose(one.final[0], solve_ivp(damped, (0.0, 2.0), start).final, rtol=1e-9)

    def of_dict(t, y):
        value = damped_by_mass(t, torch.cat((y["x"], y["w"])))
        return {"x": value[:2], "w": value[2:]}

    solution = solve_ivp(of_dict, (0.0, 2.0), {"x": y0[0, :2], "w": y0[0, 2:]}, mass=REGULAR)
    assert torch.allclose(torch.cat((solution.final["x"], solution.final["w"])), rows.final[0], rtol=1e-4)


def test_a_regular_mass_divides_the_jacobian_too():
    def jac(t, y):
        zero, one = torch.zeros_like(y[0]), torch.ones_like(y[0])
        rows = ((zero, one, zero), (-one, -0.3 * one, 0.2 * y[2]), (zero, zero, -2.0 * one))
        return REGULAR @ torch.stack([torch.stack(row) for row in rows])

    y0 = double(1.0, 0.0, 0.5)
    for method in ("rodas5p", "radau5"):
        given = solve_ivp(damped_by_mass, (0.0, 2.0), y0, method=method, mass=REGULAR, jac=jac)
        found = solve_ivp(damped_by_mass, (0.0, 2.0), y0, method=method, mass=REGULAR)
        assert torch.allclose(given.final, found.final, rtol=1e-10)
        assert given.stats.accepted == found.stats.accepted


def test_a_diagonal_mass_keeps_the_pattern_of_the_jacobian():
    size = 120
    mass = torch.diag(torch.linspace(1.0, 2.0, size, dtype=torch.float64))
    mass[-1, -1] = mass[0, 0] = 0.0  # Dirichlet conditions

    def heat(t, y):
        inner = (y[:-2] - 2.0 * y[1:-1] + y[2:]) * 100.0
        return torch.cat((y[:1] - torch.sin(t), inner, y[-1:]))

    y0 = torch.linspace(0.0, 1.0, size, dtype=torch.float64) * 0.0
    for method in ("rodas5p", "radau5", "bdf"):
        dense = solve_ivp(heat, (0.0, 1.0), y0, method=method, mass=mass)
        sparse = solve_ivp(heat, (0.0, 1.0), y0, method=method, mass=mass, jac_sparsity=(1, 1))
        assert torch.allclose(dense.final, sparse.final, rtol=1e-6, atol=1e-9)
        assert abs(sparse.final[0].item() - math.sin(1.0)) < 1e-9


def test_large_systems_with_a_singular_mass_decouple_and_need_no_matrix():
    mass = torch.diag(torch.ones(100, dtype=torch.float64))
    mass[50:, 50:] = 0.0

    def pairs(t, y):
        x, z = y[:50], y[50:]
        return torch.cat((-x * z, z - 1.0 - 0.1 * x))

    y0 = torch.linspace(0.5, 1.5, 100, dtype=torch.float64)
    expected = solve_ivp(lambda t, x: -x * (1.0 + 0.1 * x), (0.0, 1.0), y0[:50], rtol=1e-10, atol=1e-12).final
    for solver in ("auto", "krylov"):
        method = ODE_METHODS["radau5"].with_options(linear_solver=solver)
        found = solve_ivp(pairs, (0.0, 1.0), y0, method=method, mass=mass, rtol=1e-8, atol=1e-10).final
        assert torch.allclose(found[:50], expected, rtol=1e-6)
        assert torch.allclose(found[50:], 1.0 + 0.1 * expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_the_gradient_of_a_regular_mass(gradient):
    y0 = double(1.0, 0.0, 0.5)

    def end(mass, gradient="direct", **options):
        solution = solve_ivp(
            damped_by_mass, (0.0, 1.0), y0, mass=mass, gradient=gradient, rtol=1e-10, atol=1e-12, **options
        )
        return solution.final.square().sum()

    mass = REGULAR.clone().requires_grad_()
    (found,) = torch.autograd.grad(end(mass, gradient), mass)
    direction = double((0.3, -0.2, 0.1), (0.5, 0.2, -0.4), (0.1, 0.7, -0.6))
    with torch.no_grad():
        difference = (end(REGULAR + 1e-5 * direction) - end(REGULAR - 1e-5 * direction)) / 2e-5
    assert abs((found * direction).sum() - difference) < 1e-7
    (of_rows,) = torch.autograd.grad(end(mass, gradient, events=lambda t, y: y[..., 0]), mass)
    assert torch.allclose(of_rows, found, rtol=1e-6, atol=1e-8)


def test_complex_states_with_a_regular_mass():
    y0 = torch.tensor([1.0, 0.5j], dtype=torch.complex128)
    mass = double((2.0, 0.5), (0.0, 1.0))
    for method in ("dopri5", "radau5"):
        found = solve_ivp(lambda t, y: mass.to(y.dtype) @ (1j * y), (0.0, 1.0), y0, mass=mass, method=method)
        assert torch.allclose(found.final, y0 * complex(math.cos(1.0), math.sin(1.0)), rtol=1e-5)


# --- singular: accuracy ---


@pytest.mark.parametrize(
    ("method", "steps", "order"),
    [
        ("implicit_euler", 40, 1),
        ("sdirk2", 20, 2),
        ("radauIIA3", 8, 3),
        ("radauIIA5", 4, 5),
        ("radau5", 4, 5),
        ("rodas4", 40, 4),
        ("rodas5p", 160, 5),
    ],
)
def test_the_order_is_that_of_the_method(method, steps, order):
    errors = []
    for n in (steps, 2 * steps):
        found = solve_ivp(
            reaction, (0.0, 1.3), exact(0.0), method=method, mass=SINGULAR, step_size=1.3 / n, rtol=1e-12, atol=1e-13
        )
        errors.append((found.final - exact(1.3)).abs())
    rates = torch.log2(errors[0] / errors[1])
    assert (rates > order - 0.4).all(), rates


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_error_is_within_the_tolerance(method):
    for rtol in (1e-4, 1e-6, 1e-8):
        found = solve_ivp(
            reaction, (0.0, 1.3), exact(0.0), method=method, mass=SINGULAR, rtol=rtol, atol=rtol, dense_output=True
        )
        scale = rtol * (1.0 + exact(found.t).abs())
        assert ((found.y - exact(found.t)).abs() / scale).max() < 50.0
    times = torch.linspace(0.0, 1.3, 50, dtype=torch.float64)
    assert (found.sol(times) - exact(times)).abs().max() < 1e-6


@pytest.mark.parametrize("method", ADAPTIVE)
def test_equations_and_unknowns_may_be_mixed(method):
    w0 = torch.linalg.solve(MIXED, exact(0.0))
    found = solve_ivp(mixed_reaction, (0.0, 1.3), w0, method=method, mass=MIXED_MASS, rtol=1e-7, atol=1e-7)
    assert torch.allclose(MIXED @ found.final, exact(1.3), atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_robertson_with_the_conserved_sum_as_an_equation(method):
    problem = STIFF["ROBER"]

    def with_sum(t, y):
        return torch.cat((problem.func(t, y)[..., :2], y.sum(-1, keepdim=True) - 1.0), -1)

    mass = torch.diag(double(1.0, 1.0, 0.0))
    for rtol in (1e-4, 1e-7):
        found = solve_ivp(
            with_sum, problem.span, problem.y0, method=method, mass=mass, rtol=rtol, atol=rtol * problem.atol_per_rtol
        )
        assert problem.scaled_error(found.final, rtol) < 50.0
        assert abs(found.final.sum() - 1.0) < 1e-12


def diode_current(t, v):
    """The algebraic equation of a rectifier, solved by bisection."""
    low, high = torch.full_like(v, -1.0), torch.full_like(v, 20.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = middle > 1e-6 * torch.expm1((torch.sin(t) - v - 0.1 * middle) / 0.05)
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low


@cache
def smoothed_voltage():
    return solve_ivp(lambda t, v: diode_current(t, v) - v / 10.0, (0.0, 4.0), double(0.0)).final


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_rectifier_whose_node_is_algebraic(method):
    """A source, a diode and a resistor with a capacitor: the current through the diode is that into the other two."""

    def circuit(t, y, resistance):
        v, i = y.unbind(-1)
        diode = 1e-6 * torch.expm1((torch.sin(t) - v - 0.1 * i) / 0.05)
        return torch.stack((i - v / resistance, i - diode), -1)

    mass = double((1.0, 0.0), (0.0, 0.0))
    found = solve_ivp(circuit, (0.0, 4.0), double(0.0, 0.0), args=(10.0,), method=method, mass=mass)

    expected = smoothed_voltage()
    assert torch.allclose(found.final[:1], expected, rtol=1e-4)
    assert torch.allclose(found.final[1], diode_current(double(4.0), expected), rtol=1e-3, atol=1e-6)


def test_single_precision():
    for method in ADAPTIVE:
        found = solve_ivp(reaction, (0.0, 1.3), exact(0.0).float(), method=method, mass=SINGULAR)
        assert found.final.dtype == torch.float32
        assert torch.allclose(found.final.double(), exact(1.3), atol=2e-3)


@pytest.mark.parametrize("method", [*ADAPTIVE, "radauIIA3"])
def test_rows_are_solved_as_they_are_alone(method):
    y0 = torch.stack((exact(0.0), double(1.3, 0.5), double(0.7, 0.9)))
    span = (double(0.0, 0.1, 0.2), double(1.0, 1.3, 0.5))
    options = {"step_size": 0.1} if method in FIXED else {}
    rows = solve_ivp(mixed_reaction, span, y0, method=method, mass=MIXED_MASS, batch_dims=1, **options)
    for row, (start, t0, t1) in enumerate(zip(y0, *span, strict=True)):
        one = solve_ivp(
            mixed_reaction, (t0[None], t1[None]), start[None], method=method, mass=MIXED_MASS, batch_dims=1, **options
        )
        assert torch.equal(rows.final[row], one.final[0])
        alone = solve_ivp(mixed_reaction, (float(t0), float(t1)), start, method=method, mass=MIXED_MASS, **options)
        assert torch.allclose(one.final[0], alone.final, rtol=1e-9)


# --- consistent states ---


def test_the_start_is_made_consistent():
    found = solve_ivp(reaction, (0.0, 1.0), double(1.0, 0.2), method="rodas5p", mass=SINGULAR)
    assert torch.allclose(found.y[0], exact(0.0), rtol=1e-14)
    w0 = torch.linalg.solve(MIXED, double(1.0, 0.2))
    found = solve_ivp(mixed_reaction, (0.0, 1.0), w0, method="rodas5p", mass=MIXED_MASS)
    assert torch.allclose(MIXED @ found.y[0], exact(0.0), rtol=1e-14)


def test_a_consistent_start_stays_as_it_is():
    y0 = exact(0.3)
    found = solve_ivp(reaction, (0.3, 1.0), y0, method="radau5", mass=SINGULAR)
    assert torch.equal(found.y[0], y0)


def test_states_are_consistent_after_what_changes_them():
    halve = [
        Event(lambda t, y: y[..., 0] - 2.0, apply=lambda t, y: y * double(0.5, 0.0)),
        Scheduled([0.4], lambda t, y: y * 1.1),
    ]
    for method in ADAPTIVE:
        found = solve_ivp(reaction, (0.0, 1.3), exact(0.0), method=method, mass=SINGULAR, events=halve)
        after = found.events.y_after
        violated = torch.stack([reaction(t, y)[1] for t, y in zip(found.events.t, after, strict=True)])
        assert len(after) == 2 and violated.abs().max() < 1e-12
        assert torch.allclose(after[:, 0], found.events.y[:, 0] * double(1.1, 0.5))


# --- gradients ---


def objective(y0, p, method, gradient="direct", mixed=False, span=(0.0, 1.0), step_size=0.1, **options):
    solution = solve_ivp(
        mixed_learned if mixed else learned,
        span,
        torch.linalg.solve(MIXED, y0.unsqueeze(-1)).squeeze(-1) if mixed else y0,
        args=(p,),
        method=method,
        mass=MIXED_MASS if mixed else SINGULAR,
        gradient=gradient,
        rtol=1e-9,
        atol=1e-11,
        **({} if method == "bdf" else {"step_size": step_size}),
        **options,
    )
    total = solution.final.square().sum()
    return total if solution.events is None else total + solution.events.t.sum() + solution.events.y.sum()


Y0, P = double(1.0, 0.9), double(0.7, 1.3, 0.4)
JUMP = Event(
    lambda t, y, p: y[..., 0] - 0.85,
    apply=lambda t, y, p: torch.stack((y[..., 0] * (1.3 + 0.2 * p[..., 0]), y[..., 1]), -1),
    max_count=2,
)


@pytest.mark.parametrize(
    ("method", "gradient", "case"),
    covering([*ADAPTIVE, "radauIIA3"], ["rodas5p", "radau5"], ["direct", "checkpointed"], ["one", "rows", "events"]),
)
def test_gradients(method, gradient, case):
    y0, p, options = Y0, P, {"mixed": method in ("radau5", "rodas4")}
    if case == "rows":
        y0, p, options = torch.stack((Y0, 1.1 * Y0)), torch.stack((P, 0.9 * P)), {"batch_dims": 1}
    elif case == "events":
        options = {"events": JUMP}
    inputs = y0.clone().requires_grad_(), p.clone().requires_grad_()
    found = torch.autograd.grad(objective(*inputs, method, gradient, **options), inputs)
    directions = torch.linspace(0.5, 1.0, y0.numel()).double().view_as(y0), torch.linspace(1, -1, p.numel()).double()
    along = directions[0], directions[1].view_as(p)
    with torch.no_grad():
        ahead, back = (objective(y0 + h * along[0], p + h * along[1], method, **options) for h in (1e-4, -1e-4))
    product = sum((g * d).sum() for g, d in zip(found, along, strict=True))
    assert abs(product - (ahead - back) / 2e-4) < 1e-6 * (1.0 + product.abs())


@pytest.mark.parametrize("method", ["rodas5p", "radau5", "bdf"])
@pytest.mark.parametrize(
    "options", [{}, {"events": JUMP}, {"gradient": "checkpointed"}], ids=["plain", "events", "replayed"]
)
def test_derivatives_by_the_ends_of_the_span(method, options):
    span, options = double(0.0, 1.0).requires_grad_(), {"step_size": 0.05, **options}
    (found,) = torch.autograd.grad(objective(Y0, P, method, span=span, **options), span)
    with torch.no_grad():
        for end, step in enumerate(double((1e-4, 0.0), (0.0, 1e-4))):
            ahead, back = (objective(Y0, P, method, span=span + s * step, **options) for s in (1.0, -1.0))
            assert abs(found[end] - (ahead - back) / 2e-4) < 1e-5


@pytest.mark.parametrize("method", ["rodas5p", "radau5", "bdf"])
def test_second_derivatives_and_transforms(method):
    def end(p):
        return objective(Y0, p, method, span=(0.0, 0.1))

    gradient = torch.autograd.functional.jacobian(end, P)
    assert torch.allclose(torch.func.grad(end)(P), gradient, rtol=1e-8)
    assert torch.allclose(torch.func.jacfwd(end)(P), gradient, rtol=1e-8)
    several = torch.stack((P, 1.1 * P))
    assert torch.allclose(torch.func.vmap(end)(several), torch.stack([end(p) for p in several]), rtol=1e-6)
    hessian = torch.autograd.functional.hessian(end, P)
    step = double(1e-4, 0.0, 0.0)
    sides = [torch.autograd.functional.jacobian(end, P + s * step) for s in (1.0, -1.0)]
    assert torch.allclose(hessian[0], (sides[0] - sides[1]) / 2e-4, rtol=1e-5, atol=1e-6)


# --- refusals ---


def pendulum(t, y):
    """In Cartesian coordinates, of index three."""
    x, z, u, v, force = y.unbind(-1)
    return torch.stack((u, v, -force * x, -force * z - 1.0, x * x + z * z - 1.0), -1)


def of_index_two(t, y):
    x, z = y.unbind(-1)
    return torch.stack((z, x - torch.cos(t)), -1)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {"mass": "diagonal"},
            TypeError,
            "mass must be a constant matrix of real numbers, got 'diagonal': write mass=",
        ),
        ({"mass": SINGULAR.to(torch.complex128)}, TypeError, "got a tensor of torch.complex128"),
        ({"mass": torch.eye(3)}, ValueError, "mass must be of shape (2, 2), a row for each equation"),
        ({"mass": double((1.0, 0.0), (0.0, math.nan))}, ValueError, "mass is not finite"),
        ({"mass": double((1.0, 1.0), (1.0, 1.0 + 1e-12))}, ValueError, "mass is nearly singular: scaled, its"),
        (
            {"method": "dopri5"},
            ValueError,
            "mass is singular, so that some of the equations are algebraic, which Dopri5",
        ),
        (
            {"method": "tsit5"},
            ValueError,
            "choose one of 'implicit_euler', 'sdirk2', 'radau5', 'radauIIA3', 'radauIIA5', ",
        ),
        ({"method": "rosenbrock23"}, ValueError, "'rodas4', 'rodas5p', 'bdf'"),
        (
            {"gradient": "backsolve"},
            ValueError,
            "gradient='backsolve' has no adjoint of equations with a singular mass",
        ),
        ({"mass": SINGULAR.clone().requires_grad_()}, ValueError, "a singular mass must not require a gradient"),
        ({"y0": exact(0.0).to(torch.complex128)}, ValueError, "a singular mass is for real states"),
        ({"mass": MIXED_MASS, "jac_sparsity": (1, 1)}, ValueError, "jac_sparsity is the pattern of func, which a mass"),
        ({"func": of_index_two}, ValueError, "y0 cannot be made consistent: the equations without a derivative do not"),
        (
            {"func": pendulum, "y0": double(1, 0, 0, 0, 0), "mass": torch.diag(double(1, 1, 1, 1, 0))},
            ValueError,
            "The index of the problem is higher than one: differentiate these equations by time",
        ),
        (
            {"func": lambda t, y: torch.stack((y[0], y[1] ** 2 + 1.0)), "y0": double(1.0, 1.0)},
            ValueError,
            "Newton's iteration finds no state at which the equations without a derivative hold: start nearer to one",
        ),
        ({"M": SINGULAR}, TypeError, "write mass="),
    ],
)
def test_what_is_refused(options, error, sentence):
    arguments = {"func": reaction, "y0": exact(0.0), "mass": SINGULAR, "method": "rodas5p"} | options
    func, y0 = arguments.pop("func"), arguments.pop("y0")
    with pytest.raises(error, match=re.escape(sentence)):
        solve_ivp(func, (0.0, 1.0), y0, **arguments)


def test_rows_without_a_consistent_start_are_named():
    def func(t, y):
        return torch.stack((y[..., 0], y[..., 1] ** 2 - y[..., 0]), -1)

    with pytest.raises(ValueError, match="y0 cannot be made consistent, in row 1: Newton's iteration finds no state"):
        solve_ivp(func, (0.0, 1.0), double((1.0, 0.9), (-1.0, 0.9)), mass=SINGULAR, method="bdf", batch_dims=1)


def test_a_change_after_which_no_state_is_consistent_ends_the_row():
    def func(t, y):
        return torch.stack((y[..., 0], y[..., 1] ** 2 - y[..., 0]), -1)

    change = Scheduled([0.5], lambda t, y: -y)
    found = solve_ivp(func, (0.0, 1.0), double(1.0, 1.0), mass=SINGULAR, method="rodas5p", events=change, throw=False)
    assert not found.status.ok
    assert "or lead to a state near which the equations without a derivative hold" in found.status.message


def test_a_mass_that_a_transform_follows_is_refused():
    with pytest.raises(ValueError, match=r"mass must be an ordinary tensor.*torch.linalg.solve\(M, f\)"):
        torch.func.grad(lambda m: solve_ivp(damped, (0.0, 1.0), double(1.0, 0.0, 0.5), mass=m).final.sum())(REGULAR)


def test_a_mass_of_whole_numbers_or_a_list():
    y0 = double(1.0, 0.9)
    expected = solve_ivp(learned, (0.0, 1.0), y0, args=(P,), mass=SINGULAR, method="rodas5p").final
    for mass in ([[1, 0], [0, 0]], np.diag([1, 0]), torch.diag(torch.tensor([1, 0]))):
        assert torch.equal(solve_ivp(learned, (0.0, 1.0), y0, args=(P,), mass=mass, method="rodas5p").final, expected)
