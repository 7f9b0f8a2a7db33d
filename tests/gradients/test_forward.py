"""gradient="forward": the derivatives of the steps, found along with them and kept for every backward pass."""

import re
import threading
import warnings

import pytest
import torch

import torchivp
from torchivp import ODE_METHODS, Event, Forward, odeint, solve_ivp
from torchivp.models import LotkaVolterra

D = torch.float64


def leaf(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=D, requires_grad=True)


class Field(torch.nn.Module):
    """A field with a parameter, a tensor besides, a constant, and the time."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([[-0.5, 0.3], [0.1, -0.8]], dtype=D))
        self.c = leaf(0.3)
        self.fixed = torch.tensor([0.7, 1.1], dtype=D)

    def forward(self, t, y, a):
        return y @ self.w.T - self.c * a * y**3 / 3 + self.fixed * torch.sin(t)


FIELD = Field()
STEPPED = [name for name, method in ODE_METHODS.items() if method.error_order is None and method.differentiable]
METHODS = [name for name, method in ODE_METHODS.items() if method.differentiable]


def solved(method, gradient, batch_dims, t1):
    """The states of a solve, the last of them at t1 too, and what they depend on."""
    y0 = torch.tensor([[1.0, 0.3], [-0.2, 0.6]], dtype=D)[0 if not batch_dims else slice(None)].requires_grad_()
    a = torch.tensor([[0.5, 0.7], [0.9, 0.2]], dtype=D)[0 if not batch_dims else slice(None)].requires_grad_()
    options = {"step_size": 0.25} if method in STEPPED else {"rtol": 1e-4, "atol": 1e-6}
    solution = solve_ivp(FIELD, (0.0, t1), y0, t_eval=[0.3, 0.6], args=(a,), method=method, gradient=gradient,
                         batch_dims=batch_dims, **options)  # fmt: skip
    values = torch.cat([solution.y.flatten(), solution.final.flatten()])
    return values, [y0, a, FIELD.w, FIELD.c, t1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_gradient_of_its_steps(method):
    """By the state, an argument, a parameter, a captured tensor and the end; of one row and of rows."""
    batch_dims, gradients = METHODS.index(method) % 2, []
    for gradient in ("direct", "forward"):
        values, inputs = solved(method, gradient, batch_dims, leaf(1.0))
        weights = torch.linspace(1.0, 2.0, len(values), dtype=D)
        gradients.append([values.detach(), *torch.autograd.grad((values * weights).sum(), inputs)])
    # Newton's iteration of a single row goes on from steps that were rejected; steps taken again do not.
    rtol = 1e-6 if method == "bdf" else 1e-10
    torch.testing.assert_close(gradients[1], gradients[0], rtol=rtol, atol=1e-12)


def lotka_volterra(t, y, a, b, c, d):
    x, z = y.unbind(-1)
    return torch.stack((a * x - b * x * z, -c * z + d * x * z), -1)


RATES = [1.1, 0.4, 0.4, 0.1]


def trajectory(rates, gradient="forward"):
    y0 = torch.tensor([5.0, 3.0], dtype=D)
    options = {"method": "rk4", "step_size": 0.05, "gradient": gradient}
    return solve_ivp(lotka_volterra, (0, 2), y0, t_eval=torch.linspace(0, 2, 9), args=tuple(rates), **options).y


def test_finite_differences():
    rates = torch.tensor(RATES, dtype=D)
    found = torch.autograd.functional.jacobian(lambda r: trajectory(r.unbind()), rates)
    for i in range(len(rates)):
        step = 1e-6 * torch.eye(len(rates), dtype=D)[i]
        with torch.no_grad():
            expected = (trajectory((rates + step).unbind()) - trajectory((rates - step).unbind())) / 2e-6
        torch.testing.assert_close(found[..., i], expected, rtol=1e-6, atol=1e-7)


def test_many_backward_passes_take_no_step_again():
    calls = []

    def counted(t, y, *rates):
        calls.append(1)
        return lotka_volterra(t, y, *rates)

    rates = [leaf(rate) for rate in RATES]
    y0 = torch.tensor([5.0, 3.0], dtype=D)
    solution = solve_ivp(counted, (0, 2), y0, t_eval=torch.linspace(0, 2, 9), args=rates, gradient="forward")
    outputs, before = solution.y.flatten(), len(calls)
    assert solution.stats.backward.accepted == solution.stats.accepted
    assert 0 < solution.stats.backward.evaluations <= solution.stats.evaluations + 1
    each = [torch.stack(torch.autograd.grad(output, rates, retain_graph=True)) for output in outputs]
    unit = torch.eye(len(outputs), dtype=D)
    at_once = torch.autograd.grad(outputs, rates, unit, is_grads_batched=True)
    assert len(calls) == before
    torch.testing.assert_close(torch.stack(at_once, 1), torch.stack(each))


def test_the_gradient_does_not_see_what_happens_to_parameters_after_the_solve():
    """The derivatives are there when the solve is over, as those of `direct` are."""
    rate = leaf(0.5)
    y = solve_ivp(lambda t, y: -rate * y, (0.0, 1.0), leaf(1.0), gradient="forward", rtol=1e-9, atol=1e-12).y[-1]
    with torch.no_grad():
        rate.mul_(3.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_second_derivatives_are_those_of_the_steps():
    found = []
    for gradient in ("direct", "forward"):
        rates = [leaf(rate) for rate in RATES]
        first = torch.autograd.grad(trajectory(rates, gradient)[-1].sum(), rates, create_graph=True)
        found.append(torch.autograd.grad(sum(first), rates))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_a_row_moves_with_its_own_entries():
    """Of 60 rows with two numbers each, two numbers are counted; what rows share is summed over them."""
    y0 = torch.linspace(0.1, 1.0, 120, dtype=D).reshape(60, 2).requires_grad_()
    rate, shared = torch.linspace(0.5, 1.5, 60, dtype=D).unsqueeze(1).requires_grad_(), leaf(0.3)

    def gradients(gradient):
        solution = solve_ivp(lambda t, y, r: shared - r * y * y, (0.0, 1.0), y0, args=(rate,), batch_dims=1,
                             t_eval=[0.5, 1.0], gradient=gradient)  # fmt: skip
        return torch.autograd.grad((solution.y * solution.y).sum(), [y0, rate, shared])

    torch.testing.assert_close(gradients(Forward(max_inputs=4)), gradients("direct"), rtol=1e-10, atol=1e-12)


def test_rows_that_func_mixes():
    """A func of all rows at once, whose rows are no problems of their own: every number is an input by itself."""
    y0 = torch.linspace(0.5, 1.0, 6, dtype=D).reshape(3, 2).requires_grad_()

    def gradients(gradient):
        y = solve_ivp(lambda t, y: y.mean(0) - y * y, (0.0, 1.0), y0, batch_dims=1, gradient=gradient, t_eval=[1.0],
                      method="rk4", step_size=0.1).y  # fmt: skip
        return torch.autograd.grad(y[1].sum(), y0)

    torch.testing.assert_close(gradients("forward"), gradients("direct"), rtol=1e-10, atol=1e-12)


def test_too_many_inputs_are_refused():
    y0, extra = torch.zeros(80, dtype=D, requires_grad=True), torch.zeros(30, dtype=D, requires_grad=True)
    sentence = (
        "gradient='forward' differentiates by at most 100 numbers, and here there are 110 (80 in y0, 30 in args): "
        "use gradient='checkpointed', whose cost does not depend on how many there are, or raise the limit, "
        "gradient=Forward(max_inputs=110)"
    )

    def solve(gradient):
        return solve_ivp(lambda t, y, x: x.sum() - y, (0.0, 0.1), y0, args=(extra,), gradient=gradient)

    with pytest.raises(ValueError, match=re.escape(sentence)):
        solve("forward")
    solve(Forward(max_inputs=110)).y[-1].sum().backward()
    assert extra.grad.allclose(torch.full_like(extra, 80 * 0.1), rtol=0.1)


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (2.5, TypeError)])
def test_options_are_checked(given, error):
    with pytest.raises(error, match="max_inputs"):
        Forward(max_inputs=given)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(y):
        return y * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Wrong(Squared):
    @staticmethod
    def jvp(ctx, tangent):
        return ctx.saved_tensors[0] * tangent


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (Squared, r"gradient='forward' differentiates func forwards, and PyTorch cannot: .*jvp.* Use gradient='check"),
        (Wrong, r"gradient='forward' differentiates func forwards, and PyTorch finds other derivatives so than back"),
    ],
)
def test_a_function_that_cannot_be_differentiated_forwards(function, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        solve_ivp(lambda t, y: -function.apply(y), (0.0, 1.0), leaf(1.0, 2.0), gradient="forward")


def test_dense_output_is_refused():
    with pytest.raises(ValueError, match="dense_output=True is differentiable with gradient='direct' only"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), leaf(1.0), gradient="forward", dense_output=True)


def test_forward_mode_is_refused():
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(ValueError, match="gradient='forward' has no derivative"),
    ):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), leaf(1.0), gradient="forward")


def test_odeint_says_who_has_it():
    with pytest.raises(TypeError, match=r"solve_ivp\(..., gradient=...\)"):
        odeint(lambda t, y: -y, leaf(1.0), torch.tensor([0.0, 1.0]), gradient="forward")


def test_a_func_that_looks_at_values():
    """It cannot be mapped over the copies, and is called for each of them."""

    def func(t, y, rate):
        return -rate * y if y[0].item() > 0.5 else -2 * rate * y

    found = []
    for gradient in ("direct", "forward"):
        y0, rate = leaf(1.0, 2.0), leaf(1.3)
        y = solve_ivp(func, (0.0, 1.0), y0, args=(rate,), gradient=gradient, method="rk4", step_size=0.05).y
        found.append(torch.autograd.grad(y[-1].sum(), [y0, rate]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_other_threads_are_not_in_forward_mode():
    """There is one level of dual numbers for a process; a solve in another thread must not take it for its own."""
    inside, done, failures = threading.Event(), threading.Event(), []

    def waits(t, y, rate):
        inside.set()
        assert done.wait(20)
        return -rate * y

    def elsewhere():
        try:
            assert inside.wait(20)
            y0 = leaf(1.0)
            y = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, gradient="checkpointed", method="rk4", step_size=0.1).y
            y[-1].backward()
            assert y0.grad.item() == pytest.approx(0.3679, abs=1e-3)
        except BaseException as error:  # to be raised in the test
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=elsewhere)
    rate = leaf(1.0)
    first = [True]

    def func(t, y, rate):
        if torch.autograd.forward_ad._current_level >= 0 and first:
            first.clear()
            return waits(t, y, rate)
        return -rate * y

    thread.start()
    y = solve_ivp(func, (0.0, 1.0), leaf(1.0), args=(rate,), gradient="forward", method="rk4", step_size=0.1).y
    thread.join()
    assert not failures, failures
    y[-1].backward()
    assert rate.grad.item() == pytest.approx(-0.3679, abs=1e-3)


def test_two_threads_at_once():
    found = {}

    def solve(i):
        rate = leaf(0.5 + i)
        y = solve_ivp(lambda t, y: -rate * y, (0.0, 1.0), leaf(1.0), gradient="forward", method="rk4", step_size=0.1).y
        found[i] = torch.autograd.grad(y[-1], rate)[0].item()

    threads = [threading.Thread(target=solve, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert found[i] == pytest.approx(-torch.tensor(-(0.5 + i)).exp().item(), abs=1e-3)


def test_a_model_and_events_without_a_warning():
    """Through an event that changes the state, with respect to the parameters of a module."""
    model = LotkaVolterra().double()
    event = Event(lambda t, y: y[0] - 12.0, apply=lambda t, y: y * 0.8)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gradient in ("direct", "forward"):
            y0 = model.initial_state().double().requires_grad_()
            solution = solve_ivp(model, (0.0, 8.0), y0, events=event, gradient=gradient)
            loss = solution.final.sum() + solution.events.t.sum() + solution.events.y_after.sum()
            found.append(torch.autograd.grad(loss, [y0, *model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)


def test_it_is_a_gradient_like_others():
    assert torchivp.Forward is Forward and "Forward" in torchivp.__all__
    assert torchivp.nn.NeuralODE(torch.nn.Linear(2, 2), gradient="forward").gradient == Forward()
