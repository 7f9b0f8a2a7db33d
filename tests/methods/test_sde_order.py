"""Orders of convergence of every method for SDEs, for every kind of SDE that it declares."""

import itertools
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torchivp import sdeint
from torchivp.methods.sde import SDE_METHODS, sde_methods
from torchivp.noise.increment import Increment, join, outer
from torchivp.sde.functions import UserFunctions, UserTerms
from torchivp.state import StateLayout

LEVELS = (3, 4, 5)
FINER = (4, 5, 6)
"""For scalar noise, where longer steps are too long for the order to show."""
FINEST = 10
ROWS = 200

CASES = sde_methods()
IDS = [f"{case.method}-{case.sde_type}-{case.noise_type}" for case in CASES]
FREE = {"milstein": {"grad_free": True}}
"""Options under which a method is tested once more."""

PRODUCTS = {"euler", "euler_heun", "heun", "midpoint"}
"""The methods that never ask for the diffusion alone."""

DETERMINISTIC = {
    "euler": 1,
    "milstein": 1,
    "euler_heun": 1,
    "heun": 2,
    "midpoint": 2,
    "log_ode": 2,
    "reversible_heun": 2,
    "implicit_euler": 1,
    "implicit_milstein": 1,
    "srk": 3,
    "srid2": 3,
    "sra1": 2,
    "sra3": 3,
    "sosra": 2,
    "shark": 2,
    "spark": 2,
    "slowrk": 2,
    "ri6": 2,
    "dri1": 3,
}
"""The orders for equations without noise."""


class Path:
    """A Brownian path on [0, 1] with all areas, drawn on a fine grid and joined exactly for the coarser ones."""

    levy_area_approximation = "foster"

    def __init__(self, channels, rows=ROWS, dtype=torch.float64):
        generator = torch.Generator().manual_seed(channels)
        count, dt = 2**FINEST, 2.0**-FINEST

        def normals(*shape):
            return torch.randn(count, rows, *shape, generator=generator, dtype=torch.float64)

        W, H = math.sqrt(dt) * normals(channels), math.sqrt(dt / 12) * normals(channels)
        rest = (dt / math.sqrt(24)) * normals(channels, channels)
        A = outer(H, W) - outer(W, H) + rest - rest.mT
        self.shape = (rows, channels)
        self._levels = {FINEST: Increment(dt, W, H, A)}
        for level in range(FINEST - 1, -1, -1):
            fine = self._levels[level + 1]
            odd, even = (
                Increment(fine.dt, fine.W[i::2], fine.H[i::2], fine.A[i::2])  # pyright: ignore[reportOptionalSubscript]
                for i in (0, 1)
            )
            self._levels[level] = join(odd, even)

    @property
    def finest(self):
        return self._levels[FINEST]

    def increment(self, ta, tb):
        level = round(-math.log2(tb - ta))
        found, i = self._levels[level], round(ta * 2**level)
        return Increment(found.dt, found.W[i], found.H[i], found.A[i])  # pyright: ignore[reportOptionalSubscript]

    def integral(self, weight):
        """The integral of weight(t) dW over [0, 1], by the first two moments of every fine step, [rows, channels]."""
        dt, t = self.finest.dt, (torch.arange(2**FINEST, dtype=torch.float64) + 0.5) * 2.0**-FINEST
        slope = (weight(t + 1e-5) - weight(t - 1e-5)) / 2e-5
        shape = (-1, 1, 1)
        return (weight(t).view(shape) * self.finest.W - dt * slope.view(shape) * self.finest.H).sum(0)


@cache
def path(channels):
    return Path(channels)


class Problem:
    """An SDE in Stratonovich's form with a solution on a path; `form` gives it in either calculus.

    Drift and diffusion are functions of t and of states [rows, size]; the diffusion is [rows, size] of diagonal noise.
    """

    channels = 1

    def start(self, rows):
        raise NotImplementedError

    def f(self, t, y):
        raise NotImplementedError

    def g(self, t, y):
        raise NotImplementedError

    def correction(self, t, y, noise_type):
        """Half of the sum of (dg_j/dy) g_j: the drift in Itô's calculus less that in Stratonovich's."""
        raise NotImplementedError

    def form(self, sde_type, noise_type):
        return Form(self, sde_type, noise_type)


