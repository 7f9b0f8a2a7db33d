"""Corners where solvers hang, lie or leak."""

import gc
import math
import re
import weakref

import numpy as np
import pytest
import torch

from torchivp import (
    ODE_METHODS,
    Backsolve,
    Checkpointed,
    GridSteps,
    Outcome,
    PIDController,
    SolveError,
    odeint,
    odeint_adjoint,
    solve_ivp,
)

D = torch.float64
Y0 = torch.ones(2, dtype=D)


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    ("t", "y0", "options"),
    [
        ([1.0, 2.0], Y0, {"first_step": 1e-20}),
        ([1.0, 2.0], Y0, {"max_step": 1e-20}),
        ([1e15, 1e15 + 10], Y0, {"first_step": 1e-3}),
    ],
)
def test_steps_that_do_not_move_time_end_the_solve(t, y0, options):
    with pytest.raises(SolveError, match=r"step size underflow at t = .* is less than the spacing of numbers there"):
        odeint(decay, y0, t, options=options)


@pytest.mark.parametrize("t", [[1e15, 1e15 + 10], [1e11, 1e11 + 10], [-1e11, -1e11 + 10]])
def test_a_quiescent_state_far_from_the_origin_of_time(t):
    assert torch.equal(odeint(decay, 0 * Y0, t)[-1], 0 * Y0)


def test_a_span_between_neighbouring_numbers():
    t = [1.0, math.nextafter(1.0, 2.0)]
    torch.testing.assert_close(odeint(decay, Y0, t)[-1], Y0)
    t = torch.tensor([0.0, 5e-324], dtype=D)
    torch.testing.assert_close(odeint(decay, Y0, t)[-1], Y0)


def test_a_span_beyond_the_range_of_numbers_is_refused():
    with pytest.raises(ValueError, match="spans more than a float can hold"):
        odeint(decay, Y0, [-1.7e308, 1.7e308])


@pytest.mark.parametrize(
    "options", [{}, {"batch_dims": 1}, {"events": lambda t, y: t - 0.5}], ids=["one", "rows", "events"]
)
def test_times_beyond_the_precision_of_the_state(options):
    with pytest.raises(
        ValueError, match=r"of y0, torch.float32, whose numbers end at 3.40282e\+38, .* reach 1e\+39: take"
    ):
        solve_ivp(decay, (0.0, 1e39), Y0.float(), **options)
    with pytest.warns(
        UserWarning, match="of y0, torch.float16, which has less than 32 numbers .* or none for the last"
    ):
        end = solve_ivp(decay, (0.0, 1e5), Y0.half(), throw=False, **options)
    assert torch.as_tensor(end.success).all()


@pytest.mark.parametrize("options", [{}, {"batch_dims": 1}], ids=str)
def test_late_times_that_single_precision_cannot_tell_apart_are_warned_of(options, recwarn):
    def forced(t, y):
        return torch.cos(t - 1e8) + 0.0 * y

    with pytest.warns(
        UserWarning, match="of y0, torch.float32, which has less than 32 numbers for the times of the solve"
    ):
        solve_ivp(forced, (1e8, 1e8 + 1), torch.zeros(1), **options)
    recwarn.clear()
    end = solve_ivp(forced, (1e8, 1e8 + 1), torch.zeros(1, dtype=D), **options).final
    torch.testing.assert_close(end, torch.full_like(end, math.sin(1.0)), rtol=1e-5, atol=0)
    for dtype, span in ((torch.float32, (100.0, 100.01)), (torch.float16, (0.0, 1.0)), (torch.bfloat16, (1.0, 2.0))):
        solve_ivp(decay, span, torch.ones(1, dtype=dtype), **options)
    assert not [warning for warning in recwarn if "precision" in str(warning.message)]


def test_sparse_tensors_are_refused():
    with pytest.raises(TypeError, match=r"y0 must be a dense tensor, got .*sparse_coo: write y0.to_dense\(\)"):
        solve_ivp(decay, (0.0, 1.0), Y0.to_sparse())
    with pytest.raises(TypeError, match=r"func\(t, y\) must be a dense tensor, got .*: return .to_dense\(\)"):
        solve_ivp(lambda t, y: (-y).to_sparse(), (0.0, 1.0), Y0)


def test_no_controller_tries_a_size_twice():
    controller = PIDController(kp=0.1, ki=0.3, kd=0.2)
    from torchivp.stepsize.pid import History

    assert controller.adapt(1.5, 0.1, 0.1, History(0.9, 1e-9), 4).h < 0.0901

    def van_der_pol(t, y):
        return torch.stack((y[1], 20 * (1 - y[0] ** 2) * y[1] - y[0]))

    for c in (PIDController(ki=0.2, kd=0.3), PIDController(kp=-0.4, ki=0.7)):
        solution = solve_ivp(van_der_pol, (0.0, 60.0), Y0, controller=c, rtol=1e-5, max_steps=20_000)
        assert solution.stats.rejected < solution.stats.accepted


