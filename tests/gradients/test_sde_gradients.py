"""The gradients of solves of SDEs: against differences, against each other, and against exact ones."""

import gc
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch.utils._pytree import tree_leaves, tree_map_only

import torchivp
from memory import PeakMemory
from problems import covering
from torchivp.gradients.sde_adjoint import SDEAdjoint, find_adjoint
from torchivp.gradients.sde_checkpointed import SDECheckpointed
from torchivp.gradients.sde_direct import SDEDirect
from torchivp.gradients.sde_reversible import SDEReversible
from torchivp.methods.sde import find_sde_method, sde_methods
from torchivp.methods.sde.midpoint import Midpoint
from torchivp.methods.sde.reversible_heun import ReversibleHeun
from torchivp.noise.along import PathNoise
from torchivp.noise.grid import GridNoise
from torchivp.noise.interval import BrownianInterval
from torchivp.sde.base import SDEIto, SDEStratonovich
from torchivp.sde.problem import SDEProblem
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.sde_loop.steps import Steps
from torchivp.solution import SolveError

D = torch.float64
CALCULI = ("ito", "stratonovich")
NOISES = ("diagonal", "scalar", "additive", "commutative", "general")
ADJOINTS = ("midpoint", "heun", "euler_heun", "milstein")


def integrate(
    sde,
    y0,
    ts,
    gradient,
    method=None,
    dt=0.1,
    *,
    args=(),
    logqp=False,
    landing=True,
    bm=None,
    carry=None,
    named=None,
    steps=None,
):
    """The states in the user's shape, and the carry."""
    problem = SDEProblem.build(sde, y0, ts[0], ts[-1] < ts[0], bm, None, logqp, args, None, None)
    terms = problem.terms
    method = find_sde_method(method, terms.sde_type, terms.noise_type)()
    rows, dtype = len(problem.y0), problem.y0.dtype
    area = method.area_for(terms.noise_type)
    if bm is None:
        noise = GridNoise(rows, terms.channels, area, dtype.to_real(), dtype, torch.device("cpu"), seed=5)
        noise.block = min(noise.block, 64)
    else:
        noise = PathNoise(bm, rows, terms.channels, area, dtype)
    if steps is None:
        steps = (Steps.landing if landing else Steps.regular)(ts, dt)
    integration = SDEIntegration(terms, method, problem.y0, carry, steps, noise, dtype.to_real())
    states, carry = gradient.solve(integration, named, sde)
    if logqp:
        return problem.states(states), problem.divergence(states), carry
    return problem.states(states), carry


class Model(torch.nn.Module):
    """A smooth SDE with two elements and, unless the noise says otherwise, two noises."""

    def __init__(self, sde_type, noise_type):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.weight = torch.nn.Parameter(torch.tensor([[-0.5, 0.3], [0.2, -0.7]], dtype=D))
        self.sigma = torch.nn.Parameter(torch.tensor([0.4, 0.3], dtype=D))

    def f(self, t, y, scale):
        return scale * torch.tanh(y @ self.weight) + torch.cos(t)

    def h(self, t, y, scale):
        return -y

    def g(self, t, y, scale):
        if self.noise_type == "diagonal":
            return self.sigma * (1.5 + torch.sin(scale * y))
        if self.noise_type == "scalar":
            return (self.sigma * torch.sin(y.flip(-1) * scale)).unsqueeze(-1)
        if self.noise_type == "additive":
            return (self.sigma * scale * (1 + t)).expand(*y.shape, 2) * torch.eye(2, dtype=D).add(0.3)
        if self.noise_type == "commutative":
            return y.unsqueeze(-1) * self.sigma * scale
        return torch.tanh(y.unsqueeze(-1) * self.sigma + y.flip(-1).unsqueeze(-1) * scale * self.sigma.flip(0))


def problem_of(sde_type, noise_type):
    sde = Model(sde_type, noise_type)
    y0 = torch.tensor([[0.4, -0.3], [0.8, 0.5], [-0.2, 0.6]], dtype=D, requires_grad=True)
    return sde, y0, torch.tensor(0.7, dtype=D, requires_grad=True)


