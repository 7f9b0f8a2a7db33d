"""Problems with known solutions, functions that count or fail, and which methods to try, for tests of every part."""

import itertools
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch

from torchivp import ODE_METHODS

METHODS = list({method: name for name, method in reversed(ODE_METHODS.items())}.values())[::-1]
"""A name for each method. `fixed_adams` is another one of `implicit_adams`: a test need not run twice for it."""
FIXED = [
    name
    for name in METHODS
    if ODE_METHODS[name].fixed_in_odeint
    or (ODE_METHODS[name].error_order is None and not ODE_METHODS[name].sizes_steps)
]
"""Those of fixed step in odeint."""
ADAPTIVE = [name for name in METHODS if ODE_METHODS[name].error_order is not None and name not in FIXED]
DIFFERENTIABLE = [name for name in METHODS if ODE_METHODS[name].differentiable]
KINDS = (
    *("heun", "rk4", "dopri5", "dopri8"),  # explicit: with and without a slope handed on, with fixed and own steps
    *("implicit_euler", "trapezoid", "sdirk2", "kvaerno3"),  # stage by stage: one, the first explicit, none, adaptive
    *("radauIIA3", "radau5", "gl4"),  # all stages at once: stiffly accurate, adaptive, not stiffly accurate
    *("rosenbrock23", "rodas5p", "bdf", "auto", "adams", "explicit_adams", "implicit_adams", "scipy_solver"),
)
"""A method of every kind: those that take steps by the same code differ by their coefficients alone."""


def covering(every, some, *axes):
    """Cases that cover much at a small cost: those of `some` with all values of the other parameters, and each of
    `every` with one combination of them, which take turns, so that each combination comes with several of `every`.

    Use it where a case differs from another by a code path that it shares with many.
    """
    combinations = list(itertools.product(*axes))
    chosen = {(name, i % len(combinations)) for i, name in enumerate(every)}
    chosen |= {(name, i) for name in some for i in range(len(combinations))}
    names = [*every, *(name for name in some if name not in every)]
    return [(name, *values) for name in names for i, values in enumerate(combinations) if (name, i) in chosen]


def sampled(cases, some=KINDS):
    """Those `cases` that are of `some` for the fast tests, and the others for the sweep (`-m sweep`).

    A case is a name, or a tuple that begins with one; `some` are names, or cases. Use it for what a test asks of code
    that the names share. What is a name's own, as order and stability are of its coefficients, is tested of every name.
    """
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        chosen = case in some or values[0] in some
        found.append(case if chosen else pytest.param(*values, marks=pytest.mark.sweep))
    return found


def double(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


DETEST = {
    # Hull, Enright, Fellen and Sedgwick, "Comparing numerical methods for ordinary differential equations",
    # SIAM J. Numer. Anal. 9 (1972): one problem of each class.
    "A3 oscillation": (lambda t, y: y * torch.cos(t), [1.0]),
    "B2 linear reaction": (
        lambda t, y: torch.stack((-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2])),
        [2.0, 0.0, 1.0],
    ),
    "C1 radioactive chain": (
        lambda t, y: torch.cat((-y[:1], y[:-2] - y[1:-1], y[-2:-1])),
        [1.0] + [0.0] * 9,
    ),
    "D2 orbit of eccentricity 0.3": (
        lambda t, y: torch.cat((y[2:], -y[:2] / torch.linalg.vector_norm(y[:2]) ** 3)),
        [0.7, 0.0, 0.0, (1.3 / 0.7) ** 0.5],
    ),
    "E2 van der Pol": (lambda t, y: torch.stack((y[1], (1 - y[0] ** 2) * y[1] - y[0])), [2.0, 0.0]),
}


def scipy_solution(func, y0, t):
    """The solution of a real problem at the times `t`, the first of them the start, by SciPy's DOP853."""
    return _scipy_solution(func, tuple(y0), tuple(float(s) for s in t)).clone()


@cache
def _scipy_solution(func, y0, t):
    exact = scipy.integrate.solve_ivp(
        lambda t, y: func(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy(),
        (t[0], t[-1]),
        np.array(y0),
        t_eval=t,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return torch.from_numpy(exact.y.T)


class Counting:
    """A function of `(t, y)` that counts its calls and keeps the times of them."""

    def __init__(self, func):
        self.func = func
        self.times = []

    def __call__(self, t, y):
        self.times.append(float(t))
        return self.func(t, y)


class LotkaVolterra(torch.nn.Module):
    """The textbook system, its four parameters in one tensor."""

    def __init__(self, parameters=(1.5, 1.0, 3.0, 1.0)):
        super().__init__()
        self.parameters_ = torch.nn.Parameter(torch.tensor(parameters, dtype=torch.float64))

    def forward(self, t, y):
        alpha, beta, gamma, delta = self.parameters_.unbind()
        prey, predator = y.unbind(-1)
        return torch.stack((alpha * prey - beta * prey * predator, -gamma * predator + delta * prey * predator), -1)
