"""Methods for SDEs with the drift at the end of the step: orders, stability, the equation solved, and gradients."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from problems import double
from torchivp import Outcome, SolveError, odeint, sdeint

METHODS = ["implicit_euler", "implicit_milstein"]
FINE = 2**11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class SDE:
    """An SDE of any functions."""

    def __init__(self, f, g, noise_type="diagonal", sde_type="ito"):
        self.f, self.g, self.noise_type, self.sde_type = f, g, noise_type, sde_type


class Path:
    """A Brownian path over [0, 1] on a fine grid."""

    def __init__(self, rows, channels):
        self.shape = (rows, channels)
        steps = torch.randn(FINE, rows, channels, dtype=torch.float64) / math.sqrt(FINE)
        self.values = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])

    def __call__(self, ta, tb):
        return self.values[round(float(tb) * FINE)] - self.values[round(float(ta) * FINE)]


def order_of_convergence(method, sde, y0, path, exact, counts=(16, 32, 64, 128)):
    errors = []
    with torch.no_grad():
        for count in counts:
            found = sdeint(sde, y0, [0.0, 1.0], bm=path, method=method, dt=1 / count)[-1]
            errors.append((found - exact).abs().square().mean().sqrt().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


@pytest.mark.parametrize("method", METHODS)
def test_nonlinear_drift_and_diffusion(method):
    """X = arctan(aW + tan x)."""
    a, path = 0.8, Path(500, 1)
    sde = SDE(lambda t, y: -(a**2) * y.sin() * y.cos() ** 3, lambda t, y: a * y.cos() ** 2)
    y0 = double(0.4).repeat(500, 1)
    exact = torch.atan(a * path.values[-1] + math.tan(0.4))
    order, errors = order_of_convergence(method, sde, y0, path, exact)
    assert abs(order - {"implicit_euler": 0.5, "implicit_milstein": 1.0}[method]) < 0.15, errors


def test_weak_order():
    """The mean of a geometric Brownian motion, compared on the same paths."""
    path, y0 = Path(4000, 1), torch.ones(4000, 1, dtype=torch.float64)
    sde = SDE(lambda t, y: -1.5 * y, lambda t, y: 0.3 * y)
    exact = torch.exp(-1.5 - 0.045 + 0.3 * path.values[-1])
    for method in METHODS:
        errors = [
            (sdeint(sde, y0, [0.0, 1.0], bm=path, method=method, dt=1 / n)[-1] - exact).mean().item() for n in (8, 32)
        ]
        assert 0.85 < math.log(errors[0] / errors[1], 4) < 1.15


@pytest.mark.parametrize("method", METHODS)
def test_stiff_drift(method):
    """dX = -1000 (X - cos t) dt + 0.5 dW in steps of 0.1: the exact mean, and no more than the exact variance."""
    rate, sigma, dt, rows = 1000.0, 0.5, 0.1, 4000
    sde = SDE(lambda t, y: -rate * (y - torch.cos(t)), lambda t, y: sigma * torch.ones_like(y))
    y0 = torch.full((rows, 1), 3.0, dtype=torch.float64)
    ts = [0.0, 1.0, 2.0]
    ys = sdeint(sde, y0, ts, method=method, dt=dt, generator=seeded())
    for t, y in zip(ts[1:], ys[1:], strict=True):
        mean = (rate**2 * math.cos(t) + rate * math.sin(t)) / (rate**2 + 1)
        exact = sigma**2 / (2 * rate)
        steps = sigma**2 * dt / ((1 + rate * dt) ** 2 - 1)  # the variance in which the steps come to rest
        assert abs(y.mean().item() - mean) < 2e-4
        assert y.var().item() < exact
        assert abs(y.var().item() / steps - 1) < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explicit = sdeint(sde, y0[:2], [0.0, 2.0], method="euler", dt=dt)[-1]
    assert explicit.abs().min() > 1e10


@pytest.mark.parametrize("method", METHODS)
def test_variance_of_small_steps(method):
    sde = SDE(lambda t, y: -20 * y, lambda t, y: torch.ones_like(y))
    y0 = torch.full((10000, 1), 1.0, dtype=torch.float64)
    y = sdeint(sde, y0, [0.0, 0.1], method=method, dt=1e-3, generator=seeded())[-1]
    assert abs(y.mean().item() - math.exp(-2)) < 6e-3
    assert abs(y.var().item() / ((1 - math.exp(-4)) / 40) - 1) < 0.05


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_mean_square_stability(noise_type):
    """Strong noise and a drift that just outweighs it: |X|² decays in steps of any size."""
    rate, sigma = 100.0, 10.0
    g = (lambda t, y: sigma * y) if noise_type == "diagonal" else (lambda t, y: sigma * y.unsqueeze(2))
    sde = SDE(lambda t, y: -rate * y, g, noise_type)
    y0 = torch.ones(500, 1, dtype=torch.float64)
    y = sdeint(sde, y0, [0.0, 5.0], method="implicit_euler", dt=0.5, generator=seeded(), noise_size=1)[-1]
    assert y.square().mean() < 1e-6


def stiff(t, y):
    """Nonlinear, coupled, drawn towards cos t."""
    return -50 * (y - torch.cos(t)) - y**3 + 3 * y.flip(-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ts", [[0.0, 0.5, 1.0], [1.0, 0.9]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_without_noise_it_is_implicit_euler(method, ts, dtype):
    def drift(t, y):
        return stiff(t, y) if ts[0] < ts[1] else 0.1 * y * y.abs()  # has no complex derivative

    y0 = torch.randn(3, 2, dtype=dtype)
    sde = SDE(drift, lambda t, y: torch.zeros_like(y), "diagonal", "ito")
    found = sdeint(sde, y0, ts, method=method, dt=0.1)
    expected = odeint(
        drift, y0, double(*ts), method="implicit_euler", options={"step_size": 0.1}, rtol=1e-11, atol=1e-12
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_complex_order():
    """dZ = (-1 + 2i) Z dt + (0.5 + 0.6i) Z dW, of a real path."""
    path, y0 = Path(500, 1), torch.ones(500, 1, dtype=torch.complex128)
    a, b = -1 + 2j, 0.5 + 0.6j
    sde = SDE(lambda t, y: a * y, lambda t, y: (b * y).unsqueeze(2), "scalar")
    exact = torch.exp(a - 0.5 * b**2 + b * path.values[-1])
    for method, expected in (("implicit_euler", 0.5), ("implicit_milstein", 1.0)):
        order, errors = order_of_convergence(method, sde, y0, path, exact, (32, 64, 128, 256))
        assert abs(order - expected) < 0.15, errors


GRADIENT_CASES = [
    ("implicit_euler", "ito", "diagonal", torch.float64),
    ("implicit_euler", "ito", "general", torch.float64),
    ("implicit_euler", "ito", "general", torch.complex128),
    ("implicit_milstein", "ito", "diagonal", torch.float64),
    ("implicit_milstein", "stratonovich", "commutative", torch.float64),
]


@pytest.mark.parametrize(("method", "sde_type", "noise_type", "dtype"), GRADIENT_CASES)
def test_gradients(method, sde_type, noise_type, dtype):
    def f(t, y, p, s):
        return -p[0] * (y - torch.cos(t)) - p[1] * y**3 + y.flip(-1)

    def g(t, y, p, s):
        return s * torch.sin(y) if noise_type == "diagonal" else torch.stack((s * y, 0.5 * s * y), dim=2)

    def end(y0, p, s):
        sde = SDE(f, g, noise_type, sde_type)
        return sdeint(sde, y0, [0.0, 0.25], method=method, dt=0.1, args=(p, s), generator=seeded())[-1]

    y0 = torch.randn(2, 2, dtype=dtype, requires_grad=True)
    inputs = (y0, double(30.0, 0.7, grad=True), double(0.4, grad=True))
    assert gradcheck(end, inputs, fast_mode=True)
    assert gradgradcheck(end, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_parameter_of_the_drift_alone(method):
    """In the first step nothing else has a history."""
    sde = SDE(lambda t, y, p: -p * y**3, lambda t, y, p: 0.1 * y)
    y0 = double(1.0, 2.0).view(2, 1)

    def end(p):
        return sdeint(sde, y0, [0.0, 0.1], method=method, dt=0.1, args=(p,), generator=seeded())[-1]

    p = double(30.0, grad=True)
    assert gradcheck(end, (p,))
    if method == "implicit_euler":  # whose diffusion is not differentiated
        (expected,) = torch.autograd.grad(end(p).sum(), p)
        torch.testing.assert_close(torch.func.grad(lambda p: end(p).sum())(p.detach()), expected)
    with torch.no_grad():
        plain = end(p)
    assert not plain.requires_grad
    assert torch.equal(plain, end(p))


class Line:
    """The path W(t) = t / 2."""

    shape = (1, 1)

    def __call__(self, ta, tb):
        return double((float(tb) - float(ta)) / 2).view(1, 1)


def cubic(method, p=1.0, tol=1e-13):
    """The end of two steps for dX = -p X³ dt + cos(X) dW / 2, as a function of its start."""
    sde = SDE(lambda t, y: -p * y**3, lambda t, y: 0.5 * torch.cos(y))

    def end(y0):
        start = y0.reshape(1, 1)
        return sdeint(sde, start, [0.0, 1.0], bm=Line(), method=method, dt=0.5, options={"newton_tol": tol})[-1].sum()

    return end


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_any_order(method):
    """Those of autograd are right, or refused; those of transforms, forward derivatives, and mixtures are right."""
    end, y0 = cubic(method), double(0.8).squeeze()
    grad, jacfwd = torch.func.grad, torch.func.jacfwd
    nodes = torch.linspace(-0.03, 0.03, 7, dtype=torch.float64)
    with torch.no_grad():
        values = torch.stack([end(y0 + node) for node in nodes])
    powers = torch.linalg.solve(torch.linalg.vander(nodes / 0.03), values)
    exact = [math.factorial(k) * powers[k] / 0.03**k for k in range(4)]

    def assert_right(found, k):
        torch.testing.assert_close(found.detach(), exact[k], rtol=10.0 ** (k - 9), atol=0.0)

    leaf = y0.clone().requires_grad_()
    value = end(leaf)
    assert torch.equal(value, values[3])
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first, leaf, create_graph=True)
    assert_right(first, 1)
    assert_right(second, 2)
    with pytest.raises(RuntimeError, match="can be differentiated twice, not three times"):
        torch.autograd.grad(second, leaf)
    third = [grad(grad(grad(end))), jacfwd(jacfwd(jacfwd(end))), jacfwd(grad(jacfwd(end))), grad(jacfwd(grad(end)))]
    for transformed in third:
        assert_right(transformed(y0), 3)
    assert_right(torch.autograd.grad(grad(grad(end))(leaf), leaf)[0], 3)
    assert_right(torch.autograd.functional.hessian(end, y0, vectorize=True), 2)
    with forward_ad.dual_level():
        value, first = forward_ad.unpack_dual(end(forward_ad.make_dual(leaf, torch.ones_like(leaf))))
        assert first is not None and torch.equal(value, values[3])
        (second,) = torch.autograd.grad(first, leaf, create_graph=True)
        assert_right(first, 1)
        assert_right(second, 2)
        assert_right(torch.autograd.grad(second, leaf)[0], 3)
        p = forward_ad.make_dual(torch.ones_like(y0), torch.ones_like(y0))
        found = forward_ad.unpack_dual(cubic(method, p)(y0)).tangent
    expected = (cubic(method, 1.0 + 1e-6)(y0) - cubic(method, 1.0 - 1e-6)(y0)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("tol", [1e-6, 1e-13])
@pytest.mark.parametrize("method", METHODS)
def test_entries_of_a_batch_that_converge_at_different_rates(method, tol):
    end, starts = cubic(method, 4.0, tol), torch.linspace(0.1, 3.0, 6, dtype=torch.float64)
    for transform in (lambda f: f, torch.func.grad, torch.func.jacfwd):
        expected = torch.stack([transform(end)(start) for start in starts])
        torch.testing.assert_close(torch.func.vmap(transform(end))(starts), expected, rtol=100 * tol, atol=10 * tol)


@pytest.mark.parametrize("method", METHODS)
def test_jacobians_for_each_entry_of_a_batch(method):
    """Two vmaps at work, one of them in the Jacobian. With additive noise that is (1 - dt A)^-5 for every state."""
    matrix, vmap = double([-1.0, 2.0], [-2.0, -1.0]), torch.func.vmap
    sde = SDE(lambda t, y: y @ matrix.T, lambda t, y: 0.1 * torch.ones_like(y))

    def end(y0):
        return sdeint(sde, y0.unsqueeze(0), [0.0, 0.5], bm=still, method=method, dt=0.1)[-1, 0]

    def still(ta, tb):
        return torch.zeros(1, 2, dtype=torch.float64)

    still.shape = (1, 2)
    y0, end_by_end = torch.randn(3, 2, dtype=torch.float64), torch.arange(3)
    expected = torch.linalg.matrix_power(torch.linalg.inv(torch.eye(2, dtype=torch.float64) - 0.1 * matrix), 5)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(vmap(jacobian(end))(y0), expected.expand(3, 2, 2))
        found = jacobian(vmap(end))(y0)
        torch.testing.assert_close(found[end_by_end, :, end_by_end], expected.expand(3, 2, 2))
        torch.testing.assert_close(found.sum((0, 2)), 3 * expected)
    assert vmap(torch.func.hessian(lambda y0: end(y0)[0]))(y0).abs().max() < 1e-12


class Cube(torch.autograd.Function):
    """Its backward pass looks at a value, as no batch can."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y**3

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return 3 * y * y * grad if grad.abs().max().item() > 0 else None


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_backward_pass_that_cannot_be_batched(method, gradient):
    """Jacobians are then found row by row: where autograd looks for anomalies, or the user's function at values."""

    def run(cube):
        y0 = double([0.5, -1.0], [2.0, 0.3]).requires_grad_()
        sde = SDE(lambda t, y: -3 * cube(y) + y.flip(1), lambda t, y: 0.1 * y)
        options = {"method": method, "dt": 0.1, "gradient": gradient, "generator": seeded()}
        y = sdeint(sde, y0, [0.0, 0.2], **options)
        return y.detach(), torch.autograd.grad(y[-1].square().sum(), y0)[0]

    expected = run(lambda y: y**3)
    torch.testing.assert_close(run(Cube.apply), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # autograd would warn of an attempt that fails
        with torch.autograd.set_detect_anomaly(True):
            torch.testing.assert_close(run(lambda y: y**3), expected)


def test_no_convergence_of_an_entry_of_a_batch():
    sde = SDE(lambda t, y: -1e3 * y**3, lambda t, y: 0.1 * y)

    def end(y0):
        start, options = y0.view(1, 1), {"max_iters": 2}
        return sdeint(sde, start, [0.0, 1.0], bm=Line(), method="implicit_euler", dt=1.0, options=options)[-1]

    with pytest.raises(SolveError, match="in 2 iterations for 1 of 2 rows"):
        torch.func.vmap(end)(double(0.0, 10.0))


def test_inference_mode():
    sde = SDE(stiff, lambda t, y: 0.1 * y)
    y0 = torch.ones(2, 2)
    with torch.inference_mode():
        found = sdeint(sde, y0, [0.0, 0.3], method="implicit_euler", dt=0.1, generator=seeded())
    expected = sdeint(sde, y0, [0.0, 0.3], method="implicit_euler", dt=0.1, generator=seeded())
    torch.testing.assert_close(found.clone(), expected)


def test_a_linear_drift_takes_one_correction():
    calls = []

    def f(t, y):
        calls.append(t)
        return -1000 * y + 3 * y.flip(-1)

    y0 = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        sde = SDE(f, lambda t, y: y)
        sdeint(sde, y0, [0.0, 1.0], method="implicit_euler", dt=0.1, options={"max_iters": 1})
    assert len(calls) <= 21  # one of the checks at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strongly_nonlinear_drift(dtype):
    """Rows for which full corrections would overshoot, besides easy ones."""

    def f(t, y):
        return -1000 * torch.atan(10 * (y - 1))

    y0 = torch.linspace(-30, 30, 41, dtype=dtype).view(-1, 1)
    sde = SDE(f, lambda t, y: torch.zeros_like(y))
    y = sdeint(sde, y0, [0.0, 0.1], method="implicit_euler", dt=0.1)[-1]
    assert (y - 0.1 * f(0, y) - y0).abs().max() < 1e3 * (1e-5 if dtype is torch.float32 else 1e-8)


def test_rounding_is_convergence():
    """A tolerance that no number meets."""
    sde = SDE(lambda t, y: -1e6 * (y - y.flip(-1)) - y**3, lambda t, y: torch.zeros_like(y))
    y = sdeint(
        sde, torch.rand(50, 2), [0.0, 1.0], method="implicit_euler", dt=0.1, options={"newton_tol": 1e-20}
    )  # single precision
    assert y.isfinite().all()


def test_drift_undefined_at_the_guess():
    """y + dt log y = y0 + W has one solution, also where the right-hand side is negative."""
    sde = SDE(lambda t, y: -torch.log(y), lambda t, y: torch.ones_like(y))
    y0 = double(0.1, 0.2, 3.0).view(-1, 1)
    path = Path(3, 1)
    path.values = torch.linspace(0, 1, FINE + 1, dtype=torch.float64).view(-1, 1, 1) * double(-1.0, 0.5, -5.0).view(
        3, 1
    )
    y = sdeint(sde, y0, [0.0, 1.0], method="implicit_euler", bm=path, dt=1.0)[-1]
    torch.testing.assert_close(y + torch.log(y), y0 + path.values[-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_leave_the_others_alone(method, bad):
    sde = SDE(stiff, lambda t, y: 0.1 * y)
    y0 = torch.randn(4, 2, dtype=torch.float64)
    worse = y0.clone()
    worse[1, 0] = bad
    expected = sdeint(sde, y0, [0.0, 0.5], method=method, dt=0.1, generator=seeded())[-1]
    with pytest.warns(UserWarning, match="not finite in 1 of 4 rows"):
        found = sdeint(sde, worse.requires_grad_(), [0.0, 0.5], method=method, dt=0.1, generator=seeded())[-1]
    others = [0, 2, 3]
    torch.testing.assert_close(found[others], expected[others], rtol=1e-8, atol=1e-8)
    assert found[1].isnan().all()
    (gradient,) = torch.autograd.grad(found[others].sum(), worse)
    assert gradient[others].isfinite().all()


def test_no_convergence():
    """A drift that jumps where the solution should be, in one row of three."""

    def f(t, y):
        return -100 * torch.sign(y) - y

    sde = SDE(f, lambda t, y: torch.zeros_like(y))
    y0 = double(50.0, 0.1, -50.0).view(3, 1)
    sentence = re.escape(
        "Newton's iteration for the drift at t = 0.1, the end of a step of 0.1, did not converge in 7 iterations for 1 "
        "of 3 rows (the first is row 1): the last correction was"
    )
    with pytest.raises(SolveError, match=sentence) as caught:
        sdeint(sde, y0, [0.0, 1.0], method="implicit_euler", dt=0.1, options={"max_iters": 7})
    status = caught.value.status
    assert status.outcome is Outcome.NOT_CONVERGED
    assert status.t == pytest.approx(0.1)
    assert "Make dt smaller, or raise max_iters in options" in status.message


def test_options_are_checked():
    sde = SDE(lambda t, y: -y, lambda t, y: y)
    y0 = torch.ones(1, 1)
    for options, wrong in (({"max_iters": 0}, "max_iters"), ({"newton_tol": -1.0}, "newton_tol")):
        with pytest.raises(ValueError, match=wrong):
            sdeint(sde, y0, [0.0, 1.0], method="implicit_euler", dt=0.1, options=options)


def test_adaptive_steps():
    sde = SDE(lambda t, y: -200 * (y - torch.cos(t)), lambda t, y: 0.1 * torch.ones_like(y))
    y0 = torch.zeros(4, 1, dtype=torch.float64)
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    y = sdeint(
        sde, y0, [0.0, 1.0], method="implicit_milstein", dt=0.01, adaptive=True, generator=seeded(), **tolerances
    )[-1]
    assert (y - math.cos(1.0)).abs().max() < 0.05


def test_divergence_from_a_prior():
    """The divergence is one more element of the state; it is the sum of the steps' densities at their ends."""
    sde = SDE(lambda t, y: -30 * y, lambda t, y: 0.5 * torch.ones_like(y))
    sde.h = lambda t, y: -y
    y0 = torch.ones(3, 2, dtype=torch.float64)
    ys, divergence = sdeint(
        sde, y0, [i / 10 for i in range(11)], method="implicit_euler", dt=0.1, logqp=True, generator=seeded()
    )
    density = 0.5 * (29 * ys[1:] / 0.5).square().sum(-1)
    torch.testing.assert_close(divergence, 0.1 * density, rtol=1e-6, atol=1e-6)


def test_no_rows():
    sde = SDE(lambda t, y: -y, lambda t, y: y)
    assert sdeint(sde, torch.zeros(0, 2), [0.0, 0.1], method="implicit_euler", dt=0.1).shape == (2, 0, 2)
