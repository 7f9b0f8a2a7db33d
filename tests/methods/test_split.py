"""Right-hand sides that are the sum of two functions, `func=(explicit, implicit)`."""

import re

import numpy as np
import pytest
import torch

from problems import Counting, double
from torchivp import ODE_METHODS, Backsolve, Event, PIDController, odeint, solve_ivp
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

PAIRS = ["kencarp3", "kencarp4", "kencarp5"]
TIGHT = {"rtol": 1e-12, "atol": 1e-14}


def driven(t, y):
    """The part that is not stiff: coupled, nonlinear, and by time."""
    a, b = y[..., :1], y[..., 1:]
    return torch.cat((-a * b + 0.3 * torch.sin(t), a * torch.cos(t)), -1)


def drawn(t, y):
    """The other one, towards the other element of the state."""
    a, b = y[..., :1], y[..., 1:]
    return torch.cat((-3.0 * (a - b**2), torch.sin(a) - 2.0 * b), -1)


def whole(t, y):
    return driven(t, y) + drawn(t, y)


Y0 = double(1.0, 0.5)


def exact(t, func=whole, y0=Y0):
    return solve_ivp(func, (0.0, t[-1]), y0, t_eval=t, method="dopri8", rtol=1e-13, atol=1e-14).y


@pytest.mark.parametrize("method", PAIRS)
def test_orders_of_convergence_at_the_end_and_between_the_steps(method):
    t = [*np.linspace(0.03, 1.17, 20).tolist(), 1.2]
    sizes, errors = [1.2 / n for n in (16, 24, 32, 48)], []
    for h in sizes:
        found = solve_ivp((driven, drawn), (0.0, 1.2), Y0, t_eval=t, method=method, step_size=h, **TIGHT).y
        errors.append((found - exact(t)).abs().amax(1).numpy())
    end, between = (np.polyfit(np.log(sizes), np.log(e), 1)[0] for e in (np.stack(errors)[:, -1], np.max(errors, 1)))
    tableau = ODE_METHODS[method].tableau
    assert end > tableau.order - 0.3
    assert between > tableau.dense.order + 1 - 0.3


