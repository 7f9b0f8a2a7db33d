"""RI6: two drifts a step, and three diffusions or more; weak order 2."""

from torchivp.methods.sde.weak_runge_kutta import WeakRungeKutta, WeakTableau


class RI6(WeakRungeKutta):
    """Weak order 2, and order 2 without noise; strong order 1, of noise that does not commute 1/2.

    Rößler, "Second order Runge-Kutta methods for Itô stochastic differential equations", SIAM J. Numer. Anal. 47
    (2009).
    """

    references = ("Rossler2009",)
    tableau = WeakTableau(
        A0=((1.0,), ()),
        B0=(1.0, 0.0),
        alpha=(1 / 2, 1 / 2, 0.0),
        A1=(1.0, 1.0),
        B1=(1.0, -1.0),
        B2=((1.0, 0.0, 0.0), (-1.0, 0.0, 0.0)),
        beta1=(1 / 2, 1 / 4, 1 / 4),
        beta2=(0.0, 1 / 2, -1 / 2),
        beta3=(-1 / 2, 1 / 4, 1 / 4),
        beta4=(0.0, 1 / 2, -1 / 2),
    )
