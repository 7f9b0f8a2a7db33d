"""`jac_sparsity="auto"`: the pattern is found, and what is not in it is noticed."""

import numpy as np
import pytest
import torch

from problems import covering, double
from torchivp import Checkpointed, solve_ivp
from torchivp.methods.pattern import found_sparsity
from torchivp.sparsity import Sparsity

SIZE = 150


def found(func, y=None, t=0.0, span=1.0):
    y = torch.ones(1, SIZE, dtype=torch.float64) if y is None else y
    return found_sparsity(func, double(t).squeeze(), y, double(span).squeeze())


def places(sparsity):
    return set(zip(sparsity.rows.tolist(), sparsity.columns.tolist(), strict=True))


def chain(t, y):
    """Three diagonals; flux limited, so that some of them vanish where the state is flat."""
    beyond = torch.nn.functional.pad(y, (1, 1))
    bend = beyond[..., 2:] - 2 * y + beyond[..., :-2]
    return 400.0 * bend * (1 + y**2) - y**3


def arrow(t, y):
    return torch.cat((y[..., :1] - y.sum(-1, keepdim=True), y[..., :1] - y[..., 1:] ** 2), -1)


def blocks(t, y):
    """Pairs that react, each on its own."""
    a, b = y.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-a * b, a * b - torch.sin(t) * b), -1).flatten(-2)


@pytest.mark.parametrize("func", [chain, blocks])
@pytest.mark.parametrize("flat", [True, False])
def test_it_is_that_of_the_exact_jacobian(func, flat):
    y = torch.ones(1, SIZE, dtype=torch.float64)
    if not flat:
        y = y * torch.linspace(0.0, 2.0, SIZE, dtype=torch.float64)
    point = torch.linspace(0.3, 1.7, SIZE, dtype=torch.float64)
    exact = torch.func.jacrev(lambda y: func(double(0.4).squeeze(), y))(point)
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(exact.numpy()), strict=True)} | {
        (i, i) for i in range(SIZE)
    }
    sparsity = found(func, y)
    assert places(sparsity) == expected
    assert sparsity.count <= 4


def test_what_is_small_or_full_has_none():
    assert found(chain, torch.ones(1, 99, dtype=torch.float64)) is None
    full = torch.rand(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert found(lambda t, y: y @ full) is None
    assert found(arrow) is None  # one full row and column: no two rows share no column


def test_what_comes_later_is_found_too():
    def switched(t, y):
        return -y + torch.where(t > 0.3, 1.0, 0.0) * torch.roll(y, 1, -1)

    assert (5, 4) in places(found(switched))


def relative(x, y):
    return float((x - y).abs().max() / y.abs().max())


@pytest.mark.parametrize(
    "method", ["auto", "rodas5p", "bdf", pytest.param("kvaerno5", marks=pytest.mark.sweep), "radau5"]
)
def test_a_solve_is_that_with_the_pattern_written_down(method):
    x = torch.linspace(0, 1, SIZE, dtype=torch.float64)
    y0 = torch.sin(3 * x) ** 2
    written, sought = (
        solve_ivp(chain, (0.0, 1.0), y0, method=method, t_eval=[1.0], jac_sparsity=pattern)
        for pattern in ((1, 1), "auto")
    )
    assert relative(sought.y, written.y) < 1e-9
    assert sought.stats == written.stats


def test_rows_and_gradients():
    k = double(1.0, 30.0).requires_grad_()

    def func(t, y, k):
        return k.unsqueeze(-1) * chain(t, y)

    y0 = torch.sin(torch.linspace(0, 3, SIZE, dtype=torch.float64)) ** 2
    grads = []
    for pattern in ((1, 1), "auto"):
        for gradient in ("direct", Checkpointed(checkpoints=3)):
            solution = solve_ivp(
                func, (0.0, 0.01), y0.expand(2, SIZE), args=(k,), batch_dims=1, jac_sparsity=pattern, gradient=gradient,
                method="bdf", rtol=1e-4, atol=1e-6,
            )  # fmt: skip
            grads.append(torch.autograd.grad(solution.final.square().sum(), k)[0])
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("method", "batch_dims"), covering(["rodas5p", "bdf", "auto"], ["bdf"], [0, 1]))
def test_an_entry_that_turns_up_later_is_no_silent_loss(method, batch_dims):
    """The coupling between the ends opens when the first element has grown, far from the start."""

    def func(t, y):
        open_ = torch.relu(y[..., :1] - 50.0)
        far = torch.cat((torch.zeros_like(y[..., :-1]), open_ * y[..., :1]), -1)
        growth = torch.cat((5.0 * y[..., :1], torch.zeros_like(y[..., 1:])), -1)
        return growth - 1e3 * (y - torch.roll(y, 1, -1).detach() * 0.0) * (1 - torch.nn.functional.one_hot(
            torch.tensor(0), SIZE).double()) + far  # fmt: skip

    y0 = torch.ones((2, SIZE) if batch_dims else (SIZE,), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"now there is another one, in column 0 of the flattened state: write down"):
        solve_ivp(func, (0.0, 2.0), y0, method=method, jac_sparsity="auto", batch_dims=batch_dims, rtol=1e-4)
    assert solve_ivp(func, (0.0, 0.5), y0, method=method, jac_sparsity="auto", batch_dims=batch_dims, rtol=1e-4)


def test_what_is_refused():
    y0 = torch.ones(SIZE, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"does not see how func\(t, y\) depends on y: compute in torch"):
        solve_ivp(lambda t, y: torch.from_numpy(-y.detach().numpy()), (0, 1), y0, method="bdf", jac_sparsity="auto")
    with pytest.raises(ValueError, match="with jac write it down"):
        solve_ivp(chain, (0, 1), y0, method="bdf", jac=torch.eye(SIZE).double(), jac_sparsity="auto")
    with pytest.raises(ValueError, match="Tsit5 uses no Jacobian"):
        solve_ivp(chain, (0, 1), y0, method="tsit5", jac_sparsity="auto")
    with pytest.raises(TypeError, match="or 'auto' to have it found"):
        solve_ivp(chain, (0, 1), y0, jac_sparsity="automatic")


def test_the_probe_notices_one_entry_among_large_ones():
    sparsity = Sparsity.of((1, 1), SIZE, torch.device("cpu"), found=True)
    matrix = torch.diag(torch.full((SIZE,), 1e6, dtype=torch.float64))
    sparsity.values((sparsity.seeds(matrix) @ matrix).unsqueeze(1))
    matrix[3, 100] = 1e-3
    with pytest.raises(ValueError, match="column 100"):
        sparsity.values((sparsity.seeds(matrix) @ matrix).unsqueeze(1))
