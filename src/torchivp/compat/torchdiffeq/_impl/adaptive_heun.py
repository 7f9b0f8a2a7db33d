"""Heun's method of order 2."""

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of

_ADAPTIVE_HEUN_TABLEAU = tableau_of("adaptive_heun")


class AdaptiveHeunSolver(RKAdaptiveStepsizeODESolver):
    """The method "adaptive_heun"."""

    order = 2
    tableau = _ADAPTIVE_HEUN_TABLEAU
    method = "adaptive_heun"
