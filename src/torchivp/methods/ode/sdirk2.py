"""Alexander's singly diagonally implicit method: two implicit stages a step, second order, L-stable."""

from math import sqrt

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials

_GAMMA = 1 - 1 / sqrt(2)
_C = (_GAMMA, 1)


class SDIRK2(ImplicitRungeKutta):
    """Alexander's singly diagonally implicit method with two stages, order 2, L-stable, fixed steps.

    Alexander, "Diagonally implicit Runge-Kutta methods for stiff O.D.E.'s", SIAM J. Numer. Anal. 14 (1977); Hairer
    and Wanner, "Solving Ordinary Differential Equations II", IV.6. Dense output: order 2, from the stages.
    """

    references = ("Alexander1977", "HairerWanner1996")
    tableau = ButcherTableau(
        order=2,
        c=_C,
        a=((_GAMMA,), (1 - _GAMMA, _GAMMA)),
        b=(1 - _GAMMA, _GAMMA),
        dense=StagePolynomials.collocation(_C),
    )
