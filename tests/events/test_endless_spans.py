"""Spans without an end, in which an event ends the solve."""

import math
from typing import Any

import pytest
import torch

from torchivp import Event, Outcome, solve_ivp

D = torch.float64
THOUSANDTH = Event(lambda t, y: y[..., 0] - 1e-3, terminal=True)
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def decay(t, y):
    return -y


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4", "gl4", "adams"])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_solve_goes_on_until_the_event(method, batch_dims):
    options: dict[str, Any] = {"step_size": 0.05} if method in ("rk4", "gl4") else {"rtol": 1e-8, "atol": 1e-11}
    y0 = torch.tensor([[1.0], [2.0]], dtype=D) if batch_dims else torch.ones(1, dtype=D)
    solution = solve_ivp(
        decay, (0.0, math.inf), y0, batch_dims=batch_dims, method=method, events=THOUSANDTH, **options
    )  # fmt: skip
    expected = torch.log(1e3 * y0.squeeze(-1))
    assert torch.allclose(solution.t_final, expected, rtol=0.0, atol=1e-6)


def test_backwards_and_beside_rows_whose_span_ends():
    growing = Event(lambda t, y: y[..., 0] - 8.0, terminal=True)
    end = torch.tensor([-math.inf, -1.0], dtype=D)
    solution = solve_ivp(decay, (0.0, end), torch.ones(2, 1, dtype=D), batch_dims=1, events=growing, **TIGHT)
    assert [status.outcome for status in solution.status] == [Outcome.EVENT, Outcome.SUCCESS]
    assert torch.allclose(solution.t_final, torch.tensor([-math.log(8.0), -1.0], dtype=D), rtol=1e-9)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_gradients_of_the_time_of_the_event(gradient):
    y0 = torch.tensor([[1.0], [2.0]], dtype=D, requires_grad=True)
    solution = solve_ivp(
        decay, (0.0, math.inf), y0, batch_dims=1, gradient=gradient, events=THOUSANDTH, **TIGHT
    )  # fmt: skip
    (slope,) = torch.autograd.grad(solution.t_final.sum(), y0)
    assert torch.allclose(slope, 1 / y0.detach(), rtol=1e-7)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_search_for_an_event_that_does_not_happen_ends(batch_dims, recwarn):
    y0 = torch.ones(2, 1, dtype=D) if batch_dims else torch.ones(1, dtype=D)
    never = Event(lambda t, y: y[..., 0] + 1.0, terminal=True)
    options: dict[str, Any] = {"batch_dims": batch_dims, "events": never, "throw": False}
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, math.inf), y0, **options)
    status = solution.status[0] if batch_dims else solution.status
    assert status.outcome is Outcome.NO_EVENT and "no event has happened by t = " in status.message
    solution = solve_ivp(decay, (0.0, math.inf), y0, max_steps=50, **options)
    status = solution.status[0] if batch_dims else solution.status
    assert status.outcome is Outcome.MAX_STEPS and "does one happen at all?" in status.message
    assert not recwarn.list


@pytest.mark.parametrize("events", [None, lambda t, y: y[..., 0] - 0.5])
def test_a_span_that_no_event_can_end_is_refused(events):
    with pytest.raises(ValueError, match=r"t_span\[1\] must be finite, but is inf in row 0: only where an event ends"):
        solve_ivp(decay, (0.0, math.inf), torch.ones(2, 1, dtype=D), batch_dims=1, events=events)
    with pytest.raises(ValueError, match=r"t_span must be finite, but t_span\[1\] = inf"):
        solve_ivp(decay, (0.0, math.inf), torch.ones(1, dtype=D), events=events)
