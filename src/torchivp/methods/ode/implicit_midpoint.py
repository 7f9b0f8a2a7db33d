"""The implicit midpoint rule: one implicit stage a step, second order, symplectic."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau


class ImplicitMidpoint(ImplicitRungeKutta):
    """The implicit midpoint rule, order 2, A-stable, symplectic, fixed steps.

    It keeps quadratic invariants; what decays very fast it damps little. Gauss with one stage: Hairer and Wanner,
    "Solving Ordinary Differential Equations II", IV.5. Dense output: cubic Hermite, of order 3.
    """

    references = ("HairerWanner1996",)
    tableau = ButcherTableau(order=2, c=(1 / 2,), a=((1 / 2,),), b=(1,))
