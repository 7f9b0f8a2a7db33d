"""The FitzHugh-Nagumo model of a nerve cell."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class FitzHughNagumo(Model):
    """An excitable membrane: a fast voltage and a slow recovery.

        voltage'  = voltage - voltage^3 / 3 - recovery + current
        recovery' = epsilon (voltage + a - b recovery)

    Dimensionless. Initial state (1, 1).

    Source: R. FitzHugh, "Impulses and physiological states in theoretical models of nerve membrane", Biophysical
    Journal 1 (1961); J. Nagumo, S. Arimoto and S. Yoshizawa, Proceedings of the IRE 50 (1962).

    Args:
        a: shifts the recovery nullcline.
        b: steepness of the recovery nullcline.
        epsilon: rate of recovery over that of the voltage.
        current: stimulus; of either sign, so estimated on the linear scale.
    """

    states: ClassVar = {"voltage": "membrane voltage", "recovery": "recovery variable"}
    default_state = (1.0, 1.0)
    meanings: ClassVar = {
        "a": "shift of the recovery nullcline",
        "b": "steepness of the recovery nullcline",
        "epsilon": "rate of recovery over that of the voltage",
        "current": "stimulus",
    }
    positive = ("a", "b", "epsilon")

    a: Tensor
    b: Tensor
    epsilon: Tensor
    current: Tensor

    def __init__(self, a: float = 0.7, b: float = 0.8, epsilon: float = 0.08, current: float = 0.5):
        super().__init__(a=a, b=b, epsilon=epsilon, current=current)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 2]."""
        voltage, recovery = y.unbind(-1)
        return torch.stack(
            (
                voltage - voltage**3 * (1 / 3) - recovery + self.current,
                self.epsilon * (voltage + self.a - self.b * recovery),
            ),
            -1,
        )
