"""Radau IIA with three stages: fifth order, L-stable, the usual choice for stiff problems."""

from math import sqrt

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials

_R6 = sqrt(6)
_C = ((4 - _R6) / 10, (4 + _R6) / 10, 1)
_B = ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9)


class RadauIIA5(ImplicitRungeKutta):
    """The Radau IIA method with three stages, order 5, L-stable, fixed steps. The usual choice for stiff problems.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.5, table 5.6. Dense output: order 3, the
    collocation polynomial.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(
        order=5,
        c=_C,
        a=(
            ((88 - 7 * _R6) / 360, (296 - 169 * _R6) / 1800, (-2 + 3 * _R6) / 225),
            ((296 + 169 * _R6) / 1800, (88 + 7 * _R6) / 360, (-2 - 3 * _R6) / 225),
            _B,
        ),
        b=_B,
        dense=StagePolynomials.collocation(_C),
    )
