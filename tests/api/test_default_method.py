"""`solve_ivp(func, span, y0)` and nothing else: what is stiff, what is not, and what no Jacobian can be had of."""

import numpy as np
import pytest
import scipy.integrate
import torch

from problems import DETEST, covering, double
from stiff_problems import STIFF, oregonator, robertson, van_der_pol
from torchivp import cite, odeint, solve_ivp
from torchivp.methods.jacobian import autograd_sees
from torchivp.models import Equations

ROBER = double(0.0178659211422, 7.2747514685e-8, 0.982134006109)
OREGO = {
    30.0: double(1.00066146718, 1512.77893735, 10358.5431277),
    360.0: double(1.00081487032, 1228.17852155, 132.055494285),
}
VAN_DER_POL = double(1.70616773217, -0.892809701025)


def off(y, reference):
    return float((y / reference - 1).abs().max())


def test_robertson(capsys):
    solution = solve_ivp(robertson, (0.0, 1e5), double(1.0, 0.0, 0.0))
    assert off(solution.y[-1], ROBER) < 1e-5
    assert solution.stats.accepted < 200
    assert solution.stats.stiff > 50
    cite(solution)
    assert "method Rodas5P: Steinebach2023" in capsys.readouterr().out


@pytest.mark.parametrize("end", [30.0, pytest.param(360.0, marks=pytest.mark.sweep)])
def test_oregonator(end):
    solution = solve_ivp(oregonator, (0.0, end), double(1.0, 2.0, 3.0))
    assert off(solution.y[-1], OREGO[end]) < 1e-4


def test_van_der_pol():
    solution = solve_ivp(van_der_pol, (0.0, 2.0), double(2.0, 0.0))
    assert off(solution.y[-1], VAN_DER_POL) < 1e-5
    assert solution.stats.accepted < 2000


@pytest.mark.parametrize("problem", ["HIRES", "POLLU"])
def test_larger_ones(problem):
    stiff = STIFF[problem]
    solution = solve_ivp(stiff.func, stiff.span, stiff.y0)
    assert float(((solution.y[-1] - stiff.reference) / stiff.reference.abs().clamp(min=1e-6)).abs().max()) < 1e-4


@pytest.mark.parametrize("problem", ["A3", "C1", "D2"])
def test_what_is_not_stiff_is_left_to_tsit5(problem):
    func, y0 = next(DETEST[name] for name in DETEST if name.startswith(problem))
    default, tsit5 = (solve_ivp(func, (0.0, 10.0), double(*y0), **options) for options in ({}, {"method": "tsit5"}))
    assert torch.equal(default.y, tsit5.y)
    assert default.stats.stiff == default.stats.jacobians == 0
    assert "method Rodas5P" not in default.sources


@pytest.fixture(scope="module")
def sensitivities():
    """How the first of Robertson's states at 40 moves with the rates: differences of SciPy's solves."""
    rates = np.array([0.04, 3e7, 1e4])

    def end(k):
        def func(t, y):
            return [
                k[2] * y[1] * y[2] - k[0] * y[0],
                k[0] * y[0] - k[2] * y[1] * y[2] - k[1] * y[1] ** 2,
                k[1] * y[1] ** 2,
            ]

        return scipy.integrate.solve_ivp(func, (0.0, 40.0), [1.0, 0.0, 0.0], "Radau", rtol=1e-11, atol=1e-14).y[0, -1]

    moved = 1e-4 * np.diag(rates)
    return double(*((end(rates + d) - end(rates - d)) / (2 * d.sum()) for d in moved))


@pytest.mark.parametrize(
    ("gradient", "batched"),
    covering(["direct", "checkpointed", "forward"], ["direct"], [False, True]),
)
def test_gradients_of_robertson(gradient, batched, sensitivities):
    rates, y0 = double(0.04, 3e7, 1e4).requires_grad_(), double(1.0, 0.0, 0.0)
    end = solve_ivp(
        lambda t, y, k: robertson(t, y, *k.unbind(-1)),
        (0.0, 40.0),
        y0[None] if batched else y0,
        args=(rates[None] if batched else rates,),
        batch_dims=int(batched),
        gradient=gradient,
    ).final
    (found,) = torch.autograd.grad(end[..., 0].sum(), rates)
    torch.testing.assert_close(found, sensitivities, rtol=1e-4, atol=0.0)