def weights_like(x):
    return torch.linspace(0.5, 1.5, x.numel(), dtype=D).view(x.shape)


def loss_of(sde, y0, scale, gradient, ts=(0.0, 0.25, 0.6), **kwargs):
    y, *others = integrate(sde, y0, ts, gradient, args=(scale,), **kwargs)
    loss = (weights_like(y) * torch.sin(y)).sum()
    for other in tree_leaves(others):
        loss = loss + (weights_like(other) * other).sum()
    return loss


def gradients_of(sde, y0, scale, gradient, **kwargs):
    inputs = [y0, scale, *sde.parameters()]
    return torch.autograd.grad(loss_of(sde, y0, scale, gradient, **kwargs), inputs, materialize_grads=True)


def assert_same(found, expected, rtol=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


EVERY = [(row.method, row.sde_type, row.noise_type) for row in sde_methods()]


@pytest.mark.parametrize("method, sde_type, noise_type", EVERY)
def test_every_method(method, sde_type, noise_type):
    """Autograd agrees with differences on the same path, and the others with it."""
    sde, y0, scale = problem_of(sde_type, noise_type)
    expected = gradients_of(sde, y0, scale, SDEDirect(), method=method)
    inputs = [y0, scale, *sde.parameters()]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(x.shape, generator=generator, dtype=D) for x in inputs]
    losses = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for x, v in zip(inputs, direction, strict=True):
                x.add_(v, alpha=sign * 1e-5)
            losses.append(loss_of(sde, y0, scale, SDEDirect(), method=method))
            for x, v in zip(inputs, direction, strict=True):
                x.sub_(v, alpha=sign * 1e-5)
    along = sum((g * v).sum() for g, v in zip(expected, direction, strict=True))
    torch.testing.assert_close(along, (losses[0] - losses[1]) / 2e-5, rtol=1e-6, atol=1e-6)
    assert_same(gradients_of(sde, y0, scale, SDECheckpointed(), method=method), expected)
    if method == "reversible_heun":
        assert_same(gradients_of(sde, y0, scale, SDEReversible(), method=method), expected)


EXACT = (SDECheckpointed(), SDECheckpointed(1), SDECheckpointed(100), SDEReversible())


STRETCHES = {
    "many steps": {"ts": (0.0, 1.0), "dt": 4e-3},
    "landing": {"ts": (0.0, 0.13, 0.13001, 0.7), "dt": 0.03},
    "interpolated": {"ts": (0.0, 0.13, 0.131, 0.14, 0.7), "dt": 0.03, "landing": False},
    "backwards": {"ts": (0.9, 0.13, 0.0), "dt": 0.04},
    "no step": {"ts": (0.3,), "dt": 0.1},
    "logqp": {"ts": (0.0, 0.5), "dt": 0.05, "logqp": True},
}


@pytest.mark.parametrize(
    ("case", "gradient"),
    covering(
        [(name, noise_type) for noise_type in NOISES for name in STRETCHES],
        [(name, "diagonal") for name in STRETCHES],
        EXACT,
    ),
    ids=str,
)
def test_exact_gradients_are_those_of_autograd(case, gradient):
    name, noise_type = case
    options = STRETCHES[name]
    sde, y0, scale = problem_of("stratonovich", noise_type)
    options = {"method": "reversible_heun", **options}
    expected = gradients_of(sde, y0, scale, SDEDirect(), **options)
    assert_same(gradients_of(sde, y0, scale, gradient, **options), expected)


