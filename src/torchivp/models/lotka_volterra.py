"""The predator-prey model of Lotka and Volterra."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class LotkaVolterra(Model):
    """Predators and their prey.

        prey'     =  alpha prey - beta prey predator
        predator' = -gamma predator + delta prey predator

    Populations in any unit (here "1", such as thousands of animals), time in any unit (here "1/time"). Initial state
    (1, 1).

    Source: A. J. Lotka, "Elements of Physical Biology", 1925; V. Volterra, "Variazioni e fluttuazioni del numero
    d'individui in specie animali conviventi", 1926. The default values are those of the ParameterEstimation
    benchmarks of SciML.

    Args:
        alpha: growth rate of the prey alone, 1/time.
        beta: rate at which one predator takes prey, 1/(predator time).
        gamma: death rate of the predators alone, 1/time.
        delta: growth rate of the predators per prey, 1/(prey time).
    """

    states: ClassVar = {"prey": "population of the prey", "predator": "population of the predators"}
    default_state = (1.0, 1.0)
    meanings: ClassVar = {
        "alpha": "growth rate of the prey alone",
        "beta": "rate at which one predator takes prey",
        "gamma": "death rate of the predators alone",
        "delta": "growth rate of the predators per prey",
    }
    units: ClassVar = {"alpha": "1/time", "beta": "1/(predator time)", "gamma": "1/time", "delta": "1/(prey time)"}
    positive = ("alpha", "beta", "gamma", "delta", "prey", "predator")

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor

    def __init__(self, alpha: float = 1.5, beta: float = 1.0, gamma: float = 3.0, delta: float = 1.0):
        super().__init__(alpha=alpha, beta=beta, gamma=gamma, delta=delta)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 2]."""
        prey, predator = y.unbind(-1)
        return torch.stack(
            (prey * (self.alpha - self.beta * predator), predator * (self.delta * prey - self.gamma)), -1
        )
