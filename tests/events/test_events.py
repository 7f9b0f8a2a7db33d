"""Events on the way of a solve: where they are, what they change, what is reported, what is refused."""

import itertools
import math
import re
import warnings

import pytest
import torch

from problems import FIXED, METHODS, covering, double, sampled
from torchivp import ODE_METHODS, Event, Outcome, Scheduled, SolveError, solve_ivp

D = torch.float64
SLOW_ONE = pytest.param("radauIIA5", marks=pytest.mark.slow)
STEPPED = [name for name in METHODS if not ODE_METHODS[name].sizes_steps]
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def steps(method, size=0.05):
    if method in FIXED:
        return {"step_size": size / 2 if ODE_METHODS[method].order == 1 else size}
    if ODE_METHODS[method].sizes_steps:
        return {}
    rtol = 1e-5 if method == "fehlberg2" else {2: 1e-4, 3: 1e-5}.get(ODE_METHODS[method].order, 1e-9)
    return {"rtol": rtol, "atol": rtol / 10}


def tolerance(method):
    return {1: 0.02, 2: 3e-3, 3: 2e-4, 4: 1e-4}.get(ODE_METHODS[method].order, 1e-5)


def rotation(t, y):
    return torch.stack((y[..., 1], -y[..., 0]), -1)


def rising(t, y):
    return torch.ones_like(y)


def falling(t, y):
    return torch.stack((y[..., 1], -10.0 + 0.0 * y[..., 1]), -1)


def first(t, y):
    return y[..., 0]


def bounce(restitution=0.5, **options):
    """The ball comes back with a part of its speed."""
    return Event(
        first, direction=-1, apply=lambda t, y: torch.stack((0 * y[..., 0], -restitution * y[..., 1]), -1), **options
    )


def impacts(height, restitution, count, speed=0.0):
    """When a ball bounces that is thrown up from a height with a speed."""
    u = math.sqrt(speed**2 + 20 * height)
    return [(speed + u) / 10 + 0.2 * u * sum(restitution**k for k in range(1, n)) for n in range(1, count + 1)]


def same_log(batch, row, single):
    """The part of a batch's log that is of one row equals the log of its single solve."""
    mine = batch.row == row
    for name in ("t", "y", "y_after", "index"):
        torch.testing.assert_close(getattr(batch, name)[mine], getattr(single, name), rtol=0, atol=0)


# Where events are


@pytest.mark.parametrize(("method", "end"), sampled(covering(METHODS, ["rk4", "dopri5", "adams", "gl4"], [5.0, -5.0])))
def test_every_method_finds_the_zeros_of_the_oscillator(method, end):
    solution = solve_ivp(rotation, (0.0, end), double(1.0, 0.0), events=first, method=method, **steps(method))
    log = solution.events
    expected = math.copysign(1.0, end) * double(0.5, 1.5) * math.pi
    torch.testing.assert_close(log.t, expected, rtol=0, atol=4 * tolerance(method))
    assert log.y[:, 0].abs().max() < 1e-12
    torch.testing.assert_close(log.y[:, 1].abs(), torch.ones(2, dtype=D), rtol=0, atol=8 * tolerance(method))
    assert torch.equal(log.y, log.y_after)
    assert log.index.tolist() == [0, 0] and log.row.tolist() == [0, 0]
    assert log.t.dtype == D and log.index.dtype == torch.int64
    assert solution.status.outcome is Outcome.SUCCESS and len(log) == 2


@pytest.mark.parametrize("method", STEPPED)
def test_long_steps_end_on_the_event_all_the_same(method):
    options = {"step_size": 0.3} if method in FIXED else {"rtol": 1e-2, "atol": 1e-2}
    log = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), events=first, method=method, **options).events
    assert len(log) == 1 and log.y[:, 0].abs().max() < (1e-11 if ODE_METHODS[method].order == 1 else 1e-12)


@pytest.mark.parametrize(
    ("method", "end", "direction"),
    covering(["radauIIA3", "adams", "explicit_adams"], ["rk4", "dopri5"], [7.0, -7.0], [-1, 0, 1]),
)
def test_directions(method, end, direction):
    """Rising and falling are meant in the direction of integration."""
    event = Event(first, direction=direction)
    log = solve_ivp(rotation, (0.0, end), double(1.0, 0.0), events=event, method=method, **steps(method)).events
    quarters = {-1: [1], 0: [1, 3], 1: [3]}[direction]
    expected = math.copysign(1.0, end) * double(*quarters) * math.pi / 2
    torch.testing.assert_close(log.t, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "radauIIA3"])
def test_several_events_in_the_order_of_time(method):
    events = [first, Event(lambda t, y: y[1] + 0.5), lambda t, y: t - 2.0]
    log = solve_ivp(rotation, (0.0, 4.0), double(1.0, 0.0), events=events, method=method, **steps(method)).events
    assert log.index.tolist() == [1, 0, 2, 1]
    torch.testing.assert_close(log.t, double(math.pi / 6, math.pi / 2, 2.0, 5 * math.pi / 6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "radauIIA5"])
def test_two_events_at_one_time_are_both_reported_and_applied_in_the_order_of_the_list(method):
    double_it, add_one = lambda t, y: 2 * y, lambda t, y: y + 1
    g1, g2 = lambda t, y: y[0] - 0.3, lambda t, y: 3 * (y[0] - 0.3)
    options = steps(method)
    for applies, after in (((double_it, add_one), 1.6), ((add_one, double_it), 2.6), ((None, add_one), 1.3)):
        events = [Event(g, apply=apply, max_count=1) for g, apply in zip((g1, g2), applies, strict=True)]
        log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=events, method=method, **options).events
        assert log.index.tolist() == [0, 1]
        torch.testing.assert_close(log.t, double(0.3, 0.3), rtol=0, atol=1e-14)
        torch.testing.assert_close(log.y[:, 0], double(0.3, 0.3), rtol=0, atol=1e-14)
        torch.testing.assert_close(log.y_after[:, 0], double(after, after), rtol=0, atol=1e-13)


