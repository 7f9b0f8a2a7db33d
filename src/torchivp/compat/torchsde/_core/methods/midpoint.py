"""The midpoint method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import midpoint


class Midpoint(EngineSolver):
    """The method "midpoint"."""

    method = midpoint.Midpoint
    sde_type = SDE_TYPES.stratonovich
