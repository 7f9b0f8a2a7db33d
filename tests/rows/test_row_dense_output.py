"""The solutions of rows, and of problems with events, at any time; and their last states."""

import copy
import math
import pickle
import re

import pytest
import torch

from torchivp import Event, Outcome, Scheduled, solve_ivp

D = torch.float64
Y0 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=D)
ENDS = torch.tensor([2.0, 4.0, -3.0], dtype=D)
METHODS = [("dopri5", {"rtol": 1e-9, "atol": 1e-9}), ("rk4", {"step_size": 0.01}), ("gl6", {"step_size": 0.1})]


def rotation(t, y):
    return torch.stack((y[..., 1], -y[..., 0]), -1)


def exact(t):
    """The solutions at times that broadcast against the rows, [3, n, 2]."""
    t = t.expand(3, -1)
    a, b = Y0[:, :1], Y0[:, 1:]
    return torch.stack((a * torch.cos(t) + b * torch.sin(t), b * torch.cos(t) - a * torch.sin(t)), -1)


def decay(t, y, rate):
    return -rate * y


def doses(amounts=(100.0, 50.0), times=(0.0, 6.0)):
    return Scheduled(torch.tensor(times, dtype=D), lambda t, y, amount: y + amount, torch.tensor(amounts, dtype=D))


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("t_eval", [None, [], [[1.0], [1.0, 2.0], [-1.0]]])
def test_each_row_at_any_time_of_its_span(method, options, t_eval):
    solution = solve_ivp(
        rotation, (0.0, ENDS), Y0, batch_dims=1, dense_output=True, method=method, t_eval=t_eval, **options
    )
    torch.testing.assert_close(solution.final, exact(ENDS[:, None])[:, 0], rtol=0, atol=1e-7)
    assert torch.equal(solution.t_final, ENDS)
    shared = torch.tensor([-3.0, -1.0, 0.0, 1.3, 2.0, 3.9, 4.1], dtype=D)
    inside = torch.stack([(shared >= 0) & (shared <= 2), (shared >= 0) & (shared <= 4), (shared >= -3) & (shared <= 0)])
    found = solution.sol(shared)
    assert torch.equal(~found.isnan().any(-1), inside)
    torch.testing.assert_close(found[inside], exact(shared[None])[inside], rtol=0, atol=1e-7)
    each = ENDS[:, None] * torch.tensor([0.0, 0.5, 1.0], dtype=D)
    torch.testing.assert_close(solution.sol(each), exact(each), rtol=0, atol=1e-7)
    assert solution.sol(0.0).shape == (3, 2) and torch.equal(solution.sol(0.0), Y0)
    again = pickle.loads(pickle.dumps(solution))
    assert torch.equal(again.sol(each), solution.sol(each)) and torch.equal(again.final, solution.final)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_gradients_flow_through_dense_output_and_the_last_state(method, options):
    """With respect to the initial states, the times asked for, and the ends."""
    y0, ends = Y0.clone().requires_grad_(), ENDS.clone().requires_grad_()
    t = torch.tensor([[0.5, 1.5], [1.0, 3.3], [-0.5, -2.0]], dtype=D, requires_grad=True)
    solution = solve_ivp(rotation, (0.0, ends), y0, batch_dims=1, dense_output=True, method=method, **options)
    weights = torch.rand(3, 2, 2, dtype=D)
    grad_t, grad_y0 = torch.autograd.grad((solution.sol(t) * weights).sum(), (t, y0), retain_graph=True)
    slopes = torch.stack((exact(t)[..., 1], -exact(t)[..., 0]), -1)
    torch.testing.assert_close(grad_t, (slopes * weights).sum(-1), rtol=0, atol=1e-4)
    cos, sin = torch.cos(t), torch.sin(t)
    first = (weights[..., 0] * cos - weights[..., 1] * sin).sum(1)
    torch.testing.assert_close(grad_y0[:, 0], first, rtol=0, atol=1e-6)
    (grad_end,) = torch.autograd.grad(solution.final[:, 0].sum() + 3 * solution.t_final.sum(), ends)
    torch.testing.assert_close(grad_end, solution.final[:, 1] + 3, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("t_eval", [None, [1.0], [1.0, 10.0], []])
@pytest.mark.parametrize("batch", [None, 0, 1])
def test_the_last_state_has_its_gradient_whatever_is_asked_for(gradient, t_eval, batch):
    """Without events, with a dose, and in a batch."""
    rate, end = (torch.tensor(x, dtype=D, requires_grad=True) for x in (0.3, 10.0))
    options = {} if batch is None else {"events": doses(), "batch_dims": batch}
    y0 = torch.full((1, 1)[: 1 + (batch or 0)], 7.0, dtype=D)
    solution = solve_ivp(
        decay, (0.0, end), y0, args=(rate,), t_eval=t_eval, gradient=gradient, rtol=1e-10, atol=1e-10, **options
    )
    amounts = [(7.0, 0.0)] if batch is None else [(107.0, 0.0), (50.0, 6.0)]
    expected = sum(amount * torch.exp(-rate * (end - t)) for amount, t in amounts)
    torch.testing.assert_close(solution.final.sum(), expected, rtol=1e-8, atol=0)
    assert solution.final.shape == y0.shape and solution.t_final.item() == 10.0
    found = torch.autograd.grad(solution.final.sum(), (rate, end))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (rate, end)), rtol=1e-6, atol=0)
    assert solution.y.shape[1 if batch else 0] == (len(t_eval) if t_eval is not None else len(solution.t.flatten()))


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_the_last_state_moves_with_the_event_that_ends_the_solve(gradient):
    """A ball from height h lands with the speed sqrt(20 h) after sqrt(h / 5)."""
    h = torch.tensor(3.0, dtype=D, requires_grad=True)
    landing = Event(lambda t, y: y[0], terminal=True)
    solution = solve_ivp(
        lambda t, y: torch.stack((y[1], -10 + 0 * y[0])), (0.0, 9.0), torch.stack((h, 0 * h)), events=landing,
        t_eval=[9.0], gradient=gradient,
    )  # fmt: skip
    assert solution.y.isnan().all() and solution.status.outcome is Outcome.EVENT
    for found, expected in ((solution.t_final, torch.sqrt(h / 5)), (solution.final[1], -torch.sqrt(20 * h))):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        grads = (torch.autograd.grad(x, h, retain_graph=True)[0] for x in (found, expected))
        torch.testing.assert_close(*grads, rtol=1e-8, atol=0)


