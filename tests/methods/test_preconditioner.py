"""GMRES with a user's preconditioner."""

import re

import numpy as np
import pytest
import torch

from problems import double
from torchivp import ODE_METHODS, odeint, solve_ivp
from torchivp.methods.jacobian import Linearisation

N = 150
X = torch.linspace(0, 1, N + 2, dtype=torch.float64)[1:-1]
NUMBERS = torch.arange(1, N + 1, dtype=torch.float64)
VALUES = -4 * (N + 1) ** 2 * torch.sin(NUMBERS * torch.pi / (2 * (N + 1))) ** 2
VECTORS = (2 / (N + 1)) ** 0.5 * torch.sin(torch.outer(NUMBERS, NUMBERS) * torch.pi / (N + 1))
BUMP = torch.exp(-100 * (X - 0.5) ** 2)


def diffusion(t, y):
    padded = torch.nn.functional.pad(y, (1, 1))
    return (padded[..., 2:] - 2 * y + padded[..., :-2]) * (N + 1) ** 2


def reaction(t, y, k=20.0):
    return k * y * (1 - y) + 5 * torch.cos(t) * X


def growing(t, y, k=20.0):
    return diffusion(t, y) + reaction(t, y, k)


def by_diffusion(t, y, h, r):
    """Solves the systems of the diffusion alone, by its sines."""
    assert t.shape == h.shape == (len(y), 1) and r.shape == y.shape
    return (r @ VECTORS / (1 - h * VALUES)) @ VECTORS


@pytest.fixture
def products(monkeypatch):
    """Counts the products with Jacobians and with their transposes."""
    made = {"times": 0, "transposed_times": 0}

    def counting(name, product):
        def counted(self, v):
            made[name] += 1
            return product(self, v)

        return counted

    for name in made:
        monkeypatch.setattr(Linearisation, name, counting(name, getattr(Linearisation, name)))
    return made


def solved(method, func=growing, y0=BUMP, options=None, **further):
    chosen = ODE_METHODS[method].with_options(**(options or {}))
    return solve_ivp(func, (0.0, 0.1), y0, t_eval=[0.1], method=chosen, rtol=1e-5, atol=1e-7, **further)


@pytest.mark.parametrize("method", ["bdf", "radau5", "kencarp4"])
def test_it_cuts_the_number_of_products(method, products):
    counts = []
    expected = solved(method).final
    for options in ({}, {"preconditioner": by_diffusion}):
        products["times"] = 0
        found = solved(method, options={"linear_solver": "krylov"} | options)
        counts.append(products["times"])
        torch.testing.assert_close(found.final, expected, rtol=0, atol=1e-5)
    assert 5 * counts[1] < counts[0]


def test_it_is_for_the_implicit_function_of_a_pair(products):
    """Which it solves for exactly: one product in each system shows that, and the others none."""
    found = solved("kencarp4", (reaction, diffusion), options={"preconditioner": by_diffusion})
    torch.testing.assert_close(found.final, solved("kencarp4").final, rtol=0, atol=1e-4)
    assert products["times"] <= 2 * found.stats.solves


def test_rows_have_their_own_times_and_sizes(products):
    """The numbers of a row do not depend on the others."""
    k, y0 = double(1.0, 20.0, 60.0)[:, None], BUMP * double(1.0, 0.5, 2.0)[:, None]
    options = {"preconditioner": by_diffusion}
    together = solved("kvaerno5", y0=y0, args=(k,), options=options, batch_dims=1)
    for row in range(3):
        alone = solved("kvaerno5", y0=y0[row], args=(k[row],)).final
        torch.testing.assert_close(together.final[row], alone, rtol=0, atol=1e-4)
    assert products["times"] < 10 * max(stats.solves for stats in together.stats)


def drifting(t, y, k):
    """Diffusion with a wind, whose Jacobian is not symmetric."""
    padded = torch.nn.functional.pad(y, (1, 1))
    return diffusion(t, y) - 30 * k * (padded[..., 2:] - padded[..., :-2]) - k * y**3


def by_factors(t, y, h, r):
    """Solves the systems of the wind and the diffusion."""
    one = torch.eye(N, dtype=torch.float64)
    columns = drifting(torch.zeros(1), 1e-9 * one, 1.0).T * 1e9
    return torch.linalg.solve(one - h[:, :, None] * columns, r[:, :, None])[:, :, 0]


