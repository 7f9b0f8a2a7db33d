"""What happens at known times: doses, switches; alone and along with events."""

import math
import re

import pytest
import torch
from torch import nn

from problems import FIXED, METHODS, covering, double, sampled
from torchivp import ODE_METHODS, Event, Outcome, Scheduled, solve_ivp

D = torch.float64
SLOW_ONE = pytest.param("radauIIA5", marks=pytest.mark.slow)
GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def elimination(t, y, k):
    return -k.reshape(k.shape + (1,) * (y.ndim - k.ndim)) * y


def dose(t, y, amount, *args):
    return y + amount


def amounts(t, y0, k, times, doses, start=0.0):
    """The one-compartment model: the sum of what is left of every dose, at the times `t`."""
    left = y0 * torch.exp(-k * (t - start))
    for when, amount in zip(times.unbind(-1), doses.unbind(-1), strict=True):
        when = torch.where(when.isnan(), math.inf, when)
        left = left + torch.where(t >= when, amount * torch.exp(-k * (t - when).clamp(min=0.0)), 0.0)
    return left


def assert_same_gradients(values, expected, inputs, rtol=1e-6, atol=1e-7):
    torch.testing.assert_close(values, expected, rtol=rtol, atol=atol)
    weights = torch.cos(torch.arange(values.numel(), dtype=D)).reshape(values.shape) + 1.5
    pair = [torch.autograd.grad((weights * v).sum(), inputs, retain_graph=True, allow_unused=True)
            for v in (values, expected)]  # fmt: skip
    for x, got, wanted in zip(inputs, *pair, strict=True):
        got, wanted = (torch.zeros_like(x) if g is None else g for g in (got, wanted))
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


# Values


@pytest.mark.parametrize("method", sampled(METHODS))
def test_a_dosing_table_with_every_method(method):
    """Steps end on the doses exactly, so each method is as accurate as without them."""
    times, doses, k = double(0.5, 1.25, 3.1), double(2.0, 1.0, 4.0), double(0.7)[0]
    t_eval = double(0.0, 0.4, 0.5, 0.6, 1.25, 2.0, 3.0, 3.1, 4.0)
    rtol = 1e-5 if ODE_METHODS[method].order == 2 and method != "fehlberg2" else 1e-6
    options = {"step_size": 0.02} if method in FIXED else {"rtol": rtol, "atol": rtol / 100}
    solution = solve_ivp(elimination, (0.0, 4.0), double(1.0), t_eval=t_eval, args=(k,), method=method,
                         events=Scheduled(times, dose, doses), **options)  # fmt: skip
    expected = amounts(t_eval, 1.0, k, times, doses)
    off = {1: 2e-2, 2: 1e-3}.get(ODE_METHODS[method].order, 2e-5)
    least = {"scipy_solver": 1e-4, "kencarp5": 3e-4}.get(method, 0.0)  # the latter between its long steps
    torch.testing.assert_close(solution.y[:, 0], expected, rtol=0, atol=max(off, least))
    log = solution.events
    assert torch.equal(log.t, times) and log.index.tolist() == [0, 0, 0] and log.row.tolist() == [0, 0, 0]
    torch.testing.assert_close(log.y_after[:, 0] - log.y[:, 0], doses, rtol=0, atol=1e-14)
    assert solution.y[2] == log.y_after[0] and solution.y[4] == log.y_after[1] and solution.y[7] == log.y_after[2]


def test_every_step_is_returned_with_the_states_before_and_after():
    times = double(0.5, 1.25)
    event = Scheduled(times, lambda t, y: y + 1)
    solution = solve_ivp(elimination, (0.0, 2.0), double(1.0), args=(double(0.7)[0],), events=event)
    again = torch.nonzero(solution.t.diff() == 0).flatten()
    assert torch.equal(solution.t[again], times)
    assert torch.equal(solution.y[again], solution.events.y)
    assert torch.equal(solution.y[again + 1], solution.events.y_after)


@pytest.mark.parametrize("times", [[0.5, 1.5], (0.5, 1.5), double(0.5, 1.5), torch.tensor([0.5, 1.5]),
                                   double(1.5, 0.5), double(0.5, math.nan, 1.5), [-1.0, 0.5, 1.5, 2.5],
                                   double(0.5, 1.5).numpy(), double(math.inf, 0.5, 1.5, -math.inf)])  # fmt: skip
