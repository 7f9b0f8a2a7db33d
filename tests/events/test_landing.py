"""Steps end on events, to rounding, however the event function behaves there and however poor the interpolant is."""

import math

import pytest
import torch

from torchivp import Event, Outcome, odeint_event, solve_ivp

D = torch.float64


def decay(t, y):
    return -y


def stays(t, y):
    return y


HALF = {
    "smooth": lambda x: x,
    "steep": lambda x: torch.tanh(1e5 * x),
    "kinked": lambda x: torch.where(x > 0, x, 1000.0 * x),
    "kinked the other way": lambda x: torch.where(x > 0, 1000.0 * x, x),
    "cube root": lambda x: torch.sign(x) * x.abs() ** (1 / 3),
    "cube": lambda x: x**3,
    "jumps": lambda x: torch.where(x > 0, 1.0 + x, -3.0),
    "jumps to zero": lambda x: torch.where(x > 0, 1.0, 0.0),
    "true or false": lambda x: x > 0,
}
"""Functions that change their sign at zero."""


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("shape", HALF)
def test_the_state_at_an_event_is_on_it_whatever_the_function_looks_like(shape, batch_dims):
    def g(t, y):
        return HALF[shape](y[..., 0] - 0.5)

    y0 = torch.tensor([[1.0], [2.0]][: batch_dims + 1], dtype=D)
    y0 = y0 if batch_dims else y0[0]
    event = Event(g, apply=stays)
    solution = solve_ivp(
        decay, (0.0, 3.0), y0, method="bosh3", rtol=1e-3, atol=1e-3, events=event, batch_dims=batch_dims
    )
    assert len(solution.events.t) == batch_dims + 1
    exact = (1e-5 if shape == "cube" else 2e-15) * torch.ones(batch_dims + 1, dtype=D)
    assert ((solution.events.y[:, 0] - 0.5).abs() <= exact).all()
    assert torch.allclose(
        solution.events.t, (2 * torch.arange(1.0, batch_dims + 2, dtype=D)).log(), rtol=0.0, atol=1e-2
    )


