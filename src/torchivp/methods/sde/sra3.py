"""SRA3: three drifts and two diffusions a step, for additive noise."""

from torchivp.methods.sde.additive_runge_kutta import AdditiveRungeKutta, AdditiveTableau


class SRA3(AdditiveRungeKutta):
    """Strong order 3/2, weak order 2, and order 3 without noise.

    Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations", SIAM
    J. Numer. Anal. 48 (2010).
    """

    references = ("Rossler2010",)
    tableau = AdditiveTableau(
        c0=(0.0, 1.0, 1 / 2),
        c1=(1.0, 0.0, 0.0),
        A0=((1.0,), (1 / 4, 1 / 4)),
        B0=((), (1.0, 1 / 2)),
        alpha=(1 / 6, 1 / 6, 2 / 3),
        beta1=(1.0, 0.0, 0.0),
        beta2=(-1.0, 1.0, 0.0),
    )