@pytest.mark.parametrize("gains", [{"ki": 0.0}, {"ki": -1.0}, {"kp": math.nan}])
def test_a_controller_that_does_not_control_is_refused(gains):
    with pytest.raises(ValueError, match=re.escape("kp + ki + kd must be positive")):
        PIDController(**gains)


@pytest.mark.parametrize("door", [odeint, lambda f, y, t: solve_ivp(f, t, y).y])
def test_the_graph_is_freed_with_the_result(door):
    """Nothing but the result holds what autograd saved: no waiting for the garbage collector."""
    saved = []

    def func(t, y):
        k = torch.sin(y)
        saved.append(weakref.ref(k))
        return -k * k

    gc.collect()
    gc.disable()
    try:
        y = door(func, torch.ones(3, dtype=D, requires_grad=True), [0.0, 1.0])
        assert any(ref() is not None for ref in saved)
        del y
        assert all(ref() is None for ref in saved)
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_times_asked_for_at_the_ends_of_the_span(gradient):
    """With a span of its own, an output at its start or end still depends on the time it was asked for."""
    t = torch.tensor([0.0, 0.5, 1.0], dtype=D, requires_grad=True)
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    y = solve_ivp(decay, (0.0, 1.0), y0, t_eval=t, gradient=gradient, rtol=1e-9, atol=1e-9).y
    y.sum().backward()
    torch.testing.assert_close(t.grad, -torch.exp(-t.detach()), rtol=1e-5, atol=0)
    start = torch.tensor(0.0, dtype=D, requires_grad=True)
    y = solve_ivp(decay, (start, 1.0), y0, t_eval=[0.0, 0.5, 1.0], gradient=gradient, rtol=1e-9, atol=1e-9).y
    y.sum().backward()
    assert start.grad.item() == pytest.approx(1 + math.exp(-0.5) + math.exp(-1), rel=1e-6)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_the_span_requires_a_gradient_and_every_step_is_returned(gradient):
    t = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    solve_ivp(decay, t, y0, gradient=gradient, rtol=1e-9, atol=1e-9).y[-1].sum().backward()
    torch.testing.assert_close(t.grad, torch.tensor([1.0, -1.0], dtype=D) * math.exp(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["rk4", "heun", "dopri5"])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_func_may_use_its_memory_again(method, needs_gradient):
    memory = torch.empty(2, dtype=D)

    def func(t, y):
        return torch.mul(y.detach(), -1.0, out=memory)

    y0 = Y0.clone().requires_grad_(needs_gradient)
    step = {"step_size": 0.01} if method == "rk4" else {"rtol": 1e-8, "atol": 1e-8}
    t = [0.0, 0.301, 1.0]
    y = solve_ivp(func, (0.0, 1.0), y0, method=method, t_eval=t, **step).y
    expected = solve_ivp(decay, (0.0, 1.0), Y0, method=method, t_eval=t, **step).y
    torch.testing.assert_close(y.detach(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", ["midpoint", "heun", "tsit5", "dopri8", "kvaerno3", "adams"])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_memory_that_func_uses_again_may_carry_a_gradient(method, batch_dims):
    memory = torch.zeros(1, 2, dtype=D) if batch_dims else torch.zeros(2, dtype=D)

    def func(t, y):
        return memory.copy_(-y * torch.cos(t))

    y0 = torch.ones_like(memory).requires_grad_()
    steps = {"step_size": 0.05} if method == "midpoint" else {"rtol": 1e-6, "atol": 1e-8}
    y = solve_ivp(func, (0.0, 2.0), y0, method=method, batch_dims=batch_dims, **steps).final
    tolerance = 1e-3 if method == "midpoint" else 2e-5
    exact = torch.full_like(memory, math.exp(-math.sin(2.0)))
    torch.testing.assert_close(y.detach(), exact, rtol=tolerance, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), y0)[0], exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_a_captured_parameter_that_is_used_only_later_is_not_lost_silently(gradient):
    late = torch.tensor(0.7, dtype=D, requires_grad=True)
    y0 = Y0.clone().requires_grad_()
    y = solve_ivp(lambda t, y: -y * late if t > 0.5 else -y, (0.0, 1.0), y0, gradient=gradient).y
    with pytest.raises(
        RuntimeError, match=r"uses a tensor of shape \(\) that requires a gradient, .* name it in params="
    ):
        y[-1].sum().backward()
    y = solve_ivp(lambda t, y: -y * late if t > 0.5 else -y, (0.0, 1.0), y0, gradient=gradient, params=[late]).y
    y[-1].sum().backward()
    assert late.grad is not None


def test_overflow_in_single_precision_ends_the_solve():
    with pytest.raises(SolveError) as raised:
        odeint(lambda t, y: y, torch.ones(1), [0.0, 100.0], options={"max_num_steps": 100_000})
    assert raised.value.status.outcome is Outcome.NON_FINITE
    assert raised.value.status.t == pytest.approx(math.log(torch.finfo(torch.float32).max), abs=1e-3)


def test_tolerances_by_key():
    y0 = {"a": Y0, "b": Y0}
    calm = {"a": torch.tensor(1e6), "b": 1e-9}

    def func(t, y):
        return {"a": torch.cos(60 * t) * y["a"], "b": -y["b"]}

    by_key = solve_ivp(func, (0.0, 1.0), y0, atol=calm)
    other_order = solve_ivp(func, (0.0, 1.0), y0, atol={"b": 1e-9, "a": 1e6})
    assert by_key.stats == other_order.stats
    with pytest.raises(ValueError, match=re.escape("rtol with keys ['x', 'y'] does not match the state")):
        solve_ivp(func, (0.0, 1.0), y0, rtol={"x": 1e-3, "y": 1e-3})


@pytest.mark.parametrize("grid", [[0.25, 0.5], [0.5, 2.0], [0.5, 0.2, 1.0], [0.0], [1.0, 0.0]])
def test_a_grid_that_does_not_lead_to_the_end_is_refused(grid):
    with pytest.raises(ValueError, match="grid"):
        solve_ivp(decay, (0.0, 1.0), Y0, method="rk4", controller=GridSteps(lambda times: grid))


def test_a_grid_may_hold_the_start():
    grids = [GridSteps(lambda times: [0.0, 0.5, 1.0]), GridSteps(lambda times: [0.5, 1.0])]
    a, b = (solve_ivp(decay, (0.0, 1.0), Y0, method="rk4", controller=c) for c in grids)
    assert torch.equal(a.y, b.y) and len(a.t) == 3
    with pytest.raises(ValueError, match=re.escape("GridSteps() steps from output to output: pass t_eval")):
        solve_ivp(decay, (0.0, 1.0), Y0, method="rk4", controller=GridSteps())


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"adjoint_rtol": -1.0}, ValueError, "the adjoint's rtol must be finite and not negative, got -1.0"),
        ({"adjoint_atol": "a"}, TypeError, "the adjoint's atol must be made of numbers or tensors, got str"),
        ({"adjoint_rtol": (1e-6, 1e-6, 1e-6)}, ValueError, "the adjoint's rtol of shape (3,) does not broadcast"),
        ({"options": 3}, TypeError, "options must be a dict such as {'step_size': 0.1}, got 3"),
        ({"options": {"max_num_steps": 0}}, ValueError, "must be a whole number of at least 1, got 0"),
        ({"options": {"first_step": "a"}}, TypeError, "option 'first_step' must be a number, got 'a'"),
        ({"options": {"norm": lambda x: x}}, ValueError, "norm must return one number that is not negative"),
        ({"options": {"norm": lambda x: (0 * x / (0 * x)).sum()}}, ValueError, "that is not negative, got nan"),
        ({"options": {"norm": lambda x: math.nan}}, ValueError, "that is not negative, got nan"),
        ({"method": "rk4", "options": {"grid_constructor": 3}}, TypeError, "a function of (func, y0, t), got 3"),
    ],
)  # fmt: skip
def test_refusals_before_anything_is_solved(options, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        odeint_adjoint(decay, Y0.clone().requires_grad_(), [0.0, 1.0], **options)


def test_tolerances_of_the_adjoint_for_each_element():
    y0 = Y0.clone().requires_grad_()
    odeint_adjoint(decay, y0, [0.0, 1.0], adjoint_rtol=(1e-8, 1e-8), adjoint_atol=torch.tensor([1e-8]))[
        -1
    ].sum().backward()
    torch.testing.assert_close(y0.grad, Y0 * math.exp(-1), rtol=1e-5, atol=0)


def test_options_of_objects_are_checked():
    with pytest.raises(TypeError, match="seminorm must be True or False, got 'x'"):
        Backsolve(seminorm="x")
    with pytest.raises(ValueError, match="max_steps must be a whole number of at least 1, got 0"):
        Backsolve(max_steps=0)
    with pytest.raises(TypeError, match=r"checkpoints must be a whole number of at least 2, got 2.5"):
        Checkpointed(2.5)


@pytest.mark.parametrize("y0", [Y0, 0.5 * Y0])
def test_second_derivatives_where_nothing_was_solved(y0):
    y0 = y0.clone().requires_grad_()
    for span, t_eval in (((0.0, 0.0), [0.0]), ((0.0, 1.0), [])):
        y = solve_ivp(decay, span, y0, t_eval=t_eval, gradient="checkpointed").y
        (first,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), y0)
        assert torch.equal(second, torch.zeros(2, dtype=D))


