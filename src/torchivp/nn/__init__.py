"""Differential equations as layers of a network."""

from torchivp.nn.field import Evaluations
from torchivp.nn.neural_ode import NeuralODE, penalty
from torchivp.nn.regularisers import JacobianNorm, KineticEnergy, Regulariser
from torchivp.nn.time_layers import TimeConv2d, TimeLinear, TimeSequential

__all__ = [
    "Evaluations",
    "JacobianNorm",
    "KineticEnergy",
    "NeuralODE",
    "Regulariser",
    "TimeConv2d",
    "TimeLinear",
    "TimeSequential",
    "penalty",
]
