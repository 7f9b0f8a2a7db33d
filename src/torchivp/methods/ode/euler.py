"""Euler's method: one evaluation a step, first order."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class Euler(ExplicitRungeKutta):
    """Euler's method, order 1, fixed steps. For comparison and for networks trained with it.

    Euler, "Institutionum calculi integralis" (1768). Dense output: cubic Hermite.
    """

    references = ("Euler1768",)
    tableau = ButcherTableau(order=1, c=(0,), a=((),), b=(1,))