@pytest.mark.parametrize("method", PAIRS)
def test_the_parts_are_steps_of_the_two_methods_of_the_pair(method):
    """Of the implicit one where the explicit part is zero, and the other way round."""
    tableau = ODE_METHODS[method].tableau

    class OfTheExplicitPart(ExplicitRungeKutta):
        tableau = ButcherTableau(
            order=ODE_METHODS[method].tableau.order,
            c=ODE_METHODS[method].tableau.c,
            a=ODE_METHODS[method].tableau.a_explicit,
            b=ODE_METHODS[method].tableau.b,
        )

    assert OfTheExplicitPart.order == tableau.order
    options = {"step_size": 0.1, **TIGHT}

    def nothing(t, y):
        return torch.zeros_like(y)

    for pair, other in (((whole, nothing), OfTheExplicitPart), ((nothing, whole), method)):
        split = solve_ivp(pair, (0.0, 1.0), Y0, method=method, **options).y
        plain = solve_ivp(whole, (0.0, 1.0), Y0, method=other, **options).y
        torch.testing.assert_close(split, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", PAIRS)
def test_adaptive_steps_follow_the_tolerance(method):
    """Where the implicit part is stiff, and where none is, in reversed time."""

    def fast(t, y):
        return torch.stack((-1e4 * (y[0] - torch.cos(t)), -0.5 * y[1]))

    def slow(t, y):
        return torch.stack((-torch.sin(t), y[0] * y[1]))

    for rtol in (1e-4, 1e-6):
        solution = solve_ivp((slow, fast), (0.0, 2.0), double(1.0, 1.0), method=method, rtol=rtol, atol=rtol)
        t = solution.t
        expected = torch.stack((torch.cos(t), torch.exp(torch.sin(t) - 0.5 * t)), 1)
        assert (solution.y - expected).abs().max() < 50 * rtol
        turning = (
            lambda t, y: torch.stack((y[1] * torch.cos(t), 0 * y[0])),
            lambda t, y: torch.stack((0 * y[0], -y[0] * torch.cos(t))),
        )
        angle = torch.sin(double(0.0, 3.0))
        ends = torch.stack((torch.sin(angle), torch.cos(angle)), 1)
        back = solve_ivp(turning, (3.0, 0.0), ends[1], method=method, rtol=rtol, atol=rtol)
        assert (back.final - ends[0]).abs().max() < 50 * rtol


def test_only_the_implicit_part_is_iterated():
    explicit, implicit = Counting(driven), Counting(drawn)
    solution = solve_ivp((explicit, implicit), (0.0, 2.0), Y0, method="kencarp4", rtol=1e-6)
    tries, stages = solution.stats.accepted + solution.stats.rejected, 6
    assert stages * tries <= len(explicit.times) <= stages * tries + 3
    assert len(implicit.times) > stages * tries
    # The first two evaluations are of the sum, to size the first step.
    assert solution.stats.evaluations == len(explicit.times) + len(implicit.times) - 2
    assert solution.stats.jacobians < tries


def test_rows_are_solved_as_if_alone():
    """To the last bit, though they differ in stiffness; with arguments of their own; as without batch dimensions."""

    def fast(t, y, k):
        return torch.cat((-k * (y[..., :1] - torch.cos(t)), -2.0 * y[..., 1:]), -1)

    def slow(t, y, k):
        return torch.cat((-torch.sin(t) + 0 * y[..., :1], y[..., :1] * y[..., 1:]), -1)

    k, y0 = double(1.0, 1e3, 1e6)[:, None], double(1.0, 0.7, 0.2, -0.4, 0.0, 1.0).reshape(3, 2)

    def solved(rows):
        options = {"method": "kencarp4", "rtol": 1e-5, "atol": 1e-7, "batch_dims": 1, "t_eval": [0.7, 1.0]}
        return solve_ivp((slow, fast), (0.0, 1.0), y0[rows], args=(k[rows],), **options)

    together = solved([0, 1, 2])
    for row in range(3):
        alone = solved([row])
        assert torch.equal(alone.y[0], together.y[row])
        for count in ("accepted", "rejected", "iterations"):
            assert getattr(alone.stats[0], count) == getattr(together.stats[row], count)
        single = solve_ivp((slow, fast), (0.0, 1.0), y0[row], args=(k[row],), method="kencarp4", rtol=1e-5, atol=1e-7,
                           t_eval=[0.7, 1.0])  # fmt: skip
        torch.testing.assert_close(together.y[row], single.y, rtol=1e-4, atol=1e-5)


def test_rows_whose_functions_cannot_take_some_of_them():
    scale = double(1.0, 2.0, 3.0)[:, None]
    pair = (lambda t, y: scale * torch.cos(t), lambda t, y: -20 * scale * y)
    solution = solve_ivp(pair, (0.0, double(1.0, 2.0, 0.5)), scale, method="kencarp4", batch_dims=1, rtol=1e-7)
    for row, end in enumerate((1.0, 2.0, 0.5)):
        c = row + 1.0
        expected = exact([end], lambda t, y, c=c: c * torch.cos(t) - 20 * c * y, double(c))
        torch.testing.assert_close(solution.final[row], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", PAIRS)
def test_events_and_dense_output(method):
    """A ball that falls through a fluid: its friction is implicit, and it bounces."""

    def gravity(t, y):
        return torch.stack((torch.zeros_like(y[0]), torch.full_like(y[1], -1.0)))

    def friction(t, y):
        return torch.stack((y[1], -0.5 * y[1]))

    def fall(t, y):
        return gravity(t, y) + friction(t, y)

    bounce = Event(lambda t, y: y[0], direction=-1, apply=lambda t, y: torch.stack((y[0], -0.9 * y[1])))
    options = {"events": bounce, "dense_output": True, "rtol": 1e-9, "atol": 1e-9}
    found = solve_ivp((gravity, friction), (0.0, 4.0), double(1.0, 0.0), method=method, **options)
    expected = solve_ivp(fall, (0.0, 4.0), double(1.0, 0.0), method="dopri8", **options)
    torch.testing.assert_close(found.events.t, expected.events.t, rtol=0, atol=1e-6)
    t = torch.linspace(0.1, 3.9, 23, dtype=torch.float64)
    torch.testing.assert_close(found.sol(t), expected.sol(t), rtol=0, atol=1e-5)


class Field(torch.nn.Module):
    """A function with a parameter."""

    def __init__(self, rate, function):
        super().__init__()
        self.rate = torch.nn.Parameter(double(rate))
        self.function = function

    def forward(self, t, y, k):
        return self.rate * self.function(t, y) * k


def central_difference(function, x, h=1e-5):
    return (function(x + h) - function(x - h)) / (2 * h)


@pytest.mark.parametrize(
    ("method", "way", "dims"),
    [
        ("kencarp3", "direct", 0),
        ("kencarp4", "direct", 1),
        ("kencarp5", "checkpointed", 0),
        ("kencarp4", "checkpointed", 1),
        ("kencarp4", "backsolve", 0),
        ("kencarp5", "backsolve", 1),
    ],
)
def test_gradients(method, way, dims):
    """By the state, an argument and the parameters of both functions, as by finite differences."""
    y0 = Y0 if dims == 0 else torch.stack((Y0, double(0.3, -0.2)))

    def end(y0, k, explicit, implicit, gradient="direct"):
        pair = (Field(explicit, driven), Field(implicit, drawn))
        options = {"method": method, "t_eval": [0.25, 0.4], "step_size": 0.1, "gradient": gradient, "batch_dims": dims}
        solution = solve_ivp(pair, (0.0, 0.4), y0, args=(k,), **options, **TIGHT)
        return solution.y.square().sum(), pair

    one = torch.tensor(1.0, dtype=torch.float64)
    leaves = y0.clone().requires_grad_(), one.clone().requires_grad_()
    value, pair = end(*leaves, 1.0, 1.0, way)
    found = torch.autograd.grad(value, [*leaves, pair[0].rate, pair[1].rate])
    expected = [
        central_difference(lambda x: end(y0 + x, one, 1.0, 1.0)[0].item(), 0.0),
        central_difference(lambda x: end(y0, torch.tensor(x, dtype=torch.float64), 1.0, 1.0)[0].item(), 1.0),
        central_difference(lambda x: end(y0, one, x, 1.0)[0].item(), 1.0),
        central_difference(lambda x: end(y0, one, 1.0, x)[0].item(), 1.0),
    ]
    assert [x.sum().item() for x in found] == pytest.approx(expected, rel=1e-4 if way == "backsolve" else 1e-7)


def test_forward_mode_and_transforms():
    def end(p):
        pair = (lambda t, y: p * driven(t, y), lambda t, y: drawn(t, y) - p * y)
        return solve_ivp(pair, (0.0, 1.0), Y0, method="kencarp4", t_eval=[1.0], step_size=0.2, **TIGHT).y[0, 0]

    p = torch.tensor(0.7, dtype=torch.float64)
    expected = central_difference(lambda x: end(torch.tensor(x, dtype=torch.float64)).item(), 0.7)
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(end(torch.autograd.forward_ad.make_dual(p, torch.ones_like(p))))
        assert tangent.tangent.item() == pytest.approx(expected, rel=1e-7)
    assert torch.func.grad(end)(p).item() == pytest.approx(expected, rel=1e-7)
    batch = torch.func.vmap(end)(torch.stack((p, 2 * p)))
    assert batch.tolist() == pytest.approx([end(p).item(), end(2 * p).item()], rel=1e-9)


def test_a_parameter_that_is_used_late_gets_its_gradient():
    """In rows, whose first pass goes without autograd."""
    late = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def pushed(t, y):
        return torch.where(t > 0.45, late * torch.ones_like(y), torch.zeros_like(y)) if (t > 0.45).any() else 0 * y

    pair = (pushed, lambda t, y: -y)
    end = solve_ivp(pair, (0.0, 1.0), double(1.0, 1.0)[:, None], method="kencarp3", step_size=0.1, batch_dims=1).final
    (found,) = torch.autograd.grad(end.sum(), late)
    assert end.requires_grad and found.item() == pytest.approx(2 * (1 - np.exp(-0.55)), rel=0.05)


def test_the_jacobian_is_that_of_the_implicit_function():
    """Given, as a band, and found: the steps are the same."""
    n = 40
    matrix = (
        torch.diag(torch.full((n,), -2.0)) + torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    ) * 400.0
    matrix = matrix.double()
    y0 = torch.sin(torch.linspace(0, 3, n, dtype=torch.float64))

    def diffusion(t, y):
        return y @ matrix

    def everywhere(t, y):  # whose Jacobian has no zeros
        return y.mean(-1, keepdim=True) - y**3

    def solved(**options):
        return solve_ivp((everywhere, diffusion), (0.0, 1.0), y0, t_eval=[1.0], method="kencarp4", **options).final

    expected = solve_ivp((everywhere, diffusion), (0.0, 1.0), y0, method="radau5", rtol=1e-9, atol=1e-11).final
    for options in ({}, {"jac": matrix}, {"jac": lambda t, y: matrix}, {"jac_sparsity": (1, 1)}):
        torch.testing.assert_close(solved(**options), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="jac is not the derivative of func"):
        solved(jac=2 * matrix)
    with pytest.raises(ValueError, match="jac_sparsity has no place"):
        solve_ivp((diffusion, everywhere), (0.0, 1.0), y0, method="kencarp4", jac_sparsity=(1, 1))
    with pytest.raises(ValueError, match=re.escape(
        "with func=(explicit, implicit) jac is that of the implicit function, which Rodas5P does not treat by itself: "
        "leave jac out, choose one of 'kencarp3', 'kencarp4', 'kencarp5', or write the sum as one function"
    )):  # fmt: skip
        solve_ivp((everywhere, diffusion), (0.0, 1.0), y0, method="rodas5p", jac=matrix)


@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "bdf", "auto", "adams", "scipy_solver"])
def test_other_methods_solve_the_sum(method):
    solution = solve_ivp((driven, drawn), (0.0, 1.2), Y0, method=method, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.final, exact([1.2])[0], rtol=0, atol=2e-5)
    rows = solve_ivp((driven, drawn), (0.0, 1.2), Y0.expand(2, 2), method=method, rtol=1e-7, atol=1e-9, batch_dims=1)
    torch.testing.assert_close(rows.final, solution.final.expand(2, 2), rtol=0, atol=1e-7)


