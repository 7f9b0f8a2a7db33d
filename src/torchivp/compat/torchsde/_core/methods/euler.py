"""Euler's method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import euler


class Euler(EngineSolver):
    """The method "euler"."""

    method = euler.Euler
    sde_type = SDE_TYPES.ito