class Form:
    """A problem in one calculus."""

    def __init__(self, problem, sde_type, noise_type):
        self.problem, self.sde_type, self.noise_type = problem, sde_type, noise_type

    def f(self, t, y):
        f = self.problem.f(t, y)
        if self.sde_type == "ito" and self.noise_type != "additive":
            f = f + self.problem.correction(t, y, self.noise_type)
        return f

    def g(self, t, y):
        return self.problem.g(t, y)


class FineReference(Problem):
    """A problem whose solution is that of a method of strong order 1.5 on the finest grid."""

    def solution(self, noise_type):
        return _fine(type(self), noise_type)


@cache
def _fine(problem, noise_type):
    problem = problem()
    return solve(problem.form("stratonovich", noise_type), "slowrk", FINEST, problem)


class SquashedOU(Problem):
    """X = arctan(Z) for dZ = -a Z dt + s(t) dW: of time, with a drift that does not commute with the noise. Exact."""

    rates = torch.tensor([1.3, 0.4], dtype=torch.float64)

    def __init__(self, diagonal):
        self.diagonal, self.channels = diagonal, 2 if diagonal else 1

    def start(self, rows):
        return torch.tensor([[0.7, -0.4]], dtype=torch.float64).repeat(rows, 1)

    @staticmethod
    def size(t):
        return 0.6 * (1.0 + 0.8 * torch.sin(3.0 * t))

    def f(self, t, y):
        return -self.rates * torch.sin(y) * torch.cos(y)

    def g(self, t, y):
        g = self.size(t) * torch.cos(y) ** 2
        return g if self.diagonal else g.unsqueeze(2)

    def correction(self, t, y, noise_type):
        return -(self.size(t) ** 2) * torch.sin(y) * torch.cos(y) ** 3

    def solution(self, noise_type):
        own, z0 = path(self.channels), torch.tan(self.start(ROWS))
        parts = [own.integral(lambda t, a=a: self.size(t) * torch.exp(-a * (1.0 - t))) for a in self.rates]
        noise = torch.stack([part[:, i if self.diagonal else 0] for i, part in enumerate(parts)], 1)
        return torch.atan(z0 * torch.exp(-self.rates) + noise)


class Geometric(Problem):
    """Geometric Brownian motions. Exact."""

    channels = 2

    def start(self, rows):
        return torch.tensor([[1.0, 0.5]], dtype=torch.float64).repeat(rows, 1)

    def f(self, t, y):
        return 0.3 * y

    def g(self, t, y):
        return 0.6 * y

    def correction(self, t, y, noise_type):
        return 0.18 * y

    def solution(self, noise_type):
        return self.start(ROWS) * torch.exp(0.3 + 0.6 * path(2).increment(0.0, 1.0).W)


class Arctan(Problem):
    """dX = p cos(X)^2 dW, in Itô's calculus less p^2 sin(X) cos(X)^3 dt: X = arctan(p W + tan(x)). Exact."""

    channels = 2

    def start(self, rows):
        return torch.full((rows, 2), 0.7, dtype=torch.float64)

    def f(self, t, y):
        return torch.zeros_like(y)

    def g(self, t, y):
        return 0.5 * torch.cos(y) ** 2

    def correction(self, t, y, noise_type):
        return -0.25 * torch.sin(y) * torch.cos(y) ** 3

    def solution(self, noise_type):
        return torch.atan(0.5 * path(2).increment(0.0, 1.0).W + torch.tan(self.start(ROWS)))


class Coupled(FineReference):
    """Diagonal noise whose drift couples the elements, and depends on time."""

    channels = 2

    def start(self, rows):
        return torch.full((rows, 2), 0.3, dtype=torch.float64)

    def f(self, t, y):
        a, b = y.unbind(1)
        return torch.stack((torch.sin(b) - a, torch.cos(a + t)), 1)

    def g(self, t, y):
        a, b = y.unbind(1)
        return torch.stack((0.5 + 0.4 * torch.sin(a + t), 0.6 * torch.cos(b)), 1)

    def correction(self, t, y, noise_type):
        a, b = y.unbind(1)
        first = (0.5 + 0.4 * torch.sin(a + t)) * torch.cos(a + t)
        return torch.stack((0.2 * first, -0.18 * torch.sin(b) * torch.cos(b)), 1)


