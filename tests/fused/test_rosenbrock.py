"""Kernels of Rosenbrock methods: the steps, the gradients and the failures of the step loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stiff_problems import STIFF, hires, oregonator, robertson, van_der_pol
from torchivp import solve_ivp
from torchivp.solution import Outcome

METHODS = ["rosenbrock23", "rodas4", "rodas5p"]
FLOAT = torch.float64


def numbers(*values):
    return torch.tensor(values, dtype=FLOAT)


def both(func, span, y0, args=(), **options):
    """The same solve by a kernel and by the step loop."""
    return [solve_ivp(func, span, y0, args=args, backend=backend, **options) for backend in ("fused", "eager")]


def costs(solution):
    stats = solution.stats
    return stats.accepted, stats.rejected, stats.evaluations, stats.jacobians, stats.factorisations, stats.solves


def relative(x, y):
    return float((x - y).abs().max() / y.abs().max())


def gradients(func, span, y0, args, backend, **options):
    """Those of a weighted sum of the outputs, each state in units of its size, by y0 and the arguments."""
    y0, args = y0.clone().requires_grad_(), [x.clone().requires_grad_() for x in args]
    y = solve_ivp(func, span, y0, args=args, backend=backend, **options).y
    weights = torch.linspace(0.3, 1.7, y.numel(), dtype=FLOAT).view(y.shape) / y.detach().abs().flatten(0, -2).amax(0)
    return torch.autograd.grad((y * weights).sum(), [y0, *args])


def follows_cosine(t, y, k):
    """A stiff problem that depends on time; from (1, 1) the solution is cos t and exp(sin t)."""
    a, b = y.unbind(-1)
    slope = b * torch.cos(t) - k * (b - torch.exp(torch.sin(t)))
    return torch.stack((-k * (a - torch.cos(t)) - torch.sin(t), slope), -1)


def at_start(t, y, k):
    """`follows_cosine` of rows."""
    return follows_cosine(t.squeeze(-1), y, k)


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) == ("ROBER", "rodas5p") else pytest.mark.sweep)
        for name in STIFF
        for method in METHODS
    ],
)
def test_a_kernel_takes_the_steps_of_the_loop(name, method):
    problem, rtol = STIFF[name], 1e-4 if method == "rosenbrock23" else 1e-6
    options = {"method": method, "rtol": rtol, "atol": rtol * problem.atol_per_rtol, "max_steps": 20_000}
    t_eval = torch.linspace(*problem.span, 5, dtype=FLOAT)
    fused, eager = both(problem.func, problem.span, problem.y0, t_eval=t_eval, **options)
    assert fused.stats.backend == "fused"
    assert costs(fused) == costs(eager)
    scale = eager.y.abs().amax(0)
    assert float(((fused.y - eager.y).abs() / scale).max()) < 1e-8
    assert problem.scaled_error(fused.y[-1], rtol) < 200


def test_outputs_of_a_problem_that_depends_on_time_are_those_of_the_loop():
    t_eval, k = torch.linspace(0.0, 2.0, 9, dtype=FLOAT), numbers(200.0)[0]
    options = {"method": "rodas5p", "rtol": 1e-7, "atol": 1e-9, "args": (k,)}
    fused, eager = both(follows_cosine, (0.0, 2.0), numbers(1.0, 1.0), t_eval=t_eval, **options)
    assert costs(fused) == costs(eager)
    torch.testing.assert_close(fused.y, eager.y, rtol=1e-11, atol=1e-11)
    exact = torch.stack((torch.cos(t_eval), torch.exp(torch.sin(t_eval))), 1)
    torch.testing.assert_close(fused.y, exact, rtol=0, atol=1e-5)


def test_steps_backwards_in_time_and_all_ends_of_steps():
    options = {"method": "rodas5p", "rtol": 1e-7, "atol": 1e-9, "args": (numbers(-20.0)[0],)}
    fused, eager = both(follows_cosine, (1.0, 0.0), numbers(math.cos(1.0), math.exp(math.sin(1.0))), **options)
    assert fused.t.shape == eager.t.shape
    torch.testing.assert_close(fused.t, eager.t, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused.y, eager.y, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused.final, numbers(1.0, 1.0), rtol=0, atol=1e-5)


def test_a_first_step_that_is_given_costs_no_evaluation():
    options = {"method": "rodas5p", "rtol": 1e-7, "atol": 1e-9, "args": (numbers(200.0)[0],), "first_step": 0.5}
    fused, eager = both(follows_cosine, (0.0, 2.0), numbers(1.0, 1.0), **options)
    assert fused.stats.rejected
    assert costs(fused) == costs(eager)


def test_rows_go_their_own_ways_as_each_does_alone():
    rows = 11
    k, y0 = torch.logspace(0, 4, rows, dtype=FLOAT), torch.ones(rows, 2, dtype=FLOAT)
    y0[:, 0] = torch.linspace(0.0, 2.0, rows, dtype=FLOAT)
    t_eval = torch.linspace(0.0, 2.0, 4, dtype=FLOAT)
    options = {"method": "rodas5p", "rtol": 1e-6, "atol": 1e-8, "t_eval": t_eval}
    fused = solve_ivp(at_start, (0.0, 2.0), y0, args=(k,), batch_dims=1, backend="fused", **options)
    for row in (0, 4, 10):
        alone = solve_ivp(follows_cosine, (0.0, 2.0), y0[row], args=(k[row],), **options)
        stats = fused.stats[row]
        assert (stats.accepted, stats.rejected, stats.evaluations, stats.jacobians) == costs(alone)[:4]
        torch.testing.assert_close(fused.y[row], alone.y, rtol=1e-10, atol=1e-10)


@pytest.mark.sweep
def test_single_precision():
    options = {"method": "rodas5p", "rtol": 1e-3, "atol": 1e-5, "batch_dims": 1}
    y0, k = torch.ones(20, 2), torch.linspace(1.0, 300.0, 20)
    fused = solve_ivp(at_start, (0.0, 2.0), y0, args=(k,), backend="fused", **options)
    exact = torch.tensor([math.cos(2.0), math.exp(math.sin(2.0))]).expand(20, 2)
    assert fused.final.dtype == torch.float32
    torch.testing.assert_close(fused.final, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("method", "order"), [("rosenbrock23", 2), pytest.param("rodas4", 4, marks=pytest.mark.sweep), ("rodas5p", 5)]
)
def test_half_the_step_size_divides_the_error_by_two_to_the_order(method, order):
    errors = []
    for steps in (10, 20):
        options = {"method": method, "step_size": 1.0 / steps, "args": (numbers(1.0)[0],), "backend": "fused"}
        y = solve_ivp(follows_cosine, (0.0, 1.0), numbers(1.5, 1.5), **options).final
        errors.append(abs(float(y[0]) - math.cos(1.0) - 0.5 * math.exp(-1.0)))
    assert order - 0.4 < math.log2(errors[0] / errors[1]) < order + 1.0


# --- linear systems --------------------------------------------------------------------------------------------------


def by_matrix(t, y, a):
    return (a @ y.unsqueeze(-1)).squeeze(-1)


def random_matrices(rows, n):
    """Matrices with small diagonals, so that elimination must exchange rows, other ones in each lane."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(rows, n, n, dtype=FLOAT, generator=generator)
    return 50.0 * (a - torch.diag_embed(a.diagonal(0, 1, 2)))