def test_many_outputs_cost_in_proportion():
    t = torch.linspace(0, 1, 20_001, dtype=D, requires_grad=True)
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    for gradient in ("direct", "checkpointed"):
        solve_ivp(decay, (0.0, 1.0), y0, t_eval=t, gradient=gradient).y.sum().backward()


def test_a_billion_steps_are_not_laid_out_in_advance():
    solution = solve_ivp(decay, (0.0, 1e6), Y0, step_size=1e-3, max_steps=100, throw=False)
    assert solution.status.outcome is Outcome.MAX_STEPS


def test_a_field_that_is_a_gradient_needs_no_care_in_direct_mode():
    """As in a Hamiltonian network: autograd inside func, without enable_grad."""

    def func(t, y):
        (slope,) = torch.autograd.grad(0.5 * (y**2).sum(), y, create_graph=True)
        return torch.stack((slope[1], -slope[0]))

    y0 = torch.tensor([1.0, 0.0], dtype=D, requires_grad=True)
    assert odeint(func, y0, [0.0, 1.0])[-1, 0].item() == pytest.approx(math.cos(1), rel=1e-6)


def test_times_in_single_precision_are_the_ends_they_stand_for():
    t = torch.linspace(0, 0.1, 5)
    solution = solve_ivp(decay, (0.0, 0.1), Y0, t_eval=t, dense_output=True)
    assert solution.t[-1].item() == 0.1
    torch.testing.assert_close(solution.sol(t), solution.y)
    with pytest.raises(ValueError, match=r"t_eval holds 0.1\d*, outside t_span = \(0.0, 0.1\)"):
        solve_ivp(decay, (0.0, 0.1), Y0, t_eval=torch.tensor([0.11]))


