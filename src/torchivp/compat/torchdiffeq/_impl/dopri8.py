"""Dormand and Prince's method of order 8."""

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of

_DOPRI8_TABLEAU = tableau_of("dopri8")


class Dopri8Solver(RKAdaptiveStepsizeODESolver):
    """The method "dopri8"."""

    order = 8
    tableau = _DOPRI8_TABLEAU
    method = "dopri8"
