"""Solves that end on events: where they are, and how they depend on everything."""

import math
import re
import warnings

import pytest
import torch

from problems import DIFFERENTIABLE, FIXED, METHODS, covering
from torchivp import ODE_METHODS, SolveError, odeint, odeint_adjoint, odeint_event
from torchivp.solution import Outcome

D = torch.float64
GRADIENT_METHODS = ["euler", "rk4", "bosh3", "dopri5", "dopri8", "adams"]
DOORS = [odeint, odeint_adjoint]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def double(*values, grad=False):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=D, requires_grad=grad)


def steps(method, size=0.02):
    if method in FIXED:
        return {"options": {"step_size": size}}
    rtol = {2: 1e-5, 3: 1e-6}.get(ODE_METHODS[method].order, 1e-9)
    return {"rtol": rtol, "atol": rtol / 10}


def tolerance(method):
    order = ODE_METHODS[method].order
    return {1: 0.05, 2: 2e-3}.get(order, 1e-4)


def rotation(t, y):
    return torch.stack((y[1], -y[0]))


def rising(t, y):
    return torch.ones_like(y)


def height(t, y):
    return y[0]


@pytest.mark.parametrize(("method", "direction"), covering(METHODS, ["rk4", "dopri5", "adams", "gl4"], [1.0, -1.0]))
def test_every_method_finds_the_first_zero_of_the_cosine(method, direction):
    t, y = odeint_event(
        rotation, double(1.0, 0.0), 0.0, event_fn=height, reverse_time=direction < 0, method=method, **steps(method)
    )
    assert t.shape == () and y.shape == (2, 2)
    assert t.item() == pytest.approx(direction * math.pi / 2, abs=tolerance(method))
    torch.testing.assert_close(y[0], double(1.0, 0.0), rtol=0, atol=0)
    torch.testing.assert_close(y[1], double(0.0, -direction), rtol=0, atol=2 * tolerance(method))
    assert abs(y[1, 0].item()) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_long_steps_land_on_the_event_all_the_same(method):
    """What the interpolant is off by is made up for: the state is the end of a step of the method."""
    options = steps(method, size=0.7) if method in FIXED else {"rtol": 1e-3, "atol": 1e-3}
    _, y = odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=height, method=method, **options)
    assert abs(y[1, 0].item()) < 1e-12


@pytest.mark.parametrize("method", FIXED)
def test_linear_output_lands_on_the_event_too(method):
    options = {"step_size": 0.5, "interp": "linear"}
    t, y = odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=height, method=method, options=options)
    cubic, _ = odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=height, method=method, options={"step_size": 0.5})
    assert abs(y[1, 0].item()) < 1e-12
    assert t.item() == pytest.approx(cubic.item(), abs=1e-12)


def test_the_first_of_several_events_ends_the_solve():
    def events(t, y):
        return torch.stack((y - 3.0, t - 2.0, 1.5 - y)).flatten()

    t, y = odeint_event(rising, double(0.0), 0.0, event_fn=events)
    assert t.item() == pytest.approx(1.5, abs=1e-14) and y[1].item() == pytest.approx(1.5, abs=1e-14)
    t, _ = odeint_event(rising, double(1.75), 0.0, event_fn=events)
    assert t.item() == pytest.approx(1.25, abs=1e-14)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_events_that_coincide(method):
    events = lambda t, y: torch.stack((y - 0.3, t - 0.3))
    t, _ = odeint_event(rising, double(0.0), 0.0, event_fn=events, method=method, **steps(method, 0.125))
    assert t.item() == pytest.approx(0.3, abs=1e-14)


@pytest.mark.parametrize("event_fn", [lambda t, y: y > 0.3, lambda t, y: y < 0.3,
                                      lambda t, y: (y > 0.3).int() * 2 - 1])  # fmt: skip
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_events_that_are_true_or_false(event_fn, method):
    t, y = odeint_event(rising, double(0.0), 0.0, event_fn=event_fn, method=method, **steps(method, 0.25))
    assert t.item() == pytest.approx(0.3, abs=1e-13)
    assert y[1].item() == pytest.approx(0.3, abs=1e-13)


