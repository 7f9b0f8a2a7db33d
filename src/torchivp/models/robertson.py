"""Robertson's autocatalytic reaction."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class Robertson(Model):
    """Three reactions with rates nine orders of magnitude apart: the classic stiff problem.

        a' = -k1 a + k3 b c
        b' =  k1 a - k3 b c - k2 b^2
        c' =  k2 b^2

    Concentrations as fractions of the initial amount of A, time in seconds. Initial state (1, 0, 0).

    Source: H. H. Robertson, "The solution of a set of reaction rate equations", in J. Walsh (ed.), "Numerical
    Analysis: an Introduction", 1966; E. Hairer and G. Wanner, "Solving Ordinary Differential Equations II", IV.1.

    Args:
        k1: rate of A -> B, 1/s.
        k2: rate of B + B -> C + B, 1/s.
        k3: rate of B + C -> A + C, 1/s.
    """

    states: ClassVar = {"a": "concentration of A", "b": "concentration of B", "c": "concentration of C"}
    default_state = (1.0, 0.0, 0.0)
    meanings: ClassVar = {"k1": "rate of A -> B", "k2": "rate of B + B -> C + B", "k3": "rate of B + C -> A + C"}
    units: ClassVar = {"k1": "1/s", "k2": "1/s", "k3": "1/s"}

    k1: Tensor
    k2: Tensor
    k3: Tensor

    def __init__(self, k1: float = 0.04, k2: float = 3e7, k3: float = 1e4):
        super().__init__(k1=k1, k2=k2, k3=k3)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 3]."""
        a, b, c = y.unbind(-1)
        formed = self.k1 * a - self.k3 * b * c
        consumed = self.k2 * b**2
        return torch.stack((-formed, formed - consumed, consumed), -1)
