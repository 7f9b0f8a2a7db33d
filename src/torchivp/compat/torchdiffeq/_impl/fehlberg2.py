"""Fehlberg's method of order 2."""

from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, tableau_of

_FEHLBERG2_TABLEAU = tableau_of("fehlberg2")


class Fehlberg2(RKAdaptiveStepsizeODESolver):
    """The method "fehlberg2"."""

    order = 2
    tableau = _FEHLBERG2_TABLEAU
    method = "fehlberg2"
