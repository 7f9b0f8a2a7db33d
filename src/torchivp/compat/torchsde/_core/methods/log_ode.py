"""The log-ODE method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import LEVY_AREA_APPROXIMATIONS, SDE_TYPES
from torchivp.methods.sde import log_ode


class LogODEMidpoint(EngineSolver):
    """The method "log_ode"."""

    method = log_ode.LogODE
    sde_type = SDE_TYPES.stratonovich
    levy_area_approximations = (LEVY_AREA_APPROXIMATIONS.davie, LEVY_AREA_APPROXIMATIONS.foster)
