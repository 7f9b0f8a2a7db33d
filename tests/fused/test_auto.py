"""Kernels of the default method: rows that are stiff are solved again, by rodas5p, and nothing else changes."""

import pytest
import torch

from problems import double
from stiff_problems import robertson
from torchivp import odeint, solve_ivp
from torchivp.solution import Outcome

MU = [0.5, 1000.0, 1.0, 3000.0]
IS_STIFF = [False, True, False, True]


def field(t, y, mu, w):
    x, v = y.unbind(-1)
    return torch.stack((w * v, w * (mu * (1 - x * x) * v - x)), -1)


def inputs():
    y0 = double(2.0, 0.0).repeat(len(MU), 1).requires_grad_()
    return y0, double(*MU).requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)


def solved(given, backend="fused", t_eval=None, **options):
    y0, mu, w = given
    options = {"rtol": 1e-6, "atol": 1e-8, "t_eval": t_eval, "backend": backend} | options
    return solve_ivp(field, (0.0, 15.0), y0, args=(mu, w), batch_dims=1, **options)


def total(states):
    return (states * torch.linspace(1.0, 2.0, states.numel(), dtype=states.dtype).view(states.shape)).sum()


@pytest.mark.parametrize("t_eval", [None, torch.linspace(0.0, 15.0, 7, dtype=torch.float64)])
def test_rows_of_both_kinds_have_the_solutions_of_their_methods(t_eval):
    y0, mu, w = inputs()
    solution = solved((y0, mu, w), t_eval=t_eval)
    for row, stiff in enumerate(IS_STIFF):
        method = "rodas5p" if stiff else "tsit5"
        single = solve_ivp(
            field, (0.0, 15.0), y0[row], args=(mu[row], w), t_eval=t_eval, method=method, rtol=1e-6, atol=1e-8
        )
        count = len(single.t)
        torch.testing.assert_close(solution.y[row, :count], single.y, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(solution.t[row, :count], single.t, rtol=1e-5, atol=1e-7)
        assert solution.y[row, count:].isnan().all()
        assert solution.t[row, count:].isnan().all()
        torch.testing.assert_close(solution.final[row], single.y[-1], rtol=1e-6, atol=1e-8)
        stats = solution.stats[row]
        assert (stats.accepted, stats.rejected) == (single.stats.accepted, single.stats.rejected)
        assert stats.backend == "fused"
        assert stats.switches == stiff
        assert stats.stiff == stiff * (stats.accepted + stats.rejected)
        assert stats.jacobians == single.stats.jacobians
        assert stats.solves == single.stats.solves
        least = single.stats.evaluations
        assert least <= stats.evaluations + (t_eval is not None) * least
        assert stats.evaluations > least or not stiff
    assert {"method Tsit5", "method Rodas5P"} <= set(solution.sources)


@pytest.mark.parametrize("t_eval", [None, torch.linspace(0.0, 15.0, 7, dtype=torch.float64)])
def test_gradients_are_those_of_differences(t_eval):
    given = inputs()

    def value(given):
        solution = solved(given, t_eval=t_eval, rtol=1e-11, atol=1e-13)
        return total(solution.final if t_eval is None else solution.y)

    found = torch.autograd.grad(value(given), given)
    for row in (1, 2):
        expected = []
        for sign in (1, -1):
            moved = given[1].detach().clone()
            moved[row] += sign * 1e-5 * MU[row]
            expected.append(value((given[0].detach(), moved, given[2].detach())))
        difference = (expected[0] - expected[1]) / (2e-5 * MU[row])
        torch.testing.assert_close(found[1][row], difference, rtol=1e-5, atol=1e-7)
    ends = [value((given[0].detach(), given[1].detach(), given[2].detach() + d)) for d in (1e-6, -1e-6)]
    torch.testing.assert_close(found[2], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


def test_second_derivatives():
    def firsts(mu, **options):
        y0, _, w = inputs()
        given = (y0[:2], mu, w)
        solution = solved(given, t_eval=double(0.0, 1.0, 2.0), **options)
        return torch.autograd.grad(total(solution.y), given[1:], create_graph=True)

    mu = double(0.5, 1000.0).requires_grad_()
    (found,) = torch.autograd.grad(sum(x.sum() for x in firsts(mu)), mu)
    for row in (0, 1):
        moved = torch.zeros_like(mu)
        moved[row] = 1e-4 * mu.detach()[row]
        sides = [sum(x.sum() for x in firsts(mu + sign * moved, rtol=1e-11, atol=1e-13)) for sign in (1, -1)]
        torch.testing.assert_close(found[row], ((sides[0] - sides[1]) / (2 * moved[row])).detach(), rtol=1e-3, atol=0)


def test_one_problem_alone_and_nothing_else_asked():
    y0 = double(1.0, 0.0, 0.0)
    solution = solve_ivp(robertson, (0.0, 1e5), y0, backend="fused")
    rodas = solve_ivp(robertson, (0.0, 1e5), y0, backend="fused", method="rodas5p")
    assert torch.equal(solution.y, rodas.y)
    assert solution.stats.stiff == rodas.stats.accepted + rodas.stats.rejected
    reference = double(0.0178659211422, 7.2747514685e-8, 0.982134006109)
    torch.testing.assert_close(solution.final, reference, rtol=1e-5, atol=0)
    calm = solve_ivp(robertson, (0.0, 1e-3), y0, backend="fused")
    tsit5 = solve_ivp(robertson, (0.0, 1e-3), y0, backend="fused", method="tsit5")
    assert torch.equal(calm.y, tsit5.y)
    assert calm.stats == tsit5.stats


def test_rows_of_single_precision_in_reversed_time_by_odeint():
    func = lambda t, y: 500.0 * (y - torch.cos(t))
    t = torch.tensor([3.0, 2.0, 0.0])
    fused, eager = (
        odeint(func, torch.ones(1), t, method="auto", options={"backend": backend}, rtol=1e-4, atol=1e-6)
        for backend in ("fused", "eager")
    )
    torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-4)


def hidden(t, y):
    return torch.stack((y[1], 100 * (1 - y[0].detach() ** 2) * y[1] - y[0]))


@pytest.mark.parametrize(
    ("func", "y0", "sentence"),
    [
        (hidden, double(2.0, 0.0), "autograd does not see how func depends on the state"),
        (lambda t, y: -1e4 * y, torch.ones(33, dtype=torch.float64), "33"),
    ],
    ids=["hidden", "large"],
)
def test_where_no_kernel_can_take_over_it_is_said(func, y0, sentence):
    """A kernel that would crawl does not go on: the step loop does what it can."""
    with pytest.raises(ValueError, match=sentence):
        solve_ivp(func, (0.0, 10.0), y0, backend="fused")
    solution = solve_ivp(func, (0.0, 10.0), y0, backend="auto", throw=False)
    assert solution.stats.backend.startswith("eager: ")
    assert sentence in solution.stats.backend
    assert solution.success


def test_failures_of_rows_of_both_kinds():
    """Each fails where its method does, and says so."""

    def func(t, y, k):
        return torch.stack((-k * (y[..., 0] - torch.cos(t[..., 0])), y[..., 1] ** 2), -1)

    k, y0 = double(1.0, 3e3, 3e3), double(1.0, 1.0).repeat(3, 1)
    y0[2, 1] = 1e-3
    solution = solve_ivp(func, (0.0, 2.0), y0, args=(k,), batch_dims=1, throw=False, backend="fused")
    assert [status.outcome is Outcome.SUCCESS for status in solution.status] == [False, False, True]
    assert solution.stats[0].stiff == 0
    assert solution.stats[1].stiff > 0
    for row in (0, 1):
        assert solution.status[row].outcome is Outcome.STEP_UNDERFLOW
        assert abs(solution.t_final[row].item() - 1.0) < 1e-3


def test_the_numbers_of_a_row_do_not_depend_on_the_others():
    y0, mu, w = (x.detach() for x in inputs())
    every = solved((y0, mu, w))
    some = solved((y0[[3, 0, 1]], mu[[3, 0, 1]], w))
    for place, row in enumerate((3, 0, 1)):
        count = some.stats[place].accepted + 1
        assert torch.equal(some.y[place, :count], every.y[row, :count])
