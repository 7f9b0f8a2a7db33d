"""The trapezoidal rule: one implicit stage a step, second order, A-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials


class Trapezoid(ImplicitRungeKutta):
    """The implicit trapezoidal rule (Crank and Nicolson's method), order 2, A-stable, fixed steps.

    What decays very fast it damps little: `TRBDF2` and `SDIRK2` do. Lobatto IIIA with two stages: Hairer and Wanner,
    "Solving Ordinary Differential Equations II", IV.5. Dense output: order 2, the collocation polynomial.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(
        order=2,
        c=(0, 1),
        a=((), (1 / 2, 1 / 2)),
        b=(1 / 2, 1 / 2),
        dense=StagePolynomials.collocation((0, 1)),
    )