class Matrices(Problem):
    """dX = B X dt + A X dW for matrices that commute, A not symmetric: X = exp(B + A W) x. Exact."""

    A = torch.tensor([[0.3, 0.8], [-0.5, 0.2]], dtype=torch.float64)

    def start(self, rows):
        return torch.tensor([[1.0, 0.5]], dtype=torch.float64).repeat(rows, 1)

    def f(self, t, y):
        return y @ self._B.T

    @property
    def _B(self):
        return 0.3 * torch.eye(2, dtype=torch.float64) - 0.7 * self.A

    def g(self, t, y):
        return (y @ self.A.T).unsqueeze(2)

    def correction(self, t, y, noise_type):
        return 0.5 * y @ (self.A @ self.A).T

    def solution(self, noise_type):
        W = path(1).increment(0.0, 1.0).W.unsqueeze(2)
        return (torch.linalg.matrix_exp(self._B + self.A * W) @ self.start(ROWS).unsqueeze(2)).squeeze(2)


class ScalarDrift(FineReference):
    """Scalar noise along a field that the drift does not commute with."""

    start = Coupled.start
    f = Coupled.f

    def g(self, t, y):
        a, b = y.unbind(1)
        return torch.stack((0.5 + 0.4 * torch.sin(b + t), 0.6 * torch.cos(a)), 1).unsqueeze(2)

    def correction(self, t, y, noise_type):
        a, b = y.unbind(1)
        first = torch.cos(b + t) * torch.cos(a)
        return torch.stack((0.12 * first, -0.3 * torch.sin(a) * (0.5 + 0.4 * torch.sin(b + t))), 1)


class OU(Problem):
    """An Ornstein-Uhlenbeck process with additive noise that depends on time. Exact."""

    channels = 2
    rates = torch.tensor([1.3, 0.4], dtype=torch.float64)
    start = SquashedOU.start
    size = staticmethod(SquashedOU.size)

    def f(self, t, y):
        return -self.rates * y

    def g(self, t, y):
        mix = torch.tensor([[1.0, 0.3], [0.0, 0.8]], dtype=torch.float64)
        return (self.size(t) * mix).expand(len(y), 2, 2)

    def solution(self, noise_type):
        own, decay = path(2), torch.exp(-self.rates)
        parts = [own.integral(lambda t, a=a: self.size(t) * torch.exp(-a * (1.0 - t))) for a in self.rates]
        noise = torch.stack((parts[0] @ torch.tensor([1.0, 0.3]).double(), 0.8 * parts[1][:, 1]), 1)
        return self.start(ROWS) * decay + noise


class Additive(FineReference):
    """Additive noise that depends on time, and a nonlinear drift."""

    channels = 2
    start = Coupled.start

    def f(self, t, y):
        a, b = y.unbind(1)
        return torch.stack((torch.sin(2.0 * b) - a + t, torch.cos(a) - 0.5 * b), 1)

    def g(self, t, y):
        one = torch.ones_like(t)
        rows = torch.stack((1.0 + 0.5 * torch.sin(4.0 * t), 0.3 * one, 0.2 * t, 0.8 * one)).to(y.dtype)
        return rows.view(2, 2).expand(len(y), 2, 2)


class Commutative(Problem):
    """X = psi(Z) for dZ = -Z dt + dW with two noises, psi no function of single elements. Exact."""

    channels = 2

    def start(self, rows):
        return self.psi(torch.full((rows, 2), 0.4, dtype=torch.float64))

    @staticmethod
    def psi(z):
        low = z[:, 1] + 0.5 * torch.sin(z[:, 0])
        return torch.stack((z[:, 0] + 0.5 * torch.sin(low), low), 1)

    @staticmethod
    def inverse(x):
        first = x[:, 0] - 0.5 * torch.sin(x[:, 1])
        return torch.stack((first, x[:, 1] - 0.5 * torch.sin(first)), 1)

    def f(self, t, y):
        return (self.g(t, y) @ -self.inverse(y).unsqueeze(2)).squeeze(2)

    def g(self, t, y):
        c, d = 0.5 * torch.cos(self.inverse(y)[:, 0]), 0.5 * torch.cos(y[:, 1])
        return torch.stack((1.0 + c * d, d, c, torch.ones_like(c)), 1).view(-1, 2, 2)

    def correction(self, t, y, noise_type):
        first, c, d = self.inverse(y)[:, 0], torch.cos(y[:, 1]), torch.sin(y[:, 1])
        low = -0.25 * torch.sin(first)
        return torch.stack((0.5 * c * low - 0.25 * d * (0.25 * torch.cos(first) ** 2 + 1.0), low), 1)

    def solution(self, noise_type):
        z0 = self.inverse(self.start(ROWS))
        return self.psi(math.exp(-1.0) * z0 + path(2).integral(lambda t: torch.exp(t - 1.0)))


