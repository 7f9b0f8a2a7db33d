"""Inputs that `func` switches at scheduled times: steps see their own side of them, and so do derivatives by them."""

import math

import numpy as np
import pytest
import torch

from torchivp import ODE_METHODS, Event, Scheduled, odeint, solve_ivp

D = torch.float64
BEFORE, AFTER, SWITCH, END = 3.0, -1.0, 0.7, 1.7
METHODS = [name for name in ODE_METHODS if name != "scipy_solver"]
FEW = ("tsit5", "rk4", "rodas5p", "kencarp4", "bdf")
ALONE = pytest.param(1, marks=pytest.mark.sweep)


def some(names):
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.sweep) for name in names]


def options_of(method):
    adaptive = ODE_METHODS[method].error_order is not None
    return {"rtol": 1e-8, "atol": 1e-10} if adaptive else {"step_size": 0.1}


def driven(at_switch):
    """y' = u(t) - y, where u is BEFORE before the switch at c, AFTER after it, and at it what `at_switch` says."""

    def func(t, y, c):
        is_before = t <= c.detach() if at_switch == "before" else t < c.detach()
        return torch.where(is_before, BEFORE, AFTER).to(y.dtype) - y

    return func


def exact(c, t=END, start=0.0):
    """From y(start) = 0, forwards or backwards; the input has its first value on the side of the start."""
    at_switch = BEFORE - BEFORE * np.exp(start - c)
    return AFTER + (at_switch - AFTER) * np.exp(c - t)


