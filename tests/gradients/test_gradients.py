"""Every way to differentiate a solve, against finite differences, closed forms and the other ways."""

import gc
import itertools
import math
from functools import cache

import pytest
import torch
import torch.utils.checkpoint

from problems import DIFFERENTIABLE, KINDS, METHODS, LotkaVolterra, covering, double, sampled
from torchivp import ODE_METHODS, Backsolve, Checkpointed, odeint, odeint_adjoint, solve_ivp

GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]
STEPS_TAKEN = ["direct", "checkpointed"]
EXACT = ["direct", Checkpointed(), Checkpointed(2), Checkpointed(5)]
T = [0.0, 0.3, 0.35, 1.0]


def pendulum(t, y, args):
    """Driven, with a parameter in every term."""
    length, damping = args["length"], args["damping"][0]
    angle, speed = y.unbind()
    return torch.stack((speed, -torch.sin(angle) / length - damping * speed + torch.cos(length * t)))


def solve(y0, t, length, damping, **options):
    args = ({"length": length, "damping": [damping]},)
    return solve_ivp(pendulum, (t[0], t[-1]), y0, t_eval=t, args=args, **options).y


def steps_for(method):
    """Steps with which a method has gradients as precise as `precision` says, at a moderate cost."""
    order = ODE_METHODS[method].order
    if ODE_METHODS[method].error_order is None and not ODE_METHODS[method].sizes_steps:
        return {"step_size": 0.01 if order == 1 else 0.02}
    tight = {"fehlberg2": 1e-6, "kvaerno5": 1e-8, "kencarp4": 1e-8, "kencarp5": 1e-9}
    tolerance = tight.get(method, 1e-5 if order < 4 else 1e-7)
    return {"rtol": tolerance, "atol": tolerance}


def precision(method):
    order = ODE_METHODS[method].order
    return 2e-2 if order == 1 else 1e-3 if order < 4 else 1e-5


@pytest.mark.parametrize(
    ("method", "gradient", "span"),
    covering(
        [name for name in DIFFERENTIABLE if not ODE_METHODS[name].varies_order], ["rk4", "dopri5"], EXACT, [1.0, -1.0]
    ),
    ids=str,
)
def test_exact_gradients_of_fixed_steps(method, gradient, span):
    """The discrete gradient of fixed steps is the derivative of what was computed: state, times and arguments."""
    inputs = (double(1.0, 0.5, grad=True), (span * double(*T)).requires_grad_(), *double(1.3, 0.2).requires_grad_())

    def run(y0, t, length, damping):
        return solve(y0, t, length, damping, method=method, step_size=0.23, gradient=gradient)

    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(run, inputs, rtol=1e-6, atol=1e-8, fast_mode=True)