def test_with_events_it_is_continuous_from_the_right():
    rate = torch.tensor(0.3, dtype=D)
    y0 = torch.zeros(1, dtype=D)
    events = doses((100.0, 50.0, 20.0), (0.0, 6.0, 10.0))
    solution = solve_ivp(decay, (0.0, 10.0), y0, args=(rate,), events=events, dense_output=True, rtol=1e-9, atol=1e-9)
    t = torch.tensor([[0.0, 6.0 - 1e-9], [6.0, 10.0]], dtype=D)
    at6 = 100 * math.exp(-1.8)
    expected = torch.tensor([[100.0, at6], [at6 + 50, (at6 + 50) * math.exp(-1.2) + 20]], dtype=D)
    torch.testing.assert_close(solution.sol(t)[..., 0], expected, rtol=1e-6, atol=0)
    assert torch.equal(solution.sol(10.0), solution.final)
    with pytest.raises(ValueError, match=r"t = 10.5 lies outside the solution's span \[0.0, 10.0\]"):
        solution.sol(10.5)


def test_rows_that_end_on_the_way():
    """One on an event, one by a failure, one at once: NaN after that, and the last state is what was reached."""
    y0 = torch.tensor([[0.5], [1.0], [0.25], [3.0]], dtype=D)
    ends = torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=D)
    stop = Event(lambda t, y: y[:, 0] - 0.4, terminal=True)
    solution = solve_ivp(
        lambda t, y: y**2, (0.0, ends), y0, batch_dims=1, events=stop, dense_output=True, throw=False,
        t_eval=[], rtol=1e-9, atol=1e-9,
    )  # fmt: skip
    outcomes = [status.outcome.value for status in solution.status]
    assert outcomes == ["success", "step_underflow", "event", "success"]
    torch.testing.assert_close(solution.final[[0, 2, 3], 0], torch.tensor([1.0, 0.4, 3.0], dtype=D), rtol=1e-7, atol=0)
    assert solution.final[1] > 1e3 and abs(solution.t_final[1] - 1) < 1e-3
    assert solution.t_final[2].item() == pytest.approx(1.5, abs=1e-7) and solution.t_final[3] == 0.0
    at = solution.sol(torch.tensor([0.0, 0.5, 1.2, 1.6], dtype=D))[..., 0]
    expected = 1 / (1 / y0 - torch.tensor([0.0, 0.5, 1.2, 1.6], dtype=D))
    nan = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(at.isnan(), nan)
    torch.testing.assert_close(at[~nan], expected[~nan], rtol=1e-6, atol=0)


