"""Derivatives by times of spans, outputs and schedules: those of the steps, as the step loop has them."""

import pytest
import torch
from torch.utils import _pytree as pytree

from compilers import needs_compiler
from fused.fields import FIELDS
from fused.test_fields import leaves_of, rows_of
from torchivp import ODE_METHODS, Event, GridSteps, Scheduled, SolveError, odeint, odeint_adjoint, solve_ivp
from torchivp.methods.ode.rosenbrock import Rosenbrock
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta

pytestmark = needs_compiler

D = torch.float64
METHODS = [name for name, method in ODE_METHODS.items() if issubclass(method, ExplicitRungeKutta | Rosenbrock)]
FEW = ["tsit5", "rodas5p"]
"""Methods of the fast tests."""


def numbers(*values):
    return torch.tensor(values, dtype=D)


def field(t, y, k):
    """It depends on time in every element, and on the state."""
    a, b = y.unbind(-1)
    now = t.reshape(a.shape)
    return torch.stack([-k * a * torch.cos(3 * now) + b * now, -a * b + torch.sin(now * now)], -1)


def weighted(x, shift=0.0):
    """A sum in which every element counts otherwise."""
    return (x.nan_to_num() * torch.cos(shift + torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)).sum()


def with_second(total, inputs, second):
    """The gradients of a number, and those of a sum of them."""
    found = torch.autograd.grad(total, inputs, create_graph=second, allow_unused=True, materialize_grads=True)
    if not second:
        return found
    again = sum(weighted(x, 1.0) for x in found)
    further = torch.autograd.grad(again, inputs, allow_unused=True, materialize_grads=True)
    return [*(x.detach() for x in found), *further]


def assert_close(found, expected, rtol):
    """Each to within its own size."""
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * (float(y.abs().amax()) if y.numel() else 0.0) + 1e-15)


def accepted(solution):
    stats = solution.stats
    return [x.accepted for x in stats] if solution.y.ndim > 2 else [stats.accepted]


ALL = {"start": True, "end": True, "outputs": True}
CASES = {
    "all": ALL,  # outputs at both ends of the span, too
    "outputs": {"outputs": True},
    "start": {"start": True},
    "end": {"end": True},
    "within": {**ALL, "at_ends": False},
    "every step": {**ALL, "every": True},
    "of rows": {**ALL, "own": True},
    "of rows, within": {**ALL, "own": True, "at_ends": False},
    "end of rows": {"end": True, "own": True},
}
"""Which times move, and where outputs are."""


def solved(backend, method, rows, back, case, *, dtype=D, times=D, second=False, **options):
    """The gradients of all results by the states, a parameter and the times; and the solution."""
    k, y0 = torch.tensor(1.3, dtype=dtype, requires_grad=True), torch.tensor([1.0, 0.4], dtype=dtype)
    if rows:
        y0 = y0 * torch.linspace(0.7, 1.2, rows, dtype=dtype).unsqueeze(1)
    start, end = (torch.tensor(x, dtype=times) for x in ((1.4, 0.2) if back else (0.2, 1.4)))
    if case.get("own"):
        start, end = (x + 0.02 * torch.arange(rows, dtype=times) for x in (start, end))
    share = torch.linspace(0.0, 1.0, 7, dtype=times)
    outputs = torch.lerp(start.unsqueeze(-1), end.unsqueeze(-1), share)
    outputs[..., 0], outputs[..., -1] = start, end
    outputs = (outputs if case.get("at_ends", True) else outputs[..., 1:-1]).clone()
    given = {"start": start, "end": end, "outputs": outputs}
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    start, end, outputs = (leaves[name] if case.get(name) else x for name, x in given.items())
    y0.requires_grad_()
    solution = solve_ivp(
        field,
        (start, end),
        y0,
        t_eval=None if case.get("every") else outputs,
        args=(k,),
        method=method,
        batch_dims=1 if rows else 0,
        backend=backend,
        **options,
    )
    assert (solution.stats[0] if rows else solution.stats).backend == backend
    total = weighted(solution.y) + weighted(solution.final, 2.0)
    total = total + weighted(solution.t**2).to(dtype) + weighted(solution.t_final**3, 1.0).to(dtype)
    return with_second(total, [y0, k, *leaves.values()], second), solution


def assert_alike(method, rows, back, case, rtol=1e-10, **options):
    (found, one), (expected, same) = (
        solved(backend, method, rows, back, case, **options) for backend in ("fused", "eager")
    )
    assert accepted(one) == accepted(same)
    assert_close(found, expected, rtol)


