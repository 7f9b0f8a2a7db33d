"""The reversible Heun method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import reversible_heun


class ReversibleHeun(EngineSolver):
    """The method "reversible_heun"."""

    method = reversible_heun.ReversibleHeun
    sde_type = SDE_TYPES.stratonovich
