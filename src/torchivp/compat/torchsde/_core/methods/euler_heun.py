"""The Euler-Heun method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import euler_heun


class EulerHeun(EngineSolver):
    """The method "euler_heun"."""

    method = euler_heun.EulerHeun
    sde_type = SDE_TYPES.stratonovich
