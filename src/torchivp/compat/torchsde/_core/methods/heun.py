"""Heun's method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import heun


class Heun(EngineSolver):
    """The method "heun"."""

    method = heun.Heun
    sde_type = SDE_TYPES.stratonovich