def test_an_event_function_that_jumps_by_any_amount():
    t, _ = odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=lambda t, y: torch.where(y[0] > 0.5, 1e-3, -1e9))
    assert t.item() == pytest.approx(math.pi / 3, abs=1e-6)


def test_an_event_function_that_stays_at_zero():
    t, _ = odeint_event(rising, double(0.0), 0.0, event_fn=lambda t, y: torch.relu(0.3 - y))
    assert t.item() == pytest.approx(0.3, abs=1e-14)


@pytest.mark.parametrize("door", DOORS)
def test_a_zero_at_the_start_is_the_event(door):
    t0, y0 = double(2.0, grad=True), double(1.0, 0.0, grad=True)
    t, y = odeint_event(rotation, y0, t0, event_fn=lambda t, y: y[1], odeint_interface=door)
    assert t.item() == 2.0
    assert torch.equal(y.detach(), torch.stack((y0, y0)).detach())
    assert torch.autograd.grad(t, t0, retain_graph=True)[0].item() == 1.0
    assert torch.equal(torch.autograd.grad(y[1].sum(), y0)[0], torch.ones(2, dtype=D))


THRESHOLDS = [0.5, 0.75, 0.8, 1e-15, 0.125 + 1e-16, 0.125 - 1e-16, 0.3]


@pytest.mark.parametrize(
    ("method", "threshold", "door"), covering(DIFFERENTIABLE, ["rk4", "dopri5", "adams", "gl4"], THRESHOLDS, DOORS)
)
def test_events_at_step_ends_and_next_to_them(threshold, method, door):
    """y = y0 + t - t0 reaches the threshold at t0 + threshold - y0: steps of 1/8 end there, or rounding away."""
    t0, y0 = double(0.0, grad=True), double(0.0, grad=True)
    options = {"step_size": 0.125} if method in FIXED else {"first_step": 0.125, "max_step": 0.125}
    t, y = odeint_event(rising, y0, t0, event_fn=lambda t, y: y - threshold, method=method, options=options,
                        odeint_interface=door)  # fmt: skip
    assert t.item() == pytest.approx(threshold, abs=1e-15)
    torch.testing.assert_close(torch.stack(torch.autograd.grad(t, (t0, y0), retain_graph=True)), double(1.0, -1.0))
    torch.testing.assert_close(torch.stack(torch.autograd.grad(y[1], (t0, y0))), double(0.0, 0.0))


def test_an_event_at_the_latest_time_allowed():
    t, y = odeint(rising, double(0.0), [0.0, 0.5], event_fn=lambda t, y: y - 0.5, method="rk4", horizon=0.5,
                  options={"step_size": 0.25})  # fmt: skip
    assert t.item() == 0.5 and y[1].item() == 0.5


@pytest.mark.parametrize(
    ("method", "scale", "direction"), covering(METHODS, ["rk4", "dopri5", "adams"], [1.0, -3e7], [1.0, -1.0])
)
def test_an_event_at_the_horizon_does_not_hang_on_rounding(method, scale, direction):
    options = {"step_size": 0.05} if method in FIXED else {}
    t0, differentiable = double(0.0, grad=True), ODE_METHODS[method].differentiable
    t, y = odeint_event(lambda t, y: scale * rising(t, y), double(0.0), t0 if differentiable else 0.0,
                        event_fn=lambda t, y: y - 0.5 * scale * direction, horizon=0.5 * direction,
                        reverse_time=direction < 0, method=method, options=options)  # fmt: skip
    assert t.item() == pytest.approx(0.5 * direction, abs=1e-14)
    assert y[1].item() == pytest.approx(0.5 * scale * direction, rel=1e-14)
    if differentiable:
        assert torch.autograd.grad(t, t0)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "radauIIA5"])
def test_an_event_beyond_the_horizon_is_none(method):
    options = {"step_size": 0.05} if method in FIXED else {}
    for event_fn in (lambda t, y: y - 0.5 - 1e-13, lambda t, y: torch.exp(-80 * y)):
        with pytest.raises(SolveError, match=r"there is no event between t = 0 and t = 0.5"):
            odeint_event(rising, double(0.0), 0.0, event_fn=event_fn, horizon=0.5, method=method, options=options)


