"""Forward mode, `torch.autograd.forward_ad`: the right tangent or a sentence, for every door, input and gradient.

The problem is y' = -a y from y0 = 1 at t0 = 0 to t1 = 1, whose solution exp(-a (t - t0)) y0 is known.
"""

import math
import re

import pytest
import torch
from torch.autograd import forward_ad

import torchivp
from problems import covering
from torchivp import Event, Scheduled, odeint, odeint_adjoint, odeint_dense, odeint_event, sdeint, sdeint_adjoint

D = torch.float64
A = 0.7
GRADIENTS = ["direct", "checkpointed", "backsolve"]
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def number(x):
    return torch.tensor(x, dtype=D)


INPUTS = {"y0": [1.3, 1.3], "a": A, "t0": 0.0, "t1": 1.0, "t_eval": 0.4}
"""The inputs that a tangent may come through."""


def field(t, y, a):
    return -a * y


class Captured:
    """A function that uses a tensor besides its arguments."""

    def __init__(self, a):
        self.a = a

    def __call__(self, t, y):
        return -self.a * y


def ivp(x, gradient, **options):
    """The states at t_eval and t1."""
    times = {"t_span": (x["t0"], x["t1"]), "t_eval": torch.stack([x["t_eval"], x["t1"]])}
    options = TIGHT | options
    return torchivp.solve_ivp(field, times["t_span"], x["y0"], t_eval=times["t_eval"], args=(x["a"],),
                              gradient=gradient, **options).y  # fmt: skip


def ode(door):
    def solve(x, gradient, **options):
        t = torch.stack([x["t0"], x["t_eval"], x["t1"]])
        return door(Captured(x["a"]), x["y0"], t, **TIGHT, **options)[1:]

    return solve


def rows(x, gradient, **options):
    y0 = torch.stack([x["y0"], 2 * x["y0"]])
    times = {"t_span": (x["t0"], x["t1"]), "t_eval": torch.stack([x["t_eval"], x["t1"]])}
    options = TIGHT | options
    y = torchivp.solve_ivp(lambda t, y: field(t, y, x["a"]), times["t_span"], y0, t_eval=times["t_eval"], batch_dims=1,
                           gradient=gradient, **options).y  # fmt: skip
    torch.testing.assert_close(y[1].detach(), 2 * y[0].detach(), rtol=1e-7, atol=0)
    return y[0]


def dense(x, gradient):
    sol = odeint_dense(Captured(x["a"]), x["y0"], x["t0"], 1.0, **TIGHT)
    return sol(torch.stack([x["t_eval"], x["t1"]]))


DOORS = {
    **{f"solve_ivp, {g}": (ivp, g, {}) for g in GRADIENTS},
    "solve_ivp, implicit": (ivp, "direct", {"method": "gl6", "step_size": 0.1}),
    "solve_ivp, adams": (ivp, "direct", {"method": "adams"}),
    "solve_ivp, fixed steps": (ivp, "direct", {"method": "rk4", "step_size": 0.05}),
    **{f"rows, {g}": (rows, g, {}) for g in GRADIENTS},
    "rows, implicit": (rows, "direct", {"method": "gl6", "step_size": 0.1}),
    **{f"events, {g}": (ivp, g, {"events": Event(lambda t, y, a: y[0] - 1.0)}) for g in GRADIENTS},
    "odeint": (ode(odeint), "direct", {}),
    "odeint_adjoint": (ode(odeint_adjoint), "backsolve", {}),
    "odeint_dense": (dense, "direct", {}),
}


def exact(x):
    """The states at t_eval and t1, a function of the inputs."""
    t = torch.stack([x["t_eval"], x["t1"]])
    return torch.exp(-x["a"] * (t - x["t0"])).unsqueeze(1) * x["y0"]


