"""Bogacki and Shampine's 3(2) pair: three evaluations a step, the cheapest adaptive method of order 3."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class Bosh3(ExplicitRungeKutta):
    """Bogacki and Shampine's pair of order 3(2), adaptive. For loose tolerances (rtol of 1e-3 or so).

    Bogacki and Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Lett. 2 (1989). Dense output: cubic
    Hermite, of order 3, at no cost.
    """

    references = ("BogackiShampine1989",)
    tableau = ButcherTableau(
        order=3,
        c=(0, 1 / 2, 3 / 4, 1),
        a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0),
        b_embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    )