def test_a_horizon_ends_the_search():
    never = lambda t, y: y + 1.0
    with pytest.raises(SolveError, match=r"there is no event between t = 0 and t = 2: event_fn has the same sign") as e:
        odeint_event(rising, double(0.0), 0.0, event_fn=never, horizon=2.0)
    assert e.value.status.outcome is Outcome.NO_EVENT
    with pytest.raises(SolveError, match=re.escape("no event between t = 0 and t = -0.5: ")):
        odeint_event(rising, double(0.0), 0.0, event_fn=never, horizon=-0.5, reverse_time=True)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("method", ["rk4", "dopri5", "radauIIA5"])
def test_odeint_searches_beyond_the_last_time(method, direction, door):
    """As torchdiffeq does: the second time says the direction only."""
    options = {"step_size": 0.05} if method in FIXED else {}
    for t in (torch.tensor([0.0, 1e-3 * direction], dtype=D), [0.0, 0.1 * direction], [0.0, 1e9 * direction]):
        event_t, y = door(lambda t, y: -direction * y, double(1.0, 2.0), t, method=method, options=options,
                          event_fn=lambda t, y: y[0] - 0.5)  # fmt: skip
        assert event_t.item() == pytest.approx(direction * math.log(2), abs=1e-6)
        assert y[:, 1].tolist() == pytest.approx([2.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_odeint_gives_up_an_endless_search(door):
    never = lambda t, y: y[0] + 2.0
    with pytest.raises(SolveError, match=r"max_steps = 40 step attempts .* no event has happened by then: does one"):
        door(rotation, double(1.0, 0.0), [0.0, 1e-3], event_fn=never, options={"max_num_steps": 40})


@pytest.mark.parametrize("door", DOORS)
def test_a_horizon_of_odeint(door):
    never = lambda t, y: y[0] + 2.0
    for t, horizon in (([0.0, 1e-3], 2.0), ([0.0, -1e-3], -2.0)):
        with pytest.raises(SolveError, match=f"between t = 0 and t = {horizon:g}: .* with a later horizon; if event"):
            door(rotation, double(1.0, 0.0), t, event_fn=never, horizon=horizon)
        with pytest.raises(ValueError, match=r"horizon = -?2 must lie (before t0, since time is|after t0, and t0)"):
            door(rotation, double(1.0, 0.0), t, event_fn=never, horizon=-horizon)
    with pytest.raises(ValueError, match="horizon is the latest time to look for an event: give event_fn too"):
        door(rotation, double(1.0, 0.0), [0.0, 1.0], horizon=1.0)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_search_up_to_the_largest_time_gives_up(reverse):
    with pytest.raises(SolveError, match=r"no event has happened by t = -?\d\S*e\+307, and the next step leads") as e:
        odeint_event(lambda t, y: 0 * y, double(1.0), 0.0, event_fn=lambda t, y: y - 2.0, reverse_time=reverse)
    assert e.value.status.outcome is Outcome.NO_EVENT


def test_a_search_without_an_end_gives_up():
    with pytest.raises(SolveError, match=r"max_steps = 40 step attempts .* no event has happened by then: does one"):
        odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=lambda t, y: y[0] - 2.0, options={"max_num_steps": 40})


@pytest.mark.parametrize(
    ("event_fn", "kwargs", "kind", "sentence"),
    [
        (3, {}, TypeError, "event_fn must be callable as event_fn(t, y), got 3"),
        (lambda t, y: y[0].item(), {}, TypeError, "must return a tensor, and returned 1.0, a Python number, which"),
        (lambda t, y: bool(y[0] > 0), {}, TypeError, "must return a tensor, and returned True, a Python number"),
        (lambda t, y: 1, {}, TypeError, "leave out float(), bool() or .item(), as in y[0] - 1"),
        (lambda t, y: None, {}, TypeError, "whose sign changes at the event; it returned None"),
        (lambda t, y: 1j * y, {}, TypeError, "it returned a torch.complex128 tensor of shape (2,)"),
        (lambda t, y: y[:0], {}, TypeError, "it returned a torch.float64 tensor of shape (0,)"),
        (height, {"horizon": 0.0}, ValueError, "horizon = 0 must lie after t0, and t0 = 0"),
        (height, {"horizon": 1.0, "reverse_time": True}, ValueError, "horizon = 1 must lie before t0, since time is"),
        (height, {"method": "rk4"}, ValueError, "when there is an event_fn: pass options={'step_size': 0.01}"),
        (height, {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t}}, ValueError,
         "option 'grid_constructor' needs to know where the search for an event ends: pass horizon="),
    ],
)  # fmt: skip
def test_refusals(event_fn, kwargs, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=event_fn, **kwargs)