@pytest.mark.parametrize("apart", [1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_two_events_close_to_each_other_are_both_found(apart, method):
    events = [lambda t, y: y[0] - 0.3, lambda t, y: y[0] - 0.3 - apart]
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=events, method=method, **steps(method)).events
    assert log.index.tolist() == [0, 1]
    torch.testing.assert_close(log.t, double(0.3, 0.3 + apart), rtol=0, atol=1e-14)


@pytest.mark.parametrize("after", [1e-9, 1e-7, 1e-4])
def test_an_event_right_after_a_scheduled_time_is_found(after):
    events = [Scheduled([0.3], lambda t, y: y), Event(lambda t, y: y[0] - 0.3 - after, terminal=True)]
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=events)
    assert solution.status.outcome is Outcome.EVENT
    assert solution.events.t.tolist() == pytest.approx([0.3, 0.3 + after], abs=1e-14)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5"])
def test_a_zero_at_the_start_is_no_event(method):
    log = solve_ivp(rotation, (0.0, 4.0), double(0.0, 1.0), events=first, method=method, **steps(method)).events
    assert log.t.tolist() == pytest.approx([math.pi], abs=1e-5)


@pytest.mark.parametrize("length", [3.0, 30.0])
def test_a_ball_thrown_up_from_the_floor_comes_down(length):
    """The function is zero at the start; the whole flight lies before the first point looked at."""
    event = Event(first, direction=-1, terminal=True)
    log = solve_ivp(falling, (0.0, length), double(0.0, 10.0), events=event, first_step=length).events
    assert log.t.tolist() == pytest.approx([2.0], abs=1e-12)


def test_a_function_that_touches_zero():
    """Exactly zero where it is looked at, as at the end of a step, it counts; else it does not change its sign."""
    at_end = lambda t, y: (y[0] - 0.5) ** 2
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=at_end, step_size=0.25, method="rk4").events
    assert log.t.tolist() == [0.5]
    nearly = lambda t, y: (y[0] - 0.5) ** 2 + 1e-12
    assert len(solve_ivp(rising, (0.0, 1.0), double(0.0), events=nearly, step_size=0.25, method="rk4").events) == 0
    between = lambda t, y: (y[0] - 1 / 3) ** 2 + 1e-9
    assert len(solve_ivp(rising, (0.0, 1.0), double(0.0), events=between, first_step=1.0).events) == 0


@pytest.mark.parametrize("where", [0.5, 0.53, 0.37, 0.1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_double_crossing_within_one_long_step(where, sign, direction, method):
    event = Event(lambda t, y: sign * ((y[0] - where) ** 2 - 1e-4), direction=direction)
    options = {"step_size": 1.0} if method == "rk4" else {"first_step": 1.0}
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, method=method, **options).events
    down, up = where - 0.01, where + 0.01
    expected = {0: [down, up], -sign: [down], sign: [up]}[direction]
    assert log.t.tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "radauIIA5"])
@pytest.mark.parametrize("grid", [0.05, 0.1, 0.15])
def test_an_event_next_to_the_end_of_a_step_happens_once(method, grid):
    """0.3 lies within rounding of the end of a fixed step: what is left of it is a step without an event."""
    event = Event(lambda t, y: y[0] - 0.3)
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, method=method, step_size=grid).events
    assert log.t.tolist() == pytest.approx([0.3], abs=1e-14)
    lift = Event(lambda t, y: t - 0.3, apply=lambda t, y: y + 1)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=lift, method=method, step_size=grid)
    assert len(solution.events) == 1 and solution.y[-1].item() == pytest.approx(2.0, abs=1e-13)


@pytest.mark.parametrize("checks", [0, 1, 9])
def test_more_checks_find_more(checks):
    """Ten crossings in one step: without points in between there is only the end to look at."""
    event = Event(lambda t, y: torch.cos(10 * math.pi * y[0]) + 0.5, checks=checks)
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, step_size=1.0, method="rk4").events
    assert len(log) == 10 or checks < 9
    assert log.t.tolist() == sorted(log.t.tolist())


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5", "adams"])
@pytest.mark.parametrize("end", [0.5, -0.5])
def test_an_event_at_the_end(method, end):
    options = {"step_size": 0.25} if method in FIXED else {}
    if method == "rk4":  # with others y may fall short of it by rounding
        event = Event(lambda t, y: y[0] - end)
        solution = solve_ivp(rising, (0.0, end), double(0.0), events=event, method=method, t_eval=[end], **options)
        assert solution.events.t.tolist() == [end] and solution.y.flatten().tolist() == [end]
    terminal = Event(lambda t, y: t - end, terminal=True)
    solution = solve_ivp(rising, (0.0, end), double(0.0), events=terminal, method=method, t_eval=[end], **options)
    assert solution.events.t.tolist() == [end] and solution.status.outcome is Outcome.EVENT
    assert solution.y.flatten().tolist() == pytest.approx([end], abs=1e-8)
    moving = Event(lambda t, y: t - end, apply=lambda t, y: y + 1)
    solution = solve_ivp(rising, (0.0, end), double(0.0), events=moving, method=method, t_eval=[0.0, end], **options)
    assert solution.y.flatten().tolist() == pytest.approx([0.0, end + 1], abs=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_an_event_that_never_happens(gradient):
    y0 = double(1.0, 0.0).requires_grad_()
    event = Event(lambda t, y: y[0] + 2.0, apply=lambda t, y: -y, terminal=True)
    solution = solve_ivp(rotation, (0.0, 4.0), y0, events=event, t_eval=[4.0], gradient=gradient)
    assert len(solution.events) == 0 and solution.events.y.shape == (0, 2) and solution.events.y_after.shape == (0, 2)
    assert solution.status.outcome is Outcome.SUCCESS and repr(solution.events) == "EventLog(0 events)"
    plain = solve_ivp(rotation, (0.0, 4.0), y0, t_eval=[4.0])
    torch.testing.assert_close(solution.y, plain.y, rtol=0, atol=1e-14)
    (solution.y.sum() + solution.events.y.sum()).backward()
    torch.testing.assert_close(y0.grad, double(math.cos(4) - math.sin(4), math.sin(4) + math.cos(4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5"])
@pytest.mark.parametrize("g", [lambda t, y: y[0] > 0.3, lambda t, y: t > 0.3, lambda t, y: (y[0] > 0.3).int() * 2 - 1,
                               lambda t, y: torch.sign(y[0] - 0.3)])  # fmt: skip
def test_event_functions_that_jump(method, g):
    options = {"step_size": 0.25} if method in FIXED else {}
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=[g], method=method, **options).events
    assert log.t.tolist() == pytest.approx([0.3], abs=1e-14)


def test_a_boolean_event_has_a_direction():
    g = lambda t, y: y[0] > 0.0
    falls = solve_ivp(rotation, (0.0, 7.0), double(1.0, 0.0), events=Event(g, direction=-1), **TIGHT).events
    rises = solve_ivp(rotation, (0.0, 7.0), double(1.0, 0.0), events=Event(g, direction=1), **TIGHT).events
    assert falls.t.tolist() == pytest.approx([math.pi / 2], abs=1e-9)
    assert rises.t.tolist() == pytest.approx([3 * math.pi / 2], abs=1e-9)


def test_a_function_of_time_alone():
    log = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), events=lambda t, y: torch.sin(2 * t), **TIGHT).events
    torch.testing.assert_close(log.t, double(math.pi / 2), rtol=0, atol=1e-13)
    torch.testing.assert_close(log.y[0], double(0.0, -1.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_function_may_return_one_number_in_either_shape(shape):
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=lambda t, y: (y[0] - 0.3).reshape(shape)).events
    assert log.t.tolist() == pytest.approx([0.3], abs=1e-14)


def test_states_of_every_kind():
    y0 = {"a": double(0.0), "b": (torch.zeros(2, 3, dtype=D),)}
    func = lambda t, y: {"a": torch.ones_like(y["a"]), "b": (y["b"][0] * 0 + 2,)}
    event = Event(lambda t, y: y["b"][0][1, 2] - 0.5, apply=lambda t, y: {"a": y["a"] + 10, "b": (y["b"][0] * 0,)})
    log = solve_ivp(func, (0.0, 0.6), y0, events=event).events
    assert len(log) == 2 and log.y["b"][0].shape == (2, 2, 3) and log.y["a"].shape == (2, 1)
    assert log.t.tolist() == pytest.approx([0.25, 0.5], abs=1e-14)
    assert log.y["a"].flatten().tolist() == pytest.approx([0.25, 10.5], abs=1e-13)
    assert log.y_after["a"].flatten().tolist() == pytest.approx([10.25, 20.5], abs=1e-13)
    assert torch.equal(log.y_after["b"][0], torch.zeros(2, 2, 3, dtype=D))
    spin = lambda t, y: 1j * y
    log = solve_ivp(spin, (0.0, 2.0), torch.ones(1, dtype=torch.complex128), events=lambda t, y: y[0].real, **TIGHT)
    assert log.events.t.tolist() == pytest.approx([math.pi / 2], abs=1e-9)
    single = solve_ivp(rotation, (0.0, 2.0), torch.tensor([1.0, 0.0]), events=first).events
    assert single.t.dtype == D and single.y.dtype == torch.float32
    assert single.t.item() == pytest.approx(math.pi / 2, abs=1e-3) and abs(single.y[0, 0].item()) < 1e-6


def test_a_state_without_dimensions():
    log = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, 1.0), torch.tensor(0.0, dtype=D),
                    events=[Event(lambda t, y: y - 0.3, apply=lambda t, y: y - 0.3)]).events  # fmt: skip
    assert log.t.tolist() == pytest.approx([0.3, 0.6, 0.9], abs=1e-13) and log.y.shape == (3,)


def test_functions_see_the_state_in_the_users_shape_when_there_are_several_events():
    """Two events of a state of two elements: a function called with both at once would not notice."""
    seen = set()

    def g(t, y):
        seen.add((tuple(t.shape), tuple(y.shape)))
        return y[0]

    def apply(t, y):
        seen.add((tuple(t.shape), tuple(y.shape)))
        return torch.stack((0 * y[0], -0.5 * y[1]))

    log = solve_ivp(falling, (0.0, 0.9), double(1.0, 0.0), events=Event(g, direction=-1, apply=apply)).events
    assert seen == {((), (2,))}
    assert log.t.tolist() == pytest.approx(impacts(1.0, 0.5, 2), abs=1e-12)
    torch.testing.assert_close(log.y[:, 1], -math.sqrt(20) * double(1.0, 0.5), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log.y_after[:, 1], math.sqrt(20) * double(0.5, 0.25), rtol=1e-12, atol=1e-12)


# How it ends, and the outputs


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5", "adams", "scipy_solver"])
def test_a_terminal_event(method):
    t_eval = [0.0, 1.0, 2.0, 3.0]
    options = {"events": Event(first, terminal=True), "method": method, **steps(method)}
    solution = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), t_eval=t_eval, **options)
    assert solution.status.outcome is Outcome.EVENT and solution.success
    assert re.search(r"events\[0\] ended the solve at t = 1\.57\d*, after \d+ steps", solution.message)
    assert solution.status.t == pytest.approx(solution.events.t.item(), abs=1e-15)
    assert solution.t.tolist() == t_eval
    assert not solution.y[:2].isnan().any() and solution.y[2:].isnan().all()
    assert solution.events.t.item() == pytest.approx(math.pi / 2, abs=1e-4)


def test_a_terminal_event_after_every_step():
    solution = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), events=Event(first, terminal=True))
    assert solution.t[-1] == solution.events.t[0] and torch.equal(solution.y[-1], solution.events.y[0])
    assert not solution.y.isnan().any() and (solution.t.diff() > 0).all()


def test_a_terminal_event_that_changes_the_state():
    """The change is made, then the solve ends: both states are there, and an output at that time is the new one."""
    event = Event(lambda t, y: t - 0.5, terminal=True, apply=lambda t, y: y + 10)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, t_eval=[0.25, 0.5, 0.75])
    assert solution.y.flatten()[:2].tolist() == pytest.approx([0.25, 10.5], abs=1e-14)
    assert solution.y[2].isnan().all()
    assert solution.events.y.item() == pytest.approx(0.5) and solution.events.y_after.item() == pytest.approx(10.5)
    every = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event)
    assert every.t[-2:].tolist() == [0.5, 0.5]
    assert every.y[-2:].flatten().tolist() == pytest.approx([0.5, 10.5], abs=1e-14)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_event_with_a_certain_number_ends_the_solve(count):
    event = Event(first, max_count=count)
    solution = solve_ivp(rotation, (0.0, 100.0), double(1.0, 0.0), events=[event, lambda t, y: y[1] - 2.0], **TIGHT)
    assert solution.status.outcome is Outcome.EVENT and len(solution.events) == count
    assert solution.status.t == pytest.approx((count - 0.5) * math.pi, abs=1e-8)


def test_an_event_ends_the_solve_at_one_number():
    assert Event(first, terminal=True, max_count=1) == Event(first, terminal=True, max_count=1)
    with pytest.raises(
        ValueError, match="terminal=True ends at the first event, max_count=3 at the one with this number"
    ):
        Event(first, terminal=True, max_count=3)


