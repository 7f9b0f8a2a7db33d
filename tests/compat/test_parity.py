"""The same call gives the same result as torchdiffeq's own, except where that is wrong; each exception says why."""

import math
from functools import cache

import pytest
import torch
import torchdiffeq as theirs
from torch import nn

from problems import DETEST, Counting, covering, scipy_solution
from torchivp.compat import torchdiffeq as ours
from torchivp.compat.torchdiffeq._impl.odeint import SOLVERS

D = torch.float64

ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
EXPLICIT = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAMS = ["explicit_adams", "implicit_adams"]
NEWER = [
    "tsit5",
    "adams",
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "radauIIA3",
    "gl4",
    "radauIIA5",
    "gl6",
    "sdirk2",
    "trbdf2",
]
"""What torchdiffeq 0.2.5 on PyPI lacks, its repository (or, for "adams", an earlier version) has."""

RTOL = {"adaptive_heun": 1e-4, "fehlberg2": 1e-5, "bosh3": 1e-6}


class Field(nn.Module):
    """A right-hand side that depends on time, couples everything, and has parameters."""

    def __init__(self, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(0.6 * torch.randn(3, 3, generator=generator, dtype=D).to(dtype))
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, t, y):
        if isinstance(y, tuple):
            a, b = y
            return torch.sin(a) @ self.matrix - b.sum() * a, self.rate * torch.cos(t) * b - a.mean()
        return torch.sin(y) @ self.matrix + self.rate * torch.cos(t) * y


def start(kind, dtype):
    y = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, -0.6]], dtype=D).to(dtype)
    if dtype.is_complex:
        y = y + 0.1j * y.flip(0)
    return (y, 0.5 * y[0, :2].clone()) if kind == "tuple" else y


def leaves(y):
    return y if isinstance(y, tuple) else (y,)


def solve(library, name, kind, dtype, times, **kwargs):
    """The solution, the gradients of a function of it by y0 and the parameters, and that by t."""
    func = Field(dtype)
    y0 = start(kind, dtype)
    for leaf in leaves(y0):
        leaf.requires_grad_()
    t = times.clone().requires_grad_()
    solution = leaves(getattr(library, name)(func, y0, t, **kwargs))
    weights = [torch.linspace(1, 2, leaf.numel(), dtype=D).reshape(leaf.shape) for leaf in solution]
    loss = sum((leaf.abs().square() * weight).sum() for leaf, weight in zip(solution, weights, strict=True))
    *gradients, by_time = torch.autograd.grad(loss, [*leaves(y0), *func.parameters(), t])
    return [leaf.detach() for leaf in solution], gradients, [by_time]


def error(one, other):
    """The largest difference, relative to the largest value of each tensor."""
    differences = []
    for mine, reference in zip(one, other, strict=True):
        assert mine.shape == reference.shape
        differences.append(float((mine - reference).abs().max() / reference.abs().max()))
    return max(differences)


@cache
def reference(kind, dtype, direction):
    """A solution much more accurate than any other here, by torchdiffeq, without its dense output."""
    dtype = dtype if dtype.is_complex else D
    options = {"step_size": 0.01, "interp": "cubic"}
    return solve(theirs, "odeint", kind, dtype, times(direction), method="rk4", options=options)


KINDS = pytest.mark.parametrize("kind", ["tensor", "tuple"])
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "reversed"])
CASES = [
    (D, "tensor", "forward"),
    (D, "tensor", "reversed"),
    (D, "tuple", "forward"),
    (D, "tuple", "reversed"),
    (torch.float32, "tensor", "forward"),
    (torch.float32, "tuple", "reversed"),
    (torch.complex128, "tensor", "reversed"),
    (torch.complex128, "tuple", "forward"),
]
DOORS = ["odeint", "odeint_adjoint"]
NAMES = pytest.mark.parametrize("name", DOORS)
TIMES = torch.tensor([0.0, 0.3, 0.55, 1.2], dtype=D)


def times(direction):
    return TIMES if direction == "forward" else -TIMES


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize(
    ("chosen", "case"),
    covering([(method, name) for name in DOORS for method in ADAPTIVE], [("dopri5", name) for name in DOORS], CASES),
    ids=str,
)
def test_adaptive_methods(chosen, case):
    """Solutions and gradients are as accurate as torchdiffeq's, and as the tolerance says.

    They are not compared with each other: torchdiffeq's gradient by t is that of its dense output, a thousand
    tolerances wrong with dopri8 and bosh3, and odeint_adjoint drops the imaginary part of it for complex states.
    """
    (method, name), (dtype, kind, direction) = chosen, case
    rtol = 1e-4 if dtype == torch.float32 else RTOL.get(method, 1e-8)
    kwargs = {"method": method, "rtol": rtol, "atol": rtol / 10}
    mine = solve(ours, name, kind, dtype, times(direction), **kwargs)
    others = solve(theirs, name, kind, dtype, times(direction), **kwargs)
    exact = reference(kind, dtype, direction)
    for a, b, e in zip(mine, others, exact, strict=True):
        assert [leaf.dtype for leaf in a] == [leaf.dtype for leaf in b]
        assert error(a, e) < 3 * error(b, e) + 10 * rtol
        if method != "fehlberg2":  # whose estimate of the error is too small
            assert error(a, e) < 100 * rtol