@pytest.mark.parametrize("rows", [None, 11])
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in FEW else pytest.mark.sweep) for name in METHODS]
)
def test_gradients_by_times_are_those_of_the_step_loop(method, rows):
    for case in CASES.values():
        for back in (False, True) if rows or not case.get("own") else ():
            assert_alike(method, rows, back, case, step_size=0.17)
            if ODE_METHODS[method].error_order is not None:
                assert_alike(method, rows, back, case, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "bosh3" else pytest.mark.sweep) for name in ("bosh3", "rodas4")]
)
def test_second_derivatives_are_those_of_the_step_loop(method):
    for name in ("all", "within", "every step", "of rows"):
        for rows in (3,) if CASES[name].get("own") else (None, 3):
            assert_alike(method, rows, False, CASES[name], second=True, step_size=0.4, rtol=1e-9)


@pytest.mark.parametrize("rows", [None, 5])
def test_steps_from_output_to_output(rows):
    for case in (CASES["all"], CASES["within"]):
        assert_alike("rk4", rows, True, case, controller=GridSteps())


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, D), (D, torch.float32), (torch.float32, torch.float32)])
def test_precisions_of_states_and_times(dtype, times):
    for method in FEW:
        for rows in (None, 5):
            rtol = 1e-10 if dtype == D else 1e-3
            assert_alike(method, rows, False, ALL, dtype=dtype, times=times, step_size=0.17, rtol=rtol)


