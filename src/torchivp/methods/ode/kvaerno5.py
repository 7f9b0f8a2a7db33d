"""Kvaerno's method of order 5(4): six implicit stages a step, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, with_larger_error

_GAMMA = 0.26
_A6 = (0.13855640231268224, 0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, _GAMMA)
_B = (
    0.13659751177640291,
    0,
    -0.05496908796538376,
    -0.04118626728321046,
    0.62993304899016403,
    0.06962479448202728,
    _GAMMA,
)


class Kvaerno5(ImplicitRungeKutta):
    """Kvaerno's singly diagonally implicit method with an explicit first stage, order 5(4), L-stable, adaptive.

    For stiff problems at medium and tight tolerances. The error is estimated by an embedded method, of which the sixth
    stage is the end, five times as large as the difference to it: its coefficients of order 5 are so small, and those
    of order 6 of the method itself so large, that the difference alone is less than the error in long steps. One stage
    lies beyond the end of the step, by a quarter of its length, the last step included. Kvaerno, "Singly diagonally
    implicit Runge-Kutta methods with an explicit first stage", BIT 44 (2004). Dense output: cubic Hermite, of order 3.
    """

    references = ("Kvaerno2004",)
    tableau = ButcherTableau(
        order=5,
        c=(0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1, 1),
        a=(
            (),
            (_GAMMA, _GAMMA),
            (0.13, 0.84033320996790809, _GAMMA),
            (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, _GAMMA),
            (0.16648564323248321, 0.1045001884159172, 0.03631482272098715, -0.13090704451073998, _GAMMA),
            _A6,
            _B,
        ),
        b=_B,
        b_embedded=with_larger_error(_B, (*_A6, 0), 5),
    )
