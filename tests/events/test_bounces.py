"""A ball that bounces, from many heights: every bounce is found once, whatever rounding leaves of the height there."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from torchivp import ODE_METHODS, Event, Outcome, SolveError, solve_ivp

D = torch.float64
GRAVITY, KEPT, SPEED, END = 9.81, 0.9, 0.3, 6.0
HEIGHTS = torch.linspace(1.0, 9.0, 12, dtype=D)


def fall(t, y):
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -GRAVITY)], -1)


def height(t, y):
    return y[..., 0]


def bounce(t, y):
    return torch.stack([y[..., 0], -KEPT * y[..., 1]], -1)


def bounces(start):
    """How many there are."""
    speed = math.sqrt(SPEED**2 + 2 * GRAVITY * start)
    t, count = (SPEED + speed) / GRAVITY, 0
    while t < END:
        count, speed = count + 1, KEPT * speed
        t += 2 * speed / GRAVITY
    return count


def numbers(heights, events, dtype=D, **options):
    """How often each event happens from each height."""
    y0 = torch.stack([heights, torch.full_like(heights, SPEED)], -1).to(dtype)
    log = solve_ivp(fall, (0.0, END), y0, batch_dims=1, events=events, **options).events
    return [
        [int(((log.row == i) & (log.index == event)).sum()) for event in range(len(events))] for i in range(len(y0))
    ]


FEW = ("tsit5", "dopri8", "bosh3", "rk4", "rodas5p", "radau5", "trbdf2", "bdf", "adams")


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.sweep)
        for name in ODE_METHODS
        if name != "scipy_solver"
    ],
)
def test_every_bounce_is_found_once(method, dtype):
    kind = ODE_METHODS[method]
    sizes = {} if kind.error_order is not None else {"step_size": 0.07}
    tolerances = (
        {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 or kind.order <= 2 else {"rtol": 1e-6, "atol": 1e-8}
    )
    heights = HEIGHTS[::4] if sizes or kind.order <= 2 else HEIGHTS
    if kind.order == 1 and sizes:  # gains or loses energy
        heights, sizes = HEIGHTS[5:6], {"step_size": 2e-3}
    found = numbers(heights, [Event(height, apply=bounce)], dtype, method=method, **tolerances, **sizes)
    assert found == [[bounces(float(x))] for x in heights]


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_two_events_of_one_function(direction, backend):
    """The first one reflects the state, so that the function of both never goes up through zero."""
    heights = torch.linspace(1.0, 9.0, 40, dtype=D)
    events = [Event(height, apply=bounce), Event(height, direction=direction)]
    found = numbers(heights, events, method="tsit5", rtol=1e-6, atol=1e-8, backend=backend)
    assert found == [[bounces(float(x)), bounces(float(x)) if direction < 1 else 0] for x in heights]


def two_balls(t, y):
    return torch.cat([fall(t, y[..., :2]), fall(t, y[..., 2:])], -1)


def bounces_of(ball):
    def apply(t, y):
        balls = [y[..., :2], y[..., 2:]]
        balls[ball] = bounce(t, balls[ball])
        return torch.cat(balls, -1)

    return Event(lambda t, y: y[..., 2 * ball], apply=apply)


@pytest.mark.parametrize(
    "method", ["tsit5", "rodas5p", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("dopri5", "dopri8"))]
)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_events_at_about_the_same_time(method, backend):
    """Two balls from heights that are the same or differ in the last digits: none of their bounces is missed."""
    for apart in (0.0, *(10.0**-k for k in range(9, 17))):
        y0 = torch.tensor([5.0, SPEED, 5.0 + 5.0 * apart, SPEED], dtype=D)
        solution = solve_ivp(
            two_balls, (0.0, END), y0, events=[bounces_of(0), bounces_of(1)], method=method, backend=backend, rtol=1e-6
        )
        assert [int((solution.events.index == ball).sum()) for ball in (0, 1)] == [bounces(5.0)] * 2, apart
        assert (solution.y[-1, :2] - solution.y[-1, 2:]).abs().max() < 1e-6


def slower(by):
    return lambda t, y, apart: torch.stack([y[..., 0], by * y[..., 1]], -1)


@pytest.mark.parametrize(
    ("method", "options"),
    [("bosh3", {"rtol": 1e-2, "atol": 1e-3}), ("trbdf2", {"rtol": 1e-3, "atol": 1e-3}), ("rk4", {"step_size": 0.4})],
)
def test_the_order_of_events_nearer_than_long_steps_tell(method, options):
    def turn(t, y, apart):
        return torch.stack([y[..., 1], -y[..., 0]], -1)

    events = [
        Event(lambda t, y, apart: y[..., 0] - 0.5, apply=slower(0.99), direction=1),
        Event(lambda t, y, apart: y[..., 0] - 0.5 - apart, apply=slower(0.98), direction=1),
    ]

    def found(apart, **how):
        args = (torch.tensor(apart, dtype=D),)
        log = solve_ivp(turn, (0.0, 20.0), torch.tensor([-1.0, 0.0], dtype=D), args=args, events=events, **how).events
        return log.index.tolist()

    for apart in (0.0, *(sign * 10.0**-k for k in (3, 5, 6, 7, 9, 12, 14) for sign in (1, -1))):
        exact = found(apart, method="dopri8", rtol=1e-10, atol=1e-12)
        about = found(apart, method=method, **options)
        assert sorted(about) == sorted(exact) and len(exact) == 6, apart
        if abs(apart) > 1e-9:  # the order is not that of rounding errors
            order = [0, 1] if apart > 0 else [1, 0]
            assert about == exact == 3 * order


def quartic(t, y, when):
    """y[0] is t to the fourth, which methods of order four find exactly and cubic interpolants do not; y[1] is t."""
    return torch.cat([(4 * t**3).expand_as(y[..., :1]), torch.ones_like(y[..., :1]), 0 * y[..., 2:]], -1)


def doubled(t, y, when):
    return y * torch.tensor([1.0, 1.0, 2.0], dtype=D)


def one_more(t, y, when):
    return y + torch.tensor([0.0, 0.0, 1.0], dtype=D)


@pytest.mark.parametrize("when", [0.6, [0.6], [0.6, 0.3, 0.9, 0.61]])
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_events_that_the_interpolant_of_a_step_has_in_the_wrong_order(backend, when):
    """Also where all rows of a batch, or the only one, must end earlier than they were made to."""
    when = torch.tensor(when, dtype=D)
    events = [
        Event(lambda t, y, when: y[..., 0] - when**4, apply=doubled),
        Event(lambda t, y, when: y[..., 1] - when - 0.02, apply=one_more),
    ]
    y0 = torch.tensor([0.0, 0.0, 1.0], dtype=D).expand(*when.shape, 3).clone().requires_grad_()
    solution = solve_ivp(
        quartic,
        (0.0, 1.0),
        y0,
        args=(when,),
        events=events,
        method="rk4",
        step_size=1.0,
        batch_dims=when.ndim,
        backend=backend,
    )
    log = solution.events
    assert log.index.tolist() == [0, 1] * max(when.numel(), 1)
    expected = torch.stack([when, when + 0.02], -1).reshape(-1)
    assert torch.allclose(log.t, expected, rtol=0.0, atol=1e-14)
    assert torch.allclose(solution.final[..., 2], torch.full_like(when, 3.0))  # 1 doubled, and one more
    (slope,) = torch.autograd.grad(solution.final[..., 2].sum(), y0)
    assert torch.allclose(slope, torch.tensor([0.0, 0.0, 2.0], dtype=D).expand_as(slope), rtol=0.0, atol=1e-12)


def test_a_step_to_an_event_that_fails_ends_the_only_row():
    def hole(t, y):  # the stages of a step of 1 miss it, and those of the step to the event do not
        return torch.where((t > 0.1) & (t < 0.2), torch.nan, torch.ones_like(y))

    event = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y)
    with pytest.raises(SolveError, match=r"no step leads from t = 0 to the event after it: the state there is not fin"):
        solve_ivp(hole, (0.0, 1.0), torch.zeros(1, dtype=D), events=event, method="rk4", step_size=1.0)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize(
    "kept", [0.0, 1e-5, 1e-3, 1e-2, *(pytest.param(x, marks=pytest.mark.sweep) for x in (1e-8, 1e-6, 1e-4, 3e-4))]
)
def test_no_ball_that_loses_nearly_everything_falls_through_the_ground(kept, backend):
    """Its next bounce is sooner than the numbers of time tell apart, and its last ones show no trend."""
    heights = torch.tensor([1.0, 2.3, 3.7], dtype=D)
    y0 = torch.stack([heights, torch.zeros_like(heights)], -1)
    args = (torch.tensor(kept, dtype=D),)
    event = Event(lambda t, y, kept: y[..., 0], apply=lambda t, y, kept: y * torch.stack([kept**0, -kept]))
    for method in ("tsit5", "rodas5p"):
        solution = solve_ivp(
            lambda t, y, kept: fall(t, y),
            (0.0, 50.0),
            y0,
            args=args,
            events=event,
            batch_dims=1,
            method=method,
            rtol=1e-4,
            atol=1e-6,
            backend=backend,
            throw=False,
        )
        assert [status.outcome for status in solution.status] == [Outcome.ZENO] * 3
        fall_time = torch.sqrt(2 * heights / GRAVITY)
        assert torch.allclose(solution.t_final, fall_time * (1 + 2 * kept / (1 - kept)), rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("dopri5", "kencarp4", "bdf") else pytest.mark.sweep)
        for name, kind in ODE_METHODS.items()
        if kind.error_order is not None and name != "scipy_solver"
    ],
)
def test_no_ball_of_single_precision_falls_through_the_ground(method):
    """What an iteration leaves of the height at one bounce is not forgotten when the next comes at once."""
    heights, kept = torch.tensor([1.0, 2.0, 3.3, 7.9]), torch.tensor([0.0, 1e-3, 1e-2, 0.5])
    h, k = torch.cartesian_prod(heights, kept).unbind(-1)
    event = Event(
        lambda t, y, k: y[..., 0],
        apply=lambda t, y, k: torch.stack([y[..., 0], -k * y[..., 1]], -1),
        direction=-1,
    )
    y0 = torch.stack([h, torch.zeros_like(h)], -1)
    solution = solve_ivp(
        lambda t, y, k: fall(t, y), (0.0, 50.0), y0, args=(k,), events=event, batch_dims=1, method=method, throw=False
    )
    assert [status.outcome for status in solution.status] == [Outcome.ZENO] * len(h)
    expected = torch.sqrt(2 * h / GRAVITY) * (1 + 2 * k / (1 - k))
    assert torch.allclose(solution.t_final, expected.double(), rtol=2e-2)


SWING, RATE = 0.1, 20.0


def above(t, y):
    """How far above a table that moves up and down."""
    return y[..., 0] - SWING * torch.sin(RATE * t[..., 0])


def thrown(t, y, kept):
    table = SWING * RATE * torch.cos(RATE * t[..., 0])
    return torch.stack([y[..., 0], table - kept * (y[..., 1] - table)], -1)


def on_the_table(y, kept, most):
    """The times of the first bounces, by the roots of what is known in closed form; it ends where they accumulate."""
    found, t, v, flight = [], 0.0, 0.0, np.geomspace(1e-6, 3.0, 20_000)
    while len(found) < most:

        def gap(s, t=t, y=y, v=v):
            return y + v * s - GRAVITY / 2 * s**2 - SWING * np.sin(RATE * (t + s))

        below = np.flatnonzero(gap(flight) < 0.0)[0]
        if below == 0:
            break
        s = scipy.optimize.brentq(gap, *flight[below - 1 : below + 1], xtol=1e-15)
        t, y, v = t + s, y + v * s - GRAVITY / 2 * s**2, v - GRAVITY * s
        table = SWING * RATE * math.cos(RATE * t)
        found, v = [*found, t], table - kept * (v - table)
    return found


@pytest.mark.parametrize(
    ("method", "backend"),
    [
        ("tsit5", "eager"),
        ("radau5", "eager"),
        pytest.param("bdf", "eager", marks=pytest.mark.sweep),
        *(pytest.param(name, "fused", marks=pytest.mark.sweep) for name in ("tsit5", "rodas5p")),
    ],
)
def test_no_ball_falls_through_a_table_that_moves(method, backend):
    """How the table bends says nothing of the ball's way while its own is not looked at."""
    cases = [(h, k) for k in (0.0, 0.01, 0.3, 0.8) for h in ((1.0, 1.05, 1.1, 1.3) if method == "tsit5" else (1.05,))]
    heights, kept = torch.tensor(cases, dtype=D).unbind(-1)
    solution = solve_ivp(
        lambda t, y, k: fall(t, y),
        (0.0, 1.2),
        torch.stack([heights, torch.zeros_like(heights)], -1),
        args=(kept,),
        events=Event(lambda t, y, k: above(t, y), apply=thrown, direction=-1),
        batch_dims=1,
        method=method,
        rtol=1e-8,
        atol=1e-10,
        backend=backend,
        throw=False,
    )
    for i, (height, k) in enumerate(cases):
        times = solution.events.t[solution.events.row == i].numpy()
        expected = np.array(on_the_table(height, k, 60))
        rests = len(expected) < 60
        assert solution.status[i].outcome is (Outcome.ZENO if rests else Outcome.SUCCESS)
        # One that leaves the table without a speed of its own may be taken to rest there by a method that begins anew.
        if k > 0.0 or method != "bdf":
            if rests:
                assert solution.t_final[i] == pytest.approx(expected[-1], abs=1e-4 if method == "bdf" else 3e-6)
            few = expected[(expected < 1.2) & (np.diff(expected, prepend=0.0) > 1e-4)][:3]
            assert times[: len(few)] == pytest.approx(few, abs=1e-6)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("start", [1e6, 1e7])
def test_events_of_states_in_single_precision_at_late_times(start, backend):
    """The loop knows the time to more digits than functions are given, so that these hide no change of the state."""
    event = Event(lambda t, y: y[..., 0] - 2.0, apply=lambda t, y: y - 1.0)
    y0 = torch.tensor([0.25], dtype=torch.float32)
    solution = solve_ivp(
        lambda t, y: torch.ones_like(y), (start, start + 5.5), y0, events=event, method="tsit5", backend=backend
    )
    expected = torch.tensor([1.75, 2.75, 3.75, 4.75], dtype=D)
    assert torch.allclose(solution.events.t - start, expected, rtol=0.0, atol=1e-5)
    assert abs(solution.final.item() - 1.75) < 1e-5
