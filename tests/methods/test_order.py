"""Orders of convergence, of every method: of the solution, of the error estimate and between the steps."""

from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch

from problems import KINDS
from torchivp import ODE_METHODS, solve_ivp
from torchivp.error_norm import ErrorNorm
from torchivp.problem import Problem
from torchivp.times import Times

METHODS = sorted({m for m in ODE_METHODS.values() if not (m.sizes_steps or m.varies_order)}, key=lambda m: m.__name__)
OF_EVERY_KIND = [ODE_METHODS[name] for name in KINDS]

TIGHT = {"rtol": 1e-12, "atol": 1e-14}  # to which implicit methods solve the equations of their stages


def autonomous(dtype):
    """y1' = -y2 y3, y2' = y1 y3, y3' = -y3 y1: nonlinear and coupled; complex states by a phase."""
    phase = torch.exp(torch.tensor(0.3j)).to(dtype) if dtype.is_complex else 1.0

    def func(t, y):
        a, b, c = (y / phase).unbind()
        return phase * torch.stack((-b * c, a * c, -0.5 * a * c))

    return func, phase * torch.tensor([1.0, 0.5, 0.8], dtype=dtype)


def forced(dtype):
    """A pendulum driven at two frequencies and damped in proportion to time: depends on time, nonlinearly."""

    def func(t, y):
        a, b = y.unbind()
        return torch.stack((b * torch.cos(t), -torch.sin(a) - 0.5 * t * b + torch.sin(3 * t)))

    return func, torch.tensor([1.0, 0.5], dtype=dtype)


PROBLEMS = [autonomous, forced]


def slope(sizes, errors):
    """The order of convergence: the slope of a line through the logarithms, where errors are above rounding."""
    kept = [(h, e) for h, e in zip(sizes, errors, strict=True) if e > 2e-13]
    assert len(kept) >= 3, errors
    h, e = np.log(np.array(kept)).T
    return np.polyfit(h, e, 1)[0]


def span_and_sizes(method):
    """An end of the span, and step sizes at which methods of this order are past their first fluctuations."""
    order, multistep = method.order, hasattr(method, "max_order")  # whose first steps are of another method
    span = 6.0 if order == 8 else 1.2
    if method.__name__ == "Rodas4":  # whose leading error is so small that the next one shows in longer steps
        return span, [span / n for n in (48, 64, 80, 96, 128)]
    counts = {1: (32, 64, 128, 256), 2: (16, 32, 64, 128), 3: (16, 32, 64, 96), 8: (15, 18, 21, 24, 30)}
    return span, [span / n for n in counts.get(order, (16, 24, 32, 48, 64) if multistep else (8, 12, 16, 24, 32))]


@cache
def reference(problem, dtype, *t):
    """The solution by SciPy's DOP853 at tight tolerance."""
    func, y0 = problem(dtype)
    exact = scipy.integrate.solve_ivp(
        lambda t, y: func(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy(),
        (0.0, t[-1]),
        y0.numpy(),
        t_eval=t,
        method="DOP853",
        rtol=3e-14,
        atol=1e-15,
    )
    return torch.from_numpy(exact.y.T)


@pytest.mark.parametrize(
    ("method", "problem", "dtype"),
    [
        *((method, problem, torch.float64) for method in METHODS for problem in PROBLEMS),
        *((method, autonomous, torch.complex128) for method in METHODS if method in OF_EVERY_KIND),
    ],
)
def test_orders_of_convergence_at_the_end_and_between_the_steps(method, problem, dtype):
    func, y0 = problem(dtype)
    end, sizes = span_and_sizes(method)
    t = torch.cat((torch.linspace(0.04, 0.96, 47, dtype=torch.float64) * end, torch.tensor([end], dtype=torch.float64)))
    exact = reference(problem, dtype, *t.tolist())
    errors = [
        (solve_ivp(func, (0.0, end), y0, t_eval=t, method=method, step_size=h, **TIGHT).y - exact).abs().amax(1)
        for h in sizes
    ]
    assert slope(sizes, [error[-1].item() for error in errors]) > method.order - 0.25
    tableau = getattr(method, "tableau", None)
    dense = method.order if tableau is None else tableau.dense.order if tableau.dense else 3
    assert slope(sizes, [error[:-1].max().item() for error in errors]) > min(method.order, dense + 1) - 0.3


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", [m for m in METHODS if m.error_order is not None])
def test_order_of_the_error_estimate(method, problem):
    func, y0 = problem(torch.float64)
    flat = Problem.build(func, y0, Times(0.0, 1.0, None))
    stepper = method(flat.y0, flat.real_dtype, ErrorNorm(1e-12, 1e-14, [slice(0, flat.y0.numel())], flat.y0.dtype))
    starts = torch.linspace(0.1, 2.5, 13, dtype=torch.float64).tolist()
    states = reference(problem, torch.float64, *starts)
    sizes = [0.2, 0.15, 0.1, 0.07] if method.order < 8 else [0.5, 0.4, 0.3, 0.25]
    errors = [
        sum(
            stepper.step(flat.func, t, t + h, y[None], None).error.norm().item()
            for t, y in zip(starts, states, strict=True)
        )
        for h in sizes
    ]
    assert slope(sizes, errors) == pytest.approx(method.error_order + 1, abs=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_meets_the_ends_of_a_step(method):
    func, y0 = forced(torch.float64)
    flat = Problem.build(func, y0, Times(0.0, 1.0, None))
    norm = ErrorNorm(1e-12, 1e-14, [slice(0, flat.y0.numel())], flat.y0.dtype)
    stepper = method.at_steps(fixed=True)(flat.y0, flat.real_dtype, norm)
    step = stepper.step(flat.func, 0.0, 0.3, flat.y0, None)
    inside = stepper.interpolant(flat.func, step)
    ends = inside.evaluate([0.0, 0.3])
    torch.testing.assert_close(ends[:1], step.y0)
    torch.testing.assert_close(ends[1:], step.y1, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_with_and_without_gradient(method):
    func, y0 = forced(torch.float64)
    plain = solve_ivp(func, (0.0, 1.0), y0, method=method, step_size=0.1, **TIGHT)
    recorded = solve_ivp(func, (0.0, 1.0), y0.clone().requires_grad_(), method=method, step_size=0.1, **TIGHT)
    torch.testing.assert_close(plain.y, recorded.y.detach(), rtol=1e-14, atol=1e-14)