def test_elimination_exchanges_rows_in_each_lane_on_its_own():
    a, y0 = random_matrices(9, 7), torch.ones(9, 7, dtype=FLOAT)
    options = {"method": "rodas4", "step_size": 0.5, "batch_dims": 1}
    fused, eager = both(by_matrix, (0.0, 1.0), y0, args=(a,), **options)
    torch.testing.assert_close(fused.final, eager.final, rtol=1e-9, atol=1e-9)
    found = [gradients(by_matrix, (0.0, 1.0), y0, (a,), backend, **options) for backend in ("fused", "eager")]
    for x, y in zip(*found, strict=True):
        assert relative(x, y) < 1e-9


def grows(t, y):
    """y' = 4 y; with a step of 1, rodas4 has the matrix [[1 - 2, 2], [2, 1 - 2]] / 2, which has no inverse."""
    a, b = y.unbind(-1)
    return torch.stack((2.0 * a + 2.0 * b, 2.0 * a + 2.0 * b), -1)


def test_a_step_with_a_singular_matrix_is_tried_again():
    options = {"method": "rodas4", "rtol": 1e-6, "atol": 1e-8, "first_step": 1.0}
    fused, eager = both(grows, (0.0, 2.0), numbers(1.0, 1.0), **options)
    assert fused.stats.rejected
    assert costs(fused) == costs(eager)
    torch.testing.assert_close(fused.final, math.exp(8.0) * numbers(1.0, 1.0), rtol=1e-4, atol=0)


