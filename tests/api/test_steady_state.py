"""Steady states against closed forms and long solves, their derivatives against finite differences."""

import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from problems import double
from torchivp import SolveError, solve_ivp, steady_state


def reactions(k):
    """a <-> b, 2 b <-> 2 c: the total amount is conserved."""

    def func(t, y):
        a, b, c = y.unbind(-1)
        first, second = k[..., 0] * a - k[..., 1] * b, k[..., 2] * b**2 - 0.1 * c
        return torch.stack((-first, first - second, second), -1)

    return func


def bistable(t, y):
    return y - y**3


def brusselator(t, y):
    u, v = y.unbind(-1)
    return torch.stack((1 + u**2 * v - 4 * u, 3 * u - u**2 * v), -1)


@pytest.mark.parametrize("follow", [False, True])
def test_the_slope_vanishes_and_the_total_is_kept(follow):
    func, y0 = reactions(double(2.0, 0.5, 1.3)), double(1.0, 0.0, 0.5)
    found = steady_state(func, y0, follow=follow)
    assert found.status.ok
    assert func(0.0, found.y).abs().max() < 1e-15
    torch.testing.assert_close(found.y.sum(), double(1.5)[0], rtol=0, atol=1e-14)
    late = solve_ivp(func, (0.0, 300.0), y0, rtol=1e-10, atol=1e-13).final
    torch.testing.assert_close(found.y, late, rtol=0, atol=1e-9)
    assert (found.spans > 0) == follow


def test_rows_are_searches_of_their_own():
    k = double(2.0, 0.5, 1.3) * double(1.0, 3.0, 1e3)[:, None]
    y0 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [5.0, 0.0, 1e-3]], dtype=torch.float64)
    together = steady_state(lambda t, y, k: reactions(k)(t, y), y0, args=(k,), batch_dims=1)
    for row in range(3):
        alone = steady_state(reactions(k[row]), y0[row])
        torch.testing.assert_close(together.y[row], alone.y, rtol=1e-13, atol=0)
        assert together.iterations[row] == alone.iterations
    torch.testing.assert_close(together.y.sum(1), y0.sum(1))


def test_derivatives_of_every_kind_of_input():
    """By what func captures, by args of each row, and by the initial state, of which the total amount matters."""

    def captured(k, y0):
        return steady_state(reactions(k), y0).y

    def passed(k, y0):
        return steady_state(lambda t, y, k: reactions(k)(t, y), y0, args=(k,), batch_dims=1).y

    one = double(2.0, 0.5, 1.3, grad=True), double(1.0, 0.2, 0.1, grad=True)
    rows = tuple(torch.stack((x, 1.5 * x)).detach().requires_grad_() for x in one)
    assert gradcheck(captured, one) and gradgradcheck(captured, one)
    assert gradcheck(passed, rows)
    total = torch.autograd.grad(captured(*one).sum(), one[1])[0]
    torch.testing.assert_close(total, torch.ones_like(total))
    first = torch.autograd.grad(captured(*one)[0], one[0], create_graph=True)[0][0]
    second = torch.autograd.grad(first, one[0], create_graph=True)[0][0]
    with pytest.raises(RuntimeError, match="a steady state can be differentiated twice, not three times"):
        torch.autograd.grad(second, one[0])


