"""What a function of the user's is given, in which context it runs, and what it may do."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from torchivp import (
    Event,
    Scheduled,
    SDEIto,
    SDEStratonovich,
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    sdeint,
    sdeint_adjoint,
    solve_ivp,
)
from torchivp.compat.torchdiffeq import odeint as compat_odeint

RK4 = {"method": "rk4", "options": {"step_size": 0.001}}


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def decay(t, y):
    return -y


class Linear(SDEIto):
    """dY = -Y dt + 0.1 dW, several noises."""

    def __init__(self):
        super().__init__("general")

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.1 * torch.ones(*y.shape, 3)


DOORS = {
    "odeint": lambda func, y0: odeint(func, y0, [0.0, 1.0])[-1],
    "odeint, rk4": lambda func, y0: odeint(func, y0, [0.0, 1.0], **RK4)[-1],
    "odeint, radauIIA5": lambda f, y: odeint(f, y, [0.0, 1.0], method="radauIIA5", options={"step_size": 0.1})[-1],
    "odeint, adams": lambda func, y0: odeint(func, y0, [0.0, 1.0], method="adams", rtol=1e-5, atol=1e-7)[-1],
    "odeint, scipy": lambda func, y0: odeint(func, y0, [0.0, 1.0], method="scipy_solver", rtol=1e-5, atol=1e-7)[-1],
    "odeint_adjoint": lambda func, y0: odeint_adjoint(func, y0, [0.0, 1.0])[-1],
    "odeint_dense": lambda func, y0: odeint_dense(func, y0, 0.0, 1.5)(torch.tensor(1.0)),
    "odeint_event": lambda f, y0: odeint_event(f, y0, torch.tensor(0.0), event_fn=lambda t, y: t - 1.0)[1][-1],
    "solve_ivp": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0).y[-1],
    "rows": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0[None], batch_dims=1).y[0, -1],
    "events": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0, events=Event(lambda t, y: y[0] - 0.5)).y[-1],
    "schedule": lambda f, y0: solve_ivp(f, (0.0, 1.0), y0, events=Scheduled([0.5], lambda t, y: y * 1.0)).y[-1],
    "checkpointed": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0, gradient="checkpointed").y[-1],
    "backsolve": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0, gradient="backsolve").y[-1],
}


@pytest.mark.parametrize("door", DOORS)
def test_autocast_leaves_the_engine_in_the_precision_of_the_state(door):
    seen = set()

    def func(t, y):
        seen.add((y.dtype, t.dtype, torch.is_autocast_enabled("cpu")))
        return -y

    with autocast():
        y = DOORS[door](func, torch.ones(1))
    assert y.dtype == torch.float32
    assert abs(y.item() - math.exp(-1.0)) < 1e-4
    assert seen == {(torch.float32, torch.float32, True)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("within", [True, False], ids=["backward within", "backward after"])
def test_gradients_replay_func_in_the_autocast_of_the_caller(door, within):
    rate = torch.tensor([0.7], requires_grad=True)
    y0 = torch.ones(1, requires_grad=True)
    contexts = set()

    def func(t, y):
        contexts.add(torch.is_autocast_enabled("cpu"))
        return -rate * y

    with autocast():
        y = DOORS[door](func, y0)
        if within:
            y.sum().backward()
    if not within:
        y.sum().backward()
    assert contexts == {True}
    value = math.exp(-0.7)
    # What autograd recorded of the steps themselves it differentiates in the precision of whoever calls backward().
    loose = 3e-2 if within else 1e-3
    assert y0.grad is not None and rate.grad is not None
    assert abs(y0.grad.item() - value) < loose and abs(rate.grad.item() + value) < loose


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_network_under_autocast_is_trained_like_one_without(gradient, batch_dims):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    y0 = torch.randn(4, 2)

    def gradients(enabled):
        net.zero_grad()
        dtypes = set()

        def func(t, y):
            dtypes.add(net(y).dtype)
            return net(y)

        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = solve_ivp(
                func,
                (0.0, 1.0),
                y0,
                t_eval=[1.0],
                gradient=gradient,
                batch_dims=batch_dims,
                method="rk4",
                step_size=0.1,
            ).y
        y.pow(2).sum().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in net.parameters()]), dtypes

    y, expected, full = gradients(False)
    y_cast, found, cast = gradients(True)
    assert full == {torch.float32} and cast == {torch.bfloat16}
    assert y_cast.dtype == torch.float32
    assert (y_cast - y).abs().max() < 0.02 and (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("solve", [sdeint, sdeint_adjoint])
def test_autocast_leaves_the_paths_of_an_sde_alone(solve):
    ts, y0 = torch.tensor([0.0, 1.0]), torch.ones(3, 2)
    options = {"dt": 0.05, "rng": "counter"}
    expected = solve(Linear(), y0, ts, generator=torch.Generator().manual_seed(5), **options)
    with autocast():
        found = solve(Linear(), y0, ts, generator=torch.Generator().manual_seed(5), **options)
    assert torch.equal(found, expected)


def test_autocast_around_the_backward_pass_alone_changes_nothing():
    rate = torch.tensor([0.7], requires_grad=True)
    for gradient in ("checkpointed", "backsolve"):
        rate.grad = None
        y = solve_ivp(lambda t, y: -rate * y, (0.0, 1.0), torch.ones(1), gradient=gradient, rtol=1e-6, atol=1e-8).y[-1]
        with autocast():
            y.backward()
        assert rate.grad is not None and abs(rate.grad.item() + math.exp(-0.7)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"events": Event(lambda t, y: y[0] - 0.5)}, {"batch_dims": 1}])
def test_dense_output_evaluated_under_autocast(options):
    solution = solve_ivp(decay, (0.0, 1.0), torch.ones(1), dense_output=True, **options)
    with autocast():
        y = solution.sol(0.3)
    assert y.dtype == torch.float32 and abs(y.item() - math.exp(-0.3)) < 1e-4


def test_a_solve_within_func_has_the_autocast_of_func():
    seen = set()

    def inner(t, y):
        seen.add(torch.is_autocast_enabled("cpu"))
        return -y

    def outer(t, y):
        with torch.autocast("cpu", enabled=False):
            odeint(inner, y, [0.0, 0.1], method="euler")
        return -y

    with autocast():
        odeint(outer, torch.ones(1), [0.0, 1.0], method="euler")
    assert seen == {False}


WRITING = {
    "odeint": lambda f: odeint(f, torch.ones(2, dtype=torch.float64), [0.0, 1.0]),
    "odeint, euler": lambda f: odeint(f, torch.ones(2, dtype=torch.float64), [0.0, 1.0], method="euler"),
    "odeint, scipy": lambda f: odeint(f, torch.ones(2, dtype=torch.float64), [0.0, 1.0], method="scipy_solver"),
    "odeint_adjoint": lambda f: odeint_adjoint(f, torch.ones(2, dtype=torch.float64), [0.0, 1.0], adjoint_params=()),
    "solve_ivp": lambda f: solve_ivp(f, (0.0, 1.0), torch.ones(2, dtype=torch.float64), t_eval=[0.0, 1.0]).y,
    "a tuple": lambda f: torch.stack(
        solve_ivp(
            lambda t, y: (f(t, y[0]),), (0.0, 1.0), (torch.ones(2, dtype=torch.float64),), t_eval=[0.0, 1.0]
        ).y
    )[0],
    "rows": lambda f: solve_ivp(
        f, (0.0, 1.0), torch.ones(2, 1, dtype=torch.float64), t_eval=[0.0, 1.0], batch_dims=1
    ).y[:, :, 0].T,
    "events": lambda f: solve_ivp(
        f, (0.0, 1.0), torch.ones(2, dtype=torch.float64), t_eval=[0.0, 1.0], events=lambda t, y: y[0] - 0.5
    ).y,
    "vmap": lambda f: torch.func.vmap(lambda y: odeint(f, y, [0.0, 1.0]), out_dims=1)(
        torch.ones(2, dtype=torch.float64)
    ),
    "jvp": lambda f: torch.func.jvp(
        lambda y: odeint(f, y, [0.0, 1.0]), (torch.ones(2, dtype=torch.float64),), (torch.ones(2, dtype=torch.float64),)
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("door", WRITING)
def test_func_may_write_into_its_time(door):
    def func(t, y):
        t /= 2.0
        return -y * t

    y = WRITING[door](func)
    # y' = -y t / 2
    loose = 0.05 if "euler" in door else 1e-5
    expected = 1.0 if "euler" in door else math.exp(-0.25)
    assert (y[-1] - expected).abs().max() < loose


@pytest.mark.parametrize("door", WRITING)
def test_func_that_writes_into_the_state_is_refused(door):
    def func(t, y):
        y *= 2.0
        return -y

    with pytest.raises(ValueError, match=r"changes y in place, but y is the state of the solve: write y = y \+ 1"):
        WRITING[door](func)


@pytest.mark.parametrize("door", [door for door in WRITING if door not in ("vmap", "jvp")])
@pytest.mark.parametrize("writable", [lambda y: y.data, lambda y: y.detach().numpy()], ids=["data", "numpy"])
def test_func_that_writes_into_the_state_behind_autograds_back_is_refused(door, writable):
    def func(t, y):
        derivative = writable(y)
        derivative *= -1.0
        return torch.as_tensor(derivative)

    with pytest.raises(ValueError, match="changes y in place, but y is the state of the solve"):
        WRITING[door](func)


def test_a_refused_func_has_not_overwritten_the_initial_state_of_the_caller():
    def func(t, y):
        y *= 2.0
        return -y

    class Writing(SDEIto):
        def f(self, t, y):
            return func(t, y)

        def g(self, t, y):
            return 0.1 * y

    y0, span = torch.ones(1, 2), torch.tensor([0.0, 1.0])
    for solve in (
        lambda: solve_ivp(func, span, y0),
        lambda: solve_ivp(func, span, y0, method="rk4", step_size=0.1),
        lambda: solve_ivp(func, span, y0, batch_dims=1),
        lambda: solve_ivp(func, span, y0, events=lambda t, y: t - 0.5),
        lambda: odeint_event(func, y0, torch.tensor(0.0), event_fn=lambda t, y: t - 0.5),
        lambda: torch.func.vmap(lambda y: odeint(func, y, span))(y0),
        lambda: sdeint(Writing("diagonal"), y0, span, dt=0.1),
    ):
        with pytest.raises(ValueError, match="changes y in place"):
            solve()
        assert torch.equal(y0, torch.ones(1, 2))


@pytest.mark.parametrize("door", [door for door in WRITING if door not in ("vmap", "jvp", "odeint, euler")])
def test_func_that_writes_later_on_is_refused(door):
    def func(t, y):
        if t.max() > 0.3:
            y[..., 0] = 1.0
        return -y

    with pytest.raises(ValueError, match="changes y in place"):
        WRITING[door](func)


def test_writing_into_the_time_only_later_on_is_refused():
    def func(t, y):
        if t > 0.3:
            t /= 2.0
        return -y

    with pytest.raises(ValueError, match=r"changes t in place, and did not when it was first called: write t = t / 60"):
        odeint(func, torch.ones(1), [0.0, 1.0])


def test_an_event_function_that_writes_into_the_state_is_refused():
    def g(t, y):
        y -= 0.5
        return y[0]

    for solve in (
        lambda: solve_ivp(decay, (0.0, 1.0), torch.ones(1), events=g),
        lambda: odeint_event(decay, torch.ones(1), torch.tensor(0.0), event_fn=g),
    ):
        with pytest.raises(ValueError, match=r"(events\[0\].g|event_fn)\(t, y\) changes y in place"):
            solve()


def test_the_drift_of_an_sde_that_writes_later_on_is_refused():
    class Writing(SDEStratonovich):
        def f(self, t, y):
            if t > 0.5:
                y.mul_(2.0)
            return -y

        def g(self, t, y):
            return 0.1 * y

    with pytest.raises(ValueError, match=r"f\(t, y\) changes y in place"):
        sdeint(Writing("diagonal"), torch.ones(2, 1), torch.tensor([0.0, 1.0]), dt=0.1)


def test_the_initial_state_is_never_overwritten_in_inference_mode():
    def func(t, y):
        y *= 2.0  # in a copy, since inference tensors do not tell
        return -y / 2.0

    with torch.inference_mode():
        y0 = torch.ones(1)
        y = odeint(func, y0, [0.0, 1.0])
        assert y0.item() == 1.0 and abs(y[-1].item() - math.exp(-1.0)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_compiled_model_solves_outside_of_its_graphs(batch_dims):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, x):
            return (
                solve_ivp(lambda t, y: self.net(y).tanh(), (0.0, 1.0), 2.0 * x, batch_dims=batch_dims).final.sum() + 1.0
            )

    torch.manual_seed(0)
    model, x = Model(), torch.randn(5, 2)
    expected = model(x)
    counter = CompileCounter()
    found = torch.compile(model, backend=counter)(x)
    assert torch.allclose(found, expected)
    assert counter.op_count <= 4  # 2 x before, and the sum and + 1 after


def test_a_compiled_func_runs_compiled():
    counter = CompileCounter()
    func = torch.compile(lambda y: y.sin() - y, backend=counter)
    odeint(lambda t, y: func(y), torch.ones(2), [0.0, 1.0])
    assert counter.frame_count == 1 and counter.op_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_a_compiled_func_that_gives_its_memory_away_has_its_gradient(gradient):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, y0, found = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=torch.float64), []

    def plain(y):
        return net(y).sin().cos()

    for func in (plain, torch.compile(plain, backend="aot_eager", dynamic=True)):
        solution = solve_ivp(lambda t, y, func=func: func(y), (0.0, 1.0), y0, batch_dims=1, gradient=gradient)
        found.append(torch.autograd.grad(solution.final.sum(), list(net.parameters())))
    torch.testing.assert_close(*found)


def test_export_is_refused_with_a_sentence():
    class Model(nn.Module):
        def forward(self, x):
            return odeint(decay, x, torch.tensor([0.0, 1.0]), method="rk4")

    with pytest.raises(RuntimeError, match=r"torch\.export cannot follow a solve"):
        torch.export.export(Model(), (torch.ones(2),), strict=False)


def test_warnings_point_at_the_line_of_the_user():
    elsewhere = torch.ones(1, requires_grad=True).exp()
    calls = {
        "an option": lambda: odeint(decay, torch.ones(1), [0.0, 1.0], options={"unknown": 1}),
        "a tensor computed elsewhere": lambda: odeint_adjoint(
            lambda t, y: -elsewhere * y, torch.ones(1, requires_grad=True), [0.0, 1.0]
        ),
        "the same of rows": lambda: solve_ivp(
            lambda t, y: -elsewhere * y,
            (0.0, 1.0),
            torch.ones(1, 1, requires_grad=True),
            batch_dims=1,
            gradient="backsolve",
        ),
        "an option of an SDE": lambda: sdeint(Linear(), torch.ones(1, 2), [0.0, 1.0], options={"unknown": 1}),
        "the stand-in": lambda: compat_odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), options={"unknown": 1}),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [warning.filename for warning in caught] == [__file__], name
