"""The classical Runge-Kutta method: four evaluations a step, fourth order."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class RK4Classic(ExplicitRungeKutta):
    """The classical Runge-Kutta method, order 4, fixed steps.

    Kutta, Z. Math. Phys. 46 (1901). Dense output: cubic Hermite, of order 3.
    """

    references = ("Kutta1901",)
    tableau = ButcherTableau(
        order=4,
        c=(0, 1 / 2, 1 / 2, 1),
        a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )
