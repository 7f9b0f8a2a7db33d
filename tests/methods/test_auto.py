"""Method "auto": when it changes between tsit5 and rodas5p, and what that does to rows, events and gradients."""

import math

import numpy as np
import pytest
import torch

from problems import DETEST, double
from stiff_problems import STIFF, van_der_pol
from torchivp import Checkpointed, Event, PIDController, solve_ivp

OPTIONS = {"method": "auto", "rtol": 1e-5, "atol": 1e-7}


def calming(t, y):
    """Stiff between 1 and 3, and neither before nor after."""
    rate = 1.0 + 1e4 * torch.sigmoid(20.0 * (t - 1.0)) * torch.sigmoid(20.0 * (3.0 - t))
    return torch.stack((-rate * (y[0] - torch.cos(3.0 * t)), y[2], -16.0 * y[1]))


@pytest.mark.parametrize("problem", DETEST)
def test_what_is_not_stiff_takes_the_steps_of_tsit5(problem):
    func, y0 = DETEST[problem]
    span = (0.0, 2.0 if "B2" in problem else 20.0)  # later that one comes to rest, where stability limits the steps
    auto, tsit5 = (
        solve_ivp(func, span, double(*y0), method=method, rtol=1e-5, atol=1e-7) for method in ("auto", "tsit5")
    )
    assert torch.equal(auto.y, tsit5.y)
    assert (auto.stats.stiff, auto.stats.switches, auto.stats.jacobians) == (0, 0, 0)
    assert auto.stats.evaluations == tsit5.stats.evaluations


@pytest.mark.parametrize(("problem", "rtol"), [*((problem, 1e-3) for problem in STIFF), ("ROBER", 1e-6)])
def test_what_is_stiff_is_solved_about_as_fast_as_by_the_stiff_method(problem, rtol):
    stiff = STIFF[problem]
    options = {"rtol": rtol, "atol": rtol * stiff.atol_per_rtol, "t_eval": [stiff.span[1]]}
    auto, rodas = (
        solve_ivp(stiff.func, stiff.span, stiff.y0, method=method, **options) for method in ("auto", "rodas5p")
    )
    assert stiff.scaled_error(auto.y[-1], rtol) < 10
    assert auto.stats.stiff > 10
    assert auto.stats.switches >= 1
    assert auto.stats.evaluations < 2.1 * rodas.stats.evaluations + 300


def test_there_and_back_again():
    y0 = double(1.0, 1.0, 0.0)
    solution = solve_ivp(calming, (0.0, 10.0), y0, t_eval=torch.linspace(0, 10, 21), **OPTIONS)
    tries = solution.stats.accepted + solution.stats.rejected
    assert solution.stats.switches == 2
    assert 10 < solution.stats.stiff < 0.6 * tries
    exact = solve_ivp(
        calming, (0.0, 10.0), y0, t_eval=torch.linspace(0, 10, 21), method="rodas5p", rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(solution.y, exact.y, rtol=0, atol=1e-3)


def test_reversed_time():
    solution = solve_ivp(lambda t, y: 100.0 * (y - torch.cos(t)), (3.0, 0.0), double(1.0), **OPTIONS)
    assert solution.stats.stiff > 0
    u = double(0.0)  # y = p (p cos t + sin t) / (1 + p^2) but for what has died out
    torch.testing.assert_close(
        solution.y[-1], 100.0 * (100.0 * torch.cos(u) - torch.sin(u)) / 10001.0, rtol=1e-4, atol=0
    )


def test_each_row_is_its_single_solve_and_has_its_own_method():
    eps = double(1.0, 1e-3, 0.3, 1e-5)
    y0 = double(2.0, 0.0).expand(4, 2).clone()
    t = torch.linspace(0.0, 2.0, 9, dtype=torch.float64)
    batch = solve_ivp(van_der_pol, (0.0, 2.0), y0, args=(eps,), t_eval=t, batch_dims=1, dense_output=True, **OPTIONS)
    stiff = []
    for row in range(4):
        single = solve_ivp(van_der_pol, (0.0, 2.0), y0[row], args=(eps[row],), t_eval=t, **OPTIONS)
        torch.testing.assert_close(batch.y[row], single.y, rtol=1e-8, atol=1e-10)
        one, other = batch.stats[row], single.stats
        for name in ("accepted", "rejected", "stiff", "switches"):
            assert getattr(one, name) == getattr(other, name)
        stiff.append(one.stiff > 0)
    assert stiff == [False, True, False, True]
    torch.testing.assert_close(batch.sol(t), batch.y, rtol=1e-9, atol=1e-12)


def test_a_row_does_not_depend_on_the_others_to_the_last_bit():
    eps = double(1.0, 1e-3, 0.3, 1e-5)
    y0 = double(2.0, 0.0).expand(4, 2).clone()
    together = solve_ivp(van_der_pol, (0.0, 1.0), y0, args=(eps,), batch_dims=1, **OPTIONS)
    for rows in ([0, 2], [1, 3], [3, 0]):
        some = solve_ivp(van_der_pol, (0.0, 1.0), y0[rows], args=(eps[rows],), batch_dims=1, **OPTIONS)
        for place, row in enumerate(rows):
            steps = some.stats[place].accepted + 1
            assert torch.equal(some.y[place, :steps], together.y[row, :steps])


def test_events_within_rows_of_both_kinds():
    """The stiff rows follow cos t, the others lag behind it."""
    k = double(1.0, 1e4)

    def func(t, y, k):
        return -k.unsqueeze(-1) * (y - torch.cos(t.reshape(-1, 1)))

    solution = solve_ivp(
        func,
        (0.0, 3.0),
        torch.ones(2, 1, dtype=torch.float64),
        args=(k,),
        batch_dims=1,
        events=Event(lambda t, y, k: y[..., 0], terminal=True),
        **OPTIONS,
    )
    ends = [t[~t.isnan()][-1].item() for t in solution.t]
    # y = (cos t + sin t + exp(-t)) / 2 with k = 1
    exact = [scipy_root(), np.pi / 2 + 1e-4]
    np.testing.assert_allclose(ends, exact, rtol=0, atol=1e-4)


def scipy_root():
    from scipy.optimize import brentq

    return brentq(lambda t: np.cos(t) + np.sin(t) + np.exp(-t), 1.0, 3.0)


@pytest.mark.parametrize("gradient", ["direct", Checkpointed(checkpoints=4)])
@pytest.mark.parametrize("batched", [False, True])
def test_gradients_through_a_change_of_method(gradient, batched):
    """y' = k (cos t - y) from 1: y = (k^2 cos t + k sin t + exp(-k t)) / (1 + k^2)."""
    k = (double(0.5, 3000.0) if batched else double(3000.0).squeeze()).requires_grad_()
    y0, t = torch.ones_like(k).unsqueeze(-1), double(1.0, 2.0)
    solution = solve_ivp(
        lambda t, y, k: k.unsqueeze(-1) * (torch.cos(t) - y),
        (0.0, 2.0),
        y0,
        args=(k,),
        t_eval=t,
        batch_dims=int(batched),
        gradient=gradient,
        method="auto",
        rtol=1e-6,
        atol=1e-10,
    )
    (found,) = torch.autograd.grad(solution.y.sum(), k)
    column = k.unsqueeze(-1)
    exact = (column**2 * torch.cos(t) + column * torch.sin(t) + torch.exp(-column * t)) / (1 + column**2)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), k)[0], rtol=1e-3, atol=0)
    stats = solution.stats if not batched else solution.stats[1]
    assert stats.switches == 1