def test_refusals_of_times():
    for t0, kind, sentence in (
        ("0", TypeError, "t0 must be a number, got '0'"),
        (None, TypeError, "t0 must be a number, got None"),
        (torch.zeros(2), TypeError, "t0 must be a number, got tensor([0., 0.])"),
        (math.nan, ValueError, "t0 must not be NaN"),
        (math.inf, ValueError, "t0 must be finite, got inf"),
    ):
        with pytest.raises(kind, match=re.escape(sentence)):
            odeint_event(rotation, double(1.0, 0.0), t0, event_fn=height)
    with pytest.raises(ValueError, match=re.escape("got 3 times: write t=torch.stack([t[0], t[-1]])")):
        odeint(rotation, double(1.0, 0.0), [0.0, 1.0, 2.0], event_fn=height)


@pytest.mark.parametrize("t0", [1, 1.0, torch.tensor(1), torch.tensor([1.0], dtype=D)])
def test_the_start_in_any_form(t0):
    t, _ = odeint_event(rotation, double(1.0, 0.0), t0, event_fn=height, **TIGHT)
    assert t.dtype == D and t.item() == pytest.approx(1 + math.pi / 2, abs=1e-8)


def test_an_event_function_that_is_not_a_number():
    with pytest.raises(SolveError, match="the event function is not finite at the start, t = 0"):
        odeint_event(rising, double(0.0), 0.0, event_fn=lambda t, y: torch.log(y - 1.0))
    options = {"max_step": 0.3}
    with pytest.raises(SolveError, match=r"the event function is not finite at t = 1\S*, and has not changed sign"):
        odeint_event(rising, double(0.0), 0.0, event_fn=lambda t, y: torch.sqrt(1.0 - y) + 0.5, options=options)


def test_an_event_before_the_event_function_is_undefined():
    t, _ = odeint_event(rising, double(0.0), 0.0, event_fn=lambda t, y: torch.sqrt(1.0 - y) - 0.1, method="rk4",
                        options={"step_size": 10.0})  # fmt: skip
    assert t.item() == pytest.approx(0.99, abs=1e-12)


@pytest.mark.parametrize("as_state", [lambda a, b: (a, b), lambda a, b: {"x": a, "v": [b]}], ids=["tuple", "dict"])
@pytest.mark.parametrize("door", DOORS)
def test_states_of_several_tensors(as_state, door):
    def parts(y):
        return (y["x"], y["v"][0]) if isinstance(y, dict) else y

    def func(t, y):
        x, v = parts(y)
        return as_state(v, -x)

    y0 = as_state(torch.ones(2, 1, dtype=D), torch.zeros(2, 1, dtype=D))
    t, y = odeint_event(func, y0, 0.0, event_fn=lambda t, y: parts(y)[0].sum(), odeint_interface=door, **TIGHT)
    assert t.item() == pytest.approx(math.pi / 2, abs=1e-8)
    assert parts(y)[1].shape == (2, 2, 1)
    torch.testing.assert_close(parts(y)[1][1], -torch.ones(2, 1, dtype=D), rtol=1e-7, atol=0)


def test_single_precision():
    t0 = torch.tensor(1.0)
    t, y = odeint_event(rotation, torch.tensor([1.0, 0.0]), t0, event_fn=height, rtol=1e-6, atol=1e-6)
    assert t.dtype == y.dtype == torch.float32
    assert t.item() == pytest.approx(1 + math.pi / 2, abs=1e-5)
    assert abs(y[1, 0].item()) < 1e-6


