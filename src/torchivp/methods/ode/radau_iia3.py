"""Radau IIA with two stages: third order, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials

_C = (1 / 3, 1)


class RadauIIA3(ImplicitRungeKutta):
    """The Radau IIA method with two stages, order 3, L-stable, fixed steps.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.5, table 5.5. Dense output: order 2, the
    collocation polynomial.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(
        order=3,
        c=_C,
        a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)),
        b=(3 / 4, 1 / 4),
        dense=StagePolynomials.collocation(_C),
    )