def test_states_of_other_kinds():
    """A dict, whose order may differ, complex numbers, and a mass matrix."""

    def one(t, y):
        return {"b": y["a"] * y["b"], "a": -y["a"] * y["b"]}

    def other(t, y):
        return {"a": -2 * y["a"], "b": -30 * y["b"]}

    y0 = {"a": double(1.0), "b": double(0.5)}
    both = solve_ivp((one, other), (0.0, 1.0), y0, method="kencarp4", rtol=1e-8).final
    summed = solve_ivp((one, other), (0.0, 1.0), y0, method="dopri8", rtol=1e-10).final
    for name in y0:
        torch.testing.assert_close(both[name], summed[name], rtol=0, atol=1e-6)

    z0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128)
    pair = (lambda t, z: 1j * z, lambda t, z: -20 * z)
    turned = solve_ivp(pair, (0.0, 1.0), z0, method="kencarp5", rtol=1e-8, atol=1e-10).final
    torch.testing.assert_close(turned, z0 * np.exp(-20 + 1j), rtol=0, atol=1e-8)

    mass = torch.diag(double(2.0, 4.0))
    heavy = solve_ivp((driven, drawn), (0.0, 1.0), Y0, method="kencarp4", mass=mass, rtol=1e-8).final
    expected = exact([1.0], lambda t, y: whole(t, y) / double(2.0, 4.0))[0]
    torch.testing.assert_close(heavy, expected, rtol=0, atol=1e-6)