@pytest.mark.parametrize("door", DOORS)
def test_complex_states(door):
    """y = exp((a + i) t): its real part vanishes at pi/2, whatever a is."""
    rate, y0 = double(-0.2, grad=True), torch.tensor(1.0 + 0j, dtype=torch.complex128, requires_grad=True)
    func = lambda t, y: torch.complex(rate, double(1.0)) * y
    t, y = odeint_event(func, y0, 0.0, event_fn=lambda t, y: y.real, odeint_interface=door, **TIGHT)
    assert t.item() == pytest.approx(math.pi / 2, abs=1e-8)
    from_rate, from_start = torch.autograd.grad(t, (rate, y0), retain_graph=True)
    assert from_rate.item() == pytest.approx(0.0, abs=1e-7)
    assert complex(from_start) == pytest.approx(-1j, abs=1e-7)  # turning the start by d turns the time by -d
    (growth,) = torch.autograd.grad(y[1].imag, rate)
    assert growth.item() == pytest.approx(math.pi / 2 * math.exp(-0.1 * math.pi), rel=1e-6)


@pytest.mark.parametrize("options", [{"atol": 0.0}, {"atol": (1e-9, 1e-9)}, {"atol": (torch.full((2,), 1e-9), 1e-9)}])
def test_tolerances_of_every_form(options):
    y0 = (double(1.0, 1.0), double(1.0))
    t, _ = odeint_event(lambda t, y: (-y[0], -y[1]), y0, 0.0, event_fn=lambda t, y: y[1] - 0.5, rtol=1e-8, **options)
    assert t.item() == pytest.approx(math.log(2), abs=1e-7)


def test_a_grid_of_ones_own():
    grid = lambda func, y0, t: torch.linspace(float(t[0]), float(t[-1]), 12, dtype=D)
    t, y = odeint_event(rotation, double(1.0, 0.0), 0.0, event_fn=height, horizon=3.0, method="rk4",
                        options={"grid_constructor": grid})  # fmt: skip
    assert t.item() == pytest.approx(math.pi / 2, abs=1e-4) and abs(y[1, 0].item()) < 1e-13


@pytest.mark.parametrize("door", DOORS)
def test_an_event_function_that_differentiates_inside(door):
    """The bottom of a potential, where its slope vanishes."""
    centre = double(0.3, grad=True)

    def slope(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad((x - centre) ** 4 / 4 + (x - centre) ** 2, x, create_graph=True)[0]

    t, _ = odeint_event(rising, double(0.0, grad=True), 0.0, event_fn=slope, odeint_interface=door)
    assert t.item() == pytest.approx(0.3, abs=1e-12)
    (found,) = torch.autograd.grad(t, centre)
    assert found.item() == pytest.approx(1.0, abs=1e-10)


def decay_to(y0, t0, rate, level, **options):
    """y = y0 exp(-rate (t - t0)) falls to `level` at t0 + log(y0 / level) / rate."""
    return odeint_event(lambda t, y: -rate * y, y0, t0, event_fn=lambda t, y: y - level, **options)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("door", DOORS)
def test_gradients_of_time_and_state_in_closed_form(method, door):
    inputs = [double(2.0, grad=True), double(0.5, grad=True), double(0.7, grad=True), double(0.9, grad=True)]
    y0, t0, rate, level = inputs
    t, y = decay_to(*inputs, method=method, odeint_interface=door, **steps(method, 0.02))
    exact = t0 + torch.log(y0 / level) / rate
    close = {"rtol": tolerance(method), "atol": tolerance(method)}
    torch.testing.assert_close(t, exact, **close)
    for found, expected in zip(
        torch.autograd.grad(t, inputs, retain_graph=True), torch.autograd.grad(exact, inputs), strict=True
    ):
        torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(torch.stack(torch.autograd.grad(y[1], inputs)), double(0.0, 0.0, 0.0, 1.0), **close)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_against_finite_differences(door, reverse):
    """A driven pendulum that meets a moving line."""
    start = 0.2 if not reverse else 2.5

    def run(y0, t0, length, level):
        def func(t, y):
            return torch.stack((y[1], -torch.sin(y[0]) / length + torch.cos(2 * t)))

        t, y = odeint_event(func, y0, t0, event_fn=lambda t, y: y[0] - level * (1 - 0.1 * t), reverse_time=reverse,
                            odeint_interface=door, rtol=1e-12, atol=1e-12)  # fmt: skip
        return t, y

    inputs = (double(1.0, 0.1, grad=True), double(start, grad=True), double(0.7, grad=True), double(0.2, grad=True))
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, rtol=1e-5, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("method", ["euler", "rk4", "heun"])
def test_gradients_of_fixed_steps_that_time_moves_with(method):
    """y' = y + t: what is returned for the time of the event is the implicit function theorem's, in the limit."""
    inputs = (double(0.5, grad=True), double(0.1, grad=True))

    def run(y0, t0):
        return odeint_event(lambda t, y: y + t, y0, t0, event_fn=lambda t, y: y - 2.0, **steps(method, 1e-3),
                            method=method)[0]  # fmt: skip

    found = torch.autograd.grad(run(*inputs), inputs)
    y0, t0 = inputs
    t = run(*inputs).detach()
    # (y0 + t0 + 1) exp(t - t0) - t - 1 = 2
    growth = torch.exp(t - t0)
    slope = (y0 + t0 + 1) * growth - 1
    expected = (-growth / slope, -(growth - (y0 + t0 + 1) * growth) / slope)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected).detach(), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("door", DOORS)
