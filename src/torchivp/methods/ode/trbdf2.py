"""TR-BDF2: a trapezoidal step, then a backward difference; second order, L-stable."""

from math import sqrt

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

_R2 = sqrt(2)
_GAMMA = 2 - _R2


class TRBDF2(ImplicitRungeKutta):
    """The trapezoidal rule and the second backward difference formula in one step, order 2(3), L-stable, adaptive.

    `odeint` takes fixed steps with it, as torchdiffeq does.

    Bank et al., "Transient simulation of silicon devices and circuits", IEEE Trans. Computer-Aided Design 4 (1985);
    as a Runge-Kutta method: Hosea and Shampine, "Analysis and implementation of TR-BDF2", Appl. Numer. Math. 20
    (1996), which the error estimate comes from; Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.6.
    Dense output: cubic Hermite, of order 3.
    """

    references = ("Bank1985", "HoseaShampine1996", "HairerWanner1996")
    filters_error = True
    fixed_in_odeint = True
    tableau = ButcherTableau(
        order=2,
        c=(0, _GAMMA, 1),
        a=((), (_GAMMA / 2, _GAMMA / 2), (_R2 / 4, _R2 / 4, _GAMMA / 2)),
        b=(_R2 / 4, _R2 / 4, _GAMMA / 2),
        b_embedded=((4 - _R2) / 12, (4 + 3 * _R2) / 12, _GAMMA / 6),
        embedded_order=3,
    )