def test_gradients_are_those_of_the_steps_to_the_last_digits():
    """Equal steps, so that finite differences see the same ones; the method changes on the way."""

    def solve(p):
        return solve_ivp(
            lambda t, y: -p * (y + 0.01 * y**3 - torch.cos(5 * t)),
            (0.0, 0.6),
            double(1.02),
            method="auto",
            controller=PIDController(first_step=0.03, min_step=0.03, max_step=0.03, accept_at_min_step=True),
        )

    p = double(80.0).requires_grad_()
    solution = solve(p)
    assert 5 < solution.stats.stiff < 15
    (found,) = torch.autograd.grad(solution.y.sum(), p)
    h = 1e-3
    with torch.no_grad():
        expected = (solve(p + h).y.sum() - solve(p - h).y.sum()) / (2 * h)
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_where_autograd_sees_nothing_tsit5_goes_on(batch_dims):
    y0 = torch.ones((3,) * (batch_dims + 1), dtype=torch.float64)

    def func(t, y):
        return torch.from_numpy(-100.0 * y.detach().numpy())

    auto, tsit5 = (
        solve_ivp(func, (0.0, 2.0), y0, method=method, batch_dims=batch_dims, rtol=1e-4) for method in ("auto", "tsit5")
    )
    torch.testing.assert_close(auto.y, tsit5.y, rtol=0, atol=0)
    stats = auto.stats if batch_dims == 0 else auto.stats[0]
    assert (stats.stiff, stats.jacobians) == (0, 0)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "forward"])
def test_a_step_is_taken_again_by_the_method_that_took_it(gradient):
    """Of rows one of which is through long before the other: what speaks for a method may differ by rounding alone."""
    n = 60
    ones = torch.ones(n - 1, dtype=torch.float64)
    matrix = (torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)) * n**2
    x = torch.sin(torch.linspace(0, 3, n, dtype=torch.float64))
    y0 = torch.stack([x, 0 * x])
    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def heat(t, y, c):
        return c * (y @ matrix.T)

    options = {"batch_dims": 1, "rtol": 1e-8, "atol": 1e-10}
    found = solve_ivp(heat, (0.0, 0.05), y0, args=(c,), gradient=gradient, **options)
    with torch.no_grad():
        plain = solve_ivp(heat, (0.0, 0.05), y0, args=(c,), **options)
    torch.testing.assert_close(found.final, plain.final, rtol=1e-9, atol=1e-12)
    assert [each.switches for each in found.stats] == [each.switches for each in plain.stats]
    exact = torch.linalg.matrix_exp(0.05 * matrix)
    (slope,) = torch.autograd.grad(found.final[0].sum(), c)
    assert slope.item() == pytest.approx((0.05 * matrix @ exact @ x).sum().item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_fixed_steps_are_those_of_one_method(backend):
    """Nothing rejects those that show stiffness."""

    def func(t, y):
        return -3.0 * (y - torch.cos(t))

    y0 = double(2.0)
    found = solve_ivp(func, (0.0, 5.0), y0, step_size=0.1, backend=backend)
    expected = solve_ivp(func, (0.0, 5.0), y0, step_size=0.1, method="tsit5", backend=backend)
    assert torch.equal(found.final, expected.final)
    stiff = solve_ivp(lambda t, y: 1000 / 3 * func(t, y), (0.0, 5.0), y0, step_size=0.1, jac=double(-1000.0)[None])
    assert stiff.final.item() == pytest.approx(math.cos(5), abs=1e-2) and stiff.stats.jacobians > 0
