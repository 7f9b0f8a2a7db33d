"""The Lorenz system."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class Lorenz(Model):
    """Thermal convection reduced to three modes: the first strange attractor.

        x' = sigma (y - x)
        y' = x (rho - z) - y
        z' = x y - beta z

    Dimensionless. Chaotic at the default values, where errors grow as exp(0.9 t). Initial state (1, 0, 0).

    Source: E. N. Lorenz, "Deterministic nonperiodic flow", Journal of the Atmospheric Sciences 20 (1963).

    Args:
        sigma: Prandtl number.
        rho: Rayleigh number over its critical value.
        beta: geometric factor of the convection cells.
    """

    states: ClassVar = {
        "x": "intensity of the convection",
        "y": "temperature difference between the currents",
        "z": "distortion of the vertical temperature profile",
    }
    default_state = (1.0, 0.0, 0.0)
    meanings: ClassVar = {
        "sigma": "Prandtl number",
        "rho": "Rayleigh number over its critical value",
        "beta": "geometric factor of the convection cells",
    }

    sigma: Tensor
    rho: Tensor
    beta: Tensor

    def __init__(self, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3):
        super().__init__(sigma=sigma, rho=rho, beta=beta)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 3]."""
        x, v, z = y.unbind(-1)
        return torch.stack((self.sigma * (v - x), x * (self.rho - z) - v, x * v - self.beta * z), -1)