class General(Problem):
    """Two noises that do not commute. The solution is that of Heun's method with the areas, on the finest grid."""

    channels = 2
    start = Coupled.start
    f = Coupled.f

    def g(self, t, y):
        a, b = y.unbind(1)
        columns = (0.7 + 0.0 * a, 0.5 * torch.cos(b), 0.8 * torch.sin(a), 0.3 + 0.6 * a / (1.0 + a * a))
        return torch.stack(columns, 1).view(-1, 2, 2)

    def correction(self, t, y, noise_type):
        a, b = y.unbind(1)
        p, slope = 0.3 + 0.6 * a / (1.0 + a * a), 0.6 * (1.0 - a * a) / (1.0 + a * a) ** 2
        low = 0.28 * torch.cos(a) + 0.25 * slope * torch.cos(b)
        return torch.stack((-0.25 * torch.sin(b) * p, low), 1)

    def bracket(self, y):
        """(dg_2/dy) g_1 - (dg_1/dy) g_2."""
        a, b = y.unbind(1)
        g = self.g(None, y)
        slope = 0.6 * (1.0 - a * a) / (1.0 + a * a) ** 2
        along_first = torch.stack((-0.5 * torch.sin(b) * g[:, 1, 0], slope * g[:, 0, 0]), 1)
        return along_first - torch.stack((torch.zeros_like(a), 0.8 * torch.cos(a) * g[:, 0, 1]), 1)

    @cache  # noqa: B019
    def solution(self, noise_type):
        own, y = path(2).finest, self.start(ROWS)
        assert own.A is not None
        areas = own.A[:, :, 0, 1:]
        times = torch.arange(2**FINEST + 1, dtype=torch.float64) * own.dt
        for i in range(2**FINEST):
            W, A = own.W[i].unsqueeze(2), areas[i]
            f0, g0 = self.f(times[i], y), self.g(times[i], y)
            guess = y + own.dt * f0 + (g0 @ W).squeeze(2)
            f1, g1 = self.f(times[i + 1], guess), self.g(times[i + 1], guess)
            y = y + 0.5 * own.dt * (f0 + f1) + 0.5 * ((g0 + g1) @ W).squeeze(2) + self.bracket(y) * A
        return y


PROBLEMS = {
    "diagonal": [Geometric(), Arctan(), SquashedOU(True), Coupled()],
    "scalar": [Matrices(), SquashedOU(False), ScalarDrift()],
    "additive": [OU(), Additive()],
    "commutative": [Commutative()],
    "general": [General()],
}


def solve(form, method, level, problem, y0=None, ts=(0.0, 1.0), options=None, bm=None):
    bm = path(problem.channels) if bm is None else bm
    y0 = problem.start(ROWS) if y0 is None else y0
    return sdeint(form, y0, ts, bm=bm, method=method, dt=2.0**-level, options=options)[-1]


def error(x, y):
    return float((x - y).abs().square().sum(1).mean().sqrt())


def slope(levels, errors):
    return np.polyfit([-level for level in levels], np.log2(errors), 1)[0]


def with_options(cases):
    return [(case, options) for case in cases for options in ({}, FREE.get(case.method)) if options is not None]


@pytest.mark.parametrize("noise_type", [name for name in PROBLEMS if name != "additive"])
def test_the_two_forms_of_a_problem_are_the_same_sde(noise_type):
    for problem in PROBLEMS[noise_type]:
        y, t = problem.start(3), torch.tensor(0.3, dtype=torch.float64)
        terms = UserTerms(
            UserFunctions.of(problem.form("ito", noise_type), None), StateLayout(y, 1), (), problem.channels
        )
        torch.testing.assert_close(
            problem.correction(t, y, noise_type), 0.5 * terms.g_and_derivative(t, y, lambda g: g)[1]
        )


