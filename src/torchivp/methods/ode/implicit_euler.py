"""The implicit Euler method: one implicit stage a step, first order, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials


class ImplicitEuler(ImplicitRungeKutta):
    """The implicit (backward) Euler method, order 1, L-stable, fixed steps. The most robust of all, the least exact.

    Radau IIA with one stage: Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.5. Dense output:
    order 1, the straight line, which is the collocation polynomial.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(order=1, c=(1,), a=((1,),), b=(1,), dense=StagePolynomials.collocation((1,)))