def tangent(solve, name, inputs=INPUTS):
    """The value, and the derivative by one of the inputs."""
    with forward_ad.dual_level():
        x = {name: number(value) for name, value in inputs.items()}
        x[name] = forward_ad.make_dual(x[name], torch.ones_like(x[name]))
        value, tangent = forward_ad.unpack_dual(solve(x))
        return value.detach().clone(), None if tangent is None else tangent.clone()


@pytest.mark.parametrize(  # without gradients each door with one input at least
    ("case", "no_grad"),
    covering(
        [(door, name) for name in INPUTS for door in DOORS],
        [("solve_ivp, direct", "a"), ("odeint", "t0"), ("rows, direct", "a"), ("events, direct", "y0")],
        [False, True],
    ),
    ids=str,
)
def test_the_tangent_of_every_input_through_every_door(case, no_grad):
    door, name = case
    solve, gradient, options = DOORS[door]
    with torch.set_grad_enabled(not no_grad):
        value, found = tangent(lambda x: solve(x, gradient, **options), name)
    right, expected = tangent(exact, name)
    torch.testing.assert_close(value, right, rtol=1e-7, atol=1e-9)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def bounced(x, gradient):
    """A state that an event resets, an impulse, and their times: everything as one vector."""
    events = [
        Event(lambda t, y, a: y[0] - x["level"], apply=lambda t, y, a: y + x["kick"]),
        Scheduled(x["when"].reshape(1), lambda t, y, dose, a: y + dose, values=x["dose"].reshape(1)),
    ]
    solution = torchivp.solve_ivp(field, (x["t0"], x["t1"]), x["y0"], t_eval=x["t1"].reshape(1), args=(x["a"],),
                                  events=events, gradient=gradient, **TIGHT)  # fmt: skip
    log = solution.events
    return torch.cat([solution.y.flatten(), log.t, log.y.flatten(), log.y_after.flatten()])


def exactly_bounced(x):
    a, y0 = x["a"], x["y0"]
    first = x["t0"] + torch.log(y0 / x["level"]) / a
    before = x["level"] + x["kick"]
    second = before * torch.exp(-a * (x["when"] - first))
    end = (second + x["dose"]) * torch.exp(-a * (x["t1"] - x["when"]))
    states = [end, first, x["when"].reshape(1), x["level"].reshape(1), second, before.reshape(1), second + x["dose"]]
    return torch.cat(states)


BOUNCED = {"y0": [1.3], "a": A, "t0": 0.0, "t1": 1.0, "level": 1.1, "kick": 0.5, "when": 0.6, "dose": 0.3}


def last(x, **options):
    """The last state, its time, and the solution halfway there."""
    solution = torchivp.solve_ivp(field, (x["t0"], x["t1"]), x["y0"], args=(x["a"],), dense_output=True, **TIGHT,
                                  **options)  # fmt: skip
    return torch.cat(
        [solution.final.flatten()[:1], solution.t_final.reshape(1), solution.sol(x["t_eval"]).flatten()[:1]]
    )


def exact_last(x):
    t = torch.stack([x["t1"], x["t_eval"]])
    end, inside = torch.exp(-x["a"] * (t - x["t0"])) * x["y0"][0]
    return torch.stack([end, x["t1"], inside])


def stopped_last(x):
    t1 = x["t0"] + torch.log(x["y0"][0] / 1.0) / x["a"]
    return exact_last(x | {"t1": t1, "y0": x["y0"][:1]})


STOP = Event(lambda t, y, a: y[0] - 1.0, terminal=True)
LAST = {
    "plain": (last, {}, exact_last),
    "events": (last, {"events": Event(lambda t, y, a: y[0] - 1.0)}, exact_last),
    "the end is an event": (last, {"events": STOP}, stopped_last),
    "batch": (last, {"batch_dims": 1}, exact_last),
}


