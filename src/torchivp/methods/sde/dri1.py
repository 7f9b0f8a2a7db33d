"""DRI1: three drifts a step, and three diffusions or more; weak order 2, with small constants in its error."""

import math

from torchivp.methods.sde.weak_runge_kutta import WeakRungeKutta, WeakTableau

_NODE = 342 / 491
_OWN = 3.0 * math.sqrt(38 / 491)
_FIRST = 214 / 513 * math.sqrt(1105 / 991)
_LATER = 491 / 513 * math.sqrt(221 / 4955)


class DRI1(WeakRungeKutta):
    """Weak order 2, and order 3 without noise; strong order 1, of noise that does not commute 1/2.

    Debrabant and Rößler, "Families of efficient second order Runge-Kutta methods for the weak approximation of Itô
    stochastic differential equations", Appl. Numer. Math. 59 (2009).
    """

    references = ("DebrabantRossler2009",)
    tableau = WeakTableau(
        A0=((1 / 2,), (-1.0, 2.0)),
        B0=((6.0 - math.sqrt(6.0)) / 10.0, (3.0 + 2.0 * math.sqrt(6.0)) / 5.0),
        alpha=(1 / 6, 2 / 3, 1 / 6),
        A1=(_NODE, _NODE),
        B1=(_OWN, -_OWN),
        B2=((-_FIRST, -_LATER, -_LATER), (_FIRST, _LATER, _LATER)),
        beta1=(193 / 684, 491 / 1368, 491 / 1368),
        beta2=(0.0, math.sqrt(491 / 38) / 6.0, -math.sqrt(491 / 38) / 6.0),
        beta3=(-4955 / 7072, 4955 / 14144, 4955 / 14144),
        beta4=(0.0, -math.sqrt(4955 / 221) / 8.0, math.sqrt(4955 / 221) / 8.0),
    )
