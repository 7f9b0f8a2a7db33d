"""SciPy's attributes of event functions, `g.terminal` and `g.direction`."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp as scipy_solve_ivp
from torch import nn

from torchivp import Event, Outcome, solve_ivp

D = torch.float64


def rotation(t, y):
    return torch.stack((y[..., 1], -y[..., 0]), -1)


def first(t, y):
    return y[..., 0]


def carrying(**attributes):
    """A fresh function with the attributes."""
    function = lambda t, y: y[..., 0]
    for name, value in attributes.items():
        setattr(function, name, value)
    return function


def solve(events, end=20.0):
    return solve_ivp(rotation, (0.0, end), torch.tensor([1.0, 0.0], dtype=D), events=events, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("terminal", "direction"),
    [
        (True, None), (True, -0.1), (1, 1), (2, 0), (3.0, -1), (np.int64(2), 2.5), (np.bool_(True), 1), (False, 1),
        (None, -1), (0, 0), (None, None), (3, None),
    ],
)  # fmt: skip
def test_plain_functions_do_what_they_do_in_scipy(terminal, direction):
    attributes = {"terminal": terminal, "direction": direction}
    g = carrying(**{name: value for name, value in attributes.items() if value is not None})
    found = solve(g)
    start = np.array([1.0, 0.0])
    expected = scipy_solve_ivp(
        lambda t, y: [y[1], -y[0]], (0, 20), start, events=g, rtol=1e-9, atol=1e-9, method="DOP853"
    )
    torch.testing.assert_close(found.events.t, torch.from_numpy(expected.t_events[0]), rtol=0, atol=1e-6)
    assert (found.status.outcome is Outcome.EVENT) == (expected.status == 1)
    assert found.t[-1].item() == pytest.approx(expected.t[-1], abs=1e-6)


class Crossing(nn.Module):
    terminal, direction = True, 1

    def forward(self, t, y):
        return y[..., 0]

    def method(self, t, y):
        return y[..., 0]

    method.terminal = True
    method.direction = 1


@pytest.mark.parametrize(
    "g",
    [
        Crossing(),
        Crossing().method,
        partial(carrying(terminal=True, direction=1)),
        partial(partial(lambda t, y: y[..., 0])),
    ],
)
def test_methods_modules_and_partials(g):
    if not hasattr(g, "terminal") and not hasattr(g.func, "terminal"):
        g.terminal, g.direction = True, 1
    solution = solve([g])
    assert solution.status.outcome is Outcome.EVENT
    assert solution.events.t.tolist() == pytest.approx([1.5 * math.pi], abs=1e-7)


def test_the_rows_of_a_batch_end_on_their_own():
    y0 = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=D)
    solution = solve_ivp(rotation, (0.0, 9.0), y0, events=carrying(terminal=2, direction=-1), batch_dims=1, t_eval=[])
    assert torch.bincount(solution.events.row).tolist() == [2, 1]
    assert [status.outcome for status in solution.status] == [Outcome.EVENT, Outcome.SUCCESS]


def test_arguments_of_event_and_attributes_that_agree_or_stand_alone():
    event = Event(carrying(terminal=2, direction=-3.0), apply=lambda t, y: y)
    assert (event.direction, event.terminal, event.max_count) == (-1, False, 2)
    assert Event(carrying(terminal=True)).terminal and Event(carrying(terminal=1)).terminal
    assert Event(carrying(terminal=True), max_count=1, direction=1).direction == 1
    assert Event(carrying(terminal=2, direction=1), max_count=2, direction=1).max_count == 2
    plain = Event(first)
    assert (plain.direction, plain.terminal, plain.max_count) == (0, False, None)
    again = pickle.loads(pickle.dumps(plain))
    assert again == plain == copy.deepcopy(plain)


@pytest.mark.parametrize(
    ("attributes", "arguments", "sentence"),
    [
        ({"direction": 1}, {"direction": -1}, "g.direction is 1, but direction=-1 was given: leave one of them out"),
        ({"direction": -1}, {"direction": 0}, "g.direction is -1, but direction=0 was given"),
        ({"terminal": True}, {"terminal": False}, "g.terminal is 1, 0 for never, but terminal=False was given"),
        ({"terminal": False}, {"terminal": True}, "g.terminal is 0, 0 for never, but terminal=True was given"),
        ({"terminal": 3}, {"max_count": 2}, "g.terminal is 3, 0 for never, but max_count=2 was given"),
    ],
)
def test_contradictions_are_refused(attributes, arguments, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        Event(carrying(**attributes), **arguments)


@pytest.mark.parametrize(
    ("attributes", "kind", "sentence"),
    [
        ({"terminal": "yes"}, TypeError, "terminal of the event function must be True, False or the number of events"),
        ({"terminal": 1.5}, ValueError, "must be True, False or a whole number of events, got 1.5"),
        ({"terminal": -1}, ValueError, "must be True, False or a whole number of events, got -1"),
        ({"direction": "up"}, TypeError, "direction of the event function must be a number, positive for rising"),
        ({"direction": True}, TypeError, "direction of the event function must be a number"),
        ({"direction": math.nan}, TypeError, "direction of the event function must be a number"),
    ],
)
def test_nonsense_is_refused_unless_the_event_says_what_is_meant(attributes, kind, sentence):
    with pytest.raises(kind, match=sentence):
        solve(carrying(**attributes))
    assert len(solve(Event(carrying(**attributes), direction=0, terminal=False), 2.0).events) == 1