def test_gradients_of_explicit_steps_at_the_limit_of_stability_are_no_reason_to_take_them():
    mu = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    y0 = double(2.0, 0.0)

    def func(t, y):
        return torch.stack((y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]))

    (found,) = torch.autograd.grad(solve_ivp(func, (0.0, 30.0), y0).final.sum(), mu)
    (expected,) = torch.autograd.grad(solve_ivp(func, (0.0, 30.0), y0, method="radau5", rtol=1e-9).final.sum(), mu)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


# What autograd does not see: tsit5 goes on, as it would alone.


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def with_numpy(t, y):
    a, b = y.numpy()
    return torch.from_numpy(np.array((b, 30.0 * (1 - a * a) * b - a)))


def with_a_hidden_part(t, y):
    a, b = y[0].detach(), y[1]
    return torch.stack((b, 30.0 * (1 - a * a) * b - a))


def with_a_hidden_value(t, y):
    return torch.stack((y[1], 30.0 * (1 - y[0] ** 2) * y[1].item() - y[0]))


def differentiable_once(t, y):
    return torch.stack((y[1], 30.0 * (1 - Once.apply(y[0])) * y[1] - y[0]))


def plain(t, y):
    return torch.stack((y[1], 30.0 * (1 - y[0] ** 2) * y[1] - y[0]))


@pytest.mark.parametrize(
    "func",
    [
        with_numpy,
        with_a_hidden_part,
        pytest.param(with_a_hidden_value, marks=pytest.mark.sweep),
        differentiable_once,
        pytest.param(torch.no_grad()(plain), marks=pytest.mark.sweep),
        pytest.param(torch.inference_mode()(plain), marks=pytest.mark.sweep),
    ],
    ids=["numpy", "detach", "item", "once", "no_grad", "inference"],
)
def test_where_autograd_does_not_see_the_state_tsit5_goes_on(func):
    y0 = double(2.0, 0.0)
    default, tsit5 = (solve_ivp(func, (0.0, 15.0), y0, **options) for options in ({}, {"method": "tsit5"}))
    assert torch.equal(default.y, tsit5.y)
    assert (default.stats.stiff, default.stats.switches) == (0, 0)
    assert default.stats.evaluations < 1.1 * tsit5.stats.evaluations + 20
    assert solve_ivp(plain, (0.0, 15.0), y0).stats.stiff > 0


def test_a_func_that_cannot_be_differentiated_twice_keeps_its_gradient():
    """As what torch.compile makes of a func with its default backend, whose stiff steps would have no backward pass."""
    mu = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)

    def func(t, y):
        return torch.stack((y[1], mu * (1 - Once.apply(y[0])) * y[1] - y[0]))

    solution = solve_ivp(func, (0.0, 2.0), double(2.0, 0.0))
    assert solution.stats.accepted > 40
    (found,) = torch.autograd.grad(solution.final.sum(), mu)
    with torch.no_grad():
        ends = [
            solve_ivp(plain_at(30.0 + d), (0.0, 2.0), double(2.0, 0.0), rtol=1e-10).final.sum() for d in (-1e-3, 1e-3)
        ]
    torch.testing.assert_close(found, (ends[1] - ends[0]) / 2e-3, rtol=1e-2, atol=0.0)


def plain_at(mu):
    return lambda t, y: torch.stack((y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]))