def test_event_t_backward(door):
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, -0.5)
    level = double(0.25, grad=True)
    t, _ = odeint_event(lambda t, y: model(y), torch.ones(1, dtype=D), 0.0, event_fn=lambda t, y: y - level,
                        odeint_interface=door, **TIGHT)  # fmt: skip
    t.backward()
    assert model.weight.grad.item() == pytest.approx(math.log(4) / 0.25, rel=1e-6)
    assert level.grad.item() == pytest.approx(-1 / (0.5 * 0.25), rel=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_the_time_of_an_event_of_odeint_is_differentiable(door):
    """torchdiffeq's can be differentiated too, and its gradients are zero."""
    y0, rate, level = double(2.0, grad=True), double(0.7, grad=True), double(0.9, grad=True)
    t = double(0.5, 0.6, grad=True)
    event_t, _ = door(lambda t, y: -rate * y, y0, t, event_fn=lambda t, y: y - level, **TIGHT)
    exact = t[0] + torch.log(y0 / level) / rate
    inputs = (y0, rate, level, t)
    found, expected = (torch.autograd.grad(time, inputs, retain_graph=True) for time in (event_t, exact))
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("door", DOORS)
def test_the_time_of_an_event_of_odeint_at_the_start_moves_with_it(door):
    t = double(0.5, 0.6, grad=True)
    event_t, _ = door(rotation, double(1.0, 0.0, grad=True), t, event_fn=lambda t, y: y[1])
    assert torch.autograd.grad(event_t, t)[0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("door", DOORS)
def test_a_boolean_event_of_odeint_is_found_without_a_warning(door):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        event_t, y = door(rotation, double(1.0, 0.0, grad=True), [0.0, 1.0], event_fn=lambda t, y: y[0] > 0.5)
    assert event_t.item() == pytest.approx(math.pi / 3, abs=1e-6) and y.requires_grad


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_bounces_against_the_closed_form(door, method):
    """Three bounces of a ball: the times of impact and all of their derivatives."""
    restitution, gravity, drop = double(0.8, grad=True), double(9.8, grad=True), double(5.0, grad=True)
    inputs = (restitution, gravity, drop)

    def fall(t, y):
        return torch.stack((y[1], -gravity))

    def ground(t, y):  # a ball on its way up cannot hit it
        return torch.where(y[1] < 0, y[0], 1.0)

    t, y = double(0.0), torch.stack((drop, double(0.0)))
    options = {"options": {"step_size": 0.3}} if method == "rk4" else {"rtol": 1e-10, "atol": 1e-10}
    for bounce in range(3):
        t, states = odeint_event(fall, y, t, event_fn=ground, method=method, odeint_interface=door, **options)
        first = torch.sqrt(2 * drop / gravity)
        exact = first * (1 + 2 * sum(restitution**k for k in range(1, bounce + 1)))
        impact = -gravity * first * restitution**bounce
        torch.testing.assert_close(t, exact, rtol=1e-9, atol=0)
        torch.testing.assert_close(states[1], torch.stack((double(0.0), impact)), rtol=1e-9, atol=1e-9)
        for found, expected in ((t, exact), (states[1, 1], impact)):
            found = torch.autograd.grad(found, inputs, retain_graph=True, materialize_grads=True)
            expected = torch.autograd.grad(expected, inputs, retain_graph=True, materialize_grads=True)
            torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-7, atol=1e-7)
        y = torch.stack((torch.zeros((), dtype=D), -restitution * states[1, 1]))


@pytest.mark.parametrize("event_fn", [lambda t, y: y > 0.3, lambda t, y: torch.sign(y - 0.3),
                                      lambda t, y: torch.sign(y - 0.5)])  # fmt: skip
@pytest.mark.parametrize("door", DOORS)
def test_an_event_function_without_a_gradient_is_warned_about(event_fn, door):
    y0 = double(0.0, grad=True)
    options = {"method": "rk4", "options": {"step_size": 0.25}, "odeint_interface": door}
    with pytest.warns(UserWarning, match="the time of the event gets no gradient") as caught:
        t, y = odeint_event(rising, y0, 0.0, event_fn=event_fn, **options)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not t.requires_grad
    assert torch.autograd.grad(y[1], y0)[0].item() == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint_event(rising, double(0.0), 0.0, event_fn=event_fn, **options)


FLAT = {
    "triple root": (lambda t, y: (y[0] - 0.5) ** 3, "0 at the event at t = 0.5"),
    "end of a slope": (lambda t, y: torch.relu(0.5 - y[0]), "-?0 at the event at t = 0.5"),
    "vertical": (lambda t, y: torch.sqrt(0.5 - y[0]), r"-inf at the event at t = 0.5"),
    "gradient across": (lambda t, y: (y[1] - 0.5) ** 3 + (y[0] - 0.5) ** 3, "0 at the event at t = 0.5"),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("door", DOORS)
def test_a_flat_event_function_refuses_its_derivative(name, door):
    event_fn, sentence = FLAT[name]
    y0 = double(0.0, 0.0, grad=True)
    t, y = odeint_event(rising, y0, 0.0, event_fn=event_fn, method="euler", options={"step_size": 0.25},
                        odeint_interface=door)  # fmt: skip
    assert t.item() == pytest.approx(0.5, abs=1e-15)
    with pytest.raises(RuntimeError, match=f"changes at the rate {sentence}.*crosses zero at an angle"):
        torch.autograd.grad(t, y0, retain_graph=True)
    if name != "vertical":  # whose own derivative is undefined
        assert torch.equal(torch.autograd.grad(0.0 * t + y[0].sum(), y0)[0], torch.ones(2, dtype=D))


def test_a_second_derivative_is_refused():
    y0 = double(2.0, grad=True)
    t, _ = decay_to(y0, 0.0, double(0.7), double(0.9))
    (first,) = torch.autograd.grad(t, y0, create_graph=True)
    with pytest.raises(RuntimeError, match="can be taken only once"):
        torch.autograd.grad(first, y0)


@pytest.mark.parametrize("door", DOORS)
def test_event_fn_of_odeint_differentiates_the_state_at_a_fixed_time(door):
    y0, t = double(2.0, grad=True), double(0.0, math.inf, grad=True)
    event_t, y = door(lambda t, y: -y, y0, t, event_fn=lambda t, y: y - 0.5, **TIGHT)
    assert event_t.item() == pytest.approx(math.log(4), rel=1e-9)
    from_start, from_time = torch.autograd.grad(y[1], (y0, t))
    assert from_start.item() == pytest.approx(0.25, rel=1e-7)
    torch.testing.assert_close(from_time, double(0.5, 0.0), rtol=1e-7, atol=1e-9)


def test_nothing_is_recorded_without_gradients():
    with torch.no_grad():
        t, y = decay_to(double(2.0, grad=True), 0.0, double(0.7, grad=True), double(0.9, grad=True))
    assert not (t.requires_grad or y.requires_grad)


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.jacfwd])
def test_events_inside_a_transform_are_refused(transform):
    with pytest.raises(ValueError, match=r"event_fn does not work inside torch\.func transforms"):
        transform(lambda y: decay_to(y, 0.0, double(1.0), double(0.5))[0])(
            double(2.0, 3.0) if transform is torch.func.vmap else double(2.0)
        )
