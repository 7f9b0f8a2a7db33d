"""The SIR model of an epidemic."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torchivp.models.model import Model


class SIR(Model):
    """An epidemic in a closed, well mixed population.

        susceptible' = -beta susceptible infected / N
        infected'    =  beta susceptible infected / N - gamma infected
        removed'     =  gamma infected

    where N is the sum of the states, which is constant. States are fractions of the population (N = 1) or numbers of
    people. Each case infects beta / gamma others in a susceptible population. Initial state (0.99, 0.01, 0).

    Source: W. O. Kermack and A. G. McKendrick, "A contribution to the mathematical theory of epidemics", Proceedings
    of the Royal Society A 115 (1927).

    Args:
        beta: contacts that pass the infection on, per infected and time, 1/time.
        gamma: rate of recovery, 1/time; the inverse of the mean infectious period.
    """

    states: ClassVar = {
        "susceptible": "those who can be infected",
        "infected": "those who are infectious",
        "removed": "those who are immune or dead",
    }
    default_state = (0.99, 0.01, 0.0)
    meanings: ClassVar = {"beta": "infectious contacts per infected and time", "gamma": "rate of recovery"}
    units: ClassVar = {"beta": "1/time", "gamma": "1/time"}
    positive = ("beta", "gamma", "susceptible", "infected")

    beta: Tensor
    gamma: Tensor

    def __init__(self, beta: float = 0.5, gamma: float = 0.1):
        super().__init__(beta=beta, gamma=gamma)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state [..., 3]."""
        susceptible, infected, removed = y.unbind(-1)
        infections = self.beta * susceptible * infected / (susceptible + infected + removed)
        recoveries = self.gamma * infected
        return torch.stack((-infections, infections - recoveries, recoveries), -1)
