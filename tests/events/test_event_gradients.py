"""How event times, states there and everything after events depend on what the user gave."""

import math

import pytest
import torch
from torch import nn

from problems import double
from torchivp import Backsolve, Checkpointed, Event, solve_ivp

D = torch.float64
SLOW_ONE = pytest.param("radauIIA5", marks=pytest.mark.slow)
GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]
TIGHT = {"rtol": 1e-10, "atol": 1e-11}


def leaf(value):
    return torch.tensor(value, dtype=D, requires_grad=True)


def grads(values, inputs):
    """The gradients of some combination of the values that treats no two of them alike."""
    values = values.flatten()
    weights = torch.cos(torch.arange(len(values), dtype=D)) + 1.5
    found = torch.autograd.grad((weights * values).sum(), inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_same_gradients(values, expected, inputs, atol=1e-7, rtol=1e-6):
    torch.testing.assert_close(values, expected, rtol=rtol, atol=atol)
    for got, wanted in zip(grads(values, inputs), grads(expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def assert_matches_differences(function, inputs, h=1e-5):
    """The gradients of two combinations of the values against central differences, along two directions."""
    values = function(*inputs).flatten()
    assert not values.isnan().any()
    steps = torch.arange(len(values), dtype=D)
    weights = torch.stack((torch.cos(steps) + 1.5, torch.sin(3 * steps)))
    found = [torch.autograd.grad((w * values).sum(), inputs, retain_graph=True) for w in weights]
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):
        direction = [torch.randn(x.shape, generator=generator, dtype=D) for x in inputs]
        with torch.no_grad():
            above, below = (
                function(*[x + sign * h * v for x, v in zip(inputs, direction, strict=True)]).flatten()
                for sign in (1, -1)
            )
        got = [sum((g * v).sum() for g, v in zip(gradients, direction, strict=True)) for gradients in found]
        expected = weights @ (above - below) / (2 * h)
        torch.testing.assert_close(torch.stack(got), expected, rtol=1e-5, atol=1e-5)


# A ball that bounces: everything in closed form


def ball(t, y, g, floor, e):
    return torch.stack((y[..., 1], -g + 0 * y[..., 1]), -1)


def height(t, y, g, floor, e):
    return y[..., 0] - floor


def rebound(t, y, g, floor, e):
    return torch.stack((y[..., 0], -e * y[..., 1]), -1)


BOUNCE = Event(height, direction=-1, apply=rebound)


def bounces(y0, t0, g, floor, e, count, end):
    """Times, speeds after the impacts, and the state at the end, between the last of the impacts and the next."""
    u = torch.sqrt(y0[1] ** 2 + 2 * g * (y0[0] - floor))
    times, speeds = [t0 + (y0[1] + u) / g], [e * u]
    for _ in range(count - 1):
        times.append(times[-1] + 2 * speeds[-1] / g)
        speeds.append(e * speeds[-1])
    since = end - times[-1]
    final = torch.stack((floor + speeds[-1] * since - g * since**2 / 2, speeds[-1] - g * since))
    return torch.stack(times), torch.stack(speeds), final


def span(start, end):
    return torch.stack((start, torch.full_like(start, end)))


def ball_inputs():
    return double(1.0, 0.5).requires_grad_(), leaf(0.2), leaf(9.0), leaf(0.1), leaf(0.7)


@pytest.mark.parametrize("gradient", [*GRADIENTS, Checkpointed(checkpoints=2)])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8", SLOW_ONE])
def test_a_ball_with_everything_that_it_depends_on(gradient, method):
    """y0, the start, a parameter of func, one of the event function and one of the change; four bounces."""
    y0, t0, g, floor, e = inputs = ball_inputs()
    end = leaf(2.2)
    options = {"step_size": 0.1} if method in ("rk4", "radauIIA5") else TIGHT
    solution = solve_ivp(ball, torch.stack((t0, end)), y0, t_eval=torch.stack((t0, end)), args=(g, floor, e),
                         events=BOUNCE, gradient=gradient, method=method, **options)  # fmt: skip
    log = solution.events
    times, speeds, final = bounces(y0, t0, g, floor, e, 4, end)
    assert len(log) == 4
    all_inputs = [*inputs, end]
    assert_same_gradients(log.t, times, all_inputs)
    assert_same_gradients(log.y_after[:, 1], speeds, all_inputs)
    assert_same_gradients(log.y[:, 1], -speeds / e, all_inputs)
    assert_same_gradients(log.y[:, 0], floor.expand(4), all_inputs)
    assert_same_gradients(log.y_after[:, 0], floor.expand(4), all_inputs)
    assert_same_gradients(solution.y[-1], final, all_inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_all_at_once(gradient):
    """One backward pass from times, states before and after, and outputs between the changes."""
    y0, t0, g, floor, e = inputs = ball_inputs()
    t_eval = double(0.3, 0.9, 1.2, 1.9, 2.2)
    solution = solve_ivp(ball, span(t0, 2.2), y0, t_eval=t_eval, args=(g, floor, e), events=BOUNCE, gradient=gradient,
                         **TIGHT)  # fmt: skip
    log = solution.events
    times, speeds, _ = bounces(y0, t0, g, floor, e, 4, 2.2)
    before = bounces(y0, t0, g, floor, e, 1, 2.2)
    expected = []
    for t in t_eval.tolist():
        count = int((times.detach() < t).sum())
        if count:
            expected.append(bounces(y0, t0, g, floor, e, count, t)[2])
        else:
            expected.append(torch.stack((y0[0] + y0[1] * (t - t0) - g * (t - t0) ** 2 / 2, y0[1] - g * (t - t0))))
    assert len(before[0]) == 1
    got = torch.cat((log.t, log.y[:, 1], log.y_after[:, 1], solution.y.flatten()))
    assert_same_gradients(got, torch.cat((times, -speeds / e, speeds, torch.cat(expected))), inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_step_kept(gradient):
    """Without t_eval the states before and after a change are outputs of their own."""
    y0, t0, g, floor, e = inputs = ball_inputs()
    solution = solve_ivp(ball, span(t0, 2.2), y0, args=(g, floor, e), events=BOUNCE, gradient=gradient, **TIGHT)
    again = torch.nonzero(solution.t.detach().diff() == 0).flatten()
    assert len(again) == 4
    assert_same_gradients(solution.y[-1], bounces(y0, t0, g, floor, e, 4, 2.2)[2], inputs)
    # The ends of steps that the solver chose move with the start: as if t_eval had held such times.
    fixed = solution.t.detach()[1:].unique()[::3]
    kept = torch.isin(solution.t.detach(), fixed) & ~torch.isin(solution.t.detach(), solution.events.t.detach())
    when = t0 + (solution.t - t0).detach()[kept]
    asked = solve_ivp(ball, span(t0, 2.2), y0, t_eval=when, args=(g, floor, e), events=BOUNCE, gradient=gradient,
                      **TIGHT)  # fmt: skip
    assert_same_gradients(solution.y[kept], asked.y, inputs)
    assert_same_gradients(solution.t[kept], when, inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_backwards_in_time(gradient):
    """The ball of the film run backwards: t is -t, and so is the speed."""
    y0, t0, g, floor, e = inputs = ball_inputs()
    event = Event(height, direction=-1, apply=rebound)
    mirrored = torch.stack((y0[0], -y0[1]))
    solution = solve_ivp(ball, span(-t0, -2.2), mirrored, t_eval=[-2.2], args=(g, floor, e), events=event,
                         gradient=gradient, **TIGHT)  # fmt: skip
    times, speeds, final = bounces(y0, t0, g, floor, e, 4, 2.2)
    assert_same_gradients(solution.events.t, -times, inputs)
    assert_same_gradients(solution.events.y_after[:, 1], -speeds, inputs)
    assert_same_gradients(solution.y[0] * double(1.0, -1.0), final, inputs)


class Ball(nn.Module):
    def __init__(self, g):
        super().__init__()
        self.g = nn.Parameter(double(g)[0])

    def forward(self, t, y):
        return torch.stack((y[..., 1], -self.g + 0 * y[..., 1]), -1)


class Height(nn.Module):
    def __init__(self, floor):
        super().__init__()
        self.floor = nn.Parameter(double(floor)[0])

    def forward(self, t, y):
        return y[..., 0] - self.floor


class Rebound(nn.Module):
    def __init__(self, e):
        super().__init__()
        self.e = nn.Parameter(double(e)[0])

    def forward(self, t, y):
        return torch.stack((y[..., 0], -self.e * y[..., 1]), -1)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", ["modules", "closures", "mixed"])
@pytest.mark.parametrize("named", [False, True])
def test_modules_and_closures(gradient, kind, named):
    """Parameters of func, of g and of apply are found without being named."""
    func, g, apply = Ball(9.0), Height(0.1), Rebound(0.7)
    parameters = [func.g, g.floor, apply.e]
    if kind != "modules":
        apply = lambda t, y: torch.stack((y[..., 0], -parameters[2] * y[..., 1]), -1)
    if kind == "closures":
        func = lambda t, y: torch.stack((y[..., 1], -parameters[0] + 0 * y[..., 1]), -1)
        g = lambda t, y: y[..., 0] - parameters[1]
    y0, t0, *_ = ball_inputs()
    inputs = [y0, t0, *parameters]
    solution = solve_ivp(func, span(t0, 2.2), y0, t_eval=[2.2], events=Event(g, direction=-1, apply=apply),
                         gradient=gradient, params=parameters if named else None, **TIGHT)  # fmt: skip
    times, speeds, final = bounces(y0, t0, *parameters, 4, 2.2)
    log = solution.events
    got = torch.cat((log.t, log.y_after[:, 1], solution.y[0]))
    assert_same_gradients(got, torch.cat((times, speeds, final)), inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_apply_with_and_without_arguments(gradient):
    """args go to apply if it takes them."""
    y0, t0, g, floor, e = ball_inputs()
    inputs = [y0, t0, g, floor, e]
    plain = lambda t, y: torch.stack((y[..., 0], -e * y[..., 1]), -1)
    variadic = lambda t, y, *args: rebound(t, y, *args)
    times, _, final = bounces(y0, t0, g, floor, e, 4, 2.2)
    for apply in (plain, variadic, rebound):
        solution = solve_ivp(ball, span(t0, 2.2), y0, t_eval=[2.2], args=(g, floor, e), gradient=gradient,
                             events=Event(height, direction=-1, apply=apply), **TIGHT)  # fmt: skip
        assert_same_gradients(torch.cat((solution.events.t, solution.y[0])), torch.cat((times, final)), inputs)


# A batch of balls


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("compact", [None, False])
def test_a_batch_of_balls(gradient, compact):
    """Each row with its own start, parameters and number of bounces; one never comes down, one is alone in args."""
    y0 = torch.tensor([[1.0, 0.5], [0.5, 0.0], [1.0, 50.0], [2.0, -1.0]], dtype=D, requires_grad=True)
    t0 = double(0.2, 0.0, 0.0, 0.5).requires_grad_()
    g, e = double(9.0, 8.0, 9.5, 10.0).requires_grad_(), double(0.7, 0.5, 0.5, 0.9).requires_grad_()
    floor, end = leaf(0.1), double(2.2, 0.89, 2.0, 3.3).requires_grad_()
    inputs = [y0, t0, g, e, floor, end]
    counts = [4, 4, 0, 3]

    def func(t, y, g, floor, e):
        return torch.stack((y[..., 1], -g + 0 * y[..., 1]), -1)

    solution = solve_ivp(func, (t0, end), y0, t_eval=end.unsqueeze(1), args=(g, floor, e), batch_dims=1,
                         events=BOUNCE, gradient=gradient, compact=compact, **TIGHT)  # fmt: skip
    log = solution.events
    assert torch.bincount(log.row, minlength=4).tolist() == counts
    for row, count in enumerate(counts):
        here, last = log.row == row, solution.y[row, 0]
        if count:
            times, speeds, final = bounces(y0[row], t0[row], g[row], floor, e[row], count, end[row])
            got = torch.cat((log.t[here], log.y[here, 1], log.y_after[here, 1], last))
            assert_same_gradients(got, torch.cat((times, -speeds / e[row], speeds, final)), inputs)
        else:
            since = end[row] - t0[row]
            final = torch.stack((y0[row, 0] + y0[row, 1] * since - g[row] * since**2 / 2, y0[row, 1] - g[row] * since))
            assert_same_gradients(last, final, inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rows_of_a_batch_have_the_gradients_of_their_single_solves(gradient):
    """An oscillator with friction that is kicked when it goes through zero, nothing of it in closed form."""

    def func(t, y, k):
        return torch.stack((y[..., 1], -k * y[..., 0] - 0.1 * y[..., 1] ** 3 + torch.sin(t).reshape(y.shape[:-1])), -1)

    kick = lambda t, y, k: torch.stack((y[..., 0], (1 + 0.1 * k) * y[..., 1]), -1)
    events = [Event(lambda t, y, k: y[..., 0], apply=kick), Event(lambda t, y, k: y[..., 1] - k / 2)]
    y0 = torch.tensor([[1.0, 0.0], [0.5, 0.5], [-1.0, 0.2]], dtype=D, requires_grad=True)
    k = double(3.0, 4.0, 2.0).requires_grad_()
    options = {"events": events, "gradient": gradient, "t_eval": [2.0, 4.0], "atol": 1e-9}
    options["rtol"] = 1e-8 if gradient == "backsolve" else 1e-6  # the others are those of the same steps
    batch = solve_ivp(func, (0.0, 4.0), y0, args=(k,), batch_dims=1, **options)
    for row in range(3):
        y0_row, k_row = y0[row].detach().requires_grad_(), k[row].detach().requires_grad_()
        single = solve_ivp(func, (0.0, 4.0), y0_row, args=(k_row,), **options)
        here = batch.events.row == row
        assert here.sum() == len(single.events) >= 3
        got = grads(torch.cat((batch.events.t[here], batch.events.y_after[here].flatten(), batch.y[row].flatten())),
                    [y0, k])  # fmt: skip
        wanted = grads(torch.cat((single.events.t, single.events.y_after.flatten(), single.y.flatten())),
                       [y0_row, k_row])  # fmt: skip
        others = [i for i in range(3) if i != row]
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a[row], b, rtol=1e-6, atol=1e-7)
            assert (a[others] == 0).all()


# A neuron


def interval(current, v, threshold):
    return torch.log((current - v) / (current - threshold))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["dopri5", SLOW_ONE])
def test_neurons(gradient, method):
    """Spike times against log((I - r) / (I - v)), in a batch in which two neurons never fire."""
    current = double(0.5, 1.5, 2.0, 0.99).requires_grad_()
    threshold, reset = double(1.0, 1.0, 0.9, 1.0).requires_grad_(), leaf(0.1)
    v0 = double(0.0, 0.2, -0.5, 0.0).requires_grad_()
    event = Event(lambda t, v, i, limit, r: v - limit, apply=lambda t, v, i, limit, r: r + 0 * v)
    options = {"step_size": 0.1} if method == "radauIIA5" else TIGHT
    solution = solve_ivp(lambda t, v, i, limit, r: i - v, (0.0, 3.0), v0, args=(current, threshold, reset),
                         events=event, batch_dims=1, t_eval=[3.0], gradient=gradient, method=method,
                         **options)  # fmt: skip
    inputs, log = [current, threshold, reset, v0], solution.events
    for row in range(4):
        times = log.t[log.row == row]
        if current[row] <= 1.0:
            assert len(times) == 0
            expected = current[row] + (v0[row] - current[row]) * math.exp(-3.0)
            assert_same_gradients(solution.y[row, :1], expected.reshape(1), inputs)
            continue
        start = interval(current[row], v0[row], threshold[row])
        each = interval(current[row], reset, threshold[row])
        expected = torch.stack([start + k * each for k in range(len(times))])
        assert len(times) >= 2
        assert_same_gradients(times, expected, inputs, atol=1e-6)
        last = current[row] + (reset - current[row]) * torch.exp(expected[-1] - 3.0)
        assert_same_gradients(solution.y[row, :1], last.reshape(1), inputs, atol=1e-6)
        assert_same_gradients(log.y[log.row == row], threshold[row].expand(len(times)), inputs)
        assert_same_gradients(log.y_after[log.row == row], reset.expand(len(times)), inputs)


# Finite differences


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_several_events_against_finite_differences(gradient):
    """The change and the event depend on the time, the state and parameters; func depends on the time."""
    func = lambda t, y, p: torch.stack((y[1], -y[0] + p[0] * torch.cos(t)))
    hit = Event(lambda t, y, p: y[0] - p[1] * torch.sin(3 * t), direction=1,
                apply=lambda t, y, p: torch.stack((y[0] + p[2] * t, y[1] * p[3] + p[2])))  # fmt: skip
    flip = Event(lambda t, y, p: y[1] ** 2 - 0.3, direction=-1, apply=lambda t, y, p: y * (1 - p[2] * t))
    watch = Event(lambda t, y, p: t * p[3] - 1.3 + 0.01 * y[0])

    def solve(y0, p, t):
        solution = solve_ivp(func, t, y0, t_eval=[0.9, 7.4], args=(p,), events=[hit, flip, watch], gradient=gradient,
                             method="dopri8", **TIGHT)  # fmt: skip
        log = solution.events
        assert len(log) >= 4 and set(log.index.tolist()) == {0, 1, 2}
        return torch.cat((log.t, log.y.flatten(), log.y_after.flatten(), solution.y.flatten()))

    y0, p, t = (x.requires_grad_() for x in (double(1.0, 0.3), double(0.4, 0.2, 0.05, 0.9), double(0.1, 7.5)))
    assert_matches_differences(solve, [y0, p, t])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_two_changes_at_one_time_that_move_together(gradient):
    """Both events have the same time whatever the inputs; the second change is made to what the first one leaves."""
    events = [Event(lambda t, y, p: y[0] - p[0], apply=lambda t, y, p: y * p[1]),
              Event(lambda t, y, p: 2 * (y[0] - p[0]), apply=lambda t, y, p: y + p[2] * t)]  # fmt: skip

    def solve(y0, p):
        solution = solve_ivp(lambda t, y, p: 1 + 0.5 * y, (0.0, 0.5), y0, t_eval=[0.5], args=(p,), events=events,
                             gradient=gradient, **TIGHT)  # fmt: skip
        assert solution.events.index.tolist() == [0, 1]
        return torch.cat((solution.events.t, solution.events.y_after.flatten(), solution.y.flatten()))

    assert_matches_differences(solve, [double(0.1).requires_grad_(), double(0.3, 1.5, 2.0).requires_grad_()])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_terminal_event_and_outputs_that_are_not_reached(gradient):
    """The state at the end, and after the change that is made there; outputs behind it do not disturb."""
    event = Event(lambda t, y, p: y[0] - p[0], terminal=True, apply=lambda t, y, p: y * p[1])
    y0, p = double(0.5).requires_grad_(), double(1.5, 3.0).requires_grad_()
    solution = solve_ivp(lambda t, y, p: y, (0.0, 5.0), y0, t_eval=[0.5, 4.0], args=(p,), events=event,
                         gradient=gradient, **TIGHT)  # fmt: skip
    log = solution.events
    assert_same_gradients(log.t, torch.log(p[:1] / y0), [y0, p])
    assert_same_gradients(log.y[0], p[:1], [y0, p])
    assert_same_gradients(log.y_after[0], p[:1] * p[1], [y0, p])
    assert_same_gradients(solution.y[0], y0 * math.exp(0.5), [y0, p])
    assert solution.y[1].isnan().all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_pytree(gradient):
    y0 = {"x": double(1.0).requires_grad_(), "v": leaf([0.5])}
    func = lambda t, y: {"x": y["v"], "v": -9.0 + 0 * y["v"]}
    event = Event(lambda t, y: y["x"][0], direction=-1, apply=lambda t, y: {"x": y["x"], "v": -0.7 * y["v"]})
    solution = solve_ivp(func, (0.0, 1.7), y0, t_eval=[1.7], events=event, gradient=gradient, **TIGHT)
    flat = torch.cat((y0["x"], y0["v"]))
    zero = torch.zeros((), dtype=D)
    times, speeds, final = bounces(flat, zero, zero + 9.0, zero, zero + 0.7, len(solution.events), 1.7)
    assert len(times) >= 3
    inputs = [y0["x"], y0["v"]]
    assert_same_gradients(solution.events.t, times, inputs)
    assert_same_gradients(solution.events.y_after["v"][:, 0], speeds, inputs)
    assert_same_gradients(torch.cat((solution.y["x"][0], solution.y["v"][0])), final, inputs)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_boolean_event_has_a_time_that_does_not_move(gradient):
    """What cannot be differentiated is taken as fixed, and makes no NaN."""
    y0 = double(0.0).requires_grad_()
    event = Event(lambda t, y: y[0] > 0.3, apply=lambda t, y: 2 * y, max_count=1)
    solution = solve_ivp(lambda t, y: torch.ones_like(y), (0.0, 0.5), y0, events=event, gradient=gradient)
    assert solution.events.t.item() == pytest.approx(0.3, abs=1e-12)
    (found,) = torch.autograd.grad(solution.events.y_after.sum(), y0)
    assert found.item() == pytest.approx(2.0, abs=1e-9)


# Rows that must not disturb each other


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_row_whose_event_only_grazes_makes_no_nan_in_the_others(gradient):
    """In the first row the function touches zero where a step ends: there the time has no derivative."""
    y0 = torch.tensor([[0.0], [0.0]], dtype=D, requires_grad=True)
    depth = double(0.0, 0.01).requires_grad_()
    event = Event(lambda t, y, depth: (y[..., 0] - 0.5) ** 2 - depth, direction=-1, apply=lambda t, y, depth: y + 1.0)

    def solved():
        return solve_ivp(lambda t, y, depth: torch.ones_like(y), (0.0, 1.0), y0, args=(depth,), events=event,
                         batch_dims=1, t_eval=[1.0], method="rk4", step_size=0.25, gradient=gradient)  # fmt: skip

    if gradient == "forward":  # which finds the derivatives of all rows
        with pytest.raises(RuntimeError, match="has no finite derivative"):
            solved()
        return
    solution = solved()
    log = solution.events
    assert log.t.tolist() == pytest.approx([0.5, 0.4], abs=1e-12)
    for values, by_depth in ((log.t[1:], -1 / (2 * 0.1)), (log.y_after[1], -1 / (2 * 0.1)), (solution.y[1], 0.0)):
        by_y0, found = grads(values, [y0, depth])
        assert torch.isfinite(by_y0).all() and torch.isfinite(found).all()
        assert by_y0[0].item() == 0.0 and found[0].item() == 0.0
        assert found[1].item() == pytest.approx(2.5 * by_depth, abs=1e-9)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_row_without_events_and_masks(gradient):
    """A loss over the first event of each row that has one."""
    v = double(3.0, 0.1, 2.0).requires_grad_()
    y0 = torch.zeros(3, 1, dtype=D)
    solution = solve_ivp(lambda t, y, v: v[..., None] + 0 * y, (0.0, 1.0), y0, args=(v,), batch_dims=1,
                         events=Event(lambda t, y, v: y[..., 0] - 1.0, terminal=True), t_eval=[0.2, 1.0],
                         gradient=gradient)  # fmt: skip
    log = solution.events
    assert log.row.tolist() == [0, 2]
    (found,) = torch.autograd.grad(log.t.sum(), v, retain_graph=True)
    torch.testing.assert_close(found, double(-1 / 9, 0.0, -1 / 4), rtol=1e-8, atol=1e-10)
    reached = ~solution.y.isnan()
    assert reached[:, :, 0].tolist() == [[True, False], [True, True], [True, False]]
    (found,) = torch.autograd.grad(solution.y[reached].sum(), v)
    torch.testing.assert_close(found, double(0.2, 1.2, 0.2), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_row_that_fails_makes_no_nan_in_the_others(gradient):
    y0 = torch.tensor([[1.0], [0.5]], dtype=D, requires_grad=True)
    k = leaf(1.0)
    event = Event(lambda t, y, k: y[..., 0] - 0.8 * k, apply=lambda t, y, k: 0.5 * y)
    solution = solve_ivp(lambda t, y, k: k * y**2, (0.0, 1.5), y0, args=(k,), batch_dims=1, events=event,
                         t_eval=[1.5], gradient=gradient, throw=False, rtol=1e-8, atol=1e-9)  # fmt: skip
    assert solution.success.tolist() == [False, True]
    by_y0, by_k = torch.autograd.grad(solution.y[1].sum(), [y0, k])
    assert torch.isfinite(by_y0).all() and torch.isfinite(by_k) and by_y0[0].item() == 0.0

    def closed(start, k):  # 1/y falls by k t; at 0.8 k it is doubled
        hit = (1 / start - 1 / (0.8 * k)) / k
        return 1 / (1 / (0.4 * k) - k * (1.5 - hit))

    start, rate = leaf(0.5), leaf(1.0)
    expected = torch.autograd.grad(closed(start, rate), [start, rate])
    assert by_y0[1].item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert by_k.item() == pytest.approx(expected[1].item(), rel=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("events", [None, lambda t, y, v: y[..., 0] - 1.0])
def test_gradients_of_some_rows_with_respect_to_args(gradient, events):
    """Of rows that go on for longer than others, and of those that are asked about."""
    v = double(3.0, 0.1, 2.0).requires_grad_()
    solution = solve_ivp(lambda t, y, v: v[..., None] + 0 * y, (0.0, double(1.0, 1.0, 2.0)),
                         torch.zeros(3, 1, dtype=D), args=(v,), batch_dims=1, events=events, gradient=gradient,
                         t_eval=torch.tensor([[0.2, 1.0], [0.3, 1.0], [0.2, 2.0]], dtype=D))  # fmt: skip
    (found,) = torch.autograd.grad(solution.y.sum(), v, retain_graph=True)
    torch.testing.assert_close(found, double(1.2, 1.3, 2.2), rtol=1e-8, atol=1e-10)
    (found,) = torch.autograd.grad(solution.y[1].sum(), v)
    torch.testing.assert_close(found, double(0.0, 1.3, 0.0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_second_derivatives_are_refused(gradient):
    y0, t0, g, floor, e = ball_inputs()
    solution = solve_ivp(ball, span(t0, 1.0), y0, t_eval=[1.0], args=(g, floor, e), events=BOUNCE, gradient=gradient)
    (first,) = torch.autograd.grad(solution.y.sum(), y0, create_graph=True)
    with pytest.raises((ValueError, RuntimeError), match="only once"):
        torch.autograd.grad(first.sum(), g)


def test_second_derivatives_of_event_times_are_refused():
    y0, t0, g, floor, e = ball_inputs()
    solution = solve_ivp(ball, span(t0, 1.0), y0, t_eval=[1.0], args=(g, floor, e), events=BOUNCE)
    (first,) = torch.autograd.grad(solution.events.t.sum(), y0, create_graph=True)
    with pytest.raises((ValueError, RuntimeError), match="only once"):
        torch.autograd.grad(first.sum(), g)


def test_backsolve_with_a_method_of_its_own():
    y0, t0, g, floor, e = inputs = ball_inputs()
    solution = solve_ivp(ball, span(t0, 2.2), y0, t_eval=[2.2], args=(g, floor, e), events=BOUNCE, method="rk4",
                         step_size=0.1, gradient=Backsolve(method="dopri8", rtol=1e-9, atol=1e-9))  # fmt: skip
    times, _, final = bounces(y0, t0, g, floor, e, 4, 2.2)
    assert_same_gradients(torch.cat((solution.events.t, solution.y[0])), torch.cat((times, final)), inputs)


def test_without_gradients_nothing_is_tracked():
    y0, t0, g, floor, e = ball_inputs()
    with torch.no_grad():
        solution = solve_ivp(ball, span(t0, 2.2), y0, args=(g, floor, e), events=BOUNCE)
    log = solution.events
    assert not any(x.requires_grad for x in (solution.y, solution.t, log.t, log.y, log.y_after))
    assert len(log) == 4
    plain = [x.detach() for x in (y0, g, floor, e)]
    solution = solve_ivp(ball, (0.2, 2.2), plain[0], args=tuple(plain[1:]), events=BOUNCE)
    assert not any(x.requires_grad for x in (solution.y, solution.t, solution.events.t, solution.events.y_after))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_last_of_all_steps_moves_with_the_event_that_ends_the_solve(gradient):
    p = double(1.0).requires_grad_()
    event = Event(lambda t, y, p: y[0] - 0.5, terminal=True, apply=lambda t, y, p: y * p)
    solution = solve_ivp(lambda t, y, p: -p * y, (0.0, 5.0), double(1.0), args=(p,), events=event, gradient=gradient,
                         **TIGHT)  # fmt: skip
    log = solution.events
    assert solution.y[-2].item() == pytest.approx(0.5, abs=1e-14) and solution.t[-1] == log.t[-1]
    for ours, theirs in ((solution.y[-2], log.y[-1]), (solution.y[-1], log.y_after[-1]), (solution.t[-1:], log.t)):
        found, expected = (torch.autograd.grad(x.sum(), p, retain_graph=True)[0] for x in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.grad(solution.y[-2].sum(), p)[0].abs() < 1e-6


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_a_batch_of_gradients_is_right_or_refused(gradient):
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64, requires_grad=True)
    bounce = Event(lambda t, y: y[0], apply=lambda t, y: torch.stack([y[0], -0.9 * y[1]]))
    solution = solve_ivp(
        lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)]), (0.0, 1.0), y0, events=bounce, gradient=gradient
    )
    unit = torch.eye(2, dtype=torch.float64)
    if gradient == "forward":  # which knows the derivatives of the last state
        found = torch.autograd.grad(solution.final, y0, unit, is_grads_batched=True, retain_graph=True)[0]
        alone = [torch.autograd.grad(solution.final[i], y0, retain_graph=True)[0] for i in range(2)]
        assert torch.equal(found, torch.stack(alone))
    for result in (solution.events.t, solution.events.y) if gradient == "forward" else (solution.final,):
        seeds = torch.ones(2, *result.shape, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="take them one after the other, without is_grads_batched=True"):
            torch.autograd.grad(result, y0, seeds, is_grads_batched=True, retain_graph=True)