@pytest.mark.parametrize("gradient", [*EXACT, *map(SDEAdjoint, ADJOINTS)], ids=str)
def test_steps_of_many_sizes(gradient):
    """Such as adaptive ones."""
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    times = np.cumsum([0.0, *np.geomspace(1e-4, 3e-3, 150)]).tolist()
    ts = (0.0, times[40], 0.4 * times[90] + 0.6 * times[91], times[-1])
    steps = Steps.through(times, [(-1, 1.0), (39, 1.0), (90, 0.6), (149, 1.0)])
    options = {
        "ts": ts,
        "steps": steps,
        "method": "midpoint" if isinstance(gradient, SDEAdjoint) else "reversible_heun",
    }
    expected = gradients_of(sde, y0, scale, SDEDirect(), **options)
    found = gradients_of(sde, y0, scale, gradient, **options)
    assert_same(found, expected, 1e-2 if isinstance(gradient, SDEAdjoint) else 1e-10)


@pytest.mark.parametrize("gradient", EXACT, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_solves_go_on_from_what_the_method_carried(gradient, steps):
    sde, y0, scale = problem_of("stratonovich", "general")

    def found(gradient):
        start = torch.stack([y0, y0.sin(), y0.cos()])
        carry = (start[0] * 1.1, torch.stack([start[1], start[2]], dim=2), start[0] * 0.9)
        ts = (0.0, 0.1 * steps) if steps else (0.0,)
        return gradients_of(sde, y0, scale, gradient, method="reversible_heun", ts=ts, carry=carry)

    assert_same(found(gradient), found(SDEDirect()))


@pytest.mark.parametrize("gradient", [*EXACT, SDEAdjoint()], ids=str)
def test_only_what_needs_a_gradient_gets_one(gradient):
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    sde.weight.requires_grad_(False)
    sde.unused = torch.nn.Parameter(torch.ones(2, dtype=D))
    y, _ = integrate(sde, y0.detach(), (0.0, 0.5), gradient, "reversible_heun", args=(scale.detach(),))
    y.sum().backward()
    assert sde.weight.grad is None and sde.sigma.grad is not None
    assert sde.unused.grad is None or not sde.unused.grad.any()
    for p in sde.parameters():
        p.requires_grad_(False)
    y, _ = integrate(sde, y0.detach(), (0.0, 0.5), gradient, "reversible_heun", args=(scale.detach(),))
    assert not y.requires_grad
    with torch.no_grad():
        y, _ = integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", args=(scale,))
    assert not y.requires_grad


@pytest.mark.parametrize("gradient", [*EXACT, SDEAdjoint()], ids=str)
def test_named_parameters_alone_get_gradients(gradient):
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    kwargs = {"method": "reversible_heun", "args": (scale.detach(),)}
    y, _ = integrate(sde, y0, (0.0, 0.5), gradient, named=(sde.sigma,), **kwargs)
    y.sum().backward()
    assert sde.sigma.grad.any() and sde.weight.grad is None
    y, _ = integrate(sde, y0.detach(), (0.0, 0.5), gradient, named=(), **kwargs)
    assert not y.requires_grad
    with pytest.raises(TypeError, match="adjoint_params must be a sequence of tensors"):
        integrate(sde, y0, (0.0, 0.5), gradient, named=3, **kwargs)


class Captured:
    """Not a module."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self, rate, sigma):
        self.f = lambda t, y: -rate * y
        self.g = lambda t, y: sigma * torch.cos(y)


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint("midpoint")], ids=str)
def test_tensors_in_closures(gradient):
    y0 = torch.full((3, 2), 0.5, dtype=D, requires_grad=True)
    rate = torch.full((2,), 0.4, dtype=D, requires_grad=True)
    sigma = torch.full((2,), 0.3, dtype=D, requires_grad=True)

    def found(gradient, sigma, like):
        y, _ = integrate(Captured(rate, sigma), y0, (0.0, 0.5), gradient, "reversible_heun", 1e-2)
        return torch.autograd.grad(y.sum(), [y0, rate, like])

    rtol = 2e-2 if isinstance(gradient, SDEAdjoint) else 1e-10
    assert_same(found(gradient, sigma, sigma), found(SDEDirect(), sigma, sigma), rtol)
    with pytest.warns(UserWarning, match="^the SDE uses a tensor that was computed elsewhere"):
        integrate(Captured(rate, sigma * 2), y0, (0.0, 0.5), gradient, "reversible_heun")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = sigma * 2
        y, _ = integrate(Captured(rate, both), y0, (0.0, 0.5), gradient, "reversible_heun", named=(rate, both))
    assert torch.autograd.grad(y.sum(), sigma)[0].any()


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint("midpoint")], ids=str)
def test_a_tensor_that_appears_later_is_refused(gradient):
    late = torch.ones((), dtype=D, requires_grad=True)
    sde = Captured(1.0, 0.1)
    sde.f = lambda t, y: -y * late if t > 0.4 else -y
    y0 = torch.ones(2, 2, dtype=D, requires_grad=True)
    y, _ = integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", 0.05)
    with pytest.raises(RuntimeError, match="did not use it at the start"):
        y.sum().backward()


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint()], ids=str)
def test_second_derivatives_are_those_of_the_steps(gradient):
    sde, y0, scale = problem_of("stratonovich", "diagonal")

    def second(gradient):
        y, _ = integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", 0.01, args=(scale,))
        first = torch.autograd.grad(y.sin().sum(), [y0, scale], create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), [y0, scale, *sde.parameters()])

    # What flows back through the states themselves is the adjoint's own approximation.
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if isinstance(gradient, SDEAdjoint) else {"rtol": 1e-9, "atol": 1e-9}
    for found, expected in zip(second(gradient), second(SDEDirect()), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint()], ids=str)
def test_states_of_many_dimensions_and_pytrees(gradient):
    class SDE(SDEStratonovich):
        def __init__(self):
            super().__init__("diagonal")
            self.rate = torch.nn.Parameter(torch.tensor(0.4, dtype=D))

        def f(self, t, y):
            return tree_map_only(torch.Tensor, lambda x: -self.rate * x, y)

        def g(self, t, y):
            return tree_map_only(torch.Tensor, lambda x: 0.2 * torch.cos(x) * self.rate, y)

    sde = SDE()
    leaf = torch.linspace(0, 1, 12, dtype=D).view(2, 3, 2).requires_grad_()

    def found(gradient, start):
        y0 = start()
        y, _ = integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", 0.01)
        return torch.autograd.grad(sum(x.sin().sum() for x in tree_leaves(y)), [leaf, sde.rate])

    rtol = 2e-2 if isinstance(gradient, SDEAdjoint) else 1e-10
    for start in (lambda: leaf, lambda: {"a": leaf, "b": leaf[..., :1] * 2}):
        assert_same(found(gradient, start), found(SDEDirect(), start), rtol)


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), *map(SDEAdjoint, ADJOINTS)], ids=str)
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
def test_complex_states(gradient, noise_type):
    class SDE(SDEStratonovich):
        def __init__(self):
            super().__init__(noise_type)
            self.rate = torch.nn.Parameter(torch.tensor(-0.3 + 1j, dtype=torch.complex128))

        def f(self, t, y):
            return self.rate * y

        def g(self, t, y):
            g = 0.3j * self.rate * y + 0.1 * y**2
            return g if noise_type == "diagonal" else g.unsqueeze(-1)

    sde = SDE()
    y0 = torch.tensor([[1.0 + 0.5j, 0.3j], [0.2, -0.4 + 1j]], dtype=torch.complex128, requires_grad=True)

    def found(gradient):
        y, _ = integrate(sde, y0, (0.0, 0.2, 0.5), gradient, "reversible_heun", 2e-3)
        return torch.autograd.grad((y.abs() ** 2 + y.real * y.imag).sum(), [y0, sde.rate])

    rtol = 1e-2 if isinstance(gradient, SDEAdjoint) else 1e-10
    assert_same(found(gradient), found(SDEDirect()), rtol)


@pytest.mark.parametrize(
    ("adjoint", "noise_type", "sde_type"),
    [
        *covering([*ADJOINTS, "euler"], ["midpoint"], NOISES, CALCULI),
        *((adjoint, "diagonal", "ito") for adjoint in ("heun", "euler_heun", "milstein", "euler")),
        ("milstein", "general", "stratonovich"),
        ("euler", "additive", "stratonovich"),
    ],
)
def test_the_adjoint_approaches_the_exact_gradient(sde_type, noise_type, adjoint):
    """With steps that land, that do not, and backwards; and with the divergence from a prior."""
    sde, y0, scale = problem_of(sde_type, noise_type)
    if (adjoint, noise_type) == ("milstein", "general") or (adjoint, sde_type) == ("euler", "stratonovich"):
        with pytest.raises(ValueError, match=f"no adjoint_method '{adjoint}'"):
            integrate(sde, y0, (0.0, 1.0), SDEAdjoint(adjoint), args=(scale,))
        return
    method = "milstein" if noise_type == "diagonal" else "euler" if sde_type == "ito" else "midpoint"
    cases = [{"ts": (0.0, 0.13, 0.3)}]
    if noise_type == "diagonal":
        cases += [
            {"ts": (0.0, 0.1305, 0.1306, 0.5), "landing": False},
            {"ts": (0.5, 0.2, 0.0)},
            {"ts": (0.0, 0.2), "logqp": True},
        ]
    for case in cases:
        options = {"method": method, "dt": 5e-3, **case}
        expected = gradients_of(sde, y0, scale, SDECheckpointed(), **options)
        found = gradients_of(sde, y0, scale, SDEAdjoint(adjoint), **options)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() < 0.05 * (1 + b.abs().max())


class Geometric(torch.nn.Module):
    """Problem 1 of Li et al. (2020)."""

    noise_type = "diagonal"

    def __init__(self, sde_type):
        super().__init__()
        self.sde_type = sde_type
        self.p = torch.nn.Parameter(torch.tensor([0.5, 0.4], dtype=D))

    def f(self, t, y):
        return self.p[0] * y

    def g(self, t, y):
        return self.p[1] * y

    def exact(self, x0, t, w):
        a, b = self.p
        return x0 * torch.exp((a - 0.5 * b * b * (self.sde_type == "ito")) * t + b * w)


class Arctangent(Geometric):
    """Problem 2."""

    def f(self, t, y):
        if self.sde_type == "stratonovich":
            return torch.zeros_like(y)
        return -(self.p[1] ** 2) * torch.sin(y) * torch.cos(y) ** 3

    def g(self, t, y):
        return self.p[1] * torch.cos(y) ** 2

    def exact(self, x0, t, w):
        return torch.arctan(self.p[1] * w + torch.tan(x0))


class TimeDependent(Geometric):
    """Problem 3: the noise is a function of time alone."""

    def f(self, t, y):
        return self.p[1] / torch.sqrt(1 + t) - y / (2 * (1 + t))

    def g(self, t, y):
        return (self.p[0] * self.p[1] / torch.sqrt(1 + t)).expand_as(y)

    def exact(self, x0, t, w):
        a, b = self.p
        return (x0 + b * (t + a * w)) / math.sqrt(1 + t)


def exact_errors(sde, gradient, steps, rows=32, method="milstein"):
    """The errors of the gradients with respect to the initial states and the parameters."""
    y0 = torch.linspace(0.2, 0.9, rows, dtype=D).unsqueeze(1).requires_grad_()
    ts = (0.0, 0.5, 1.0)
    bm = BrownianInterval(0.0, 1.0, size=(rows, 1), dtype=D, entropy=11)
    inputs = [y0, *sde.parameters()]
    exact = sum(sde.exact(y0, t, bm(0.0, t)).sin().sum() for t in ts[1:])
    expected = torch.autograd.grad(exact, inputs)
    y, _ = integrate(sde, y0, ts, gradient, method, 1 / steps, bm=bm)
    found = torch.autograd.grad(y[1:].sin().sum(), inputs)
    return [float((a - b).square().mean().sqrt()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("sde_type", CALCULI)
@pytest.mark.parametrize("problem", [Geometric, Arctangent, TimeDependent])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_the_adjoint_converges_to_exact_gradients(sde_type, problem, adjoint):
    counts = (8, 16, 32, 64)
    errors = np.array([exact_errors(problem(sde_type), SDEAdjoint(adjoint), n) for n in counts])
    slopes = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slopes.min() > 0.75, (slopes, errors)
    assert errors[-1].max() < 0.4, errors


@pytest.mark.parametrize("sde_type", CALCULI)
@pytest.mark.parametrize("problem", [Geometric, Arctangent])
def test_an_adaptive_adjoint(sde_type, problem):
    errors = [
        exact_errors(problem(sde_type), SDEAdjoint(adaptive=True, rtol=tol, atol=tol, dt=0.1), 400)
        for tol in (1e-1, 1e-3)
    ]
    assert errors[1][0] < 5e-3 and max(errors[1]) < 0.2, errors
    assert max(errors[1]) < 0.6 * max(errors[0])


def test_adaptive_adjoints_say_why_they_stop():
    sde = Geometric("stratonovich")
    with pytest.raises(SolveError, match="step attempts"):
        exact_errors(sde, SDEAdjoint(adaptive=True, max_steps=3), 10)
    with pytest.warns(UserWarning, match="do not meet the tolerances"):
        exact_errors(sde, SDEAdjoint(adaptive=True, dt_min=0.1, rtol=1e-9, atol=1e-9), 10)
    y0 = torch.ones(2, 1, dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match="can be asked at any time"):
        integrate(sde, y0, (0.0, 1.0), SDEAdjoint(adaptive=True), "midpoint")


def test_an_adaptive_adjoint_backwards_in_time():
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    bm = BrownianInterval(0.0, 0.6, size=(3, 2), dtype=D, entropy=3)
    options = {"method": "heun", "dt": 5e-3, "ts": (0.6, 0.25, 0.0), "bm": bm}
    expected = gradients_of(sde, y0, scale, SDECheckpointed(), **options)
    found = gradients_of(sde, y0, scale, SDEAdjoint(adaptive=True, rtol=1e-4, atol=1e-4), **options)
    assert_same(found, expected, 1e-2)


def test_the_adjoint_has_no_gradient_for_the_carry():
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    _, carry = integrate(sde, y0, (0.0, 0.5), SDEAdjoint(), "reversible_heun", args=(scale,))
    with pytest.raises(RuntimeError, match="no gradient for what the method carries"):
        carry[2].sum().backward()
    with pytest.raises(ValueError, match="no gradient for extra_solver_state"):
        integrate(sde, y0, (0.5, 1.0), SDEAdjoint(), "reversible_heun", args=(scale,), carry=carry)
    carry = tuple(x.detach() for x in carry)
    y, _ = integrate(sde, y0, (0.5, 1.0), SDEAdjoint(), "reversible_heun", args=(scale,), carry=carry)
    y.sum().backward()
    assert y0.grad.any()


def test_names_of_adjoint_methods():
    sde, y0, scale = problem_of("ito", "diagonal")
    terms = SDEProblem.build(sde, y0, 0.0, False, None, None, False, (scale,), None, None).terms
    assert find_adjoint(None, terms, ReversibleHeun()) == SDEReversible()
    assert find_adjoint("adjoint_reversible_heun", terms, ReversibleHeun()) == SDEReversible()
    assert find_adjoint(None, terms, Midpoint()) == SDEAdjoint()
    assert find_adjoint("heun", terms, ReversibleHeun(), rtol=1e-3) == SDEAdjoint("heun", rtol=1e-3)
    with pytest.raises(ValueError, match="takes back the steps of method='reversible_heun' alone"):
        find_adjoint("adjoint_reversible_heun", terms, Midpoint())
    for name in (None, "adjoint_reversible_heun"):
        with pytest.raises(ValueError, match="leave it out, or pass adjoint_method='midpoint'"):
            find_adjoint(name, terms, ReversibleHeun(), adaptive=True)
    with pytest.raises(TypeError, match="must be a name"):
        find_adjoint(3, terms, Midpoint())
    with pytest.raises(ValueError, match=r"no adjoint_method 'srk' for SDEs of type 'ito' with diagonal noise"):
        find_adjoint("srk", terms, Midpoint())
    with pytest.raises(ValueError, match=r"Did you mean 'midpoint'\? Choose one of 'midpoint', .*'euler'"):
        integrate(sde, y0, (0.0, 1.0), SDEAdjoint("midpiont"), args=(scale,))
    with pytest.raises(ValueError, match="gradient='reversible' takes back the steps of method='reversible_heun'"):
        integrate(sde, y0, (0.0, 1.0), SDEReversible(), "euler", args=(scale,))
    for wrong in ({"rtol": -1.0}, {"atol": math.inf}, {"dt": 0.0}, {"dt_min": -1.0}, {"max_steps": 0}):
        with pytest.raises(ValueError):
            SDEAdjoint(**wrong)
    with pytest.raises(ValueError, match="checkpoints"):
        SDECheckpointed(0)


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint()], ids=str)
def test_transforms_are_refused(gradient):
    sde, y0, scale = problem_of("stratonovich", "diagonal")

    def loss(y0):
        return integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", args=(scale,))[0].sum()

    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.grad(loss)(y0.detach())


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint()], ids=str)
@pytest.mark.parametrize("name", ["W", "H"])
def test_a_gradient_of_the_path_is_refused_or_right(gradient, name):
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    known = {key: torch.full((3, 2), 0.3, dtype=D, requires_grad=key == name) for key in ("W", "H")}

    def solve(gradient):
        bm = BrownianInterval(0.0, 0.6, **known, entropy=1, levy_area_approximation="space-time")
        method = "reversible_heun" if isinstance(gradient, SDEReversible) else "midpoint"
        return integrate(sde, y0, [0.6, 0.0], gradient, method, args=(scale,), bm=bm)[0]

    solve(SDEDirect())[-1].sum().backward()
    assert known[name].grad.abs().min() > 0
    with pytest.raises(
        ValueError, match=r"^bm carries a gradient, which .* does not see: use sdeint with gradient='direct'"
    ):
        solve(gradient)
    with torch.no_grad():
        solve(gradient)
    known = {key: x.detach() for key, x in known.items()}
    solve(gradient)[-1].sum().backward()


@pytest.mark.parametrize("gradient", [SDECheckpointed(), SDEReversible(), SDEAdjoint()], ids=str)
def test_changing_a_parameter_in_between_is_noticed(gradient):
    sde, y0, scale = problem_of("stratonovich", "diagonal")
    y, _ = integrate(sde, y0, (0.0, 0.5), gradient, "reversible_heun", args=(scale,))
    with torch.no_grad():
        sde.sigma.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Wide(SDEIto):
    """More work within a step than noise for it."""

    def __init__(self, sde_type):
        super().__init__("scalar")
        self.sde_type = sde_type
        self.rate = torch.nn.Parameter(torch.tensor(0.3, dtype=D))

    def f(self, t, y):
        return torch.tanh(self.rate * torch.sin(y))

    def g(self, t, y):
        return (self.rate * torch.cos(y)).unsqueeze(-1)


def peak(gradient, steps):
    y0 = torch.ones(2, 1024, dtype=D, requires_grad=True)
    gc.collect()
    with PeakMemory() as memory:
        y, _ = integrate(Wide("stratonovich"), y0, (0.0, 1.0), gradient, "reversible_heun", 1 / steps)
        y[-1].sum().backward()
    return memory.peak


def test_direct_grows_with_the_number_of_steps_and_the_others_do_not():
    few, many = 9, 81
    growth = {
        gradient.name: peak(gradient, many) / peak(gradient, few)
        for gradient in (SDEDirect(), SDECheckpointed(), SDEReversible(), SDEAdjoint())
    }
    assert growth["direct"] > 5
    assert growth["checkpointed"] < 4  # sqrt(9) = 3
    assert growth["reversible"] < 1.1
    assert growth["adjoint"] < 1.1


GRADIENTS = [SDEDirect(), SDECheckpointed(), SDEReversible(), *map(SDEAdjoint, ADJOINTS), SDEAdjoint(adaptive=True)]


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_everything_is_freed_by_counting_references(gradient, backward):
    made = []

    class Recording(Model):
        def f(self, t, y, scale):
            made.append(weakref.ref(value := super().f(t, y, scale)))
            return value

    bm = BrownianInterval(0.0, 0.3, size=(3, 2), dtype=D, entropy=3)
    sde, (_, y0, scale) = Recording("stratonovich", "diagonal"), problem_of("stratonovich", "diagonal")
    gc.collect()
    gc.disable()
    try:
        start = y0 * 1.0
        made.append(weakref.ref(start))
        y, carry = integrate(sde, start, (0.0, 0.3), gradient, "reversible_heun", args=(scale,), bm=bm)
        if backward:
            y.sum().backward()
        del y, carry, start
        assert made and not any(ref() is not None for ref in made)
    finally:
        gc.enable()


class Layers(torch.nn.Module):
    """An SDE in single precision whose products mixed precision takes in less."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        super().__init__()
        self.drift, self.diffusion = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def f(self, t, y):
        return torch.tanh(self.drift(y))

    def g(self, t, y):
        return 0.3 * torch.sigmoid(self.diffusion(y))


def mixed_gradients(solve, cache=False, create_graph=False, **kwargs):
    """The gradients of a solve in mixed precision, taken outside of it."""
    torch.manual_seed(0)
    sde, y0 = Layers(), torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
        sde.f(0.0, y0)  # leaves casts of the weights in the cache
        loss = solve(sde, y0, [0.0, 0.5, 1.0], dt=0.05, **kwargs).square().sum()
    return torch.autograd.grad(loss, [y0, *sde.parameters()], create_graph=create_graph)


@pytest.mark.parametrize(
    "solve, method, gradient",
    [
        (torchivp.sdeint, "midpoint", {"gradient": "checkpointed"}),
        (torchivp.sdeint, "reversible_heun", {"gradient": "checkpointed"}),
        (torchivp.sdeint, "reversible_heun", {"gradient": "reversible"}),
        (torchivp.sdeint_adjoint, "reversible_heun", {}),
    ],
)
def test_mixed_precision_is_that_of_the_forward_pass(solve, method, gradient):
    expected = mixed_gradients(torchivp.sdeint, method=method)
    found = mixed_gradients(solve, method=method, **gradient)
    assert_same(found, expected, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of casts in the cache, taken for tensors computed elsewhere
        cached = mixed_gradients(solve, cache=True, method=method, **gradient)
    assert_same(cached, expected, rtol=1e-5)


def test_gradients_to_differentiate_have_the_mixed_precision_of_the_forward_pass():
    def slopes(gradient):
        return mixed_gradients(torchivp.sdeint, create_graph=True, method="heun", gradient=gradient)

    assert_same(slopes("checkpointed"), slopes("direct"), rtol=1e-5)


@pytest.mark.parametrize("method", ["milstein", "implicit_milstein"])
def test_a_solve_may_be_checkpointed(method):
    class Geometric(SDEIto):
        def __init__(self, growth):
            super().__init__("diagonal")
            self.growth = growth

        def f(self, t, y):
            return self.growth * y

        def g(self, t, y):
            return 0.3 * torch.sin(self.growth * y)

    def end(growth):
        return torchivp.sdeint(Geometric(growth), torch.ones(2, 2, dtype=D), [0, 0.5], dt=0.1, method=method, seed=3)[1]

    growth = torch.tensor(0.7, dtype=D, requires_grad=True)
    value = torch.utils.checkpoint.checkpoint(end, growth, use_reentrant=False).sum()
    with torch.no_grad():
        difference = (end(growth + 1e-5).sum() - end(growth - 1e-5).sum()) / 2e-5
    torch.testing.assert_close(torch.autograd.grad(value, growth)[0], difference, rtol=1e-6, atol=0)
