"""The problems that are solved, and what their solutions and gradients should be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from torchivp import odeint

REFERENCE = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-13}


@dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem; where it has parameters, the gradient of `loss` with respect to them is of interest."""

    func: nn.Module
    y0: Tensor
    t: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.func.parameters())


def loss(y: Tensor) -> Tensor:
    """The mean square of the states at all output times."""
    return y.square().mean()


class LotkaVolterra(nn.Module):
    """Prey and predators, their four rates in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        alpha, beta, gamma, delta = self.rates
        prey, predator = y.unbind(-1)
        return torch.stack((prey * (alpha - beta * predator), predator * (delta * prey - gamma)), -1)


class Decay(nn.Module):
    """The cheapest right-hand side there is: what a solve of it takes, is the solver's."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


class Perceptron(nn.Module):
    """A neural field with two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        for parameter in self.parameters():
            if parameter.ndim == 2:  # the default weights make a field so weak that it takes few steps to follow
                nn.init.xavier_normal_(parameter, gain=nn.init.calculate_gain("tanh"))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


def lotka_volterra(t: Tensor, rows: int = 30) -> Problem:
    """Some trajectories, solved as one state, in the precision of the times."""
    y0 = 1 + torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(LotkaVolterra().to(t.dtype), y0.to(t.dtype), t)


def decay(shape: Sequence[int], t: Tensor) -> Problem:
    y0 = 1 + torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(Decay(), y0, t)


def perceptron(t: Tensor) -> Problem:
    torch.manual_seed(0)
    return Problem(Perceptron(), torch.randn(256, 2), t)


@cache
def reference(problem: Problem) -> tuple[Tensor, Tensor | None]:
    """The states at the output times and the gradient, one flat tensor, of a tight solve in double precision."""
    func = copy.deepcopy(problem.func).double()
    y = odeint(func, problem.y0.double(), problem.t.double(), **REFERENCE)
    parameters = list(func.parameters())
    return y.detach(), flat(torch.autograd.grad(loss(y), parameters)) if parameters else None


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def reference_against_scipy(problem: Problem) -> float:
    """How far the reference and SciPy's DOP853, as tight, lie apart, relative to the largest state."""

    def func(t: float, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            state = torch.from_numpy(y).reshape(problem.y0.shape)
            return problem.func(torch.scalar_tensor(t, dtype=torch.float64), state).flatten().numpy()

    t, y0 = problem.t.numpy(), problem.y0.flatten().numpy()
    theirs = solve_ivp(func, (t[0], t[-1]), y0, method="DOP853", t_eval=t, rtol=1e-12, atol=1e-13).y.T
    ours = reference(problem)[0].flatten(1).numpy()
    return float(abs(ours - theirs).max() / abs(ours).max())