@pytest.mark.parametrize(
    ("case", "options"),
    with_options(CASES),
    ids=lambda x: "-".join(x[:3]) if isinstance(x, tuple) else "+".join(x) or "plain",
)
def test_strong_order(case, options):
    for problem in PROBLEMS[case.noise_type]:
        form, exact = problem.form(case.sde_type, case.noise_type), problem.solution(case.noise_type)
        levels = FINER if case.noise_type == "scalar" else LEVELS
        errors = [error(solve(form, case.method, n, problem, options=options), exact) for n in levels]
        found = slope(levels, errors)
        assert found > case.strong - 0.15, (type(problem).__name__, errors)
        assert errors[-1] < (0.14 if case.strong < 1.0 else 0.04), (type(problem).__name__, errors)


# The error of an expectation over one step, without samples: by Gauss's quadrature over W and H, exact for polynomials
# to degree 5, and by the series of the expectation in the size of the step.


class Weak:
    """A nonlinear SDE in Itô's calculus whose coefficients depend on time, for every type of noise; at one point."""

    t = 0.3
    y = torch.tensor([0.4, -0.7], dtype=torch.float64)

    def __init__(self, noise_type, channels):
        self.noise_type, self.channels = noise_type, channels

    def f(self, t, y):
        a, b = y.unbind(-1)
        return torch.stack((0.5 * torch.sin(b) - a + 0.5 * t * a * b, 0.6 * torch.cos(a + t) + a * b / 3.0), -1)

    def g(self, t, y):
        a, b = y.unbind(-1)
        if self.noise_type == "diagonal":
            return torch.stack((0.5 + 0.5 * torch.sin(a + t), 0.4 * torch.cos(b - t) + b / 3.0), -1)
        if self.noise_type == "additive":
            one = torch.ones_like(a)
            entries = (0.5 + torch.sin(t), t * one.mean(), 0.3 + t * t, torch.cos(t))
            return torch.stack([entry * one for entry in entries], -1).unflatten(-1, (2, 2))
        columns = [
            torch.stack((0.5 + 0.5 * torch.sin(a + b + t), 0.5 * a * b + t / 3.0), -1),
            torch.stack((0.5 * b + 0.25 * a * a, 0.4 * torch.cos(a - t) + b / 3.0), -1),
            torch.stack((torch.cos(b) / 3.0 + 0.25 * t * a, 0.3 + 0.25 * a * b), -1),
        ]
        if self.noise_type == "commutative":
            c, d = 0.5 * torch.cos(a - 0.5 * torch.sin(b)), 0.5 * torch.cos(b)
            first, second = torch.stack((1.0 + c * d, c), -1), torch.stack((d, torch.ones_like(d)), -1)
            columns = [(0.5 + 0.3 * t) * first, 0.6 * torch.cos(t) * second]
        return torch.stack(columns[: self.channels], -1)

    @staticmethod
    def observed(y):
        a, b = y.unbind(-1)
        values = (a, b, a * a, a * b, b * b, a**3, a * a * b, a * b**3, torch.sin(a) + torch.exp(0.5 * b))
        return torch.stack(values, -1)

    def columns(self, t, y):
        g = self.g(t, y)
        return torch.diag_embed(g) if self.noise_type == "diagonal" else g

    def generator(self, function):
        """The function whose value is the derivative in time of the expectation of `function(t, y)`."""

        def derivative(t, y):
            g = self.columns(t, y)
            slope_t, slope = torch.func.jacfwd(function, (0, 1))(t, y)
            curvature = torch.func.jacfwd(torch.func.jacfwd(function, 1), 1)(t, y)
            return slope_t + slope @ self.f(t, y) + 0.5 * torch.einsum("oij,ik,jk->o", curvature, g, g)

        return derivative

    @cache  # noqa: B019
    def series(self):
        """The expectation after a step h is the first, plus h times the second, plus h^2/2 times the third, plus ..."""
        t = torch.tensor(self.t, dtype=torch.float64)
        zeroth = lambda t, y: self.observed(y)
        first = self.generator(zeroth)
        return [function(t, self.y) for function in (zeroth, first, self.generator(first))]

    def form(self, sde_type):
        return WeakForm(self, sde_type)


class WeakForm:
    def __init__(self, weak, sde_type):
        self.sde_type, self.noise_type, self.weak, self.g = sde_type, weak.noise_type, weak, weak.g

    def f(self, t, y):
        f, g = self.weak.f(t, y), self.weak.columns(t, y)
        if self.sde_type == "ito":
            return f
        for j in range(g.shape[-1]):
            along = lambda x, j=j: self.weak.columns(t, x)[:, :, j]
            f = f - 0.5 * torch.func.jvp(along, (y,), (g[:, :, j],))[1]
        return f