def test_an_event_that_is_not_meant_does_not_count():
    solution = solve_ivp(rotation, (0.0, 100.0), double(1.0, 0.0), events=Event(first, direction=1, max_count=2))
    assert solution.status.t == pytest.approx(3.5 * math.pi, abs=1e-4)


def test_every_step_is_returned_with_the_states_before_and_after_a_change():
    event = Event(lambda t, y: y[0] - 0.3, apply=lambda t, y: y - 0.3)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event)
    t, y, log = solution.t, solution.y, solution.events
    again = torch.nonzero(t.diff() == 0).flatten()
    assert t[again].tolist() == pytest.approx([0.3, 0.6, 0.9], abs=1e-13)
    torch.testing.assert_close(y[again], log.y, rtol=0, atol=0)
    torch.testing.assert_close(y[again + 1], log.y_after, rtol=0, atol=0)
    assert t[0] == 0.0 and t[-1] == 1.0 and (t.diff() >= 0).all()


def test_every_step_is_returned_once_where_nothing_changes():
    solution = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), events=first)
    plain = solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0))
    assert len(solution.events) == 1 and torch.equal(solution.t, plain.t) and torch.equal(solution.y, plain.y)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_outputs_before_and_after_changes(method):
    event = Event(lambda t, y: y[0] - 0.25, apply=lambda t, y: y - 0.25)
    t_eval = [0.0, 0.1, 0.24, 0.26, 0.3, 0.49, 0.51, 0.9, 1.1]
    options = {"step_size": 0.2} if method == "rk4" else {}
    solution = solve_ivp(rising, (0.0, 1.1), double(0.0), events=event, method=method, t_eval=t_eval, **options)
    assert solution.y.flatten().tolist() == pytest.approx([t % 0.25 for t in t_eval], abs=1e-13)


def test_without_events_there_is_no_log():
    assert solve_ivp(rising, (0.0, 1.0), double(0.0)).events is None
    assert solve_ivp(rising, (0.0, 1.0), double(0.0), events=[]).events is None


def test_a_span_of_a_tensor_and_a_number():
    """The number is not rounded to single precision."""
    start = double(0.2)[0].requires_grad_()
    solution = solve_ivp(rising, (start, 2.1), double(0.0), t_eval=[2.1], events=lambda t, y: t - 2.1)
    assert solution.t.tolist() == [2.1] and solution.events.t.tolist() == [2.1]


def test_a_span_without_length():
    solution = solve_ivp(rising, (1.0, 1.0), double(0.5), events=lambda t, y: y[0] - 0.5, t_eval=[1.0])
    assert len(solution.events) == 0 and solution.y.item() == 0.5 and solution.success


# Batches