def test_times_of_every_kind(times):
    """In any order, outside the span, not a time at all."""
    event = Scheduled(times, lambda t, y: y + t)
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), double(1.0), t_eval=[0.4, 0.6, 2.0], events=event)
    assert solution.y.flatten().tolist() == [1.0, 1.5, 3.0]
    assert solution.events.t.tolist() == [0.5, 1.5]


def test_times_in_a_list_are_not_rounded():
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 0.1), double(1.0), events=Scheduled([0.1], lambda t, y: y + 1))
    assert solution.events.t.tolist() == [0.1]


def test_no_times():
    for times in ([], torch.zeros(0, dtype=D), [math.nan]):
        solution = solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), double(1.0), events=Scheduled(times, lambda t, y: y + 1))
        assert len(solution.events) == 0 and solution.y[-1].item() == 1.0


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA5", "adams", "scipy_solver"])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_at_the_start_and_at_the_end(method, direction):
    """One at the start comes before the first step, one at the end after the last; backwards in time too."""
    options = {"step_size": 0.25} if method in FIXED else {}
    end = 2.0 * direction
    event = Scheduled([0.0, end, 1.0, -1.0], lambda t, y: y + 10)
    solution = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, end), double(0.0), t_eval=[0.0, end / 4, end],
                         events=event, method=method, **options)  # fmt: skip
    assert solution.y.flatten().tolist() == pytest.approx([10.0, 10 + end / 4, 30 + end], abs=1e-12)
    assert solution.events.t.tolist() == [0.0, direction, end]
    assert solution.events.y.flatten().tolist() == pytest.approx([0.0, 10 + direction, 20 + end], abs=1e-12)
    assert solution.events.y_after.flatten().tolist() == pytest.approx([10.0, 20 + direction, 30 + end], abs=1e-12)
    every = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, end), double(0.0), events=event, method=method, **options)
    assert every.t[:2].tolist() == [0.0, 0.0] and every.t[-2:].tolist() == [end, end]
    assert every.y[[0, 1, -2, -1], 0].tolist() == pytest.approx([0.0, 10.0, 20 + end, 30 + end], abs=1e-12)


def test_a_span_without_length():
    event = Scheduled([1.0], lambda t, y: y + 10)
    solution = solve_ivp(lambda t, y: 0 * y, (1.0, 1.0), double(0.5), t_eval=[1.0], events=event)
    assert solution.y.flatten().tolist() == [10.5] and len(solution.events) == 1


def test_several_schedules_at_one_time_are_applied_in_the_order_of_the_list():
    double_it, add_one = lambda t, y: 2 * y, lambda t, y: y + 1
    for first, second, after in ((double_it, add_one, 7.0), (add_one, double_it, 8.0)):
        solution = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), double(3.0), t_eval=[1.0],
                             events=[Scheduled([1.0], first), Scheduled([0.5 + 0.5], second)])  # fmt: skip
        assert solution.y.item() == after
        log = solution.events
        assert log.index.tolist() == [0, 1] and log.t.tolist() == [1.0, 1.0]
        assert log.y.flatten().tolist() == [3.0, 3.0] and log.y_after.flatten().tolist() == [after, after]


def test_one_time_twice_in_a_schedule_happens_twice():
    event = Scheduled([1.0, 1.0], lambda t, y, value: y * value[0] + value[1], double(1.0, 2.0, 3.0, 4.0).reshape(2, 2))
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), double(3.0), t_eval=[2.0], events=event)
    assert solution.y.item() == (3 * 1 + 2) * 3 + 4 and len(solution.events) == 2