@pytest.mark.parametrize(("dtype", "kind", "direction"), CASES, ids=str)
@pytest.mark.parametrize("options", [{}, {"step_size": 0.1, "interp": "linear"}, {"step_size": 0.1, "interp": "cubic"}])
@pytest.mark.parametrize("method", EXPLICIT)
def test_explicit_methods_of_fixed_steps_to_rounding(method, options, dtype, direction, kind):
    eps = 2e-5 if dtype == torch.float32 else 1e-12
    mine = solve(ours, "odeint", kind, dtype, times(direction), method=method, options=options)
    others = solve(theirs, "odeint", kind, dtype, times(direction), method=method, options=options)
    if method == "heun2" and options.get("interp") == "cubic":
        eps = 1e-2  # its dense output here is quadratic, of its own order, and needs no further evaluation
    for a, b in zip(mine, others, strict=True):
        assert error(a, b) < eps


@KINDS
@DIRECTIONS
@pytest.mark.parametrize("options", [{}, {"step_size": 0.05}])
@pytest.mark.parametrize("method", EXPLICIT)
def test_adjoint_of_fixed_steps_to_rounding(method, options, direction, kind):
    """The gradient by t is left out: torchdiffeq integrates it with the method, here it is df/dt as it stands."""
    mine = solve(ours, "odeint_adjoint", kind, D, times(direction), method=method, options=options)
    others = solve(theirs, "odeint_adjoint", kind, D, times(direction), method=method, options=options)
    for a, b in zip(mine[:2], others[:2], strict=True):
        assert error(a, b) < 1e-12


@KINDS
@DIRECTIONS
@NAMES
@pytest.mark.parametrize("method", ADAMS)
def test_adams(method, name, direction, kind):
    """Beside the reference: the orders differ, as torchdiffeq's default one, 12, is unstable."""
    options = {"step_size": 0.01, "interp": "cubic"}
    kwargs = {"method": method, "options": options, "rtol": 1e-10, "atol": 1e-10}
    exact = reference(kind, D, direction)
    for a, e in zip(solve(ours, name, kind, D, times(direction), **kwargs), exact, strict=True):
        assert error(a, e) < 1e-6


@pytest.mark.parametrize(
    ("method", "name", "direction", "dtype"),
    covering(NEWER, ["tsit5", "gl4"], DOORS, ["forward", "reversed"], [D, torch.complex128]),
)
def test_methods_that_torchdiffeq_has_not_released(method, name, direction, dtype):
    options = {} if method in ("tsit5", "adams") else {"step_size": 0.05}
    bound = {1: 0.2, 2: 1e-2, 3: 1e-3}.get(SOLVERS[method].order, 1e-4) if options else 1e-4
    kwargs = {"method": method, "options": options}
    exact = reference("tensor", dtype, direction)
    for a, e in zip(solve(ours, name, "tensor", dtype, times(direction), **kwargs), exact, strict=True):
        assert error(a, e) < bound


@pytest.mark.parametrize("problem", ["D2 orbit of eccentricity 0.3", "E2 van der Pol"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_no_more_evaluations_at_the_same_accuracy(method, problem):
    """Work and precision at several tolerances; from one to the next they fluctuate."""
    func, y0 = DETEST[problem]
    t = torch.tensor([0.0, 5.0], dtype=D)
    exact, order, work = scipy_solution(func, y0, t.tolist())[-1], SOLVERS[method].order, {ours: [], theirs: []}
    tolerances = {"adaptive_heun": (1e-2, 1e-3, 3e-4), "fehlberg2": (1e-3, 1e-4, 1e-5)}.get(method, (1e-4, 1e-5, 1e-6))
    for door, products in work.items():
        for rtol in tolerances:
            counting = Counting(func)
            y = door.odeint(counting, torch.tensor(y0, dtype=D), t, rtol=rtol, atol=rtol / 10, method=method)[-1]
            # errors fall with the evaluations to the power of the order
            products.append(len(counting.times) * (y - exact).abs().max().item() ** (1 / order))
    assert sum(map(math.log, work[ours])) < sum(map(math.log, work[theirs])) + 3 * math.log(1.1)
