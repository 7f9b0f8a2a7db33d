"""Tsitouras' method of order 5."""

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of

_TSITOURAS_TABLEAU = tableau_of("tsit5")


class Tsit5Solver(RKAdaptiveStepsizeODESolver):
    """The method "tsit5"."""

    order = 5
    tableau = _TSITOURAS_TABLEAU
    method = "tsit5"
