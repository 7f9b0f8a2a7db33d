"""Gauss and Legendre's method with three stages: sixth order, symplectic."""

from math import sqrt

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials

_R15 = sqrt(15)
_C = (1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10)


class GaussLegendre6(ImplicitRungeKutta):
    """The Gauss method with three stages (Kuntzmann and Butcher's), order 6, A-stable, symplectic, fixed steps.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.5, table 5.2. Dense output: order 3, the
    collocation polynomial.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(
        order=6,
        c=_C,
        a=(
            (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
            (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
            (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
        ),
        b=(5 / 18, 4 / 9, 5 / 18),
        dense=StagePolynomials.collocation(_C),
    )