def test_what_apply_receives():
    seen = []

    def apply(t, y, value, k):
        seen.append((tuple(t.shape), t.dtype, tuple(y.shape), tuple(value.shape), k))
        return y

    values = torch.zeros(2, 4, 5, dtype=D)
    solve_ivp(lambda t, y, k: 0 * y, (0.0, 2.0), torch.zeros(3, 2, dtype=D), args=("k",),
              events=Scheduled([0.5, 1.5], apply, values))  # fmt: skip
    assert set(seen) == {((), D, (3, 2), (4, 5), "k")}
    seen.clear()
    solve_ivp(lambda t, y, k: 0 * y, (0.0, 2.0), torch.zeros(3, 2, dtype=D), args=("k",), batch_dims=1, compact=False,
              events=Scheduled([0.5, 1.5], apply, values))  # fmt: skip
    assert set(seen) == {((3, 1), D, (3, 2), (3, 4, 5), "k")}


@pytest.mark.parametrize("method", ["dopri5", "rk4", "radauIIA3"])
def test_schedules_along_with_events(method):
    """Doses lift the amount over a threshold, from which it decays; events on the rising and the falling side."""
    k, limit = 0.5, 1.0
    options = {"step_size": 0.02} if method in FIXED else TIGHT
    events = [Scheduled([1.0, 3.0], lambda t, y, v: y + v, double(2.0, 1.5)),
              Event(lambda t, y: y[0] - limit, direction=-1)]  # fmt: skip
    solution = solve_ivp(lambda t, y: -k * y, (0.0, 8.0), double(0.1), events=events, method=method, **options)
    peak = 0.1 * math.exp(-k) + 2.0
    down = 1.0 + math.log(peak) / k
    again = peak * math.exp(-2 * k) + 1.5
    expected = [1.0, down, 3.0, 3.0 + math.log(again) / k]
    assert solution.events.index.tolist() == [0, 1, 0, 1]
    assert solution.events.t.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_event_and_a_schedule_at_one_time():
    """In the order of the list; both are reported with the states before and after all of it."""
    for schedule_first in (False, True):
        event = Event(lambda t, y: t - 1.0, apply=lambda t, y: 2 * y)
        schedule = Scheduled([1.0], lambda t, y: y + 1)
        events = [schedule, event] if schedule_first else [event, schedule]
        solution = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), double(3.0), t_eval=[1.0, 2.0], events=events)
        log = solution.events
        assert log.t.tolist() == [1.0, 1.0] and sorted(log.index.tolist()) == [0, 1]
        assert log.y.flatten().tolist() == [3.0, 3.0]
        after = 8.0 if schedule_first else 7.0
        assert log.y_after.flatten().tolist() == [after, after] and solution.y.flatten().tolist() == [after, after]


def test_a_change_that_jumps_over_the_zero_of_an_event_function_is_no_event():
    """The sign is found anew after a change: only the solution's own crossings count."""
    events = [Scheduled([1.0], lambda t, y: y + 2), lambda t, y: y[0] - 1.0]
    solution = solve_ivp(lambda t, y: -0.1 * y, (0.0, 10.0), double(0.5), events=events, **TIGHT)
    assert solution.events.index.tolist() == [0, 1]
    at = 1.0 + 10 * math.log(0.5 * math.exp(-0.1) + 2.0)
    assert solution.events.t[1].item() == pytest.approx(at, abs=1e-8)


def test_a_terminal_event_leaves_out_what_is_scheduled_later():
    events = [Scheduled([0.25, 0.75], lambda t, y: y + 1), Event(lambda t, y: t - 0.5, terminal=True)]
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), double(0.0), t_eval=[0.3, 0.8], events=events)
    assert solution.status.outcome is Outcome.EVENT and solution.events.index.tolist() == [0, 1]
    assert solution.y[0].item() == 1.0 and solution.y[1].isnan().all()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["dopri5", "rk4", SLOW_ONE, "adams"])