@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize("options", [{"step_size": 0.35}, {"first_step": 10.0, "rtol": 1.0, "atol": 1.0}])
def test_gradients_by_times_are_differences(method, options):
    """Of a fixed sequence of steps, and of one long step whose error does not count."""
    y0 = numbers(1.0, 0.4)

    def results(start, end, outputs):
        solution = solve_ivp(
            field,
            (start, end),
            y0,
            t_eval=outputs,
            args=(numbers(1.3)[0],),
            method=method,
            backend="fused",
            **options,
        )
        assert solution.stats.accepted == (1 if "first_step" in options else 3)
        return solution.y, solution.final

    times = [x.requires_grad_() for x in (*numbers(0.2, 1.1), numbers(0.3, 0.5, 0.95))]
    assert torch.autograd.gradcheck(results, times, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(results, times, rtol=1e-5, atol=1e-6, fast_mode=True)


@pytest.mark.sweep
@pytest.mark.parametrize("method", ["rk4_classic", "rodas4"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_differentiated_alike(name, method):
    if (name, method) == ("in place", "rodas4"):
        pytest.skip("its Jacobian has no kernel")
    case = FIELDS[name]
    for rows in (None, 7):
        found = []
        for backend in ("fused", "eager"):
            y0 = pytree.tree_map(lambda x: x.clone().requires_grad_(), rows_of(case, rows))
            start, end = (x.requires_grad_() for x in numbers(*case.span))
            at = torch.linspace(*case.span, 7, dtype=D, requires_grad=True)
            size = 0.03 * (case.span[1] - case.span[0])
            solution = solve_ivp(
                case.func, (start, end), y0, t_eval=at, args=case.args, method=method, step_size=size,
                batch_dims=0 if rows is None else 1, backend=backend,
            )  # fmt: skip
            total = sum(weighted(x) for x in leaves_of((solution.y, solution.final)))
            found.append(with_second(total, [*leaves_of(y0), start, end, at], False))
        assert_close(*found, 1e-9)


# --- odeint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
@pytest.mark.parametrize(
    "t",
    [
        torch.linspace(0.2, 1.4, 7, dtype=D),
        torch.linspace(1.4, 0.2, 5),
        numbers(0.3),
        numbers(0.3, 0.9),
    ],
    ids=["forwards", "backwards, single precision", "one", "two"],
)
def test_times_of_odeint(door, t):
    def gradients(door, second=False, **options):
        k, y0, at = numbers(1.3)[0].requires_grad_(), numbers(1.0, 0.4).requires_grad_(), t.clone().requires_grad_()
        w = 2.0 * k  # computed elsewhere, in a closure

        def func(t, y):
            return field(t, y, 0.5 * w)

        y = door(func, y0, at, rtol=1e-4, atol=1e-5, **options)
        return with_second(weighted(y), [y0, k, at], second)

    for method, options in (("rk4", {}), ("rk4", {"step_size": 0.1}), ("dopri5", {}), ("rodas5p", {}), ("auto", {})):
        for second in (False, True):
            found = gradients(door, second, method=method, options={**options, "backend": "fused"})
            assert_close(found, gradients(odeint, second, method=method, options=options), 1e-9)


# --- what is asked for, and what is not ------------------------------------------------------------------------------


def test_a_span_without_length_and_no_outputs():
    for rows in (None, 2):
        y0 = numbers(1.0, 0.4) if rows is None else numbers([1.0, 0.4], [0.3, 2.0])
        for t_eval in (None, [], "start"):
            found = []
            for backend in ("fused", "eager"):
                start, end, at = (x.requires_grad_() for x in (*numbers(0.5, 0.5), numbers(0.5)))
                solution = solve_ivp(
                    field,
                    (start, end),
                    y0,
                    t_eval=at if t_eval == "start" else t_eval,
                    args=(1.3,),
                    batch_dims=0 if rows is None else 1,
                    backend=backend,
                )
                total = weighted(solution.y) + weighted(solution.final, 1.0) + weighted(solution.t_final)
                found.append(with_second(total, [start, end, at], False))
            assert_close(*found, 1e-12)
            assert float(found[0][1].abs()) > 0.1  # the last state moves with the end


def test_times_move_where_a_gradient_is_wanted_only():
    t = torch.linspace(0.0, 1.0, 5, dtype=D, requires_grad=True)

    def states(t):
        return solve_ivp(field, (0.0, 1.0), numbers(1.0, 0.4), t_eval=t, args=(1.3,), backend="fused").y

    with torch.no_grad():
        assert not states(t).requires_grad
    y = states(t)
    (found,) = torch.autograd.grad(weighted(y), t, retain_graph=True)
    assert torch.equal(found, *torch.autograd.grad(weighted(y), t))
    with pytest.raises(ValueError, match="strictly increasing"):
        states(t[[1, 1]])


def test_a_function_that_does_not_depend_on_time():
    """The time of an output is still that of a step, and a state in parts moves with it."""

    def func(t, y):
        return {"x": y["v"], "v": -y["x"]}

    for method in FEW:
        end, at = numbers(1.0)[0].requires_grad_(), numbers(0.3, 0.9).requires_grad_()
        y0 = {"x": numbers(1.0, 0.5), "v": numbers(0.0, 0.2)}
        solution = solve_ivp(func, (0.0, end), y0, t_eval=at, method=method, rtol=1e-11, atol=1e-12, backend="fused")
        by_end, by_outputs = torch.autograd.grad(solution.final["x"].sum() + solution.y["v"].sum(), (end, at))
        torch.testing.assert_close(by_end, solution.final["v"].sum().detach(), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(by_outputs, -solution.y["x"].sum(-1).detach(), rtol=1e-6, atol=0.0)


def test_rows_that_fail_do_not_spoil_the_gradients_of_others():
    for method in FEW:
        found = []
        for backend in ("fused", "eager"):
            start, end = numbers(0.0, 0.1, 0.0).requires_grad_(), numbers(0.9, 2.0, 0.8).requires_grad_()
            at = numbers([0.2, 0.9], [0.5, 2.0], [0.3, 0.8]).requires_grad_()
            solution = solve_ivp(
                lambda t, y: y * y + t.reshape(-1, 1),
                (start, end),
                numbers([0.5], [1.0], [0.6]),
                t_eval=at,
                method=method,
                batch_dims=1,
                throw=False,
                max_steps=300,
                backend=backend,
            )
            assert solution.success.tolist() == [True, False, True]
            kept = solution.success
            total = weighted(solution.y[kept]) + weighted(solution.final[kept], 1.0) + weighted(solution.t_final[kept])
            found.append(torch.autograd.grad(total, (start, end, at)))
        assert_close(*found, 1e-9)
        assert all(not x[1].any() for x in found[0])


def test_a_solve_that_fails_says_so():
    start, end = (x.requires_grad_() for x in numbers(0.0, 2.0))
    for backend in ("fused", "eager"):
        with pytest.raises(SolveError, match="max_steps = 3"):
            solve_ivp(field, (start, end), numbers(1.0, 0.4), args=(1.3,), max_steps=3, backend=backend)


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack((v, mu * (1.0 - x**2) * v - x + 0.1 * torch.sin(t.reshape(x.shape))), -1)


@pytest.mark.parametrize("happens", [False, True])
def test_rows_of_both_kinds_have_the_gradients_of_their_methods(happens):
    events = [Scheduled([3.0], lambda t, y, mu: 1.01 * y), Event(lambda t, y, mu: y[..., 0] - 1.995, direction=-1)]

    def gradients(method):
        mu, start, end = (x.requires_grad_() for x in (numbers(0.5, 300.0), numbers(0.0, 0.1), numbers(6.0, 5.5)))
        at = numbers([0.0, 1.0, 2.2, 6.0], [0.1, 1.2, 2.3, 5.5]).requires_grad_()
        solution = solve_ivp(
            van_der_pol, (start, end), numbers([2.0, 0.0]).repeat(2, 1), t_eval=at, args=(mu,), method=method,
            batch_dims=1, events=events if happens else None, backend="fused",
        )  # fmt: skip
        total = weighted(solution.y) + weighted(solution.final, 1.0) + weighted(solution.t_final, 2.0)
        return torch.autograd.grad(total, (mu, start, end, at)), [bool(stats.stiff) for stats in solution.stats]

    (found, stiff), (one, _), (other, _) = (gradients(method) for method in ("auto", "tsit5", "rodas5p"))
    assert stiff == [False, True]
    assert_close([x[0] for x in found], [x[0] for x in one], 1e-12)
    assert_close([x[1] for x in found], [x[1] for x in other], 1e-12)


# --- events and schedules --------------------------------------------------------------------------------------------

SCHEDULES = {
    "doses": lambda at, t: Scheduled(at, lambda t, y, v, k: y * (1.0 + 0.1 * v) + 0.05 * k, numbers(0.1, 0.2, 0.3)),
    "at outputs": lambda at, t: Scheduled(t[[2, 4]], lambda t, y, k: 1.02 * y),
    "at the ends": lambda at, t: Scheduled(t[[0, 6]].detach(), lambda t, y, k: 1.02 * y + 0.1 * t),
}
EVENTS = {
    "changes": Event(lambda t, y, k: y[..., 1] - 0.42, apply=lambda t, y, k: 0.9 * y + 0.01 * t),
    "is reported": Event(lambda t, y, k: y[..., 0] - 0.75),
    "ends": Event(lambda t, y, k: y[..., 0] - 0.75, terminal=True),
}
MANY = [("doses", "changes", "is reported"), ("at the ends", "at outputs", "is reported"), ("ends",)]


def happening(backend, names, method, rows, back, moving, second=False, **options):
    """The gradients of all that a solve with events tells, by the states, a parameter and the times that move."""
    k, y0 = numbers(1.3)[0].requires_grad_(), numbers(1.0, 0.4)
    if rows:
        y0 = y0 * torch.linspace(0.7, 1.2, rows, dtype=D).unsqueeze(1)
    y0.requires_grad_()
    t, at = torch.linspace(0.2, 1.4, 7, dtype=D), numbers(0.5, 0.8, 1.1)
    t, at = (t.flip(0), at.flip(0)) if back else (t, at)
    given = {"start": t[0], "end": t[-1], "outputs": t, "at": at}
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    start, end, t, at = (leaves[name] if name in moving else x for name, x in given.items())
    events = [SCHEDULES[name](at, t) if name in SCHEDULES else EVENTS[name] for name in names]
    solution = solve_ivp(
        field, (start, end), y0, t_eval=None if "every" in moving else t, args=(k,), method=method, events=events,
        batch_dims=1 if rows else 0, backend=backend, **options,
    )  # fmt: skip
    assert (solution.stats[0] if rows else solution.stats).backend == backend
    log = solution.events
    results = (solution.y, solution.final, solution.t, solution.t_final**3, log.t, log.y, log.y_after)
    total = sum(weighted(x, 0.5 * i) for i, x in enumerate(results))
    return with_second(total, [y0, k, *leaves.values()], second)


@pytest.mark.parametrize("rows", [pytest.param(None, marks=pytest.mark.sweep), 5])
@pytest.mark.parametrize("names", MANY, ids=", ".join)
@pytest.mark.parametrize("method", [pytest.param("tsit5", id="tsit5"), pytest.param("rodas4", marks=pytest.mark.sweep)])
def test_gradients_by_times_where_something_happens(method, names, rows):
    for moving in (("start", "end", "outputs", "at"), ("outputs",), ("start", "end", "at", "every"), ("at",)):
        for back, options in ((False, {"step_size": 0.17}), (True, {"rtol": 1e-4, "atol": 1e-5})):
            found, expected = (
                happening(backend, names, method, rows, back, moving, **options) for backend in ("fused", "eager")
            )
            assert_close(found, expected, 1e-8)  # events are found to rounding


@pytest.mark.parametrize("rows", [None, 3])
def test_second_derivatives_by_the_times_of_schedules(rows):
    moving = ("start", "end", "outputs", "at")
    found, expected = (
        happening(backend, ("at outputs", "doses"), "tsit5", rows, False, moving, second=True, step_size=0.3)
        for backend in ("fused", "eager")
    )
    assert_close(found, expected, 1e-9)


def test_a_gradient_that_calls_functions_again_sees_when_they_have_changed():
    k, at = numbers(1.3)[0], numbers(0.5).requires_grad_()
    solution = solve_ivp(
        field, (0.0, 1.0), numbers(1.0, 0.4), args=(k,), events=Scheduled(at, lambda t, y: 0.9 * y), backend="fused"
    )
    k.fill_(2.0)
    with pytest.raises(RuntimeError, match="was changed in place after the solve"):
        torch.autograd.grad(solution.final.sum(), at)
