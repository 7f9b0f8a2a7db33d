"""The explicit midpoint rule: two evaluations a step, second order."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class Midpoint(ExplicitRungeKutta):
    """The explicit midpoint rule, order 2, fixed steps.

    Runge, Math. Ann. 46 (1895). Dense output: cubic Hermite.
    """

    references = ("Runge1895",)
    tableau = ButcherTableau(order=2, c=(0, 1 / 2), a=((), (1 / 2,)), b=(0, 1))