@pytest.mark.parametrize("way", ["direct", "checkpointed"])
def test_gradients_take_its_transpose(way, products):
    def gradient(options):
        k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        end = solved("kencarp3", drifting, args=(k,), options=options, step_size=0.025, gradient=way).final
        return torch.autograd.grad(end.square().sum(), k)[0]

    found = gradient({"preconditioner": by_factors})
    systems = 4 * 3 * 2  # of steps, stages and corrections
    assert 0 < products["transposed_times"] <= 5 * systems  # without it, the number of elements and more
    torch.testing.assert_close(found, gradient({"linear_solver": "dense"}), rtol=1e-6, atol=0)


def test_one_that_autograd_does_not_see_is_taken_to_be_symmetric(products):
    values, vectors = VALUES.numpy(), VECTORS.numpy()

    def by_numpy(t, y, h, r):
        r @= torch.from_numpy(vectors)  # it may write into it
        return torch.from_numpy(r.detach().numpy() / (1 - h.numpy() * values) @ vectors)

    def gradient(options):
        k = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        end = solved("kencarp3", args=(k,), options=options, step_size=0.02).final
        return torch.autograd.grad(end.square().sum(), k)[0]

    def by_numpy_without_graph(t, y, h, r):
        return by_numpy(t, y, h, r.detach())

    found = gradient({"preconditioner": by_numpy_without_graph})
    assert products["transposed_times"] < 40 * 15
    torch.testing.assert_close(found, gradient({"linear_solver": "dense"}), rtol=1e-6, atol=0)


def test_odeint_takes_it_as_an_option(products):
    options = {"preconditioner": by_diffusion, "step_size": 0.01}
    t = double(0.0, 0.1)
    found = odeint(growing, BUMP, t, method="implicit_euler", rtol=1e-9, atol=1e-9, options=options)
    assert products["times"] > 0
    dense = odeint(growing, BUMP, t, method="implicit_euler", rtol=1e-9, atol=1e-9, options={"step_size": 0.01})
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-9)


def test_it_is_refused_where_it_makes_no_sense():
    for solver in ("dense", "sparse"):
        with pytest.raises(
            ValueError, match=f"preconditioner is for linear_solver='krylov', .* leave it out .*{solver}"
        ):
            solved("bdf", options={"preconditioner": by_diffusion, "linear_solver": solver})
    with pytest.raises(
        TypeError, match=re.escape("preconditioner must be a function preconditioner(t, y, h, r), or None")
    ):
        solved("bdf", options={"preconditioner": torch.eye(N)})
    with pytest.raises(TypeError, match="Rodas5P has no option 'preconditioner'"):
        solved("rodas5p", options={"preconditioner": by_diffusion})
    with pytest.raises(ValueError, match="preconditioner is for real states"):
        solved("bdf", y0=BUMP.to(torch.complex128), options={"preconditioner": by_diffusion})
    mass = torch.diag((torch.arange(N) > 0).double())
    with pytest.raises(ValueError, match="preconditioner is for systems with the matrix I - h J, and a singular mass"):
        solved("bdf", options={"preconditioner": by_diffusion}, mass=mass)
    with pytest.raises(ValueError, match=r"must return the shape of r, \(1, 150\), .* returned shape \(150,\)"):
        solved("bdf", options={"preconditioner": lambda t, y, h, r: r[0]})
    for wrong, kind in ((np.asarray, "ndarray"), (torch.Tensor.float, "a tensor of torch.float32")):
        with pytest.raises(TypeError, match=f"must return a tensor of torch.float64, shaped like r, got {kind}"):
            solved("bdf", options={"preconditioner": lambda t, y, h, r, wrong=wrong: wrong(r)})
    for further in ({}, {"batch_dims": 1}):
        y0 = (BUMP if not further else BUMP[None]).clone().requires_grad_()
        with pytest.raises(ValueError, match="gradient='backsolve' solves for state and adjoint together"):
            solved("bdf", y0=y0, options={"preconditioner": by_diffusion}, gradient="backsolve", **further)
    with pytest.raises(RuntimeError, match="linear_solver='krylov' does not work within transforms"):
        torch.func.vmap(lambda y: solved("bdf", y0=y, options={"preconditioner": by_diffusion}).final)(BUMP[None])
