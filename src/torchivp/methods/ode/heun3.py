"""Heun's method of third order: three evaluations a step."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class Heun3(ExplicitRungeKutta):
    """Heun's method of order 3, fixed steps.

    Heun, Z. Math. Phys. 45 (1900); Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", table
    II.1.1. Dense output: cubic Hermite, of order 3.
    """

    references = ("Heun1900", "HairerNorsettWanner1993")
    tableau = ButcherTableau(
        order=3,
        c=(0, 1 / 3, 2 / 3),
        a=((), (1 / 3,), (0, 2 / 3)),
        b=(1 / 4, 0, 3 / 4),
    )