def test_an_element_without_tolerance_that_is_exactly_zero():
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    y = odeint(decay, y0, [0.0, 1.0], rtol=1e-8, atol=0.0)
    torch.testing.assert_close(y[-1], torch.tensor([math.exp(-1), 0.0], dtype=D), rtol=1e-6, atol=0)


def test_a_norm_that_is_infinite_is_named():
    with pytest.raises(SolveError, match="the error of a step from t = 0 is inf, although the state is finite"):
        calls = iter(range(1000))
        odeint(decay, Y0, [0.0, 1.0], options={"norm": lambda x: 1.0 if next(calls) < 3 else math.inf})


def test_func_that_is_nan_at_the_start_is_reported_at_once():
    calls = []

    def func(t, y):
        calls.append(t)
        return y / t

    with pytest.raises(SolveError, match="func is not finite at t = 0"):
        odeint(func, Y0, [0.0, 1.0])
    assert len(calls) <= 3


def test_numbers_of_numpy():
    options = {
        "rtol": np.float32(1e-6),
        "atol": np.full(2, 1e-9),
        "max_step": np.float64(0.1),
        "max_steps": np.int64(500),
    }
    torch.testing.assert_close(
        solve_ivp(decay, np.array([0.0, 1.0]), Y0, **options).y[-1], Y0 * math.exp(-1), rtol=1e-5, atol=0
    )


def test_dense_output_of_no_span_is_refused():
    with pytest.raises(ValueError, match="dense_output=True needs a span of some length"):
        solve_ivp(decay, (1.0, 1.0), Y0, dense_output=True)


def test_a_single_number_as_t_eval_is_refused():
    with pytest.raises(ValueError, match=re.escape("t_eval must be one-dimensional, got shape ()")):
        solve_ivp(decay, (0.0, 1.0), Y0, t_eval=0.5)


def test_forward_mode_derivatives():
    import torch.autograd.forward_ad as forward

    with forward.dual_level():
        y0 = forward.make_dual(Y0, Y0)
        y = solve_ivp(lambda t, y: -(y**2), (0.0, 1.0), y0, t_eval=[1.0], rtol=1e-9, atol=1e-9).y
        tangent = forward.unpack_dual(y).tangent
    torch.testing.assert_close(tangent[0], Y0 / 4, rtol=1e-6, atol=0)  # d/dy0 of y0 / (1 + y0 t)


@pytest.mark.parametrize("method", ODE_METHODS)
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_state_of_every_method(method, solver, shape):
    y0 = torch.zeros(shape, dtype=D, requires_grad=True)
    solution = solver(decay, y0, torch.linspace(0, 1, 3, dtype=D), method=method)
    assert solution.shape == (3, *shape)
    (gradient,) = torch.autograd.grad(solution.sum(), y0)
    assert gradient.shape == shape