def test_two_batch_dimensions_and_a_structured_state():
    y0 = {"a": torch.rand(2, 3, 4, dtype=D), "b": torch.rand(2, 3, dtype=D)}
    solution = solve_ivp(lambda t, y: {"a": -y["a"], "b": -y["b"]}, (0.0, 1.0), y0, batch_dims=2, dense_output=True)
    at = solution.sol(torch.full((2, 3, 5), 0.5, dtype=D))
    assert at["a"].shape == (2, 3, 5, 4) and at["b"].shape == (2, 3, 5) and solution.t_final.shape == (2, 3)
    torch.testing.assert_close(at["a"], (y0["a"] * math.exp(-0.5))[:, :, None].expand(2, 3, 5, 4), rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.final["b"], y0["b"] * math.exp(-1.0), rtol=1e-5, atol=0)
    sentence = (
        "t must be a number, of shape (n,) for all rows or of shape (2, 3, n), times for each row, got shape (2, 3)"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        solution.sol(torch.zeros(2, 3))


def test_no_rows():
    solution = solve_ivp(rotation, (0.0, 1.0), torch.ones(0, 2, dtype=D), batch_dims=1, dense_output=True)
    assert solution.final.shape == (0, 2) and solution.sol(torch.ones(4)).shape == (0, 4, 2)


@pytest.mark.parametrize("options", [{}, {"batch_dims": 1}, {"events": lambda t, y: y.sum()}])
def test_without_dense_output_it_says_what_to_do(options):
    solution = solve_ivp(rotation, (0.0, 1.0), Y0, **options)
    assert not solution.sol and "sol: None" in repr(solution)
    with pytest.raises(ValueError, match="there is no dense output to call: solve with dense_output=True"):
        solution.sol(0.5)


def test_after_a_failure_without_events():
    blow_up = lambda t, y: y**2
    every = solve_ivp(blow_up, (0.0, 2.0), torch.ones(1, dtype=D), throw=False)
    assert torch.equal(every.final, every.y[-1]) and every.t_final == every.t[-1] > 0.99
    asked = solve_ivp(blow_up, (0.0, 2.0), torch.ones(1, dtype=D), throw=False, t_eval=[0.5, 1.5])
    assert asked.final.item() == pytest.approx(2.0, abs=1e-4) and asked.t_final == 0.5 and asked.y[1].isnan()
    none = solve_ivp(blow_up, (0.0, 2.0), torch.ones(1, dtype=D), throw=False, t_eval=[1.5])
    assert none.final == 1.0 and none.t_final == 0.0


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_the_solution_as_a_function_of_time_moves_with_start_and_end(batch_dims):
    """Of y0 exp(-0.7 (t - t0)), also as a copy, which is one of values."""
    start, end, t, y0 = (
        torch.tensor(x, dtype=D, requires_grad=True)
        for x in (0.2, 1.5, [0.4, 0.9, 1.4], [[1.5], [0.7]] if batch_dims else [1.5])
    )
    solution = solve_ivp(lambda t, y: -0.7 * y, (start, end), y0, batch_dims=batch_dims, dense_output=True,
                         events=Event(lambda t, y: y[..., 0] - 5.0), rtol=1e-11, atol=1e-12)  # fmt: skip
    expected = y0.unsqueeze(-2) * torch.exp(-0.7 * (t - start)).unsqueeze(-1)
    torch.testing.assert_close(solution.sol(t), expected, rtol=1e-9, atol=0)
    found, wanted = (torch.autograd.grad(x.sum(), (start, t, y0)) for x in (solution.sol(t), expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)
    for copied in (copy.deepcopy(solution.sol), pickle.loads(pickle.dumps(solution.sol))):
        torch.testing.assert_close(copied(t.detach()), expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("moving", ["t_span", "t_eval"])
def test_an_end_of_the_span_and_an_output_at_the_same_time_move_on_their_own(moving, batch_dims, gradient):
    t_span = torch.tensor([0.0, 1.5], dtype=D, requires_grad=moving == "t_span")
    t_eval = torch.tensor([0.0, 0.5, 1.5], dtype=D, requires_grad=moving == "t_eval")
    solution = solve_ivp(
        lambda t, y: -y,
        (t_span[0], t_span[1]),
        torch.ones((1,) * (1 + batch_dims), dtype=D),
        t_eval=t_eval,
        events=lambda t, y: y[..., 0] - 10,
        batch_dims=batch_dims,
        gradient=gradient,
        rtol=1e-9,
    )
    end = torch.tensor(-1.5, dtype=D).exp()
    if moving == "t_span":
        expected = {"t_final": [0.0, 1.0], "final": [end, -end], "y": [end, 0.0]}
    else:
        expected = {"t_final": [0.0] * 3, "final": [0.0] * 3, "y": [0.0, 0.0, -end]}
    leaf = {"t_span": t_span, "t_eval": t_eval}[moving]
    for name, value in expected.items():
        last = getattr(solution, name).reshape(-1)[-1]
        grad = torch.zeros_like(leaf)
        if last.requires_grad:
            (grad,) = torch.autograd.grad(last, leaf, retain_graph=True)
        torch.testing.assert_close(grad, torch.tensor(value, dtype=D), rtol=0.0, atol=1e-7)
