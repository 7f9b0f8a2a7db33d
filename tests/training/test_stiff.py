"""Networks beside processes that are much faster: trained end to end by methods for stiff problems."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from torchivp import solve_ivp, train
from torchivp.data import TrajectoryDataset
from torchivp.nn import NeuralODE

T = torch.linspace(0, 1, 3, dtype=torch.float64)


class Field(nn.Module):
    """A network, and relaxation to a manifold with rates of 0.1, 1e3 and 1e6."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.exponents = nn.Parameter(torch.tensor([-1.0, 3.0, 6.0], dtype=torch.float64))
        self.network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def slow(self, t, y):
        return self.network(y)

    def fast(self, t, y):
        return -(10.0**self.exponents) * (y - torch.cos(y.roll(1, -1)))

    def forward(self, t, y):
        return self.slow(t, y) + self.fast(t, y)


Y0 = torch.tensor([[0.3, 0.9, 0.1], [0.8, 0.2, 0.6]], dtype=torch.float64)


@cache
def observed():
    truth = Field(0)
    with torch.no_grad():
        truth.network[2].bias += 1.0
        return solve_ivp(truth, (0.0, 1.0), Y0, t_eval=T, method="radau5", rtol=1e-9, atol=1e-11, batch_dims=1).y


@pytest.mark.parametrize(
    ("method", "split", "gradient"),
    [("rodas5p", False, "direct"), ("kvaerno5", False, "checkpointed"), ("kencarp5", True, "checkpointed")],
)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(method, split, gradient):
    """Along one direction in the space of all parameters, in steps far longer than the fastest process."""
    data, field = observed(), Field(1)

    def loss():
        func = (field.slow, field.fast) if split else field
        options = {"method": method, "step_size": 0.25, "rtol": 1e-8, "atol": 1e-10, "gradient": gradient}
        return (solve_ivp(func, (0.0, 1.0), Y0, t_eval=T, batch_dims=1, **options).y - data).square().mean()

    found = parameters_to_vector(torch.autograd.grad(loss(), list(field.parameters())))
    here, direction = parameters_to_vector(field.parameters()).detach(), torch.linspace(-1, 1, len(found)).double()
    sides = []
    with torch.no_grad():
        for h in (1e-4, -1e-4):
            vector_to_parameters(here + h * direction, field.parameters())
            sides.append(loss().item())
    assert (found @ direction).item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("method", ["rodas5p", "auto"])
def test_training_follows_the_data(method):
    """The loss falls to a small part of what it was."""
    data = TrajectoryDataset(T, observed())
    model = NeuralODE(Field(1), method=method, rtol=1e-5, atol=1e-7, output="trajectory", batch_dims=1)
    losses = train(model, data, epochs=5, lr=0.05).losses
    assert losses[-1] < 0.05 * losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())