@pytest.mark.parametrize("no_grad", [False, True], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", ["y0", "a", "t0", "t1", "t_eval"])
@pytest.mark.parametrize("kind", LAST)
def test_tangents_of_the_last_state_and_of_dense_output(kind, name, no_grad):
    solve, options, right = LAST[kind]
    inputs = INPUTS | {"y0": [1.3], "t_eval": 0.2}
    with torch.set_grad_enabled(not no_grad):
        _, found = tangent(lambda x: solve(x, **options), name, inputs)
    _, expected = tangent(right, name, inputs)
    found, expected = (torch.zeros(3, dtype=D) if x is None else x for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", BOUNCED)
def test_tangents_of_events_and_schedules(name, gradient):
    value, found = tangent(lambda x: bounced(x, gradient), name, BOUNCED)
    right, expected = tangent(exactly_bounced, name, BOUNCED)
    torch.testing.assert_close(value, right, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["y0", "a", "t0", "level"])
def test_the_tangent_of_the_time_and_the_state_of_odeint_event(name):
    def solve(x):
        t, y = odeint_event(Captured(x["a"]), x["y0"], x["t0"], event_fn=lambda t, y: y - x["level"] + 0.1 * t, **TIGHT)
        return torch.cat([t.reshape(1), y.flatten()])

    def exactly(x):
        t = number(0.2)
        for _ in range(30):  # Newton's method, whose last step has the tangent
            y = x["y0"] * torch.exp(-x["a"] * (t - x["t0"]))
            t = t - (y - x["level"] + 0.1 * t) / (0.1 - x["a"] * y)
        return torch.cat([t, x["y0"], x["y0"] * torch.exp(-x["a"] * (t - x["t0"]))])

    value, found = tangent(solve, name, BOUNCED)
    right, expected = tangent(exactly, name, BOUNCED)
    torch.testing.assert_close(value, right, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("no_grad", [False, True])
def test_the_tangent_of_the_end_at_an_event(no_grad):
    def solve(x):
        event = Event(lambda t, y, a: y[0] - 0.8, terminal=True)
        with torch.set_grad_enabled(not no_grad):
            solution = torchivp.solve_ivp(field, (0.0, 5.0), x["y0"], args=(x["a"],), events=event, **TIGHT)
        return torch.stack([solution.t_final, solution.final[0], solution.t[-1], solution.y[-1, 0]])

    def exactly(x):
        t = torch.log(x["y0"][0] / 0.8) / x["a"]
        y = x["y0"][0] * torch.exp(-x["a"] * t)
        return torch.stack([t, y, t, y])

    for name in ("y0", "a"):
        value, found = tangent(solve, name, {"y0": [1.3], "a": A})
        right, expected = tangent(exactly, name, {"y0": [1.3], "a": A})
        torch.testing.assert_close(value, right, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("no_grad", [False, True])
def test_the_tangent_of_the_last_states_of_rows_with_the_end(no_grad):
    with forward_ad.dual_level(), torch.set_grad_enabled(not no_grad):
        end = forward_ad.make_dual(number(1.0), number(1.0))
        solution = torchivp.solve_ivp(lambda t, y: -y, (0.0, end), torch.ones(2, 1, dtype=D), batch_dims=1, **TIGHT)
        states, times = (forward_ad.unpack_dual(x).tangent for x in (solution.final, solution.t_final))
    torch.testing.assert_close(states, torch.full((2, 1), -math.exp(-1), dtype=D), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(times, torch.ones(2, dtype=D))


@pytest.mark.parametrize("no_grad", [False, True], ids=["grad", "no_grad"])
def test_the_tangent_of_the_time_of_an_event_of_odeint(no_grad):
    def solve(x):
        t = torch.stack([x["t0"], x["t1"]])
        return odeint(Captured(x["a"]), x["y0"], t, event_fn=lambda t, y: y - 1.0, **TIGHT)[0]

    with torch.set_grad_enabled(not no_grad):
        _, found = tangent(solve, "y0", BOUNCED)
    torch.testing.assert_close(found, number(1.0 / (A * 1.3)), rtol=1e-6, atol=0)


def test_tangents_of_times_go_through_func_next_to_its_jumps():
    def solve(x):
        t = torch.stack([x["t0"], x["t1"]])
        y = odeint(lambda t, y: (t > 0.5) * t**2 + 0.0 * y, x["y0"], t, options={"jump_t": number([0.5])}, **TIGHT)
        return y[-1]

    t0, t1 = (tangent(solve, name, BOUNCED)[1] for name in ("t0", "t1"))
    torch.testing.assert_close(t0, number([0.0]), rtol=0, atol=1e-8)
    torch.testing.assert_close(t1, number([1.0]), rtol=1e-8, atol=0)


def test_an_event_that_touches_zero_has_no_tangent():
    with forward_ad.dual_level():
        y0 = forward_ad.make_dual(number([1.0]), number([1.0]))
        with pytest.raises(RuntimeError, match="so the time of the event has no finite derivative"):
            torchivp.solve_ivp(lambda t, y: torch.zeros_like(y), (0.0, 1.0), y0,
                               events=Event(lambda t, y: torch.where(t < 0.5, 1.0, -1.0) * y[0]))  # fmt: skip


@pytest.mark.parametrize("door", [d for d in DOORS if "implicit" not in d and "adams" not in d and "fixed" not in d])
def test_tangents_beside_a_gradient_are_right_or_refused(door):
    """Of a leaf: `direct` has both, and a gradient with a backward pass of its own says that it has not."""
    solve, gradient, options = DOORS[door]
    with forward_ad.dual_level():
        x = {name: number(value) for name, value in INPUTS.items()} | {"a": number(A).requires_grad_()}
        x["y0"] = forward_ad.make_dual(x["y0"], torch.ones_like(x["y0"]))
        if gradient != "direct":
            with pytest.raises(ValueError, match=r"has no derivative in forward mode .* beside its gradient: use "):
                solve(x, gradient, **options)
            return
        y, dy = forward_ad.unpack_dual(solve(x, gradient, **options))
        (slope,) = torch.autograd.grad(dy[-1].sum(), x["a"], retain_graph=True)
        (gradient,) = torch.autograd.grad(y[-1].sum(), x["a"])
    assert forward_ad.unpack_dual(gradient).primal.item() == pytest.approx(-2.6 * math.exp(-A), rel=1e-6)
    assert slope.item() == pytest.approx(-2 * math.exp(-A), rel=1e-6)


@pytest.mark.parametrize("name", ["y0", "a", "t_eval"])
@pytest.mark.parametrize("door", ["solve_ivp, direct", "rows, direct", "events, direct", "odeint", "odeint_adjoint"])
def test_scipy_solver_has_no_tangents_and_says_so(door, name):
    solve, gradient, options = DOORS[door]
    sentence = "forward mode (torch.autograd.forward_ad) cannot follow the steps of ScipySolver: choose another method"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tangent(lambda x: solve(x, gradient, method="scipy_solver", **options), name)


def test_the_jacobian_in_forward_mode():
    def solve(y0, a, t):
        return odeint(Captured(a), y0, torch.stack([number(0.0), t]), **TIGHT)[-1]

    inputs = (number([1.3, 0.4]), number(A), number(1.0))
    found = torch.autograd.functional.jacobian(solve, inputs, vectorize=True, strategy="forward-mode")
    right = torch.autograd.functional.jacobian(solve, inputs)
    for f, r in zip(found, right, strict=True):
        torch.testing.assert_close(f, r, rtol=1e-6, atol=1e-9)
    y0 = number([[1.3, 0.4], [2.0, 1.0]])
    found = torch.autograd.functional.jacobian(
        lambda y0: torchivp.solve_ivp(field, (0.0, 1.0), y0, t_eval=[1.0], args=(A,), batch_dims=1, **TIGHT).y[:, 0],
        y0,
        vectorize=True,
        strategy="forward-mode",
    )
    torch.testing.assert_close(found, math.exp(-A) * torch.eye(4, dtype=D).reshape(2, 2, 2, 2), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"batch_dims": 1}, {"events": lambda t, y: y.sum() - 100.0}])
def test_a_tensor_that_is_used_only_later_has_its_tangent(options):
    with forward_ad.dual_level():
        late = forward_ad.make_dual(number(0.0), number(1.0))

        def func(t, y):
            return -(A + late * (t - 0.5) ** 4 if float(t.max()) > 0.5 else A) * y

        y = torchivp.solve_ivp(func, (0.0, 1.0), number([[1.3]]), t_eval=[1.0], max_step=0.02, **TIGHT, **options).y
        found = forward_ad.unpack_dual(y).tangent
    assert found.item() == pytest.approx(-1.3 * math.exp(-A) * 0.5**5 / 5, rel=1e-6)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev])
def test_transforms_of_times(transform):
    def solve(t):
        return odeint(Captured(number(A)), number([1.3]), torch.stack([number(0.0), t]), **TIGHT)[-1]

    assert transform(solve)(number(1.0)).item() == pytest.approx(-A * 1.3 * math.exp(-A), rel=1e-7)


class Geometric:
    """dY = -a Y dt + b Y dW."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, a, b):
        self.a, self.b = a, b

    def f(self, t, y):
        return -self.a * y

    def g(self, t, y):
        return self.b * y


SDE = {
    "direct": lambda sde, y0, **k: sdeint(sde, y0, [0.0, 0.5, 1.0], dt=1e-2, **k),
    "adaptive": lambda sde, y0, **k: sdeint(
        sde, y0, [0.0, 1.0], dt=1e-2, adaptive=True, rtol=1e-2, atol=1e-2, method="milstein", **k
    ),
    "checkpointed": lambda sde, y0, **k: sdeint(sde, y0, [0.0, 0.5, 1.0], dt=1e-2, gradient="checkpointed", **k),
    "adjoint": lambda sde, y0, **k: sdeint_adjoint(sde, y0, [0.0, 0.5, 1.0], dt=1e-2, **k),
}


@pytest.mark.parametrize("name", ["y0", "a", "b"])
@pytest.mark.parametrize("door", SDE)
def test_tangents_of_sdes(door, name):
    bm = torchivp.BrownianInterval(0.0, 1.0, (2, 1), dtype=D, entropy=3, levy_area_approximation="space-time")

    def solve(x):
        return SDE[door](Geometric(x["a"], x["b"]), x["y0"], bm=bm)[-1]

    with forward_ad.dual_level():
        x = {"y0": number([[1.0], [2.0]]), "a": number(A), "b": number(0.3)}
        x[name] = forward_ad.make_dual(x[name], torch.ones_like(x[name]))
        y, found = forward_ad.unpack_dual(solve(x))
        W = bm(0.0, 1.0)
        exact = {"y0": 1 / x["y0"], "a": -1.0, "b": W - 0.3}[name] * y
        torch.testing.assert_close(found, exact.detach(), rtol=0.1, atol=0.02)
        x["a"] = number(A).requires_grad_()
        if door in ("checkpointed", "adjoint") and name != "a":
            with pytest.raises(ValueError, match=r"has no derivative in forward mode .* sdeint with gradient='direct'"):
                solve(x)


def test_times_of_sdes_and_sizes_of_steps_have_no_tangent():
    with forward_ad.dual_level():
        sde, y0 = Geometric(A, 0.1), torch.ones(1, 1, dtype=D)
        one = forward_ad.make_dual(number(1.0), number(1.0))
        with pytest.raises(ValueError, match="ts must not require a gradient"):
            sdeint(sde, y0, torch.stack([number(0.0), one]))
        with pytest.raises(ValueError, match="dt must not require a gradient"):
            sdeint(sde, y0, [0.0, 1.0], dt=one)
        with pytest.raises(ValueError, match="rtol must not require a gradient"):
            odeint(Captured(A), y0, [0.0, 1.0], rtol=one)