@pytest.mark.parametrize(
    ("method", "gradient"),
    sampled(
        itertools.product(["euler", "rk4", "dopri5", "dopri8"], STEPS_TAKEN),
        covering(["euler", "dopri8"], ["rk4", "dopri5"], STEPS_TAKEN),
    ),
)
def test_second_derivatives(method, gradient):
    inputs = [double(1.0, 0.5, grad=True), double(*T, grad=True), double(1.3, grad=True)[0], double(0.2, grad=True)[0]]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]

    def run(y0, t, length, damping):
        return solve(y0, t, length, damping, method=method, step_size=0.27, gradient=gradient)

    assert torch.autograd.gradgradcheck(run, inputs, rtol=1e-5, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("options", [{}, {"batch_dims": 1, "t_eval": [0.25, 0.5]}, {"events": lambda t, y: y - 9.0}])
def test_derivatives_of_every_order(gradient, options):
    y0 = double(1.0, grad=True)
    solution = solve_ivp(lambda t, y: y**2, (0.0, 0.5), y0.reshape(1), rtol=1e-11, atol=1e-11, gradient=gradient,
                         **options)  # fmt: skip
    value = solution.y.reshape(-1)[-1]  # y0 / (1 - y0 t)
    for expected in (4.0, 8.0, 24.0):
        (value,) = torch.autograd.grad(value, y0, create_graph=True)
        assert value.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("options", [{}, {"events": lambda t, y: y - 9.0}])
def test_a_second_derivative_of_steps_that_autograd_cannot_follow_is_refused(options):
    y0 = double(1.0, grad=True)
    y = solve_ivp(lambda t, y: y**2, (0.0, 0.5), y0, method="scipy_solver", gradient="backsolve", **options).y[-1]
    assert torch.autograd.grad(y, y0, retain_graph=True)[0].item() == pytest.approx(4.0, rel=1e-3)
    with pytest.raises(RuntimeError, match="autograd cannot follow those of ScipySolver: choose another method, such"):
        torch.autograd.grad(y, y0, create_graph=True)


def true_problem(span):
    """What the gradients of the true solution are compared at: the values of the inputs, and a function of them."""
    weights = torch.linspace(-1.0, 1.5, 2 * len(T), dtype=torch.float64).reshape(-1, 2).sin()
    values = [double(1.0, 0.5), span * double(*T), double(1.3)[0], double(0.2)[0]]
    return values, lambda values, **options: (weights * solve(*values, **options)).sum()


@cache
def true_gradients(span):
    """By central differences of a tight solve."""
    values, loss = true_problem(span)
    found = []
    for i, value in enumerate(values):
        for j in range(value.numel()):
            shift = torch.zeros_like(value).reshape(-1)
            shift[j] = 1e-5
            ends = [[*values[:i], value + s * shift.reshape(value.shape), *values[i + 1 :]] for s in (1, -1)]
            above, below = (loss(end, method="dopri8", rtol=1e-13, atol=1e-13).item() for end in ends)
            found.append((above - below) / 2e-5)
    return found


# That checkpointed is the same as direct is seen below, with every method.
@pytest.mark.parametrize(
    ("method", "gradient", "span"),
    [
        *((method, "backsolve", 1.0) for method in METHODS),
        *((method, "direct", -1.0) for method in DIFFERENTIABLE if method in KINDS),
        *((method, "backsolve", -1.0) for method in ("rk4", "dopri5", "adams", "gl4", "scipy_solver")),
        *((method, "checkpointed", span) for method in ("rk4", "dopri5") for span in (1.0, -1.0)),
    ],
)
def test_gradients_of_the_true_solution(method, gradient, span):
    """All three approach the derivative of the solution."""
    values, loss = true_problem(span)
    inputs = [x.clone().requires_grad_() for x in values]
    loss(inputs, method=method, gradient=gradient, **steps_for(method)).backward()
    found = torch.cat([x.grad.reshape(-1) for x in inputs])
    torch.testing.assert_close(found, double(*true_gradients(span)), rtol=0, atol=precision(method))


@pytest.mark.parametrize(
    ("method", "checkpoints", "times"),
    covering(
        DIFFERENTIABLE,
        ["rk4", "dopri5"],
        [None, 2, 3, 10, 1000],
        [None, [0.0, 0.5, 2.0], [0.7, 1.1]],
    ),
    ids=str,
)
def test_checkpointed_equals_direct(method, checkpoints, times):
    results = []
    for gradient in ("direct", Checkpointed(checkpoints)):
        model, y0 = LotkaVolterra(), torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
        step = {"step_size": 0.1} if ODE_METHODS[method].error_order is None else {"rtol": 1e-4, "atol": 1e-4}
        solution = solve_ivp(model, (0.0, 2.0), y0, t_eval=times, method=method, gradient=gradient, **step)
        (solution.y**2).sum().backward()
        results.append((solution.y.detach(), y0.grad, model.parameters_.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_closed_form_in_complex_numbers(gradient):
    """y = y0 exp((a + i b) t): L = |y(1)|^2 = |y0|^2 exp(2 a)."""
    y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128, requires_grad=True)
    a, b = double(-0.3, grad=True), double(2.0, grad=True)
    y = solve_ivp(lambda t, y, a, b: torch.complex(a, b) * y, (0.0, 1.0), y0, args=(a, b), gradient=gradient,
                  rtol=1e-10, atol=1e-10).y[-1]  # fmt: skip
    y.abs().square().sum().backward()
    loss = 1.25 * math.exp(-0.6)
    torch.testing.assert_close(y0.grad, 2 * y0.detach() * math.exp(-0.6), rtol=1e-7, atol=0)
    assert a.grad.item() == pytest.approx(2 * loss, rel=1e-7)
    assert b.grad.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_complex_parameter_of_a_real_system(gradient):
    """y' = -|p|^2 y: L = y(1), dL/dp = -2 p exp(-|p|^2)."""
    p = torch.tensor([0.5 + 0.25j], dtype=torch.complex128, requires_grad=True)
    y = solve_ivp(
        lambda t, y: -p.abs().square() * y, (0.0, 1.0), double(1.0), gradient=gradient, rtol=1e-9, atol=1e-9
    ).y
    y[-1].sum().backward()
    torch.testing.assert_close(p.grad, -2 * p.detach() * math.exp(-0.3125), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_pytrees_of_mixed_precision(gradient):
    y0 = {"x": double(1.0, grad=True), "n": [torch.ones(2, requires_grad=True)]}
    rate = torch.tensor(0.5, requires_grad=True)

    def func(t, y):
        return {"x": -rate * y["x"], "n": [rate * y["n"][0]]}

    y = solve_ivp(func, (0.0, 1.0), y0, gradient=gradient, rtol=1e-9, atol=1e-9).y
    (y["x"][-1].sum() + y["n"][0][-1].sum()).backward()
    assert y0["x"].grad.item() == pytest.approx(math.exp(-0.5), rel=1e-6)
    torch.testing.assert_close(y0["n"][0].grad, torch.full((2,), math.exp(0.5)), rtol=1e-5, atol=0)
    assert rate.grad.item() == pytest.approx(2 * math.exp(0.5) - math.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_gradient_at_the_start_passes_through(gradient):
    y0 = double(1.0, 2.0, grad=True)
    solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, t_eval=[0.0], gradient=gradient).y.sum().backward()
    torch.testing.assert_close(y0.grad, double(1.0, 1.0))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_outputs_that_reach_neither_end(gradient):
    y0, t = double(1.0, grad=True), double(0.25, 0.5, grad=True)
    y = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, t_eval=t, gradient=gradient, rtol=1e-9, atol=1e-9).y
    y.sum().backward()
    assert y0.grad.item() == pytest.approx(math.exp(-0.25) + math.exp(-0.5), rel=1e-7)
    torch.testing.assert_close(t.grad, -torch.exp(-t.detach()), rtol=1e-5, atol=0)


def test_dense_output_is_differentiable_in_state_and_time():
    y0, t = double(1.0, grad=True), double(0.3, grad=True)
    sol = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, dense_output=True, rtol=1e-9, atol=1e-9).sol
    sol(t).sum().backward()
    assert y0.grad.item() == pytest.approx(math.exp(-0.3), rel=1e-7)
    assert t.grad.item() == pytest.approx(-math.exp(-0.3), rel=1e-5)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_dense_output_is_refused_where_it_would_lose_the_gradient(gradient):
    with pytest.raises(ValueError, match="dense_output=True is differentiable with gradient='direct' only"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0, grad=True), dense_output=True, gradient=gradient)
    assert solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0), dense_output=True, gradient=gradient).sol is not None


