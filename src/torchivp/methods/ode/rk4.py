"""Kutta's 3/8 rule: four evaluations a step, fourth order."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class RK4(ExplicitRungeKutta):
    """Kutta's 3/8 rule, order 4, fixed steps; what torchdiffeq means by `rk4`.

    Kutta, Z. Math. Phys. 46 (1901). Dense output: cubic Hermite, of order 3.
    """

    references = ("Kutta1901",)
    tableau = ButcherTableau(
        order=4,
        c=(0, 1 / 3, 2 / 3, 1),
        a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    )
