"""The van der Pol oscillator."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class VanDerPol(Model):
    """The van der Pol oscillator: damped where the position is large, driven where it is small.

        position' = velocity
        velocity' = mu (1 - position^2) velocity - position

    Dimensionless. Stiff for large `mu`: the period grows as 1.614 mu. Initial state (2, 0).

    Source: B. van der Pol, "On relaxation-oscillations", Philosophical Magazine 2 (1926); E. Hairer and G. Wanner,
    "Solving Ordinary Differential Equations II", IV.1, for the initial state.

    Args:
        mu: strength of the nonlinear damping.
    """

    states: ClassVar = {"position": "displacement", "velocity": "its derivative"}
    default_state = (2.0, 0.0)
    meanings: ClassVar = {"mu": "strength of the nonlinear damping"}

    mu: Tensor

    def __init__(self, mu: float = 1.0):
        super().__init__(mu=mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 2]."""
        position, velocity = y.unbind(-1)
        return torch.stack((velocity, self.mu * (1 - position**2) * velocity - position), -1)