@cache
def weak(noise_type, channels):
    return Weak(noise_type, channels)


def nodes(channels, dt):
    """Increments with probabilities: all combinations of Gauss's nodes for W and H, and two for the rest of an area."""
    x, p = np.polynomial.hermite_e.hermegauss(3)
    chosen = np.array(list(itertools.product(range(3), repeat=2 * channels)))
    drawn = torch.from_numpy(x[chosen] * math.sqrt(dt))
    probability = torch.from_numpy((p / p.sum())[chosen].prod(1))
    W, H = drawn[:, :channels], drawn[:, channels:] / math.sqrt(12.0)
    rest = (dt / math.sqrt(12.0)) * torch.triu(torch.ones(channels, channels, dtype=torch.float64), 1)
    A = outer(H, W) - outer(W, H)
    A = torch.cat((A + rest - rest.T, A - rest + rest.T))
    return Increment(dt, W.repeat(2, 1), H.repeat(2, 1), A), 0.5 * probability.repeat(2)


def weak_errors(method, problem, sde_type, sizes):
    found = []
    for dt in sizes:
        noise, probability = nodes(problem.channels, dt)
        y0 = problem.y.repeat(len(probability), 1)
        form = problem.form(sde_type)
        terms = UserTerms(UserFunctions.of(form, None), StateLayout(y0, 1), (), problem.channels)
        t0, t1 = torch.tensor([problem.t, problem.t + dt], dtype=torch.float64)
        y1 = method.step(terms, t0, t1, y0, noise, method.start(terms, t0, y0))[0]
        zeroth, first, second = problem.series()
        found.append(probability @ problem.observed(y1) - (zeroth + dt * first + 0.5 * dt * dt * second))
    return torch.stack(found).abs().amax(1).tolist()


@pytest.mark.parametrize(
    ("case", "channels"),
    [
        (case, channels)
        for case in CASES
        for channels in {"scalar": (1,), "general": (2, 3) if case.weak == 2.0 else (2,)}.get(case.noise_type, (2,))
    ],
    ids=lambda x: "-".join(x[:3]) if isinstance(x, tuple) else f"{x}",
)
def test_weak_order(case, channels):
    problem, levels = weak(case.noise_type, channels), (9, 10, 12)
    options: dict = {"newton_tol": 1e-14} if case.method.startswith("implicit") else {}
    method = SDE_METHODS[case.method](**options)
    errors = weak_errors(method, problem, case.sde_type, [2.0**-n for n in levels])
    found = slope(levels, errors) - 1.0
    assert found > case.weak - 0.15, errors


@pytest.mark.parametrize("name", SDE_METHODS)
def test_order_without_noise(name):
    """With g = 0 a method is one for ordinary differential equations, of the order that its drift has."""
    case = [case for case in CASES if case.method == name][-1]

    class Silent(Coupled):
        def g(self, t, y):
            return torch.zeros_like(y) if case.noise_type == "diagonal" else torch.zeros_like(y).unsqueeze(2)

        def correction(self, t, y, noise_type):
            return torch.zeros_like(y)

    problem = Silent()
    problem.channels = 2 if case.noise_type == "diagonal" else 1
    form, y0 = problem.form(case.sde_type, case.noise_type), problem.start(1)
    bm = Path(problem.channels, rows=1)
    levels = (4, 5, 6, 7)
    states = [solve(form, name, n, problem, y0, bm=bm) for n in (*levels, 8)]
    differences = [error(a, b) for a, b in itertools.pairwise(states)]
    assert slope(levels, differences) > DETERMINISTIC[name] - 0.15, differences
    assert slope(levels, differences) < DETERMINISTIC[name] + 0.5, differences