@pytest.mark.parametrize(
    ("method", "compact"),
    [*((method, None) for method in ("dopri5", "rk4", "dopri8", "radauIIA3", "adams")),
     ("dopri5", False)],
)  # fmt: skip
def test_each_row_of_a_batch_equals_its_single_solve(method, compact):
    y0 = torch.tensor([[1.0, 0.0], [0.3, 0.2], [0.0, 1.0], [-2.0, 1.0]], dtype=D)
    end = torch.tensor([4.0, 3.0, -3.0, 0.1], dtype=D)
    events = [Event(first, direction=-1), Event(lambda t, y: y[..., 1] - 0.1, apply=lambda t, y: 0.9 * y)]
    rtol = 1e-4 if method == "adams" else 1e-6
    options = {"method": method, "events": events, "rtol": rtol, "atol": rtol / 100}
    if method in FIXED:
        options["step_size"] = 0.4 if method == "radauIIA3" else 0.2
    batch = solve_ivp(rotation, (0.0, end), y0, batch_dims=1, compact=compact, **options)
    assert batch.events.row.tolist() == sorted(batch.events.row.tolist())
    assert len(batch.events) > 6
    for row in range(4):
        alone = solve_ivp(rotation, (0.0, end[row].item()), y0[row : row + 1], batch_dims=1, **options)
        same_log(batch.events, row, alone.events)
        count = alone.t.shape[1]
        assert torch.equal(batch.t[row, :count], alone.t[0]) and batch.t[row, count:].isnan().all()
        assert torch.equal(batch.y[row, :count], alone.y[0]) and batch.y[row, count:].isnan().all()
        assert batch.status[row] == alone.status[0]
        # Without batch dimensions the steps are those of a solve without events, which round otherwise.
        single = solve_ivp(rotation, (0.0, end[row].item()), y0[row], **options)
        torch.testing.assert_close(single.y, alone.y[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(single.events.t, alone.events.t, rtol=0, atol=1e-8)


def test_rows_that_end_on_events_at_their_own_times():
    y0 = torch.tensor([[1.0], [2.0], [30.0], [4.0]], dtype=D)
    threshold = torch.tensor([1.5, 5.0, 35.0, 4.25], dtype=D)
    event = Event(lambda t, y, limit: y[..., 0] - limit, terminal=True)
    t_eval = double(0.0, 0.5, 1.0, 2.0)
    batch = solve_ivp(lambda t, y, limit: torch.ones_like(y), (0.0, 4.0), y0, args=(threshold,), events=event,
                      batch_dims=1, t_eval=t_eval)  # fmt: skip
    assert [status.outcome.value for status in batch.status] == ["event", "event", "success", "event"]
    assert batch.success.tolist() == [True] * 4
    assert batch.events.t.tolist() == pytest.approx([0.5, 3.0, 0.25], abs=1e-14)
    assert batch.events.row.tolist() == [0, 1, 3]
    assert (~batch.y[..., 0].isnan()).sum(1).tolist() == [2, 4, 4, 1]


def test_several_batch_dimensions():
    y0 = torch.arange(6, dtype=D).reshape(2, 3, 1) / 10
    event = Event(lambda t, y: y[..., 0] - 1.0, apply=lambda t, y: y * 0)
    batch = solve_ivp(rising, (0.0, 1.4), y0, events=event, batch_dims=2, t_eval=[1.4])
    assert batch.events.row.tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(batch.events.t, 1.0 - y0.flatten(), rtol=0, atol=1e-13)
    torch.testing.assert_close(batch.y.flatten(), 0.4 + y0.flatten(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("compact", [None, False])
def test_a_closure_over_something_for_each_row_is_called_with_all_rows(compact):
    rates = torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=D)
    limits = torch.tensor([0.5, 0.3, 0.2, 9.0], dtype=D)
    func = lambda t, y: rates[:, None] * torch.ones_like(y)
    event = Event(lambda t, y: y[:, 0] - limits, apply=lambda t, y: y - limits[:, None])
    batch = solve_ivp(func, (0.0, 0.99), torch.zeros(4, 1, dtype=D), events=event, batch_dims=1, t_eval=[0.99],
                      compact=compact)  # fmt: skip
    expected = [(row, limits[row] / rates[row] * k) for row, n in enumerate((1, 6, 2, 0)) for k in range(1, n + 1)]
    assert batch.events.row.tolist() == [row for row, _ in expected]
    assert batch.events.t.tolist() == pytest.approx([float(t) for _, t in expected], abs=1e-12)
    assert batch.events.y[:, 0].tolist() == pytest.approx([limits[row].item() for row, _ in expected], abs=1e-12)
    assert batch.events.y_after.abs().max() < 1e-12
    assert batch.y[:2, 0, 0].tolist() == pytest.approx([0.49, 0.18], abs=1e-12)


def test_two_events_at_one_time_in_some_rows():
    y0 = torch.tensor([[0.0], [0.1], [0.0]], dtype=D)
    events = [Event(lambda t, y: y[..., 0] - 0.3, apply=lambda t, y: y + 1),
              Event(lambda t, y: t.reshape(-1) - 0.3, apply=lambda t, y: 2 * y)]  # fmt: skip
    log = solve_ivp(rising, (0.0, 0.5), y0, events=events, batch_dims=1).events
    assert log.row.tolist() == [0, 0, 1, 1, 2, 2] and log.index.tolist() == [0, 1] * 3
    assert log.t.tolist() == pytest.approx([0.3, 0.3, 0.2, 0.3, 0.3, 0.3], abs=1e-14)
    assert log.y_after.flatten().tolist() == pytest.approx([2.6, 2.6, 1.3, 2.8, 2.6, 2.6], abs=1e-13)


# A ball and a neuron


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_twenty_bounces(method, direction):
    """Backwards in time the same ball is thrown up with the other speed."""
    y0, e, count = double(1.0, 0.3 * direction), 0.8, 20
    expected = double(*impacts(1.0, e, count, 0.3)) * direction
    solution = solve_ivp(falling, (0.0, 20 * direction), y0, events=bounce(e, max_count=count), method=method, **TIGHT)
    torch.testing.assert_close(solution.events.t, expected, rtol=0, atol=1e-10)
    speeds = math.sqrt(0.09 + 20) * e ** torch.arange(count, dtype=D)
    torch.testing.assert_close(solution.events.y[:, 1], -direction * speeds, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(solution.events.y_after[:, 1], direction * e * speeds, rtol=1e-9, atol=1e-10)
    assert solution.events.y[:, 0].abs().max() < 1e-13 and (solution.events.y_after[:, 0] == 0).all()


@pytest.mark.parametrize("method", [m for m in FIXED if ODE_METHODS[m].order > 1])
def test_several_bounces_in_one_fixed_step(method):
    solution = solve_ivp(falling, (0.0, 3.0), double(1.0, 0.0), events=bounce(0.6, max_count=6), method=method,
                         step_size=1.1)  # fmt: skip
    torch.testing.assert_close(solution.events.t, double(*impacts(1.0, 0.6, 6)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("restitution", "direction"),
    [(0.5, 1.0), (0.5, -1.0), (0.8, 1.0), pytest.param(0.8, -1.0, marks=pytest.mark.sweep)],
)
def test_bounces_that_accumulate(restitution, direction):
    """They do at the limit of the geometric series."""
    options = {"events": bounce(restitution), "t_eval": [0.1 * direction, 10.0 * direction], **TIGHT}
    with pytest.raises(SolveError, match=r"events accumulate at t = .*max_count=") as caught:
        solve_ivp(falling, (0.0, 10.0 * direction), double(1.0, 0.0), **options)
    assert caught.value.status.outcome is Outcome.ZENO
    solution = solve_ivp(falling, (0.0, 10.0 * direction), double(1.0, 0.0), throw=False, **options)
    u = math.sqrt(20)
    limit = u / 10 + 0.2 * u * restitution / (1 - restitution)
    assert solution.status.outcome is Outcome.ZENO and not solution.success
    assert solution.status.t == pytest.approx(direction * limit, abs=1e-6)
    assert not solution.y[0].isnan().any() and solution.y[1].isnan().all()
    assert (solution.events.t.diff() * direction > 0).all()


@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_bounces_that_accumulate_on_a_floor_that_is_not_at_zero(floor):
    """Where the last bounces are lower than the spacing of numbers, the ball must not fall through the floor."""
    event = Event(lambda t, y: y[0] - floor, direction=-1, apply=lambda t, y: torch.stack((y[0], -0.5 * y[1])))
    solution = solve_ivp(falling, (0.0, 3.0), double(1.0 + floor, 0.0), events=event, throw=False, t_eval=[3.0])
    assert solution.status.outcome is Outcome.ZENO
    assert solution.status.t == pytest.approx(0.3 * math.sqrt(20), abs=1e-6)


def test_in_a_batch_one_ball_may_accumulate_and_another_fly_on():
    y0 = torch.tensor([[1.0, 0.0], [1.0, 100.0]], dtype=D)
    batch = solve_ivp(falling, (0.0, 3.0), y0, events=bounce(0.5), batch_dims=1, t_eval=[3.0], throw=False)
    assert [status.outcome for status in batch.status] == [Outcome.ZENO, Outcome.SUCCESS]
    assert batch.y[1, 0].tolist() == pytest.approx([1 + 300 - 45, 70.0], abs=1e-9)
    with pytest.raises(SolveError, match=r"1 of 2 rows did not reach the end: row 0: events accumulate"):
        solve_ivp(falling, (0.0, 3.0), y0, events=bounce(0.5), batch_dims=1)


def test_a_ball_at_rest_stays_there():
    """What the message advises: bring the state to rest."""

    def apply(t, y):
        slow = y[1].abs() < 1e-3
        return torch.where(slow, 0.0, 1.0) * torch.stack((0 * y[0], -0.5 * y[1], y[2]))

    func = lambda t, y: torch.stack((y[1], -10.0 * y[2], 0 * y[2]))
    solution = solve_ivp(func, (0.0, 3.0), double(1.0, 0.0, 1.0), events=Event(first, direction=-1, apply=apply))
    assert solution.success and solution.y[-1].abs().max() == 0.0
    assert 10 < len(solution.events) < 20


@pytest.mark.parametrize("method", ["dopri5", "rk4", SLOW_ONE])
def test_integrate_and_fire_neurons(method):
    """dv/dt = I - v, reset from 1 to 0: a spike every log(I / (I - 1)), none for I up to 1."""
    current = torch.tensor([0.5, 1.5, 0.99, 2.0, 4.0], dtype=D)
    func = lambda t, v, current: current - v
    event = Event(lambda t, v, current: v - 1.0, direction=1, apply=lambda t, v: v * 0)
    options = {"step_size": 0.02} if method in FIXED else {"rtol": 1e-9, "atol": 1e-11}
    t_eval = double(0.0, 0.7, 2.0, 5.0)
    batch = solve_ivp(func, (0.0, 5.0), torch.zeros(5, dtype=D), args=(current,), events=event, batch_dims=1,
                      t_eval=t_eval, method=method, **options)  # fmt: skip
    for row, amplitude in enumerate(current.tolist()):
        times = batch.events.t[batch.events.row == row]
        interval = -math.log(1 - 1 / amplitude) if amplitude > 1 else math.inf
        assert len(times) == math.floor(5.0 / interval)
        torch.testing.assert_close(times, interval * torch.arange(1, len(times) + 1, dtype=D), rtol=0, atol=1e-6)
        since = t_eval % interval if amplitude > 1 else t_eval
        torch.testing.assert_close(batch.y[row], amplitude * (1 - torch.exp(-since)), rtol=0, atol=1e-6)
    assert batch.events.y_after.abs().max() == 0.0 and (batch.events.y - 1.0).abs().max() < 1e-12


# What is refused


@pytest.mark.parametrize(("options", "kind", "sentence"), [
    ({"direction": 2}, ValueError, "direction must be 1 (rising), -1 (falling) or 0 (both), got 2"),
    ({"direction": "up"}, ValueError, "direction must be 1 (rising)"),
    ({"direction": [1]}, ValueError, "direction must be 1 (rising)"),
    ({"terminal": 1}, TypeError, "terminal must be True or False, got 1"),
    ({"terminal": "yes"}, TypeError, "terminal must be True or False, got 'yes'"),
    ({"max_count": 0}, ValueError, "max_count must be a whole number of at least 1, got 0"),
    ({"max_count": 1.5}, TypeError, "max_count must be a whole number of at least 1, got 1.5"),
    ({"max_count": True}, TypeError, "max_count must be a whole number"),
    ({"checks": -1}, ValueError, "checks must be a whole number of at least 0, got -1"),
    ({"checks": 2.0}, TypeError, "checks must be a whole number of at least 0, got 2.0"),
    ({"checks": None}, TypeError, "checks must be a whole number"),
    ({"apply": 3}, TypeError, "apply must be callable as apply(t, y), got 3"),
])  # fmt: skip
def test_refused_options_of_an_event(options, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        Event(first, **options)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=re.escape("g must be callable as g(t, y), got 'y'")):
        Event("y")
    with pytest.raises(TypeError, match=re.escape("apply must be callable as apply(t, y), got None")):
        Scheduled([1.0], None)
    for events, shown in ((3, "3"), ([first, "y"], "'y'"), ([[first]], "[<function"), ({"a": first}, "{'a'")):
        with pytest.raises(TypeError, match=re.escape("events must be functions g(t, y), Event(g, ...) and Scheduled")
                           + ".*" + re.escape(shown)):  # fmt: skip
            solve_ivp(rising, (0.0, 1.0), double(0.0), events=events)


@pytest.mark.parametrize(("g", "kind", "sentence"), [
    (lambda t, y: y, ValueError, "must return shape (): one number; it returned shape (2,). Give several events as a"),
    (lambda t, y: 1.0, TypeError, "must return a real tensor whose sign changes at the event, it returned 1.0"),
    (lambda t, y: True, TypeError, "must return a real tensor whose sign changes at the event, it returned True"),
    (lambda t, y: None, TypeError, "must return a real tensor whose sign changes at the event, it returned None"),
    (lambda t, y: y[0] + 1j, TypeError, "it returned a torch.complex128 tensor"),
])  # fmt: skip
def test_refused_values_of_an_event_function(g, kind, sentence):
    for event in (g, Event(g, apply=lambda t, y: y)):
        with pytest.raises(kind, match=re.escape(sentence)):
            solve_ivp(rotation, (0.0, 1.0), double(1.0, 0.0), events=event)


def test_refused_shapes_of_an_event_function_in_a_batch():
    y0 = torch.ones(3, 2, dtype=D)
    for g, shape in ((lambda t, y: y, "(3, 2)"), (lambda t, y: y[0, 0], "()"), (lambda t, y: y[0], "(2,)")):
        sentence = f"must return shape (3,), one number for each row; it returned shape {shape}"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            solve_ivp(rotation, (0.0, 1.0), y0, events=g, batch_dims=1)


@pytest.mark.parametrize(("apply", "kind", "sentence"), [
    (lambda t, y: y[:1], ValueError, "apply must return the state in the shape of y: y has shape (2,)"),
    (lambda t, y: None, TypeError, "apply(t, y) returned None: is a return missing?"),
    (lambda t, y: 1.0, TypeError, "apply(t, y) must be a tensor, got float"),
    (lambda t, y: (y, y), TypeError, "apply must return the same structure as y0"),
])  # fmt: skip
@pytest.mark.parametrize("make", [lambda apply: Event(first, apply=apply), lambda apply: Scheduled([2.0], apply)])
def test_refused_changes(make, apply, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        solve_ivp(rotation, (0.0, 3.0), double(1.0, 0.0), events=make(apply))


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5"])
def test_an_event_function_that_is_undefined(method):
    """At the start, somewhere on the way, and after a change; in a batch only in one row."""
    options = {"method": method, "throw": False, **steps(method)}
    at_start = solve_ivp(rising, (0.0, 1.0), double(0.0), events=lambda t, y: y[0] * math.nan, **options)
    assert at_start.status.outcome is Outcome.NON_FINITE
    assert "an event function is NaN" in at_start.message
    g = lambda t, y: torch.sqrt(0.5 - y[..., 0]) + 1
    on_way = solve_ivp(rising, (0.0, 1.0), double(0.0), events=g, t_eval=[0.1, 0.9], **options)
    assert on_way.status.outcome is Outcome.NON_FINITE and "an event function is NaN" in on_way.message
    assert 0.1 < on_way.status.t <= 0.5 and on_way.y[1].isnan().all() and on_way.y[0].item() == pytest.approx(0.1)
    jump = Event(lambda t, y: torch.sqrt(0.5 - y[0]) - 0.6, apply=lambda t, y: y + 1)
    after = solve_ivp(rising, (0.0, 1.0), double(0.0), events=jump, **options)
    assert after.status.outcome is Outcome.NON_FINITE and after.status.t == pytest.approx(0.14, abs=1e-9)
    with pytest.raises(SolveError, match="an event function is NaN"):
        solve_ivp(rising, (0.0, 1.0), double(0.0), events=g, method=method, **steps(method))
    y0 = torch.tensor([[0.0], [-1.0]], dtype=D)
    batch = solve_ivp(rising, (0.0, 1.0), y0, events=g, batch_dims=1, t_eval=[1.0], **options)
    assert [status.outcome for status in batch.status] == [Outcome.NON_FINITE, Outcome.SUCCESS]
    assert batch.y[1].item() == pytest.approx(0.0, abs=1e-12)


def test_an_apply_that_gives_what_is_not_finite():
    event = Event(lambda t, y: y[0] - 0.3, apply=lambda t, y: y / 0)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, t_eval=[0.1, 0.9], throw=False)
    assert solution.status.outcome is Outcome.NON_FINITE and solution.status.t == pytest.approx(0.3, abs=1e-12)
    assert solution.y[0].item() == pytest.approx(0.1, abs=1e-12) and solution.y[1].isnan().all()


def test_an_event_that_is_terminal_needs_no_finite_state_after_it():
    event = Event(lambda t, y: y[0] - 0.3, apply=lambda t, y: y * math.nan, terminal=True)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=event, t_eval=[0.1, 0.9], throw=False)
    assert solution.status.t == pytest.approx(0.3, abs=1e-12) and solution.y[1].isnan().all()


def test_a_failure_keeps_the_events_before_it():
    event = Event(lambda t, y: y[0] - 2.0)
    solution = solve_ivp(lambda t, y: y**2, (0.0, 3.0), double(1.0), events=event, throw=False, t_eval=[3.0])
    assert not solution.success and solution.events.t.tolist() == pytest.approx([0.5], abs=1e-5)
    tired = solve_ivp(rotation, (0.0, 100.0), double(1.0, 0.0), events=first, throw=False, max_steps=30)
    assert tired.status.outcome is Outcome.MAX_STEPS and len(tired.events) >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [-0.4, 0.3, 0.7])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_a_change_that_leaves_the_event_function_alone(dtype, threshold, rtol):
    """Such an event goes on to the other side, however small the function is for a while."""
    solution = solve_ivp(
        lambda t, y: torch.stack((y[1], -y[0], 0 * y[2])),
        (0.0, 20.0),
        torch.tensor([1.0, 0.0, 0.0], dtype=dtype),
        rtol=rtol,
        atol=rtol,
        t_eval=[20.0],
        events=Event(lambda t, y: y[0] - threshold, apply=lambda t, y: y + torch.tensor([0.0, 0.0, 1.0], dtype=dtype)),
    )
    phase = math.acos(threshold)
    expected = sum(0 < sign * phase + 2 * math.pi * k < 20 for k in range(4) for sign in (1, -1))
    assert len(solution.events) == expected and solution.y[-1, 2] == expected


@pytest.mark.parametrize(
    ("dtype", "t0", "after"), [(D, 0.0, 100 - 1e-12), (D, 0.0, 100 - 1e-9), (torch.float32, 1e5, 3.3), (D, 1e12, 3.3)]
)
def test_a_clock_rings_once(dtype, t0, after):
    y0 = torch.tensor([1.0], dtype=dtype)
    event = Event(lambda t, y: t - t0 - after, apply=lambda t, y: 2 * y)
    solution = solve_ivp(lambda t, y: 0 * y, (t0, t0 + 100.0), y0, t_eval=[t0 + 100.0], events=event)
    assert len(solution.events) == 1 and solution.y.item() == 2.0


def test_fast_dynamics_late():
    k, t0 = 1e6, 1e4
    func = lambda t, y: torch.stack((k * y[1], -k * y[0], 0 * y[2]))
    event = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: torch.stack((y[0], y[1], y[2] + 1)))
    solution = solve_ivp(func, (t0, t0 + 10 / k), double(1.0, 0.0, 0.0), t_eval=[t0 + 10 / k], events=event)
    assert len(solution.events) == 3 and solution.y[-1, 2] == 3.0


def test_an_apply_that_works_in_place():
    y0 = double(1.0)
    event = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y.mul_(2))
    solution = solve_ivp(lambda t, y: -y, (0.0, 2.0), y0, t_eval=[0.6, 2.0], events=event, **TIGHT)
    assert solution.events.t.tolist() == pytest.approx([math.log(2), 2 * math.log(2)], abs=1e-8)
    assert y0.item() == 1.0 and solution.y[0].item() == pytest.approx(math.exp(-0.6), abs=1e-8)


def test_a_function_of_huge_size_warns_of_nothing(recwarn):
    log = solve_ivp(rising, (0.0, 1.0), double(0.0), t_eval=[1.0], events=lambda t, y: 1e300 * (y[0] - 0.5)).events
    assert log.t.item() == pytest.approx(0.5, abs=1e-14) and not recwarn.list


# Events that are merely reported


@pytest.mark.parametrize(("method", "t_eval"), sampled(covering(METHODS, ["rk4", "dopri5"], [None, [0.3, 1.1, 4.0]])))
def test_a_reported_event_changes_no_step(method, t_eval):
    """Steps, states and outputs are those without it, to the last bit, alone and in a batch."""
    rtol = 1e-2 if ODE_METHODS[method].order < 3 else 1e-4
    options = {"method": method, "t_eval": t_eval, "rtol": rtol, "atol": rtol}
    if method in FIXED:
        options = {"method": method, "t_eval": t_eval, "step_size": 0.3}
    events = [lambda t, y: y[..., 0] - 0.3, lambda t, y: y[..., 1]]
    y0 = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=D)
    for start, batch in ((y0[0], {}), (y0, {"batch_dims": 1})):
        plain = solve_ivp(rotation, (0.0, 5.0), start, **options, **batch)
        found = solve_ivp(rotation, (0.0, 5.0), start, events=events, **options, **batch)
        assert torch.equal(found.t.nan_to_num(-1), plain.t.nan_to_num(-1))
        assert torch.equal(found.y.nan_to_num(-1), plain.y.nan_to_num(-1))
        assert torch.equal(found.final, plain.final) and torch.equal(found.t_final, plain.t_final)
        stats = [found.stats, plain.stats] if not batch else [*found.stats, *plain.stats]
        half = len(stats) // 2
        for with_it, without in zip(stats[:half], stats[half:], strict=True):
            assert (with_it.accepted, with_it.rejected) == (without.accepted, without.rejected)
        assert len(found.events) >= 2