def test_a_schedule_of_each_row(method, gradient):
    """NaN for no time, a row without any; each row equals its single solve."""
    times = torch.tensor([[0.5, 1.0, 2.0], [1.5, math.nan, math.nan], [math.nan] * 3, [0.0, 3.0, 0.1]], dtype=D)
    doses = torch.arange(12, dtype=D).reshape(4, 3) / 4 + 0.5
    k, y0, t_eval = double(0.3, 0.5, 0.7, 0.9), double(1.0, 0.0, 2.0, 1.0)[:, None], double(0.0, 0.7, 1.5, 3.0)
    options = {"step_size": 0.05} if method == "rk4" or method == "radauIIA5" else {"rtol": 1e-9, "atol": 1e-11}
    options |= {"method": method, "gradient": gradient, "t_eval": t_eval}
    y0.requires_grad_(gradient != "direct")
    batch = solve_ivp(elimination, (0.0, 3.0), y0, args=(k,), batch_dims=1, events=Scheduled(times, dose, doses),
                      **options)  # fmt: skip
    assert batch.events.row.tolist() == [0, 0, 0, 1, 3, 3, 3]
    for row in range(4):
        expected = amounts(t_eval, y0[row], k[row], times[row], doses[row])
        torch.testing.assert_close(batch.y[row, :, 0], expected, rtol=0, atol=1e-6)
        single = solve_ivp(elimination, (0.0, 3.0), y0[row], args=(k[row],),
                           events=Scheduled(times[row], dose, doses[row]), **options)  # fmt: skip
        torch.testing.assert_close(batch.y[row], single.y, rtol=0, atol=1e-14)
        torch.testing.assert_close(batch.events.t[batch.events.row == row], single.events.t, rtol=0, atol=0)


def test_rows_in_both_directions():
    batch = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, double(2.0, -2.0)), torch.zeros(2, 1, dtype=D),
                      batch_dims=1, events=Scheduled([-1.0, 1.0], lambda t, y: y + 10),
                      t_eval=torch.tensor([[0.5, 2.0], [-0.5, -2.0]], dtype=D))  # fmt: skip
    torch.testing.assert_close(batch.y[..., 0], torch.tensor([[0.5, 12.0], [-0.5, 8.0]], dtype=D), rtol=0, atol=1e-12)


def test_values_for_all_rows_and_for_each():
    times = double(0.5, 1.0)
    shared, own = double(1.0, 2.0), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=D)
    for values, expected in ((shared, [3.0, 3.0, 3.0]), (own, [3.0, 7.0, 11.0]), ([1, 2], [3.0, 3.0, 3.0])):
        batch = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), torch.zeros(3, 1, dtype=D), batch_dims=1, t_eval=[2.0],
                          events=Scheduled(times, dose, values))  # fmt: skip
        assert batch.y.flatten().tolist() == expected


# Gradients