@pytest.mark.sweep
def test_a_fixed_step_with_a_singular_matrix_fails():
    options = {"method": "rodas4", "step_size": 1.0, "throw": False}
    fused, eager = both(grows, (0.0, 2.0), numbers(1.0, 1.0), **options)
    assert fused.status == eager.status
    assert fused.status.outcome is Outcome.NON_FINITE
    assert costs(fused)[3:] == costs(eager)[3:]


# --- failures --------------------------------------------------------------------------------------------------------


def undefined_later(t, y):
    return torch.where(t > 1.0, torch.full_like(y, math.nan), -y)


@pytest.mark.parametrize("method", ["rodas5p", pytest.param("dopri5", marks=pytest.mark.sweep)])
def test_a_step_after_an_error_that_is_not_a_number_is_much_shorter(method):
    options = {"method": method, "rtol": 1e-6, "atol": 1e-8, "throw": False}
    fused, eager = both(undefined_later, (0.0, 3.0), numbers(1.0), **options)
    assert fused.status.outcome is eager.status.outcome is Outcome.NON_FINITE
    assert fused.status.t == pytest.approx(1.0)
    assert fused.stats.rejected < 60


def explodes(t, y, k):
    return k * y * y


@pytest.mark.parametrize("method", ["rodas5p", pytest.param("dopri5", marks=pytest.mark.sweep)])
def test_rows_that_fail_do_not_spoil_the_gradients_of_others(method):
    y0, k = numbers(0.2, 0.1, 3.0, math.nan).unsqueeze(1).requires_grad_(), numbers(1.0).requires_grad_()
    options = {"method": method, "rtol": 1e-9, "atol": 1e-9, "t_eval": numbers(1.0, 2.0), "batch_dims": 1}
    solution = solve_ivp(explodes, (0.0, 2.0), y0, args=(k[None],), backend="fused", throw=False, **options)
    assert [status.ok for status in solution.status] == [True, True, False, False]
    solution.y[:2, -1].sum().backward()
    start = numbers(0.2, 0.1)
    torch.testing.assert_close(
        k.grad, (2.0 * start**2 / (1.0 - 2.0 * start) ** 2).sum(0, keepdim=True), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(y0.grad[:2, 0], 1.0 / (1.0 - 2.0 * start) ** 2, rtol=1e-6, atol=0)
    assert not y0.grad[2:].any()


# --- gradients -------------------------------------------------------------------------------------------------------

RATES = {
    "ROBER": (lambda t, y, k: robertson(t, y, *k.unbind(-1)), (0.0, 1e2), numbers(0.04, 3e7, 1e4)),
    "OREGO": (lambda t, y, k: oregonator(t, y, *k.unbind(-1)), (0.0, 30.0), numbers(77.27, 8.375e-6, 0.161)),
    "HIRES": (lambda t, y, k: hires(t, y, *k.unbind(-1)), (0.0, 50.0), numbers(280.0)),
    "van der Pol": (lambda t, y, k: van_der_pol(t, y, *k.unbind(-1)), (0.0, 1.0), numbers(1e-3)),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) == ("ROBER", "rodas5p") else pytest.mark.sweep)
        for name in RATES
        for method in METHODS
    ],
)
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_gradients_are_those_of_the_steps_taken_by_the_loop(name, method, shared):
    func, span, k = RATES[name]
    y0, rtol = STIFF[name].y0, 1e-4 if method == "rosenbrock23" else 1e-6
    options = {"method": method, "rtol": rtol, "atol": rtol * STIFF[name].atol_per_rtol, "max_steps": 10_000}
    options |= {"t_eval": torch.linspace(*span, 5, dtype=FLOAT), "batch_dims": 1}
    for rows in (11, 1):  # more than there are lanes, and one that needs none
        factors = torch.linspace(0.5, 2.0, rows, dtype=FLOAT).unsqueeze(1)
        rates = k[None].clone() if shared else factors * k
        start = y0 * (1.0 + 0.1 * factors) if shared else y0.expand(rows, -1)
        found = [gradients(func, span, start, (rates,), backend, **options) for backend in ("fused", "eager")]
        for x, y in zip(*found, strict=True):
            # The sizes of steps, which the error's estimate gives, differ by more than rounding.
            assert float(((x - y).abs() / y.abs().amax(0)).max()) < 1e-8