@pytest.mark.parametrize("phase", [0.0, 0.3, 1.1, 2.0])
def test_steps_of_low_order_make_no_event_and_do_not_fail(phase):
    """The events are those of the numbers that are returned: as many as their changes of sign, if not between them."""
    w = 2 * math.pi
    for level in (-0.97, 0.37, 0.999):
        solution = solve_ivp(
            lambda t, y: w * torch.cos(w * t + phase) + 0 * y,
            (0.0, 2.0),
            double(math.sin(phase)),
            method="implicit_euler",
            step_size=1 / 25,
            events=lambda t, y, level=level: y - level,
        )
        assert solution.success and solution.stats.accepted == 50
        signs = torch.sign(solution.y.flatten() - level)
        between = torch.searchsorted(solution.t, solution.events.t)
        odd = torch.bincount(between, minlength=51) % 2 == 1
        assert torch.equal(odd[1:], signs[1:] != signs[:-1])


def test_reported_events_come_before_the_event_that_ends_the_step():
    """In one long step: those before the end of the row are reported, those after it are not."""
    last = Event(lambda t, y: y[0] - 0.5, terminal=True)
    events = [lambda t, y: y[0] - 0.2, last, lambda t, y: y[0] - 0.4, lambda t, y: y[0] - 0.6, lambda t, y: y[0] - 0.5]
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=events, first_step=1.0)
    assert solution.events.index.tolist() == [0, 2, 1, 4] and solution.stats.accepted == 1
    assert solution.events.t.tolist() == pytest.approx([0.2, 0.4, 0.5, 0.5], abs=1e-14)
    third = Event(lambda t, y: torch.cos(5 * math.pi * y[0]), max_count=3)
    solution = solve_ivp(rising, (0.0, 1.0), double(0.0), events=third, first_step=1.0)
    assert solution.events.t.tolist() == pytest.approx([0.1, 0.3, 0.5], abs=1e-12)
    assert solution.t.tolist() == pytest.approx([0.0, 0.5], abs=1e-12)


GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]


@pytest.mark.parametrize(
    ("method", "gradient"),
    sampled(
        itertools.product(["rk4", "radauIIA5", "dopri5"], GRADIENTS),
        covering(["rk4", "radauIIA5"], ["dopri5"], GRADIENTS),
    ),
)
def test_gradients_of_reported_events(method, gradient):
    """y = a cos(w t) is at c at the times arccos(c / a) / w, and again a period later."""
    a, w, c = (double(x).squeeze().requires_grad_() for x in (1.5, 1.2, 0.4))
    sizes = {"rk4": 0.02, "radauIIA5": 0.1}
    options = {"step_size": sizes[method]} if method in sizes else {"rtol": 1e-10, "atol": 1e-10}
    log = solve_ivp(
        lambda t, y, w, c: torch.stack((y[1], -(w**2) * y[0])),
        (0.0, 5.0),
        torch.stack((a, 0 * a)),
        args=(w, c),
        t_eval=[],
        events=lambda t, y, w, c: y[0] - c,
        method=method,
        gradient=gradient,
        **options,
    ).events
    first_time = torch.acos(c / a) / w
    times = torch.stack((first_time, 2 * math.pi / w - first_time))
    speeds = torch.stack((-1.0 * w, w)) * torch.sqrt(a**2 - c**2)
    torch.testing.assert_close(log.t, times, rtol=0, atol=1e-6)
    for found, exact in ((log.t[0], times[0]), (log.t[1], times[1]), (log.y[1, 1], speeds[1])):
        grads, expected = (torch.autograd.grad(x, (a, w, c), retain_graph=True) for x in (found, exact))
        torch.testing.assert_close(torch.stack(grads), torch.stack(expected), rtol=0, atol=1e-5)


