"""Bogacki and Shampine's method of order 3."""

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of

_BOGACKI_SHAMPINE_TABLEAU = tableau_of("bosh3")


class Bosh3Solver(RKAdaptiveStepsizeODESolver):
    """The method "bosh3"."""

    order = 3
    tableau = _BOGACKI_SHAMPINE_TABLEAU
    method = "bosh3"
