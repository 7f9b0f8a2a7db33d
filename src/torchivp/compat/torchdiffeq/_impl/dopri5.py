"""Dormand and Prince's method of order 5."""

import torch

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of
from torchivp.methods.ode.dopri5 import Dopri5

# Shampine's embedded weights lie a third of the way from those of Dormand and Prince to the method's own:
# L. F. Shampine, "Some practical Runge-Kutta formulas", Mathematics of Computation 46 (1986).
_DORMAND_PRINCE_SHAMPINE_TABLEAU = tableau_of("dopri5")
_DORMAND_PRINCE_SHAMPINE_TABLEAU = _DORMAND_PRINCE_SHAMPINE_TABLEAU._replace(
    c_error=_DORMAND_PRINCE_SHAMPINE_TABLEAU.c_error * 2 / 3
)

assert Dopri5.tableau.dense is not None
DPS_C_MID = torch.tensor(Dopri5.tableau.dense.b, dtype=torch.float64) @ 0.5 ** torch.arange(1.0, 5.0).double()
"""The weights of the stages at the middle of a step."""


class Dopri5Solver(RKAdaptiveStepsizeODESolver):
    """The method "dopri5"."""

    order = 5
    tableau = _DORMAND_PRINCE_SHAMPINE_TABLEAU
    mid = DPS_C_MID
    method = "dopri5"