def test_what_is_scheduled_on_a_reported_event_comes_after_it():
    lift = Scheduled([0.5], lambda t, y: y + 1)
    for events, order in (([first_at_half, lift], [0, 1]), ([lift, first_at_half], [0, 1])):
        log = solve_ivp(rising, (0.0, 1.0), double(0.0), events=events, step_size=0.25, method="rk4").events
        assert log.index.tolist() == order and log.t.tolist() == [0.5, 0.5]
        torch.testing.assert_close(log.y_after[:, 0], double(1.5, 1.5), rtol=0, atol=1e-14)


def first_at_half(t, y):
    return y[0] - 0.5


@pytest.mark.parametrize("minutes", [False, True])
def test_an_event_function_that_uses_its_memory_again_and_writes_into_the_time(minutes):
    memory = torch.empty((), dtype=D)

    def clock(t, y):
        if minutes:
            t /= 60.0
        return memory.copy_(t - (1.5 if minutes else 90.0) + 0.0 * y[0])

    event = Event(clock, apply=lambda t, y: y + 1.0)
    solution = solve_ivp(lambda t, y: -0.01 * y, (0.0, 200.0), torch.ones(1, dtype=D), events=event, rtol=1e-9)
    assert solution.events.t.tolist() == pytest.approx([90.0], abs=1e-9)
    assert solution.final.item() == pytest.approx(math.exp(-2.0) + math.exp(-1.1), rel=1e-7)


def test_a_function_that_is_infinite_where_it_is_switched_off_warns_of_nothing():
    events = [
        Event(lambda t, y: y[0], apply=lambda t, y: torch.stack([y[0], -0.8 * y[1]]), direction=-1),
        Event(lambda t, y: torch.where(t < 1.0, torch.inf, y[0] - 0.1), direction=-1),
    ]
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = solve_ivp(
            lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)]), (0.0, 2.0), y0, events=events
        ).events
    assert sorted(set(log.index.tolist())) == [0, 1]
