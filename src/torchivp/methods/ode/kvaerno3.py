"""Kvaerno's method of order 3(2): three implicit stages a step, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

_GAMMA = 0.4358665215084589994  # the root of x^3 - 3 x^2 + 3/2 x - 1/6 with which the method is L-stable
_A3 = ((6 * _GAMMA - 4 * _GAMMA**2 - 1) / (4 * _GAMMA), (1 - 2 * _GAMMA) / (4 * _GAMMA), _GAMMA)
_B = (
    (6 * _GAMMA - 1) / (12 * _GAMMA),
    1 / ((12 - 24 * _GAMMA) * _GAMMA),
    (6 * _GAMMA**2 - 6 * _GAMMA + 1) / (3 - 6 * _GAMMA),
    _GAMMA,
)


class Kvaerno3(ImplicitRungeKutta):
    """Kvaerno's singly diagonally implicit method with an explicit first stage, order 3(2), L-stable, adaptive.

    For stiff problems at loose tolerances. The embedded method, of which the third stage is the end, is stable
    wherever the solution decays. Kvaerno, "Singly diagonally implicit Runge-Kutta methods with an explicit first
    stage", BIT 44 (2004). Dense output: cubic Hermite, of order 3.
    """

    references = ("Kvaerno2004",)
    tableau = ButcherTableau(
        order=3,
        c=(0, 2 * _GAMMA, 1, 1),
        a=((), (_GAMMA, _GAMMA), _A3, _B),
        b=_B,
        b_embedded=(*_A3, 0),
    )
