"""Gauss and Legendre's method with two stages: fourth order, symplectic."""

from math import sqrt

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

_R3 = sqrt(3)


class GaussLegendre4(ImplicitRungeKutta):
    """The Gauss method with two stages (Hammer and Hollingsworth's), order 4, A-stable, symplectic, fixed steps.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.5, table 5.1. Dense output: cubic Hermite, of
    order 3.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(
        order=4,
        c=(1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
        a=((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
        b=(1 / 2, 1 / 2),
    )