def test_rows_of_which_some_are_hidden():
    """One row is stiff and seen, one stiff and hidden, one neither."""
    mu, seen = double(30.0, 30.0, 0.5), torch.tensor([True, False, True])
    y0 = double(2.0, 0.0).expand(3, 2)

    def func(t, y, mu, seen):
        a = torch.where(seen, y[:, 0], y[:, 0].detach())
        return torch.stack((y[:, 1], mu * (1 - a**2) * y[:, 1] - a), -1)

    solution = solve_ivp(func, (0.0, 15.0), y0, args=(mu, seen), batch_dims=1)
    assert [stats.stiff > 0 for stats in solution.stats] == [True, False, False]
    for row in range(3):
        single = solve_ivp(plain_at(mu[row]), (0.0, 15.0), y0[row], method="radau5", rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(solution.final[row], single.final, rtol=1e-3, atol=1e-4)


def test_the_kinds_of_right_hand_sides():
    """A pair of functions, a model, complex states, single precision: all of them stiff."""
    pair = solve_ivp(
        (lambda t, y: torch.cos(t) + 0 * y, lambda t, y: -1e4 * y), (0.0, 3.0), torch.ones(1, dtype=torch.float64)
    )
    torch.testing.assert_close(pair.final, torch.cos(double(3.0)) / 1e4, rtol=1e-3, atol=0)
    model = Equations("a' = -k*(a - b)\nb' = -b\nk = 1e5")
    solution = solve_ivp(model, (0.0, 1.0), double(0.0, 1.0))
    torch.testing.assert_close(solution.final, torch.exp(double(-1.0, -1.0)), rtol=1e-4, atol=0)
    turning = solve_ivp(lambda t, y: (-1e4 + 3j) * (y - torch.exp(1j * t)), (0.0, 1.0), double(1.0) + 0j)
    k = torch.tensor(1e4 - 3j)
    exact = k / (k + 1j) * torch.exp(1j * double(1.0))
    torch.testing.assert_close(turning.final, exact, rtol=1e-5, atol=0)
    single = solve_ivp(lambda t, y: -1e4 * (y - torch.cos(t)), (0.0, 1.0), torch.zeros(2))
    torch.testing.assert_close(single.final, torch.cos(torch.ones(2)), rtol=1e-3, atol=0)
    for each in (pair, solution, turning, single):
        assert each.stats.stiff > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_and_curvature_hide_nothing(dtype):
    """Networks, at states of very different sizes, have Jacobians that autograd sees; parts of them cut off do not."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 5):
        first, second = (torch.randn(16 * size, generator=generator, dtype=dtype) for _ in range(2))
        first, second = first.view(size, 16), second.view(16, size)
        units = 10.0 ** torch.linspace(-2, 2, size, dtype=dtype)
        y = torch.randn(30, size, generator=generator, dtype=dtype) * units

        def network(y, inner, first=first, second=second, units=units):
            return 50 * torch.tanh(0.3 * (inner / units) @ first) @ second * units - 300 * y

        t = torch.zeros(30, 1, dtype=dtype)
        assert autograd_sees(lambda t, y: network(y, y), t, y).mean() > 0.98
        assert autograd_sees(lambda t, y: network(y, y.detach()), t, y).mean() < 0.1
        assert autograd_sees(lambda t, y: network(y.detach(), y), t, y).mean() < 0.1


def test_odeint_keeps_dopri5():
    y0, t = double(1.0), double(0.0, 2.0)
    func = lambda t, y: torch.sin(3 * t) - y
    assert torch.equal(odeint(func, y0, t), odeint(func, y0, t, method="dopri5"))
    assert not torch.equal(odeint(func, y0, t), odeint(func, y0, t, method="tsit5"))


@pytest.mark.parametrize("batched", [False, True])
def test_equations_without_a_derivative(batched):
    """Robertson's reactions, with the sum of all in the place of the last equation."""

    def func(t, y):
        return torch.cat((robertson(t, y)[..., :2], y.sum(-1, keepdim=True) - 1.0), -1)

    mass, y0 = torch.diag(double(1.0, 1.0, 0.0)), double(1.0, 0.0, 0.0)
    solution = solve_ivp(
        func,
        (0.0, 1e5),
        y0.expand(2, 3) if batched else y0,
        mass=mass,
        batch_dims=int(batched),
        gradient="checkpointed",
    )
    assert off(solution.final, ROBER) < 1e-5
    stats = solution.stats[0] if batched else solution.stats
    assert stats.stiff == stats.accepted + stats.rejected
    assert stats.switches == 0


def test_a_jacobian_is_taken_where_the_problem_is_stiff():
    asked = []

    def jac(t, y):
        asked.append(float(t))
        return torch.diag(double(-1e4, -1.0))

    func = lambda t, y: torch.stack((-1e4 * (y[0] - torch.cos(t)), -y[1]))
    solution = solve_ivp(func, (0.0, 2.0), double(1.0, 1.0), jac=jac)
    assert max(asked) > 1.0
    torch.testing.assert_close(solution.final[1], torch.exp(torch.tensor(-2.0).double()), rtol=1e-5, atol=0)