@pytest.mark.parametrize(
    ("method", "gradient", "backwards"),
    [
        *covering(["rk4"], ["dopri5"], GRADIENTS, [False, True]),
        *(pytest.param("radauIIA5", gradient, False, marks=pytest.mark.slow) for gradient in GRADIENTS),
        *(pytest.param("radauIIA5", gradient, True, marks=pytest.mark.sweep) for gradient in GRADIENTS),
    ],
)
def test_gradients_of_a_dosing_table(method, gradient, backwards):
    """With respect to the times of the doses, the doses, the rate, the initial amount, start, end and output times."""
    sign = -1.0 if backwards else 1.0
    times = (sign * double(0.5, 1.25, 3.1)).requires_grad_()
    doses, k = double(2.0, 1.0, 4.0).requires_grad_(), (sign * double(0.7)[0]).requires_grad_()
    y0, ends = double(1.0).requires_grad_(), (sign * double(0.1, 4.0)).requires_grad_()
    t_eval = (sign * double(0.4, 0.6, 2.0, 3.0, 4.0)).requires_grad_()
    options = {"step_size": 0.02} if method in FIXED else TIGHT
    solution = solve_ivp(elimination, ends, y0, t_eval=t_eval, args=(k,), method=method, gradient=gradient,
                         events=Scheduled(times, dose, doses), **options)  # fmt: skip
    expected = amounts(sign * t_eval, y0, sign * k, sign * times, doses, sign * ends[0])
    inputs = [times, doses, k, y0, ends, t_eval]
    assert_same_gradients(solution.y[:, 0], expected, inputs)
    assert_same_gradients(solution.events.t, times, inputs)
    before = torch.stack([amounts(sign * times[i], y0, sign * k, sign * times[:i], doses[:i], sign * ends[0])[0]
                          for i in range(3)])  # fmt: skip
    assert_same_gradients(solution.events.y[:, 0], before, inputs)
    assert_same_gradients(solution.events.y_after[:, 0], before + doses, inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("compact", [None, False])
def test_gradients_of_a_table_of_each_row(gradient, compact):
    nan = math.nan
    times = torch.tensor([[0.5, 1.0, 2.0], [1.5, nan, nan], [nan] * 3, [0.2, 0.1, nan]], dtype=D, requires_grad=True)
    doses = (torch.arange(12, dtype=D).reshape(4, 3) / 4 + 0.5).requires_grad_()
    k = double(0.3, 0.5, 0.7, 0.9).requires_grad_()
    y0 = torch.tensor([[1.0], [0.5], [2.0], [1.0]], dtype=D, requires_grad=True)
    t_eval = double(0.7, 1.6, 3.0)
    solution = solve_ivp(elimination, (0.0, 3.0), y0, args=(k,), batch_dims=1, t_eval=t_eval, gradient=gradient,
                         compact=compact, events=Scheduled(times, dose, doses), **TIGHT)  # fmt: skip
    expected = torch.stack([amounts(t_eval, y0[i], k[i], times[i], doses[i]) for i in range(4)])
    given = ~times.isnan()
    assert_same_gradients(solution.y[..., 0], expected, [k, y0])
    got, wanted = (torch.autograd.grad((torch.cos(t_eval) * x).sum(), [times, doses], retain_graph=True)
                   for x in (solution.y[..., 0], expected))  # fmt: skip
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a[given], b[given], rtol=1e-6, atol=1e-7)
        assert (a[~given] == 0).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_with_schedules_and_events(gradient):
    """When the amount falls below a threshold, as a function of doses, their times, the rate and the threshold."""
    times, doses = double(1.0, 3.0).requires_grad_(), double(2.0, 1.5).requires_grad_()
    k, limit = double(0.5)[0].requires_grad_(), double(1.0)[0].requires_grad_()
    y0 = double(0.1).requires_grad_()
    inputs = [times, doses, k, limit, y0]
    halve = lambda t, y, k, limit: 0.5 * y
    give = lambda t, y, amount, k, limit: y + amount
    events = [Scheduled(times, give, doses), Event(lambda t, y, k, limit: y[0] - limit, direction=-1, apply=halve)]
    solution = solve_ivp(lambda t, y, k, limit: -k * y, (0.0, 8.0), y0, args=(k, limit), events=events, t_eval=[8.0],
                         gradient=gradient, **TIGHT)  # fmt: skip
    peak = y0[0] * torch.exp(-k * times[0]) + doses[0]
    first = times[0] + torch.log(peak / limit) / k
    second_peak = 0.5 * limit * torch.exp(-k * (times[1] - first)) + doses[1]
    second = times[1] + torch.log(second_peak / limit) / k
    assert solution.events.index.tolist() == [0, 1, 0, 1]
    assert_same_gradients(solution.events.t, torch.stack((times[0], first, times[1], second)), inputs)
    last = 0.5 * limit * torch.exp(-k * (8.0 - second))
    assert_same_gradients(solution.y[0], last.reshape(1), inputs)
    after = torch.stack((peak, 0.5 * limit, second_peak, 0.5 * limit))
    assert_same_gradients(solution.events.y_after[:, 0], after, inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_parameters_in_apply(gradient):
    """A module and a closure in the place of apply, with no values."""

    class Dose(nn.Module):
        def __init__(self):
            super().__init__()
            self.size = nn.Parameter(double(2.0)[0])

        def forward(self, t, y):
            return y + self.size * torch.exp(-t)

    for module in (True, False):
        times, apply = double(0.5, 1.25).requires_grad_(), Dose()
        change = apply if module else lambda t, y: y + apply.size * torch.exp(-t)
        y0 = double(1.0).requires_grad_()
        solution = solve_ivp(lambda t, y: -0.7 * y, (0.0, 2.0), y0, t_eval=[1.0, 2.0], gradient=gradient,
                             events=Scheduled(times, change), **TIGHT)  # fmt: skip
        k = double(0.7)[0]
        expected = amounts(double(1.0, 2.0), y0, k, times, apply.size * torch.exp(-times))
        assert_same_gradients(solution.y[:, 0], expected, [times, y0, apply.size])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_doses_at_the_start_and_the_end(gradient):
    """What happens at the ends of the span still depends on the doses; the times move only into the span."""
    doses, y0, k = double(2.0, 3.0).requires_grad_(), double(1.0).requires_grad_(), double(0.7)[0].requires_grad_()
    solution = solve_ivp(elimination, (0.0, 2.0), y0, t_eval=[0.0, 1.0, 2.0], args=(k,), gradient=gradient,
                         events=Scheduled([0.0, 2.0], dose, doses), **TIGHT)  # fmt: skip
    expected = amounts(double(0.0, 1.0, 2.0), y0, k, double(0.0, 2.0), doses)
    assert_same_gradients(solution.y[:, 0], expected, [doses, y0, k])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_two_doses_at_one_time(gradient):
    doses, factors = double(2.0, 3.0).requires_grad_(), double(0.5, 1.5).requires_grad_()
    y0 = double(1.0).requires_grad_()
    events = [Scheduled([0.5, 1.0], dose, doses), Scheduled([1.0, 1.5], lambda t, y, f: y * f, factors)]
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 2.0), y0, t_eval=[2.0], events=events, gradient=gradient)
    expected = ((y0 + doses[0] + doses[1]) * factors[0] * factors[1]).reshape(1)
    assert_same_gradients(solution.y[0], expected, [doses, factors, y0])
    assert solution.events.index.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_times_that_are_computed(gradient):
    """The interval between doses is a parameter."""
    tau, k = double(0.6)[0].requires_grad_(), double(0.7)[0].requires_grad_()
    y0 = double(0.0)
    times = tau * torch.arange(1, 6, dtype=D)
    doses = torch.ones(5, dtype=D)
    solution = solve_ivp(elimination, (0.0, 4.0), y0, t_eval=[4.0], args=(k,), gradient=gradient,
                         events=Scheduled(times, dose, doses), **TIGHT)  # fmt: skip
    assert_same_gradients(solution.y[:, 0], amounts(double(4.0), 0.0, k, times, doses), [tau, k])


