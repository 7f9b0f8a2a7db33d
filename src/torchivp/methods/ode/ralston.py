"""Ralston's method: second order in two evaluations, with the smallest bound on the error."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials


class Ralston(ExplicitRungeKutta):
    """Ralston's method of order 2, with Euler's as error estimate, adaptive.

    Ralston, "Runge-Kutta methods with minimum error bounds", Math. Comp. 16 (1962). Dense output: order 2, from
    the stages.
    """

    references = ("Ralston1962",)
    tableau = ButcherTableau(
        order=2,
        c=(0, 2 / 3),
        a=((), (2 / 3,)),
        b=(1 / 4, 3 / 4),
        b_embedded=(1, 0),
        dense=StagePolynomials(order=2, b=((1, -3 / 4), (0, 3 / 4))),
    )
