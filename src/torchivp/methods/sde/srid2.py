"""SRID2: three drifts and four diffusions a step, for diagonal or scalar noise in Itô's calculus."""

from torchivp.methods.sde.diagonal_runge_kutta import DiagonalRungeKutta, DiagonalTableau


class SRID2(DiagonalRungeKutta):
    """Strong and weak order 3/2.

    Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations", SIAM
    J. Numer. Anal. 48 (2010).
    """

    references = ("Rossler2010",)
    tableau = DiagonalTableau(
        c0=(0.0, 1.0, 1 / 2, 0.0),
        c1=(0.0, 1 / 4, 1.0, 1 / 4),
        A0=((1.0,), (1 / 4, 1 / 4), ()),
        A1=((1 / 4,), (1.0,), (0.0, 0.0, 1 / 4)),
        B0=((), (1.0, 1 / 2), ()),
        B1=((-1 / 2,), (1.0,), (2.0, -1.0, 1 / 2)),
        alpha=(1 / 6, 1 / 6, 2 / 3, 0.0),
        beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
        beta2=(1.0, -4 / 3, 1 / 3, 0.0),
        beta3=(2.0, -4 / 3, -2 / 3, 0.0),
        beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
    )