def test_gradients_of_a_problem_that_depends_on_time_by_finite_differences():
    y0, k, t_eval = numbers(0.5, 1.0), numbers(30.0)[0], numbers(0.3, 1.0)

    def loss(y0, k):
        options = {"method": "rodas5p", "step_size": 0.1, "t_eval": t_eval, "backend": "fused"}
        return (solve_ivp(follows_cosine, (0.0, 1.0), y0, args=(k,), **options).y * numbers(1.0, 2.0)).sum()

    inputs = (y0.requires_grad_(), k.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(loss, inputs, eps=1e-6, rtol=1e-5, atol=1e-7, fast_mode=True)


TIMES = torch.linspace(0.0, 1.0, 6, dtype=FLOAT)


def driven(t, y, k, values):
    """What drives it is interpolated from values at times: places that depend on time."""
    i = torch.clamp(torch.searchsorted(TIMES, t.reshape(1), right=True) - 1, 0, 4)
    weight = (t - TIMES[i]) / (TIMES[i + 1] - TIMES[i])
    return -k * y + (values[i] * (1.0 - weight) + values[i + 1] * weight) * y.flip(0)


def test_gradients_through_places_that_depend_on_time():
    y0, args = numbers(0.5, 1.0, 0.8), (numbers(3.0, 0.5, 1.2), torch.sin(3.0 * TIMES))
    options = {"method": "rodas4", "step_size": 0.25}
    found = [gradients(driven, (0.0, 1.0), y0, args, backend, **options) for backend in ("fused", "eager")]
    for x, y in zip(*found, strict=True):
        assert relative(x, y) < 1e-11


def normed(t, y, w):
    """Norms whose change along a tangent torch differentiates as if mean and variance were constant."""
    layers, instances = F.layer_norm(y, (6,), w, 0.5 * w), F.instance_norm(y.view(1, 2, 3)).view(6)
    return torch.tanh(layers) + 0.3 * instances - y


def test_gradients_through_norms():
    y0, w = torch.cos(torch.arange(6.0, dtype=FLOAT)), torch.sin(1.0 + torch.arange(6.0, dtype=FLOAT))
    options = {"method": "rodas4", "step_size": 0.25}
    found = [gradients(normed, (0.0, 1.0), y0, (w,), backend, **options) for backend in ("fused", "eager")]
    for x, y in zip(*found, strict=True):
        assert relative(x, y) < 1e-11


# --- what there is no kernel for -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "size", "method", "sentence"),
    [
        (
            lambda t, y: -y,
            33,
            "rodas5p",
            "matrices of up to 32 rows, element by element, and the state has 33 elements",
        ),
        (lambda t, y: -y.detach(), 2, "rodas5p", "autograd does not see how func depends on y"),
        (lambda t, y: -y, 2, "bdf", "BDF is neither: choose method='rodas5p' for stiff problems"),
    ],
)
def test_what_has_no_kernel_is_refused_in_a_sentence(func, size, method, sentence):
    y0 = torch.ones(size, dtype=FLOAT)
    with pytest.raises(ValueError, match="backend='fused' has no kernel for this solve") as error:
        solve_ivp(func, (0.0, 1.0), y0, method=method, backend="fused")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "func",
    [
        lambda t, y: torch.where(t > 0.25, 2.0, 1.0) * torch.ones_like(y),
        lambda t, y: 1.75 + 0.0 * y,
        lambda t, y: 1.0 + torch.where(y > 1.25, 1.0, 0.0),
    ],
)
def test_slopes_without_derivatives_have_a_kernel(func):
    found = solve_ivp(func, (0.0, 1.0), numbers(1.0, 1.0), method="rodas5p", backend="fused", rtol=1e-9)
    torch.testing.assert_close(found.final, numbers(2.75, 2.75), rtol=1e-6, atol=0.0)


def test_a_state_too_large_for_a_kernel_is_solved_by_the_loop():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(33, dtype=FLOAT), method="rodas5p", backend="auto")
    assert solution.stats.backend.startswith("eager")
    torch.testing.assert_close(solution.final, torch.full((33,), math.exp(-1.0), dtype=FLOAT), rtol=1e-3, atol=0)
