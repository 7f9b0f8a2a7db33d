"""Forward sensitivities by a kernel, against gradients of the same steps, dual numbers and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp as scipy_solve
from torch.autograd import forward_ad

from compilers import needs_compiler
from stiff_problems import hires, robertson
from torchivp import ODE_METHODS, PIDController, SolveError, solve_ivp
from torchivp.fused.refusal import CannotFuse
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


MOVING = (1, 0, 2)
"""The parameters that move in the last of five directions, the first of which func does not use."""


def solved(kernel, rows=3, moving=MOVING, tangents=None, t=T, span=(0.0, 3.0), **options):
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
                of = solution.y[time, state]
                by_start, by_value = torch.autograd.grad(of, [start, values], retain_graph=True)
                expected = torch.cat([by_start, by_value[list(MOVING)]])
                torch.testing.assert_close(found.tangents[row, time, :, state], expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(found.final[row], found.states[row, -1], rtol=0, atol=0)
        torch.testing.assert_close(found.final_tangents[row], found.tangents[row, -1], rtol=0, atol=0)


OTHERS = ("rosenbrock23", "rodas4")


def forced(t, y, k, w):
    """Stiff, not linear, and it depends on time."""
    a, b = y
    return torch.stack([-k * (a - torch.cos(w * t)) * (1.0 + b * b), torch.sin(a * t) - w * torch.exp(b) * a])


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


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) == ("Robertson", "rodas5p") else pytest.mark.sweep)
        for name in PROBLEMS
        for method in ("rosenbrock23", "rodas4", "rodas5p")
    ],
)
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
        states, expected = (x.detach() for x in forward_ad.unpack_dual(y.y))
    assert y.stats[0].accepted == found.steps[0]
    scale = found.states[0].abs().amax(0)
    assert float(((states[0] - found.states[0]).abs() / scale).max()) < 1e-8
    expected = expected.movedim(0, 1)
    scale = expected.abs().amax(0)  # of each direction and state
    assert float(((expected - found.tangents[0]).abs() / scale.clamp(min=1e-300)).max()) < 1e-6


def of_many_operations(t, y, a, b, c):
    """Operations whose changes are made of many others, with ties and branches that not all directions come to."""
    weights = torch.softmax(torch.stack([a * y[0], b, torch.sin(c) * t]), 0)
    matrix = torch.outer(weights, torch.stack([c, y[1], a * b]))
    kinked = torch.where(y > b, torch.clamp(y * a, max=1.5), y**c)
    scaled = y / torch.linalg.vector_norm(y) + torch.logsumexp(kinked, 0) * torch.ones_like(y)
    steps = torch.cumsum(scaled, 0).flip(0)
    return -y + 0.3 * (matrix @ steps) - torch.relu(kinked - kinked.mean()) + torch.prod(weights) * y.amax()


@pytest.mark.parametrize("method", [pytest.param("tsit5", marks=pytest.mark.sweep), "rodas5p"])
def test_of_many_operations(method):
    kernel = Sensitivities(of_many_operations, 3, 3, ODE_METHODS[method])
    y0, k, t = numbers(1.0, 0.4, 2.0), numbers(0.8, 0.5, 1.4), numbers(0.4, 1.0)
    atol = torch.full((3,), 1e-7, dtype=FLOAT)
    options = {"rtol": 1e-5, "max_steps": 1000}
    span = t.new_zeros(1), t[-1:]
    found = kernel.solve(
        y0[None],
        unit_starts(1, 3, (2, 0, 1)),
        k[:, None],
        *span,
        t[None],
        (2, 0, 1),
        atol=atol,
        controller=PIDController(),
        **options,
    )

    def solution(y0, k):
        return solve_ivp(
            of_many_operations, (0.0, 1.0), y0, t_eval=t, args=tuple(k), method=method, atol=1e-7, **options
        )

    assert solution(y0, k).stats.accepted == found.steps[0]
    by_start, by_value = torch.autograd.functional.jacobian(lambda y0, k: solution(y0, k).y, (y0, k))
    expected = torch.cat([by_start, by_value[..., [2, 0, 1]]], -1).movedim(-1, 1)
    torch.testing.assert_close(found.tangents[0], expected, rtol=1e-8, atol=1e-10)


# --- rows, pieces and outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_without_directions_there_are_the_states_alone_and_the_same_steps(kernel, stiff_kernel, method):
    kernel = kernel if method == "tsit5" else stiff_kernel
    alone = solved(kernel, moving=(), tangents=torch.empty(3, 0, 2, dtype=FLOAT))
    found = solved(kernel)
    assert alone.tangents.shape == (3, 7, 0, 2) and alone.final_tangents.shape == (3, 0, 2)
    assert torch.equal(alone.steps, found.steps)
    torch.testing.assert_close(alone.states, found.states, rtol=1e-10, atol=1e-11)


def test_tangents_are_handed_on_from_piece_to_piece(kernel):
    """Steps that end where a piece does are those of both, so that a piece of one step each shows it exactly."""
    options = {"controller": PIDController(first_step=0.01, min_step=0.01, max_step=0.01, accept_at_min_step=True)}
    whole = solved(kernel, span=(0.0, 0.02), t=numbers(0.02), **options)
    first = solved(kernel, span=(0.0, 0.01), t=numbers(0.01), **options)
    t0, t1 = (torch.full((3,), x, dtype=FLOAT) for x in (0.01, 0.02))
    second = kernel.solve(
        first.final,
        first.final_tangents,
        PARAMETERS,
        t0,
        t1,
        t1[:, None],
        MOVING,
        rtol=1e-6,
        atol=ATOL,
        max_steps=10,
        **options,
    )
    assert whole.steps.tolist() == [2, 2, 2] and second.steps.tolist() == [1, 1, 1]
    torch.testing.assert_close(second.final, whole.final, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(second.final_tangents, whole.final_tangents, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_tangents_are_those_of_the_start_carried_along_and_those_of_parameters(kernel, stiff_kernel, method):
    kernel = kernel if method == "tsit5" else stiff_kernel
    assert kernel.used == {0, 2}
    units = solved(kernel).tangents
    start = torch.zeros(3, 5, 2, dtype=FLOAT)
    start[:, 0] = numbers(2.0, -3.0)
    start[:, 2] = start[:, 3] = numbers(1.0, 0.5)
    found = solved(kernel, tangents=start).tangents
    carried = units[:, :, 0] + 0.5 * units[:, :, 1]
    expected = [2.0 * units[:, :, 0] - 3.0 * units[:, :, 1], 0.0 * carried, carried, carried + units[:, :, 3]]
    torch.testing.assert_close(found[:, :, :4], torch.stack(expected, 2), rtol=1e-10, atol=1e-10)
    assert not units[:, :, 2].any()


def test_each_row_has_its_own_times(kernel):
    nan = float("nan")
    t = numbers(nan, 0.3, nan, 1.0, 1.0, nan).repeat(3, 1)
    t[1] = numbers(2.0, 2.0, 1.5, nan, nan, -1.0)  # backwards
    t[2] = numbers(nan, 0.7, 0.7, nan, nan, nan)  # no step
    span = (numbers(0.0, 2.0, 0.7), numbers(1.0, -1.0, 0.7))
    found = solved(kernel, t=t, span=span)
    assert found.ok.all() and found.steps[2] == 0 and (found.steps[:2] > 0).all()
    for row in range(3):
        given = t[row].isnan()
        assert found.states[row][given].isnan().all() and found.tangents[row][given].isnan().all()
        assert not found.states[row][~given].isnan().any() and not found.tangents[row][~given].isnan().any()
    same_times = found.states[0, 3], found.states[0, 4], found.final[0]
    assert torch.equal(same_times[0], same_times[1]) and torch.equal(same_times[0], same_times[2])
    for at in (1, 2):
        assert torch.equal(found.states[2, at], Y0[2]) and torch.equal(
            found.tangents[2, at], unit_starts(1, 2, MOVING)[0]
        )
    backwards = solve_ivp(
        pendulum, (2.0, -1.0), Y0[1], t_eval=[2.0, 1.5, -1.0], args=tuple(PARAMETERS[:, 1]), method="tsit5", atol=ATOL
    )
    torch.testing.assert_close(found.states[1, [1, 2, 5]], backwards.y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.final_tangents[1], found.tangents[1, 5], rtol=0, atol=0)


def test_a_row_does_not_depend_on_its_neighbours(kernel, stiff_kernel):
    for each in (kernel, stiff_kernel):
        rows, alone = solved(each), solved(each, rows=1)
        torch.testing.assert_close(rows.tangents[:1], alone.tangents, rtol=1e-9, atol=1e-10)


def test_no_rows_and_no_outputs(kernel):
    none = solved(kernel, rows=0)
    assert none.states.shape == (0, 7, 2) and none.tangents.shape == (0, 7, 5, 2) and none.ok.shape == (0,)
    found = solved(kernel, t=torch.empty(0, dtype=FLOAT))
    assert found.states.shape == (3, 0, 2)
    torch.testing.assert_close(found.final_tangents, solved(kernel).tangents[:, -1], rtol=1e-12, atol=1e-12)


def test_more_directions_than_a_kernel_holds_take_several_calls():
    """Directions from 0 to 69 move the start and parameters; y = y0 exp(-(sum of p) t)."""
    kernel = Sensitivities(lambda t, y, *p: -y * torch.stack(p).sum(), 1, 70, ODE_METHODS["tsit5"])
    tangents = torch.zeros(2, 72, 1, dtype=FLOAT)
    tangents[:, 0], tangents[:, 1] = 1.0, 3.0
    values = torch.linspace(0.0, 0.02, 70, dtype=FLOAT).unsqueeze(1).expand(70, 2)
    found = kernel.solve(
        torch.ones(2, 1, dtype=FLOAT),
        tangents,
        values,
        T[:1].expand(2),
        T[-1:].expand(2),
        T.expand(2, -1),
        tuple(range(70)),
        rtol=1e-9,
        atol=numbers(1e-12),
        controller=PIDController(),
        max_steps=1000,
    )
    decay = torch.exp(-values[:, 0].sum() * T)
    expected = torch.stack([decay, 3.0 * decay, *[-T * decay] * 70], 1)
    torch.testing.assert_close(found.tangents[1, :, :, 0], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.final_tangents[0, :, 0], expected[-1], rtol=1e-7, atol=1e-9)


# --- against numbers of others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rtol"), [("dopri8", 1e-9), pytest.param("rodas5p", 1e-6, marks=pytest.mark.sweep)])
def test_a_linear_equation_has_its_closed_form(method, rtol):
    """y = y0 exp(-k t): dy/dk = -t y."""
    decay = numbers(2.0) * torch.exp(-0.7 * T)
    kernel = Sensitivities(lambda t, y, k: -k * y, 1, 1, ODE_METHODS[method])
    found = kernel.solve(
        numbers(2.0)[None],
        numbers(1.0, 0.0)[None, :, None],
        numbers(0.7)[None],
        T[:1],
        T[-1:],
        T[None],
        (0,),
        rtol=1e-12,
        atol=numbers(1e-14),
        controller=PIDController(),
        max_steps=10_000,
    )
    torch.testing.assert_close(found.states[0, :, 0], decay, rtol=rtol, atol=0)
    torch.testing.assert_close(found.tangents[0, :, 0, 0], decay / 2.0, rtol=rtol, atol=0)
    torch.testing.assert_close(found.tangents[0, :, 1, 0], -T * decay, rtol=rtol, atol=1e-12)


def test_finite_differences_of_the_solution_by_scipy(stiff_kernel):
    """Of an equation that depends on time; all of it at tight tolerance."""
    tight = {"rtol": 1e-10, "atol": numbers(1e-12, 1e-12), "max_steps": 10_000}
    found = solved(stiff_kernel, rows=1, **tight)

    def at(damping, drive, angle):
        def func(t, y):
            return [y[1], -np.sin(y[0]) - damping * y[1] + drive * np.cos(2.0 * t)]

        options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13, "t_eval": T.numpy()}
        return scipy_solve(func, (0.0, 3.0), [angle, 0.0], **options).y.T

    eps = 1e-5
    for direction, which in ((0, 2), (3, 0), (4, 1)):
        low, high = ([0.1, 0.5, 1.0] for _ in range(2))
        low[which] -= eps
        high[which] += eps
        expected = (at(*high) - at(*low)) / (2.0 * eps)
        np.testing.assert_allclose(found.tangents[0, :, direction].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["rodas5p", *(pytest.param(m, marks=pytest.mark.sweep) for m in OTHERS)])
def test_finite_differences_of_the_numerical_solution(method):
    """With steps of one size, the solution by a kernel is a smooth function of what moves."""
    kernel = Sensitivities(forced, 2, 2, ODE_METHODS[method])
    controller = PIDController(first_step=0.0625, min_step=0.0625, max_step=0.0625, accept_at_min_step=True)
    t = numbers(0.0, 0.13, 0.5, 0.77, 1.0)

    tangents = unit_starts(1, 2, (0, 1))

    def at(moved):
        y0, k = numbers(1.0, 0.5) + moved[:2], numbers(30.0, 0.7) + moved[2:]
        options = {"rtol": 1e-3, "atol": numbers(1e-3, 1e-3), "controller": controller, "max_steps": 100}
        return kernel.solve(y0[None], tangents, k[:, None], t[:1], t[-1:], t[None], (0, 1), **options)

    found = at(torch.zeros(4, dtype=FLOAT))
    assert found.steps[0] == 16
    for direction in range(4):
        step = torch.zeros(4, dtype=FLOAT)
        step[direction] = 1e-5 * (30.0 if direction == 2 else 1.0)
        expected = (at(step).states - at(-step).states) / (2.0 * step[direction])
        torch.testing.assert_close(found.tangents[:, :, direction], expected, rtol=1e-6, atol=1e-8)


# --- failures --------------------------------------------------------------------------------------------------------


def explodes(t, y, k):
    return k * y * y


def why_of_the_loop(row, method, **options):
    with pytest.raises(SolveError) as error:
        solve_ivp(pendulum, (0.0, 3.0), Y0[row], args=tuple(PARAMETERS[:, row]), method=method, rtol=1e-6, **options)
    return error.value.status.message


def test_a_row_that_fails_says_why_as_the_loop_does_and_has_nan_where_it_did_not_come(kernel):
    found = solved(kernel, max_steps=5)
    assert not found.ok.any()
    for row in (0, 2):
        assert found.failure(row).message == why_of_the_loop(row, "tsit5", atol=ATOL, max_steps=5)
    assert not found.states[:, 0].isnan().any() and found.states[:, -1].isnan().all()
    assert found.tangents[:, -1].isnan().all() and found.final.isnan().all() and found.final_tangents.isnan().all()


@pytest.mark.parametrize("method", ["tsit5", pytest.param("rodas5p", marks=pytest.mark.sweep)])
def test_rows_that_fail_leave_the_others_alone(method):
    kernel = Sensitivities(explodes, 1, 1, ODE_METHODS[method])
    y0, t = numbers(0.2, 3.0, math.nan).unsqueeze(1), numbers(0.1, 2.0)
    found = kernel.solve(
        y0,
        torch.ones(3, 1, 1, dtype=FLOAT),
        torch.ones(1, 3, dtype=FLOAT),
        torch.zeros(3, dtype=FLOAT),
        t[1:].expand(3),
        t.expand(3, -1),
        rtol=1e-9,
        atol=numbers(1e-9),
        controller=PIDController(),
        max_steps=1000,
    )
    assert found.ok.tolist() == [True, False, False]
    exact = 1.0 / (1.0 - 0.2 * t) ** 2
    torch.testing.assert_close(found.tangents[0, :, 0, 0], exact, rtol=1e-6, atol=0)
    reached = found.states[1, 0, 0], found.states[1, 1, 0], found.final[1, 0]
    assert math.isfinite(reached[0]) and reached[1].isnan() and reached[2].isnan()
    assert "t = 0.333333" in found.failure(1).message
    assert found.failure(2).message == "the initial state is not finite: y[0] = nan"
    with pytest.raises(ValueError, match="row 0 has not failed: ask for one where ok is False"):
        found.failure(0)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"t": T.flip(0)}, r"the outputs of row 0, \[3.0, .*\], must lie between t0 = 0 and t1 = 3"),
        ({"span": (1.0, 3.0)}, "the outputs of row 0, .* must lie between t0 = 1 and t1 = 3"),
        ({"tangents": torch.zeros(3, 4, dtype=FLOAT)}, r"tangents must be .* shape \[rows, D, n\]: it is .* \[3, 4\]"),
        ({"atol": numbers(1e-8)}, r"atol must be a float64 tensor on the CPU of shape \[n\] = \[2\]: .* shape \[1\]"),
        ({"atol": ATOL.float()}, "atol must be a float64 tensor on the CPU .*: it is torch.float32"),
        ({"moving": (3,)}, r"moving must hold numbers of the 3 parameters, counted from 0, .* \(3\), and is \(3,\)"),
        ({"moving": (0, 2), "tangents": torch.zeros(3, 1, 2, dtype=FLOAT)}, r"as there are directions \(1\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(kernel, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        solved(kernel, **changed)


@pytest.mark.parametrize("method", ["rk4", "bdf", "auto"])
def test_methods_without_a_kernel_are_refused(method):
    with pytest.raises(CannotFuse, match="is neither: choose method='rodas5p' or 'tsit5'"):
        Sensitivities(pendulum, 2, 3, ODE_METHODS[method])


def test_methods_with_the_same_weights_are_told_apart():
    """`adaptive_heun` is `heun` but for the slope that its steps start from."""
    pair, none = ("heun", "adaptive_heun"), torch.empty(1, 0, 2, dtype=FLOAT)
    kernels = [Sensitivities(pendulum, 2, 3, ODE_METHODS[method]) for method in pair]
    steps = [int(solved(each, 1, (), none, max_steps=10**5).steps) for each in kernels]
    options = {"args": tuple(PARAMETERS[:, 0]), "rtol": 1e-6, "atol": ATOL}
    single = [solve_ivp(pendulum, (0.0, 3.0), Y0[0], method=method, **options).stats.accepted for method in pair]
    assert steps == single and steps[0] != steps[1]
