"""Dormand and Prince's method of order 5."""

import torch

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of
from torchivp.methods.ode.dopri5 import Dopri5

_DORMAND_PRINCE_SHAMPINE_TABLEAU = tableau_of("dopri5")

assert Dopri5.tableau.dense is not None
DPS_C_MID = torch.tensor(Dopri5.tableau.dense.b, dtype=torch.float64) @ 0.5 ** torch.arange(1.0, 5.0).double()
"""The weights of the stages at the middle of a step."""


class Dopri5Solver(RKAdaptiveStepsizeODESolver):
    """The method "dopri5"."""

    order = 5
    tableau = _DORMAND_PRINCE_SHAMPINE_TABLEAU
    mid = DPS_C_MID
    method = "dopri5"
