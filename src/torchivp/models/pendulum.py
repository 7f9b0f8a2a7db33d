"""The damped pendulum."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class Pendulum(Model):
    """A pendulum with linear friction.

        angle'    = velocity
        velocity' = -damping velocity - (gravity / length) sin(angle)

    Angles in radians from the lowest point, time in seconds. Initial state (1, 0).

    Source: J. R. Taylor, "Classical Mechanics", 2005, chapters 4 and 12.

    Args:
        length: length of the pendulum, m.
        damping: friction per moment of inertia, 1/s.
        gravity: acceleration of free fall, m/s^2. A constant, not a parameter: only gravity / length can be estimated.
    """

    states: ClassVar = {"angle": "angle from the lowest point", "velocity": "angular velocity"}
    default_state = (1.0, 0.0)
    meanings: ClassVar = {"length": "length of the pendulum", "damping": "friction per moment of inertia"}
    units: ClassVar = {"length": "m", "damping": "1/s", "angle": "rad", "velocity": "rad/s"}

    length: Tensor
    damping: Tensor

    def __init__(self, length: float = 1.0, damping: float = 0.2, gravity: float = 9.80665):
        super().__init__(length=length, damping=damping)
        self.gravity = gravity

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 2]."""
        angle, velocity = y.unbind(-1)
        return torch.stack((velocity, -self.damping * velocity - self.gravity / self.length * torch.sin(angle)), -1)