def test_what_is_no_pair_is_refused():
    def solved(func, **options):
        return solve_ivp(func, (0.0, 1.0), Y0, **{"method": "kencarp3", **options})

    with pytest.raises(TypeError, match=r"a function func\(t, y\) or a pair \(explicit, implicit\), got 3 entries"):
        solved((driven, drawn, whole))
    with pytest.raises(TypeError, match=r"both must be functions of .*, but implicit is NoneType"):
        solved((driven, None))
    with pytest.raises(TypeError, match=r"func takes \(y, t\) and is called as func\(t, y\)"):
        solved((driven, lambda y, t: y))
    with pytest.raises(ValueError, match=r"explicit returned shape \(2,\) and implicit shape \(1,\)"):
        solved((driven, lambda t, y: y[:1]), method="dopri5")
    with pytest.raises(TypeError, match=r"got tuple: a pair \(explicit, implicit\) is for solve_ivp"):
        odeint((driven, drawn), Y0, double(0.0, 1.0))


def test_a_single_function_is_implicit_as_a_whole():
    """And a list is a pair too; steps are tried again as those of other methods are."""

    def stiff(t, y):
        return -1e6 * (y - torch.cos(t)) - torch.sin(t)

    for method in PAIRS:
        solution = solve_ivp(stiff, (0.0, 10.0), double(1.0), method=method, rtol=1e-5, atol=1e-5)
        assert (solution.y[:, 0] - torch.cos(solution.t)).abs().max() < 1e-4
        assert solution.stats.accepted < 400
    listed = solve_ivp([driven, drawn], (0.0, 1.0), Y0, method="kencarp4", controller=PIDController(first_step=1.0))
    assert listed.stats.rejected > 0
    torch.testing.assert_close(listed.final, exact([1.0])[0], rtol=0, atol=2e-5)


def test_the_way_back_may_take_another_method():
    leaf = Y0.clone().requires_grad_()
    options = {"method": "kencarp4", "rtol": 1e-8, "atol": 1e-10}
    end = solve_ivp((driven, drawn), (0.0, 1.0), leaf, gradient=Backsolve(method="dopri5"), **options).final
    (found,) = torch.autograd.grad(end.sum(), leaf)
    again = Y0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(solve_ivp((driven, drawn), (0.0, 1.0), again, **options).final.sum(), again)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
