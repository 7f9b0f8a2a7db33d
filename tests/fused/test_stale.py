"""Kernels are those of func as it is now, gradients those of what was solved, and rows those of their own data."""

import pytest
import torch
from torch import nn

from compilers import needs_compiler
from torchivp import solve_ivp

pytestmark = needs_compiler
D = torch.float64


def numbers(*values, **options):
    return torch.tensor(values, dtype=D, **options)


def test_arguments_of_rows_in_two_dimensions_are_those_of_the_rows():
    k = torch.arange(6.0, dtype=D).reshape(2, 3).requires_grad_()
    y0 = torch.ones(2, 3, 1, dtype=D)
    found, expected = (
        solve_ivp(
            lambda t, y, k: -k[..., None] * y, (0, 1), y0, args=(k,), batch_dims=2, t_eval=[1.0], backend=backend
        ).y
        for backend in ("fused", "eager")
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), k), torch.autograd.grad(expected.sum(), k))


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (lambda t, y, c: -y + c * (y.mean(0, keepdim=True) - y), (numbers(0.0)[0],)),
        (lambda t, y, k: -k.flip(0) * y, (torch.ones(2, 1, dtype=D),)),
        (lambda t, y: -y * (1.0 + y.shape[0] / 10), ()),
    ],
)
def test_rows_that_could_depend_on_each_other_are_refused_though_they_do_not_yet(func, args):
    with pytest.raises(ValueError, match="rows of func depend on each other"):
        solve_ivp(func, (0, 1), numbers([1.0], [3.0]), args=args, batch_dims=1, backend="fused")


def test_a_shared_tensor_as_long_as_the_batch_is_named_where_func_cannot_be_read_with_one_row():
    w, y0 = torch.eye(3, dtype=D), torch.ones(3, 3, dtype=D)
    with pytest.raises(ValueError, match=r"have an entry for each row, here those of shape \(3, 3\)") as error:
        solve_ivp(lambda t, y, w: y @ w.T, (0, 1), y0, args=(w,), batch_dims=1, backend="fused")
    assert "write args=(w[None],), or let func hold it" in str(error.value)
    options = {"batch_dims": 1, "backend": "fused", "method": "dopri5"}
    found = solve_ivp(lambda t, y, w: (w @ y.unsqueeze(-1)).squeeze(-1), (0, 1), y0, args=(w[None],), **options).final
    torch.testing.assert_close(found, torch.full_like(y0, torch.e), rtol=1e-5, atol=0.0)


def test_hooks_of_modules_are_noticed_when_they_come_and_go():
    layer = nn.Linear(1, 1, dtype=D)

    def func(t, y):
        return layer(y)

    def check():
        found, expected = (solve_ivp(func, (0, 1), numbers(1.0), backend=b).final for b in ("fused", "eager"))
        torch.testing.assert_close(found, expected)

    check()
    hook = layer.register_forward_hook(lambda module, inputs, output: -output)
    check()
    hook.remove()
    check()


def test_what_is_changed_after_a_solve_does_not_change_its_gradient():
    y0, k, t = numbers(1.0, 2.0).requires_grad_(), numbers(1.0, 2.0), torch.linspace(0, 1, 5, dtype=D)
    found = solve_ivp(lambda t, y, k: -k * y, (0.0, 1.0), y0, t_eval=t, args=(k,), backend="fused").y
    k.mul_(3.0)
    t.add_(0.3)
    (gradient,) = torch.autograd.grad(found[-1].sum(), y0)
    torch.testing.assert_close(gradient, torch.exp(-numbers(1.0, 2.0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [False, True])
def test_second_derivatives_by_a_tensor_that_comes_in_twice(rows):
    values = []
    for backend in ("fused", "eager"):
        p = (numbers([1.0], [2.0]) if rows else numbers(1.0, 2.0)).requires_grad_()
        solution = solve_ivp(
            lambda t, y, a, c, p=p: -a * y + 0.1 * c * c + (0.0 if rows else 0.01 * p),
            (0, 1),
            p.detach().clone(),
            args=(p, p),
            t_eval=[1.0],
            batch_dims=int(rows),
            backend=backend,
        )
        (first,) = torch.autograd.grad(solution.y.square().sum(), p, create_graph=True)
        values.append((first, *torch.autograd.grad(first.square().sum(), p)))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("backend", ["fused", "eager"])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_outputs_within_spans_whose_squares_vanish(backend, batch_dims):
    t = torch.linspace(0, 1, 5, dtype=D) * 1e-170
    y0 = numbers([1.0, 2.0]) if batch_dims else numbers(1.0, 2.0)
    solution = solve_ivp(lambda t, y: -y, (0.0, 1e-170), y0, t_eval=t, batch_dims=batch_dims, backend=backend)
    torch.testing.assert_close(solution.y, y0.unsqueeze(-2).expand(solution.y.shape))


def test_times_filled_up_with_nan():
    t = numbers(0.0, 0.5, float("nan"))
    found, expected = (
        solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, 2, dtype=D), t_eval=t, batch_dims=1, backend=backend).y
        for backend in ("fused", "eager")
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
