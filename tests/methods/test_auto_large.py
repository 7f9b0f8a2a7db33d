"""Method "auto" for large states: tsit5 and bdf, with the same steps whoever takes them again."""

import pytest
import torch

from problems import double
from torchivp import ODE_METHODS, Checkpointed, Event, solve_ivp
from torchivp.methods.ode import auto

SIZE = 202
X = torch.linspace(0.0, 1.0, SIZE + 2, dtype=torch.float64)[1:-1]
START = torch.sin(torch.pi * X) + 0.3 * torch.sin(3 * torch.pi * X)
OPTIONS = {"rtol": 1e-5, "atol": 1e-7}


def fisher(t, y, d):
    """y_t = d y_xx + y (1 - y), zero at both ends."""
    beyond = torch.nn.functional.pad(y, (1, 1))
    bend = (beyond[..., 2:] - 2 * y + beyond[..., :-2]) * (SIZE + 1) ** 2
    return d.unsqueeze(-1) * bend + y * (1 - y)


def solved(d, y0=START, **options):
    return solve_ivp(fisher, (0.0, 0.5), y0, args=(d,), t_eval=double(0.1, 0.5), **OPTIONS | options)


def total(y):
    return (y * torch.linspace(0.5, 1.5, SIZE, dtype=y.dtype)).sum()


@pytest.fixture(scope="module")
def exact():
    """The states, and the derivative of their sum by d as a difference."""
    tight = {"method": "radau5", "rtol": 1e-9, "atol": 1e-11, "jac_sparsity": (1, 1)}
    low, middle, high = (solved(double(0.2).squeeze() * x, **tight).y for x in (1 - 1e-4, 1.0, 1 + 1e-4))
    return middle, (total(high) - total(low)) / (2e-4 * 0.2)


@pytest.mark.parametrize("sparsity", [None, pytest.param((1, 1), marks=pytest.mark.sweep)])
@pytest.mark.parametrize("gradient", ["direct", Checkpointed(checkpoints=4), "forward"])
def test_values_and_gradients(gradient, sparsity, exact):
    d = double(0.2).squeeze().requires_grad_()
    solution = solved(d, gradient=gradient, jac_sparsity=sparsity)
    torch.testing.assert_close(solution.y, exact[0], rtol=0, atol=1e-3)
    (found,) = torch.autograd.grad(total(solution.y), d)
    torch.testing.assert_close(found, exact[1], rtol=1e-3, atol=0)
    stats = solution.stats
    assert stats.stiff > 0.5 * stats.accepted
    assert stats.jacobians < 0.2 * stats.stiff  # bdf keeps them
    assert "method BDF" in solution.sources
    assert "method Rodas5P" not in solution.sources


def test_rows_of_both_kinds_are_their_single_solves(exact):
    d = double(0.2, 1e-6, 0.05).requires_grad_()
    options = {"jac_sparsity": (1, 1), "batch_dims": 1}
    rows = solved(d, START.repeat(3, 1), **options)
    (found,) = torch.autograd.grad(total(rows.y[0]), d)
    torch.testing.assert_close(found[0], exact[1], rtol=1e-3, atol=0)
    assert [stats.stiff > 0 for stats in rows.stats] == [True, False, True]
    for row in range(3):
        single = solved(d[row].detach(), jac_sparsity=(1, 1))
        torch.testing.assert_close(rows.y[row], single.y, rtol=1e-5, atol=1e-7)
        assert rows.stats[row].accepted == single.stats.accepted
    for some in ([0, 2], [1, 2]):
        fewer = solved(d[some], START.repeat(2, 1), **options)
        assert torch.equal(fewer.y, rows.y[some])


def test_events_on_the_way_of_rows_that_change_their_method():
    """A dose gives bdf a past that is not its own, and each row its own again."""
    dose = Event(lambda t, y, d: y.mean(-1) - 0.3, apply=lambda t, y, d: y + 0.2, direction=-1, max_count=2)
    d = double(0.2, 0.1)
    options = {"jac_sparsity": (1, 1), "events": dose}
    rows = solved(d, START.repeat(2, 1), batch_dims=1, **options)
    for row in range(2):
        single = solved(d[row], **options)
        reference = solved(d[row], **options | {"method": "radau5", "rtol": 1e-8, "atol": 1e-10})
        torch.testing.assert_close(rows.final[row], single.final, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(single.final, reference.final, rtol=0, atol=2e-3)
        assert single.stats.stiff > 0


def relaxing(t, y):
    return -1e3 * (y - torch.cos(t))


@pytest.mark.parametrize("size", [201, 2001])
def test_beyond_dense_matrices_it_needs_products_alone(size):
    solution = solve_ivp(relaxing, (0.0, 1.0), torch.ones(size, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(solution.final, torch.cos(double(1.0)).expand(size), rtol=0, atol=2e-3)
    assert solution.stats.stiff > 0
    assert solution.stats.accepted < 120


def test_steps_of_one_size_with_a_pattern_are_those_of_rodas5p():
    """And not of bdf, which would stay at order 1."""
    y0, diagonal = torch.ones(201, dtype=torch.float64), torch.eye(201)
    solution = solve_ivp(relaxing, (0.0, 0.2), y0, step_size=0.005, jac_sparsity=diagonal)
    expected = solve_ivp(relaxing, (0.0, 0.2), y0, step_size=0.005, jac_sparsity=diagonal, method="rodas5p")
    assert torch.equal(solution.y, expected.y)
    assert list(solution.sources) == list(expected.sources)


def test_no_dense_matrices_of_a_multitude_of_rows(monkeypatch):
    """Decided by the number of rows at the start, so that a replay decides alike."""
    assert ODE_METHODS["auto"].at_steps(False, 1) is ODE_METHODS["auto"].at_steps(False, 16) is ODE_METHODS["auto"]
    assert 300 < ODE_METHODS["auto"].at_steps(False, 500).largest_dense < 400
    monkeypatch.setattr(auto, "_MOST_ENTRIES", 10 * 60**2)
    y0 = torch.ones(11, 60, dtype=torch.float64)
    many, few = (
        solve_ivp(relaxing, (0.0, 0.3), y0[:rows], batch_dims=1, rtol=1e-2, atol=1e-2).stats[0].stiff
        for rows in (11, 10)
    )
    assert many == 0
    assert few > 0


def test_a_large_system_with_an_equation_without_a_derivative():
    """The last element is the mean of the others."""
    mass = torch.diag(torch.cat((torch.ones(SIZE, dtype=torch.float64), double(0.0))))

    def func(t, y):
        inner = y[:-1]
        return torch.cat((fisher(t, inner, double(0.2).squeeze()), (inner.mean() - y[-1:])))

    y0 = torch.cat((START, START.mean()[None]))
    solution = solve_ivp(func, (0.0, 0.5), y0, mass=mass, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(solution.final[-1], solution.final[:-1].mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.final[:-1], solved(double(0.2).squeeze()).final, rtol=0, atol=1e-3)
    assert solution.stats.stiff == solution.stats.accepted + solution.stats.rejected
