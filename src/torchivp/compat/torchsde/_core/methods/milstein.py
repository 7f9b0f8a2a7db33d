"""Milstein's method."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import SDE_TYPES
from torchivp.methods.sde import milstein


class MilsteinIto(EngineSolver):
    """The method "milstein" for Itô SDEs."""

    method = milstein.Milstein
    sde_type = SDE_TYPES.ito


class MilsteinStratonovich(EngineSolver):
    """The method "milstein" for Stratonovich SDEs."""

    method = milstein.Milstein
    sde_type = SDE_TYPES.stratonovich
