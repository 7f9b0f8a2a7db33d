"""Gradients of stochastic equations that are solved backwards and do not come back to where they began."""

import warnings

import pytest
import torch

from torchivp import BrownianInterval, sdeint, sdeint_adjoint

D = torch.float64


class Damped(torch.nn.Module):
    """A fast state that follows a slow one: differences in it shrink by exp(rate), and grow as much on the way back."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self, rate):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=D))
        self.register_buffer("slow", torch.tensor(0.5, dtype=D))

    def f(self, t, y):
        fast, slow = y.unbind(-1)
        return torch.stack((self.rate * (slow - fast), -self.slow * fast), dim=-1)

    def g(self, t, y):
        return 0.1 * y


def gradient(solve, rate, method, outputs=2, change=lambda model: None, **options):
    model, times = Damped(rate), torch.linspace(0.0, 1.0, outputs, dtype=D)
    bm = BrownianInterval(0.0, 1.0, size=(1, 2), dtype=D, entropy=3)
    end = solve(model, torch.tensor([[1.0, 2.0]], dtype=D), times, dt=0.01, bm=bm, method=method, **options)[-1]
    change(model)
    end.sum().backward()
    return model.rate.grad


WAYS = [
    ("midpoint", {}),
    ("midpoint", {"adjoint_method": "heun"}),
    ("reversible_heun", {}),
]


@pytest.mark.parametrize(("method", "options"), WAYS)
def test_a_state_that_does_not_come_back_is_a_warning(method, options):
    exact = gradient(sdeint, 30.0, method)
    with pytest.warns(RuntimeWarning, match="the state does not come back to where the solve had passed"):
        wrong = gradient(sdeint_adjoint, 30.0, method, **options)
    assert abs(wrong / exact - 1.0) > 1.0


@pytest.mark.parametrize(("method", "options"), WAYS)
def test_one_that_does_is_none(method, options):
    exact = gradient(sdeint, 3.0, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(gradient(sdeint_adjoint, 3.0, method, **options), exact, rtol=1e-3, atol=0.0)


def test_from_every_output_the_state_begins_anew():
    exact = gradient(sdeint, 30.0, "midpoint", 51)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradient(sdeint_adjoint, 30.0, "midpoint", 51)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.0)


@pytest.mark.parametrize(("method", "options"), WAYS)
def test_so_it_does_not_where_the_equation_has_changed(method, options):
    with pytest.warns(RuntimeWarning, match="Unless something that the right-hand side uses has changed"):
        gradient(sdeint_adjoint, 3.0, method, change=lambda model: model.slow.mul_(3.0), **options)
