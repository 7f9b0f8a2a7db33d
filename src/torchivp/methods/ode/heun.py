"""Heun's method with Euler's as error estimate: two evaluations a step, second order."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials


class Heun(ExplicitRungeKutta):
    """Heun's method (the explicit trapezoidal rule) of order 2(1), adaptive.

    For loose tolerances; `Fehlberg2` and `Bosh3` need far fewer steps for tighter ones. Heun, Z. Math. Phys. 45
    (1900). Dense output: order 2, from the stages.
    """

    references = ("Heun1900",)
    tableau = ButcherTableau(
        order=2,
        c=(0, 1),
        a=((), (1,)),
        b=(1 / 2, 1 / 2),
        b_embedded=(1, 0),
        dense=StagePolynomials(order=2, b=((1, -1 / 2), (0, 1 / 2))),
    )