def test_forward_derivatives():
    k, tangent = double(2.0, 0.5, 1.3), double(0.3, -1.0, 0.2)

    def solve(k):
        return steady_state(reactions(k), double(1.0, 0.2, 0.1)).y

    with torch.autograd.forward_ad.dual_level():
        dual = solve(torch.autograd.forward_ad.make_dual(k, tangent))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    expected = (solve(k + 1e-6 * tangent) - solve(k - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_following_leads_to_the_state_that_the_solution_reaches():
    """From either side of the unstable state at zero, however far; zero itself is no result."""
    y0 = double(0.1, -0.2, 0.0, 3.0).unsqueeze(1)
    found = steady_state(bistable, y0, batch_dims=1, follow=True, throw=False)
    assert found.y.flatten()[[0, 1, 3]].tolist() == pytest.approx([1.0, -1.0, 1.0], abs=1e-12)
    assert found.y[2].isnan() and not found.status[2].ok
    assert "the state where the slope is zero is unstable" in found.status[2].message


def test_states_that_are_not_stable_are_no_result():
    with pytest.raises(SolveError, match=r"no stable steady state was found: the solution does not lead to one either"):
        steady_state(brusselator, double(1.5, 3.0), max_steps=300)
    with pytest.raises(SolveError, match=r"no stable steady state was found"):  # a centre, about which it goes round
        steady_state(lambda t, y: torch.stack((y[1], -y[0])), double(1.0, 0.0), max_steps=300)
    rows = torch.tensor([[1.5, 3.0], [0.5, 1.0]], dtype=torch.float64)
    with pytest.raises(SolveError, match=r"2 of 2 rows have no steady state. Row 0: no stable"):
        steady_state(brusselator, rows, max_steps=300, batch_dims=1)


@pytest.mark.parametrize(
    ("func", "sentence"),
    [
        (lambda t, y: torch.ones_like(y), "corrections are still"),
        (lambda t, y: y, "max_steps = 200"),
        (lambda t, y: torch.full_like(y, torch.nan), "func is not finite|not finite"),
    ],
)
def test_systems_without_a_steady_state(func, sentence):
    found = steady_state(func, double(1.0, 2.0), max_steps=200, throw=False)
    assert not found.status.ok and found.y.isnan().all()
    with pytest.raises(SolveError, match=sentence):
        steady_state(func, double(1.0, 2.0), max_steps=200)


def test_where_everything_is_steady_the_initial_state_is():
    y0 = double(1.0, 2.0, grad=True)
    found = steady_state(lambda t, y: 0 * y, y0)
    assert found.y.tolist() == [1.0, 2.0]
    found.y.sum().backward()
    assert y0.grad.tolist() == [1.0, 1.0]


def test_states_of_other_kinds():
    tree = {"a": double(1.0), "b": torch.ones(2, 2, dtype=torch.float32)}
    found = steady_state(lambda t, y: {"a": 2 - y["a"], "b": 3 - y["b"] ** 2}, tree)
    assert found.y["a"].tolist() == pytest.approx([2.0]) and found.y["b"].dtype == torch.float32
    assert found.y["b"].flatten().tolist() == pytest.approx([3**0.5] * 4, rel=1e-6)
    z = steady_state(lambda t, z: (-1 + 2j) * (z - (1 + 2j)), torch.zeros(1, dtype=torch.complex128)).y
    assert complex(z[0]) == pytest.approx(1 + 2j)
    half = steady_state(lambda t, y: 2 - y, torch.zeros(3))
    assert half.y.dtype == torch.float32 and half.y.tolist() == pytest.approx([2.0] * 3, rel=1e-6)
    assert steady_state(lambda t, y: -y, torch.zeros(0, 2, dtype=torch.float64), batch_dims=1).y.shape == (0, 2)
    assert pickle.loads(pickle.dumps(found)).y["a"].tolist() == found.y["a"].tolist()


def test_refusals():
    with pytest.raises(ValueError, match=r"func depends on t: d/dt of y\[0\] is another at t = 0 than 1.2345 later"):
        steady_state(lambda t, y: t - y, double(1.0))
    with pytest.raises(ValueError, match=r"does not work inside torch.func transforms such as vmap or grad"):
        torch.func.vmap(lambda y: steady_state(lambda t, y: -y, y).y)(torch.ones(2, 1))
    with pytest.raises(ValueError, match="max_iters must be a whole number of at least 1, got 0"):
        steady_state(lambda t, y: -y, double(1.0), max_iters=0)


def test_where_autograd_does_not_see_func_a_sentence_says_so():
    memory = torch.empty(2, dtype=torch.float64)
    for func in (
        lambda t, y: torch.from_numpy(1 - y.detach().numpy() ** 3),
        lambda t, y: memory.copy_((1 - y.detach()).reshape(2)).view_as(y),
    ):
        for y0, batch_dims in ((double(0.5, 2.0), 0), (double(0.5, 2.0).reshape(1, 2), 1)):
            with pytest.raises(ValueError, match=r"does not see how func\(t, y\) depends on y: compute in torch"):
                steady_state(func, y0, batch_dims=batch_dims)