# What is refused


@pytest.mark.parametrize(("times", "kind", "sentence"), [
    (0.5, ValueError, "the times of Scheduled must be one-dimensional or of the shape (n,), got ()"),
    (torch.zeros(2, 2), ValueError, "the times of Scheduled must be one-dimensional"),
    ("now", TypeError, "the times of Scheduled must be a number or a tensor of numbers, got 'now'"),
    (None, TypeError, "the times of Scheduled must be a number or a tensor of numbers, got None"),
    (["now"], TypeError, "the times of Scheduled must be a number or a tensor of numbers, got list"),
    (torch.zeros(2) + 1j, TypeError, "the times of Scheduled must hold real numbers, got torch.complex64"),
    (torch.zeros(2) > 0, TypeError, "the times of Scheduled must hold real numbers, got torch.bool"),
])  # fmt: skip
def test_refused_times(times, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), double(1.0), events=Scheduled(times, lambda t, y: y))


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(()), 1.0, torch.zeros(1, 2)])
def test_refused_values(values):
    sentence = "the values of Scheduled must have an entry for each of its 2 times, shape (2, ...), got shape"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), double(1.0), events=Scheduled([0.5, 0.7], dose, values))


def test_refused_shapes_in_a_batch():
    y0, apply = torch.zeros(3, 1, dtype=D), lambda t, y: y
    for times, shape in ((torch.zeros(2, 4), "(2, 4)"), (torch.zeros(4, 3), "(4, 3)"), (torch.zeros(()), "()")):
        sentence = f"one-dimensional or of the shape (3, n), got {shape}"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), y0, batch_dims=1, events=Scheduled(times, apply))
    sentence = "each of its 2 times, shape (2, ...) or (3, 2) and more, got shape (3, 1)"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), y0, batch_dims=1,
                  events=Scheduled([0.1, 0.2], dose, torch.zeros(3, 1)))  # fmt: skip


def test_refused_signatures():
    """apply must take the value."""
    with pytest.raises(TypeError, match=r"events\[0\].apply is called as apply\(t, y, value, \*args\), here with 3"):
        solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), double(1.0),
                  events=Scheduled([0.5], lambda t, y: y, double(1.0)))  # fmt: skip