@pytest.mark.parametrize("at_switch", ["before", "after"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", some(METHODS))
def test_a_jump_costs_no_accuracy_and_no_step(method, batched, at_switch):
    """As accurate as where the same is solved in two parts, of which each has its own smooth function."""
    y0 = torch.zeros((2, 1) if batched else 1, dtype=D)
    c, options = torch.tensor(SWITCH, dtype=D), options_of(method) | {"method": method, "batch_dims": int(batched)}
    found = solve_ivp(driven(at_switch), (0.0, END), y0, args=(c,), events=Scheduled([SWITCH]), **options)
    first = solve_ivp(lambda t, y: BEFORE - y, (0.0, SWITCH), y0, **options)
    second = solve_ivp(lambda t, y: AFTER - y, (SWITCH, END), first.final, **options)
    error, of_parts = (abs(x.final.flatten()[0].item() - exact(SWITCH)) for x in (found, second))
    assert error <= 3 * of_parts + (3e-8 if method == "bdf" else 1e-8)
    stats, parts = ([x.stats[0] if batched else x.stats for x in each] for each in ([found], [first, second]))
    restart = 8 if method in ("bdf", "adams") else 2  # which go on at the lowest order, with the step of a higher one
    assert stats[0].rejected <= sum(x.rejected for x in parts) + restart


@pytest.mark.parametrize("start", [0.0, 1000.0])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_either_direction_in_single_precision(backend, direction, start):
    """The last digits of the times that functions are given are far coarser than those of steps."""

    def func(t, y):
        return torch.where(direction * (t - start) < 0.5, 1.0, 3.0).expand(y.shape)

    switch = Scheduled([start + direction * 0.5])
    y0 = torch.zeros(3, 1)
    for method in ("rk4", "tsit5"):
        sizes = {"step_size": 0.25} if method == "rk4" else {}
        span = (start, start + direction)
        solution = solve_ivp(func, span, y0, events=switch, method=method, batch_dims=1, backend=backend, **sizes)
        assert torch.allclose(solution.final, torch.full((3, 1), 2.0 * direction), rtol=1e-5)
        assert all(stats.rejected == 0 for stats in solution.stats)


def by_switch(method, gradient, backend="eager", rows=1):
    """The result, and its first two derivatives by the time of the switch."""
    c = torch.linspace(SWITCH, SWITCH + 0.1 * (rows - 1), rows, dtype=D).requires_grad_()
    options = options_of(method) | {"method": method, "gradient": gradient, "backend": backend}
    if rows > 1:
        y0, times = torch.zeros(rows, 1, dtype=D), c.unsqueeze(1)
        options["batch_dims"] = 1
        args = (c.unsqueeze(1),)
    else:
        y0, times, args = torch.zeros(1, dtype=D), c, (c,)
    found = solve_ivp(driven("after"), (0.0, END), y0, args=args, events=Scheduled(times), **options)
    (first,) = torch.autograd.grad(found.final.sum(), c, create_graph=gradient in ("direct", "checkpointed"))
    second = None
    if first.requires_grad and backend == "eager":
        (second,) = torch.autograd.grad(first.sum(), c)
    return c.detach().numpy(), found.final.detach().flatten(), first.detach(), second


def of_switch(c):
    """dy/dc = (u_before - u_after) exp(c - END), which is its own derivative."""
    return torch.from_numpy((BEFORE - AFTER) * np.exp(c - END))


@pytest.mark.parametrize("rows", [ALONE, 3])
@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("method", some(METHODS))
def test_the_derivative_by_the_time_of_a_switch(method, gradient, rows):
    if gradient == "backsolve" and ODE_METHODS[method].error_order is None:
        pytest.skip("that of the exact solution is not that of long steps")
    kind = ODE_METHODS[method]
    tolerance = 1e-5 if kind.error_order is not None else 0.2 if kind.order == 1 else 3e-2
    tolerance = 1e-3 if method == "bdf" else tolerance  # whose steps have derivatives less exact than they are
    c, y, first, second = by_switch(method, gradient, rows=rows)
    assert torch.allclose(y, torch.from_numpy(exact(c)), rtol=tolerance, atol=tolerance)
    assert torch.allclose(first, of_switch(c), rtol=tolerance)
    if second is not None and kind.error_order is not None and method != "bdf":
        assert torch.allclose(second, of_switch(c), rtol=1e-3)


@pytest.mark.parametrize("rows", [ALONE, 3])
@pytest.mark.parametrize("method", [*some(["tsit5", "rodas5p", "bosh3", "rosenbrock23"]), "rk4"])
def test_kernels_see_the_same_sides(method, rows):
    eager, fused = (by_switch(method, "direct", backend, rows) for backend in ("eager", "fused"))
    for a, b in zip(eager[1:3], fused[1:3], strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_derivatives_of_fixed_steps_are_those_of_the_steps():
    """By finite differences of the very steps, which end on the switch wherever it is."""

    def result(c):
        options = {"method": "rk4", "step_size": 0.3}
        c = torch.tensor([c], dtype=D, requires_grad=True)
        found = solve_ivp(
            lambda t, y: torch.where(t < c.detach(), torch.sin(3 * t), t) * (1 - y**2),
            (0.0, END),
            torch.zeros(1, dtype=D),
            events=Scheduled(c),
            **options,
        )
        return found.final, c

    y, c = result(SWITCH)
    (found,) = torch.autograd.grad(y.sum(), c)
    h = 1e-6
    difference = (result(SWITCH + h)[0] - result(SWITCH - h)[0]) / (2 * h)
    assert math.isclose(found.item(), difference.item(), rel_tol=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_equations_without_a_derivative_follow_an_input_that_jumps(batched):
    """0 = z - u(t): the state after the switch is consistent with the input after it."""

    def func(t, y):
        x, z = y.unbind(-1)
        u = torch.where(t < 0.5, 1.0, -2.0).reshape(t.shape[: z.ndim]).to(D)
        return torch.stack([z - x, z - u], -1)

    y0 = torch.tensor([0.0, 1.0], dtype=D)
    y0 = y0.expand(2, 2) if batched else y0
    mass = torch.diag(torch.tensor([1.0, 0.0], dtype=D))
    found = solve_ivp(
        func,
        (0.0, 1.0),
        y0,
        t_eval=torch.tensor([0.25, 0.5, 1.0], dtype=D),
        events=Scheduled([0.5]),
        mass=mass,
        method="rodas5p",
        batch_dims=int(batched),
        rtol=1e-8,
        atol=1e-10,
    ).y.reshape(-1, 3, 2)[0]
    at_half = 1 - math.exp(-0.5)
    x = torch.tensor([1 - math.exp(-0.25), at_half, -2 + (at_half + 2) * math.exp(-0.5)], dtype=D)
    assert torch.allclose(found[:, 0], x, rtol=1e-7)
    assert torch.allclose(found[:, 1], torch.tensor([1.0, -2.0, -2.0], dtype=D), rtol=1e-9)


@pytest.mark.parametrize("batched", [False, True])
def test_both_parts_of_a_sum_may_jump(batched):
    def parts(at):
        return (
            lambda t, y: torch.where(t < SWITCH, BEFORE, AFTER) + 0 * y,
            lambda t, y: torch.where(t < SWITCH, -1.0, -20.0) * y,
        )

    y0 = torch.zeros((2, 1) if batched else 1, dtype=D)
    options = {"method": "kencarp4", "rtol": 1e-8, "atol": 1e-10, "batch_dims": int(batched)}
    found = solve_ivp(parts(SWITCH), (0.0, END), y0, events=Scheduled([SWITCH]), **options)
    at_switch = BEFORE - BEFORE * math.exp(-SWITCH)
    expected = AFTER / 20 + (at_switch - AFTER / 20) * math.exp(20 * (SWITCH - END))
    assert abs(found.final.flatten()[0].item() - expected) < 1e-8
    assert (found.stats[0] if batched else found.stats).rejected <= 2


def test_every_row_switches_at_times_of_its_own():
    c = torch.tensor([[0.3], [0.7], [math.nan]], dtype=D)
    found = solve_ivp(
        driven("after"),
        (0.0, END),
        torch.zeros(3, 1, dtype=D),
        args=(torch.nan_to_num(c, nan=9.0),),
        events=Scheduled(c),
        batch_dims=1,
        rtol=1e-9,
        atol=1e-11,
    )
    expected = torch.tensor([exact(0.3), exact(0.7), BEFORE - BEFORE * math.exp(-END)], dtype=D)
    assert torch.allclose(found.final.flatten(), expected, rtol=1e-8)


@pytest.mark.parametrize("at", [0.0, END])
def test_a_switch_at_an_end_of_the_span_does_nothing(at):
    def func(t, y):
        inside = t > 0.0 if at == 0.0 else t < END
        return torch.where(inside, 1.0, 1e6) + 0 * y

    for method in ("rk4", "tsit5", "rodas5p", "bdf"):
        sizes = {"step_size": 0.1} if method == "rk4" else {}
        y0 = torch.zeros(1, dtype=D)
        found = solve_ivp(func, (0.0, END), y0, events=Scheduled([at]), method=method, **sizes)
        assert abs(found.final.item() - END) < 1e-9


def test_as_odeint_does_with_jump_t():
    y0, c = torch.zeros(1, dtype=D), torch.tensor(SWITCH, dtype=D)
    for method in ("rk4", "tsit5", "dopri8"):
        sizes = {"step_size": 0.1} if method == "rk4" else {}
        jumps = {"jump_t": torch.tensor([SWITCH], dtype=D)} | sizes
        t = torch.tensor([0.0, END], dtype=D)
        func = driven("after")
        one = odeint(lambda t, y: func(t, y, c), y0, t, method=method, rtol=1e-6, atol=1e-8, options=jumps)[-1]
        options = {"method": method, "rtol": 1e-6, "atol": 1e-8} | sizes
        other = solve_ivp(func, (0.0, END), y0, args=(c,), events=Scheduled([SWITCH]), **options).final
        assert torch.allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("method", some(["tsit5", "rodas5p", "radau5", "bdf", "adams"]))
def test_steps_after_a_jump_do_not_move_with_the_start(method):
    """A method begins anew there, with steps so short that a change of their size would show in the derivative."""

    def func(t, y):
        return torch.where(t < SWITCH, BEFORE, AFTER) * torch.sin(2 * t + 1) - y * (1 + 0.3 * torch.cos(3 * t))

    def result(start, tolerance, method):
        start = torch.tensor(start, dtype=D, requires_grad=True)
        t = torch.stack([start, torch.tensor(END, dtype=D)])
        jumps = {"jump_t": torch.tensor([SWITCH], dtype=D)}
        y0 = torch.ones(1, dtype=D)
        return odeint(func, y0, t, method=method, rtol=tolerance, atol=tolerance, options=jumps)[-1], start

    (found,) = torch.autograd.grad(*result(0.1, 1e-7, method))
    h = 1e-4
    near, far = ([result(0.1 + s * x, 1e-12, "dopri8")[0].item() for s in (1, -1)] for x in (h, 2 * h))
    expected = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h)
    assert math.isclose(found.item(), expected, rel_tol=2e-5)


GRADIENTS = ["direct", "checkpointed", "backsolve", "forward", "fused"]


def solved(func, span, batched, gradient, events, **options):
    """One row of a solution by one of the gradients, or by a kernel."""
    how = {"backend": "fused"} if gradient == "fused" else {"gradient": gradient}
    y0 = torch.ones((2, 1) if batched else 1, dtype=D)
    options = {"rtol": 1e-9, "atol": 1e-9, "method": "tsit5", "batch_dims": int(batched), **how, **options}
    found = solve_ivp(func, span, y0, events=events, **options)
    return found, found.final.flatten()[0]


def derivative(y, *times):
    return torch.stack([x.reshape(()) for x in torch.autograd.grad(y, times, retain_graph=True)]).tolist()


def decay(t, y):
    return -y


def switched(t, y):
    return torch.where(t < SWITCH, BEFORE, AFTER) + 0 * y


def doubled(t, y):
    return 2 * y


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_what_is_scheduled_at_an_end_of_the_span_does_not_move_with_it(gradient, batched):
    """The span grows over it: at its start backwards, at its end onwards."""
    start, end = torch.tensor([SWITCH, END], dtype=D, requires_grad=True).unbind()
    at_start, at_end = Scheduled([SWITCH], doubled), Scheduled([END], doubled)
    decayed = math.exp(SWITCH - END)
    _, y = solved(decay, (start, END), batched, gradient, at_start)
    assert math.isclose(derivative(y, start)[0], 2 * decayed, rel_tol=1e-6)
    _, y = solved(decay, (SWITCH, end), batched, gradient, at_end)
    assert math.isclose(derivative(y, end)[0], -2 * decayed, rel_tol=1e-6)
    _, y = solved(switched, (start, END), batched, gradient, Scheduled([SWITCH]))
    assert math.isclose(derivative(y, start)[0], -BEFORE, rel_tol=1e-6)
    end = torch.tensor(SWITCH, dtype=D, requires_grad=True)
    found, y = solved(switched, (0.0, end), batched, gradient, Scheduled([SWITCH]))
    assert math.isclose(derivative(y, end)[0], AFTER, rel_tol=1e-6)
    assert derivative(found.t_final.flatten()[0], end) == [1.0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_switch_that_moves_at_the_end_of_the_span_changes_nothing_but_by_its_slopes(gradient, batched):
    c = torch.tensor([SWITCH], dtype=D, requires_grad=True)
    found, y = solved(switched, (0.0, SWITCH), batched, gradient, Scheduled(c))
    assert math.isclose(derivative(y, c)[0], BEFORE - AFTER, rel_tol=1e-6)
    assert not found.t_final.requires_grad or derivative(found.t_final.flatten()[0], c) == [0.0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("at_switch", ["before", "after"])
def test_an_output_at_a_switch_moves_as_the_solution_does_after_it(at_switch, gradient, batched):
    def func(t, y):
        return torch.where(t <= SWITCH if at_switch == "before" else t < SWITCH, BEFORE, AFTER) - y

    t = torch.tensor([0.35, SWITCH, 1.2], dtype=D, requires_grad=True)
    found, _ = solved(func, (0.0, END), batched, gradient, Scheduled([SWITCH], doubled), t_eval=t)
    y = (found.y[0] if batched else found.y)[1, 0]
    (by_time,) = torch.autograd.grad(y, t)
    assert torch.allclose(by_time, torch.tensor([0.0, AFTER - y.item(), 0.0], dtype=D), rtol=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_times_that_coincide_have_no_derivative_unless_they_are_one(gradient):
    c, d = (torch.tensor([SWITCH], dtype=D, requires_grad=True) for _ in range(2))
    twice = torch.tensor([SWITCH, SWITCH], dtype=D, requires_grad=True)
    level = Event(lambda t, y: y[0] - math.exp(-SWITCH), apply=doubled)
    together = [
        [Scheduled(c, doubled), Scheduled(d, doubled)],
        [Scheduled(c, doubled), Scheduled([SWITCH], doubled)],
        [Scheduled(twice, doubled)],
    ]
    for events in together:
        with pytest.raises(ValueError, match=r"no derivative by scheduled times where several .* events\[0\].*detach"):
            solved(decay, (0.0, END), False, gradient, events)
        with torch.no_grad():
            assert math.isclose(solved(decay, (0.0, END), False, gradient, events)[1], 4 * math.exp(-END), rel_tol=1e-6)
    for shared in (c, torch.tensor([SWITCH], requires_grad=True)):
        events = [Scheduled(shared, doubled), Scheduled(shared, lambda t, y: y + 1)]
        _, y = solved(decay, (0.0, END), False, gradient, events)
        assert math.isclose(torch.autograd.grad(y, shared)[0].item(), math.exp(SWITCH - END), rel_tol=1e-6)
    found, _ = solved(decay, (0.0, END), False, gradient, [Scheduled([SWITCH], doubled), level])
    assert found.success


def test_functions_of_events_may_all_use_the_same_memory():
    shared = torch.zeros((), dtype=D)
    events = [Event(lambda t, y, level=level: shared.copy_(y[0] - level)) for level in (0.5, 0.25)]
    found = solve_ivp(decay, (0.0, END), torch.ones(1, dtype=D), events=events, rtol=1e-9, atol=1e-9)
    assert torch.allclose(found.events.t, torch.log(torch.tensor([2.0, 4.0], dtype=D)), rtol=1e-8)