@pytest.mark.parametrize("seminorm", [False, True])
def test_odeint_adjoint(seminorm):
    options = {"norm": "seminorm"} if seminorm else {}
    grads = []
    for door, extra in ((odeint, {}), (odeint_adjoint, {"adjoint_options": options})):
        model, y0, t = LotkaVolterra(), double(1.0, 1.5, grad=True), double(0.0, 1.0, 2.0, grad=True)
        door(model, y0, t, rtol=1e-9, atol=1e-9, **extra).square().sum().backward()
        grads.append((y0.grad, t.grad, model.parameters_.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_odeint_adjoint_with_other_tolerances_and_method():
    model = LotkaVolterra()
    y = odeint_adjoint(model, double(1.0, 1.5), double(0.0, 2.0), rtol=1e-4, atol=1e-4, adjoint_rtol=1e-9,
                       adjoint_atol=1e-9, adjoint_method="dopri8", adjoint_params=[model.parameters_])  # fmt: skip
    y[-1].sum().backward()
    exact = LotkaVolterra()
    odeint(exact, double(1.0, 1.5), double(0.0, 2.0), rtol=1e-10, atol=1e-10)[-1].sum().backward()
    torch.testing.assert_close(model.parameters_.grad, exact.parameters_.grad, rtol=1e-2, atol=1e-2)


def test_tolerances_for_each_tensor_reach_the_adjoint():
    y0 = (double(1.0, grad=True), double(1.0, 2.0, grad=True))
    y = odeint_adjoint(lambda t, y: (-y[0], y[1]), y0, double(0.0, 1.0), rtol=(1e-8, 1e-9), atol=(1e-8, 1e-9))
    (y[0][-1].sum() + y[1][-1].sum()).backward()
    assert y0[0].grad.item() == pytest.approx(math.exp(-1), rel=1e-6)
    torch.testing.assert_close(y0[1].grad, double(math.e, math.e), rtol=1e-6, atol=0)


def fine_grid(func, y0, t):
    """A grid of 20 steps over the whole of `t`, which may run backwards."""
    return torch.linspace(t[0], t[-1], 21, dtype=t.dtype)


@pytest.mark.parametrize("options", [{"step_size": 0.02}, {}, {"grid_constructor": fine_grid}])
def test_adjoint_of_fixed_steps(options):
    t = torch.linspace(0, 1, 30, dtype=torch.float64)
    grads = []
    for door in (odeint, odeint_adjoint):
        model = LotkaVolterra()
        door(model, double(1.0, 1.5), t, method="rk4", options=options).square().mean().backward()
        grads.append(model.parameters_.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_the_backward_pass_has_its_statistics():
    for gradient in ("checkpointed", "backsolve"):
        solution = solve_ivp(LotkaVolterra(), (0.0, 2.0), double(1.0, 1.0), gradient=gradient)
        assert solution.stats.backward is None
        solution.y[-1].sum().backward()
        backward = solution.stats.backward
        assert backward.evaluations > 0 and backward.accepted > 0
        if gradient == "checkpointed":
            assert backward.accepted == solution.stats.accepted and backward.rejected == 0


def test_a_failed_backward_solve_says_so():
    solution = solve_ivp(LotkaVolterra(), (0.0, 2.0), double(1.0, 1.0), gradient=Backsolve(max_steps=2))
    with pytest.raises(RuntimeError, match=r"in the backward solve: max_steps = 2 .* or use gradient='checkpointed'"):
        solution.y[-1].sum().backward()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_what_was_reached_before_a_failure_is_differentiable(gradient):
    y0 = double(1.0, grad=True)
    solution = solve_ivp(lambda t, y: y**2, (0.0, 2.0), y0, t_eval=[0.0, 0.5, 1.5], gradient=gradient, throw=False,
                         rtol=1e-9, atol=1e-9)  # fmt: skip
    assert solution.y[:, 0].isnan().tolist() == [False, False, True]
    solution.y[:2].sum().backward()
    assert y0.grad.item() == pytest.approx(1.0 + 4.0, rel=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_backward_twice_with_the_graph_retained(gradient):
    model = LotkaVolterra()
    loss = solve_ivp(model, (0.0, 1.0), double(1.0, 1.0), gradient=gradient).y[-1].sum()
    (once,) = torch.autograd.grad(loss, model.parameters_, retain_graph=True)
    (again,) = torch.autograd.grad(loss, model.parameters_)
    assert torch.equal(once, again)


@pytest.mark.parametrize(
    ("method", "gradient"),
    [("rodas5p", "direct"), ("radau5", "direct"), ("bdf", "direct"), *((m, "forward") for m in ("tsit5", "rodas5p"))],
)
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_solve_may_be_checkpointed(method, gradient, batch_dims):
    # What the solve goes back through by itself, as for Jacobians, must not have the solve run again within itself.
    runs = []

    def end(rate):
        runs.append(rate)
        y0, options = torch.ones(1, 1, dtype=torch.float64), {"rtol": 1e-8, "atol": 1e-10, "batch_dims": batch_dims}
        return solve_ivp(
            lambda t, y, k: -k * y * y, (0.0, 1.0), y0, args=(rate,), method=method, gradient=gradient, **options
        ).final.sum()

    rate = double(0.7, grad=True).sum()
    value = torch.utils.checkpoint.checkpoint(end, rate, use_reentrant=False)
    (found,) = torch.autograd.grad(value, rate)
    torch.testing.assert_close(found, double(-1 / 1.7**2).sum(), rtol=1e-6, atol=0)
    assert len(runs) == 2


def test_a_solve_that_is_checkpointed_leaves_nothing_behind():
    """What nodes keep of their own results must not keep these nodes, which Python cannot see."""

    def end(rate):
        y0 = torch.ones(3, dtype=torch.float64)
        return solve_ivp(lambda t, y: -rate * y.exp(), (0.0, 0.2), y0, method="rodas5p").final.sum()

    def tensors():
        rate = double(0.7, grad=True).sum()
        torch.utils.checkpoint.checkpoint(end, rate, use_reentrant=False).backward()
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    first = [tensors() for _ in range(3)]
    assert first[2] <= first[1]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_parameters_changed_before_the_backward_pass_are_noticed(gradient):
    model = LotkaVolterra()
    loss = solve_ivp(model, (0.0, 1.0), double(1.0, 1.0), gradient=gradient).y[-1].sum()
    with torch.no_grad():
        model.parameters_.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def damped(t, y):
    fast, slow = y.unbind(-1)
    return torch.stack((30 * (slow - fast), -0.5 * fast), dim=-1)


def at_the_end(func, batch_dims, **options):
    y0 = double(*[[1.0, 2.0]] * batch_dims) if batch_dims else double(1.0, 2.0)
    end = solve_ivp(func, (0.0, 1.0), y0.requires_grad_(), batch_dims=batch_dims, gradient="backsolve", **options)
    torch.autograd.grad(end.y[..., -1, :].sum(), y0)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_state_that_does_not_come_back_is_a_warning(batch_dims, recwarn):
    """Errors grow by exp(30) on the way back, and by exp(3) from output to output."""
    with pytest.warns(RuntimeWarning, match="the state does not come back to where the solve had passed"):
        at_the_end(damped, batch_dims, t_eval=[1.0])
    at_the_end(damped, batch_dims, t_eval=torch.linspace(0, 1, 11))
    at_the_end(lambda t, y: y.flip(-1) * double(1.0, -1.0), batch_dims, t_eval=[1.0])
    assert not recwarn.list


@pytest.mark.parametrize("rtol", [1e-3, 1e-4, 1e-5])
def test_a_state_that_starts_from_zero_comes_back(rtol, recwarn):
    """To within what the tolerances allow, which is no part of zero."""
    weight = double([0.0, 1.0], [-1.0, 0.1], grad=True)
    grads = []
    for door in (odeint_adjoint, odeint):
        options = {"adjoint_params": (weight,)} if door is odeint_adjoint else {}
        y = door(
            lambda t, y: torch.tanh(y @ weight + torch.cos(9 * t)),
            torch.zeros(3, 2).double(),
            double(0.0, 2.0),
            rtol=rtol,
            atol=1e-2 * rtol,
            **options,
        )
        grads += torch.autograd.grad(y[-1].square().sum(), weight)
    assert not recwarn.list
    torch.testing.assert_close(*grads, rtol=30 * rtol, atol=30 * rtol)


def test_odeint_adjoint_warns_of_a_state_that_does_not_come_back():
    y0 = double(1.0, 2.0, grad=True)
    end = odeint_adjoint(damped, y0, double(0.0, 1.0), adjoint_params=())[-1]
    with pytest.warns(RuntimeWarning, match=r"gradient='backsolve' \(odeint_adjoint\): solved backwards") as caught:
        end.sum().backward()
    assert caught[0].filename == __file__


def logistic(t, y):
    size = double(1.0, 1000.0)
    return 2 * y * (1 - (y / size) ** 2)


@pytest.mark.parametrize(
    ("func", "y0", "t", "warned"),
    [
        pytest.param(logistic, [0.1, 1000.0], [0.0, 10.0], True, id="a small component"),
        pytest.param(lambda t, y: 0.5 * (2 - y), [1.0], [0.0, 1.0, 40.0], False, id="at rest in the end"),
        pytest.param(lambda t, y: -y, [1.0], [0.0, 30.0], False, id="gone in the end"),
        pytest.param(
            lambda t, y: y.flip(-1) * double(1.0, -1.0), [0.0, 1.0], [0.0, 2 * math.pi], False, id="zero again"
        ),
    ],
)
def test_what_counts_is_what_is_left_of_the_adjoint(func, y0, t, warned, recwarn):
    y0 = double(*y0, grad=True)
    odeint_adjoint(func, y0, double(*t), adjoint_params=())[1:].sum().backward()
    assert bool(recwarn.list) == warned