@pytest.mark.parametrize("shape", HALF)
def test_odeint_event_ends_on_the_event_whatever_the_function_looks_like(shape):
    t, y = odeint_event(
        decay, torch.ones(1, dtype=D), torch.tensor(0.0, dtype=D), event_fn=lambda t, y: HALF[shape](y - 0.5),
        method="bosh3", rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    assert abs(y[-1].item() - 0.5) <= (1e-5 if shape == "cube" else 2e-15)
    assert abs(t.item() - math.log(2)) < 3e-3


@pytest.mark.parametrize("shape", ["smooth", "kinked", "jumps"])
@pytest.mark.parametrize("threshold", [1.9, 1.5, 1.1])
def test_an_event_in_a_stiff_transient_within_the_first_step(threshold, shape):
    rate = 1000.0
    event = Event(lambda t, y: HALF[shape](y[..., 0] - threshold), terminal=True)
    solution = solve_ivp(
        lambda t, y: -rate * (y - 1.0), (0.0, 0.1), torch.full((1,), 2.0, dtype=D), method="radauIIA5", step_size=0.01,
        rtol=1e-10, atol=1e-12, events=event,
    )  # fmt: skip
    assert solution.status.outcome is Outcome.EVENT
    assert abs(solution.final[0].item() - threshold) < 1e-12
    # Radau's step to there takes exp(-z) for a rational function, good to some per cent where the decay is to 0.01.
    assert solution.t_final.item() == pytest.approx(-math.log(threshold - 1.0) / rate, rel=5e-2)


@pytest.mark.parametrize("shape", ["smooth", "steep", "kinked", "jumps", "true or false"])
@pytest.mark.parametrize("beyond", [-1e-6, -1e-12, -1e-15, 0.0, 1e-15, 1e-12, 1e-6])
def test_an_event_next_to_the_end_of_a_step_is_landed_on_once(beyond, shape):
    at = 0.5 + beyond
    event = Event(lambda t, y: HALF[shape](at - y[..., 0]), apply=stays)
    solution = solve_ivp(
        lambda t, y: torch.ones_like(y), (0.0, 1.0), torch.zeros(1, dtype=D), method="midpoint", step_size=0.125,
        events=event,
    )  # fmt: skip
    assert solution.events is not None and len(solution.events.t) == 1
    assert abs(solution.events.t.item() - at) <= 4e-16
    assert abs(solution.final.item() - 1.0) <= 4e-16


def test_rows_land_on_their_own():
    thresholds = torch.tensor([0.9, 0.5, 0.3], dtype=D)
    shapes = [HALF["smooth"], HALF["jumps"], HALF["kinked"]]

    def g(t, y, threshold):
        x = y[..., 0] - threshold
        which = torch.where(threshold > 0.8, 0, torch.where(threshold > 0.4, 1, 2))
        return torch.stack([shape(x) for shape in shapes]).gather(0, which[None])[0]

    options = {"method": "bosh3", "rtol": 1e-3, "atol": 1e-3, "batch_dims": 1, "events": Event(g, terminal=True)}

    def f(t, y, threshold):
        return -y

    together = solve_ivp(f, (0.0, 5.0), torch.ones(3, 1, dtype=D), args=(thresholds,), **options)
    assert ((together.final[:, 0] - thresholds).abs() <= 2e-15).all()
    for i in range(3):
        alone = solve_ivp(f, (0.0, 5.0), torch.ones(1, 1, dtype=D), args=(thresholds[i : i + 1],), **options)
        assert torch.equal(alone.t_final, together.t_final[i : i + 1])
        assert torch.equal(alone.final, together.final[i : i + 1])


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize(("dtype", "unit"), [(D, 1e20), (torch.float32, 1e8)])
def test_events_do_not_depend_on_the_unit_of_their_function(dtype, unit, backend):
    """Just after an event a function is known up to its last digits, which are far from zero in a small unit."""

    def oscillation(t, y):
        return torch.stack((y[1], -4.0 * y[0]))

    def braked(t, y):
        return torch.stack((y[0], -0.9 * y[1]))

    def times(level, unit):
        event = Event(lambda t, y: unit * (y[0] - level), apply=braked)
        start = torch.tensor([1.0, 0.0], dtype=dtype)
        return solve_ivp(oscillation, (0.0, 3.0), start, events=event, method="tsit5", backend=backend).events.t

    for level in torch.tensor([0.3, 0.31, 0.37, -0.2], dtype=dtype):
        expected = times(level, torch.ones((), dtype=dtype))
        assert len(expected) >= 2
        torch.testing.assert_close(times(level, torch.tensor(unit, dtype=dtype)), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("t0", [0.0, 1e4, 1e6, 1e7])
@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_events_of_single_precision_are_where_the_state_is_there_at_late_times(method, t0, backend):
    """Of a function that jumps, which is sought by bisection, and of one that goes through zero."""

    def drift(t, y):
        return torch.stack([torch.ones_like(y[0]), torch.zeros_like(y[0])])

    def counted(by):
        return lambda t, y: torch.stack([y[0], y[1] + by])

    events = [
        Event(lambda t, y: torch.floor(y[0]) - 1.5, apply=counted(1.0)),
        Event(lambda t, y: y[0] - 3.25, apply=counted(10.0)),
    ]
    solution = solve_ivp(drift, (t0, t0 + 5.0), torch.zeros(2), events=events, method=method, backend=backend)
    assert solution.events.index.tolist() == [0, 1] and solution.final[1] == 11.0
    expected = t0 + torch.tensor([2.0, 3.25], dtype=torch.float64)
    assert torch.allclose(solution.events.t, expected, rtol=0.0, atol=2e-5)