class ComplexLinear(Problem):
    """dY = l Y dt + m_1 Y dW_1 + m_2 Y dW_2 with complex numbers, or m_k dW_k for additive noise; real noise. Exact."""

    rate = 0.2 + 0.9j
    sizes = (0.3 + 0.4j, -0.2 + 0.5j)

    def __init__(self, noise_type):
        self.noise_type = noise_type
        self.channels = 1 if noise_type == "scalar" else 2

    def start(self, rows):
        return torch.tensor([[1.0 + 0.5j, -0.3j]], dtype=torch.complex128).repeat(rows, 1)

    def f(self, t, y):
        return self.rate * y

    def g(self, t, y):
        m = torch.tensor(self.sizes, dtype=y.dtype)
        if self.noise_type == "diagonal":
            return m * y
        if self.noise_type == "additive":
            return torch.stack((m, m.conj())).expand(len(y), 2, 2)
        return m[: self.channels] * y.unsqueeze(2)

    def correction(self, t, y, noise_type):
        m = torch.tensor(self.sizes, dtype=y.dtype)
        return 0.5 * m**2 * y if noise_type == "diagonal" else 0.5 * (m[: self.channels] ** 2).sum() * y

    def solution(self, noise_type):
        own, m = path(self.channels), torch.tensor(self.sizes, dtype=torch.complex128)
        if noise_type == "additive":
            growth = own.integral(lambda t: torch.exp(self.rate * (1.0 - t)))
            mix = torch.stack((m, m.conj()))
            return self.start(ROWS) * np.exp(self.rate) + growth.to(mix.dtype) @ mix.T
        W = own.increment(0.0, 1.0).W.to(m.dtype)
        exponent = m * W if noise_type == "diagonal" else W @ m[: self.channels].unsqueeze(1)
        return self.start(ROWS) * torch.exp(self.rate + exponent)


@pytest.mark.parametrize(
    ("case", "options"),
    with_options(CASES),
    ids=lambda x: "-".join(x[:3]) if isinstance(x, tuple) else "+".join(x) or "plain",
)
def test_complex_states(case, options):
    problem = ComplexLinear(case.noise_type)
    form, exact = problem.form(case.sde_type, case.noise_type), problem.solution(case.noise_type)
    levels = (2, 4, 6)
    errors = [error(solve(form, case.method, n, problem, options=options), exact) for n in levels]
    assert slope(levels, errors) > case.strong - 0.2, errors


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.sde_type == "stratonovich"], ids=lambda x: "-".join(x[:3])
)
def test_there_and_back(case):
    """Backwards in time along the same path, a Stratonovich SDE leads back, up to the error of the method."""
    problem = PROBLEMS[case.noise_type][-1]
    form, y0, errors = problem.form(case.sde_type, case.noise_type), problem.start(ROWS), []
    for n in (LEVELS[0], LEVELS[-1]):
        y1 = solve(form, case.method, n, problem)
        errors.append(error(solve(form, case.method, n, problem, y1, (1.0, 0.0)), y0))
    assert slope((LEVELS[0], LEVELS[-1]), errors) > case.strong - 0.15, errors


def variants(form, diagonal):
    """The same SDE by other functions, by names; those of the second dictionary do not give the diffusion alone."""

    def prod(t, y, v):
        g = form.g(t, y)
        return g * v if diagonal else torch.bmm(g, v.unsqueeze(2)).squeeze(2) if g.shape[2] > 1 else g[:, :, 0] * v

    f, g = form.f, form.g
    both = lambda t, y: (f(t, y), g(t, y))
    both_prod = lambda t, y, v: (f(t, y), prod(t, y, v))

    def make(**functions):
        return SimpleNamespace(sde_type=form.sde_type, noise_type=form.noise_type, **functions)

    whole = {
        "f_and_g": make(f_and_g=both),
        "g_prod": make(f=f, g=g, g_prod=prod),
        "f_and_g_prod": make(f=f, g=g, f_and_g_prod=both_prod),
        "all": make(f=f, g=g, f_and_g=both, g_prod=prod, f_and_g_prod=both_prod),
    }
    return whole, {"only g_prod": make(f=f, g_prod=prod), "only f_and_g_prod": make(f_and_g_prod=both_prod)}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_variants_of_the_functions(case):
    problem = PROBLEMS[case.noise_type][-1]
    form = problem.form(case.sde_type, case.noise_type)
    expected = solve(form, case.method, 2, problem)
    whole, products = variants(form, case.noise_type == "diagonal")
    for name, variant in whole.items():
        found = solve(variant, case.method, 2, problem)
        if case.method in ("euler", "midpoint"):
            assert torch.equal(found, expected), name
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13, msg=name)
    if case.method in PRODUCTS:
        for name, variant in products.items():
            found = solve(variant, case.method, 2, problem)
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13, msg=name)
