"""Fehlberg's 2(1) pair: second order with long steps, for its error estimate is small."""

from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials


class Fehlberg2(ExplicitRungeKutta):
    """Fehlberg's pair of order 2(1), adaptive; the same pair as torchdiffeq's `fehlberg2`.

    Two evaluations a step: the last stage, at a state that differs by 1/512 of the error of Euler's method from the end
    of the step, is the first of the next. Its estimate is optimistic: errors of a hundred times the
    tolerance are usual. `Bosh3` is more careful.
    Fehlberg, "Low-order classical Runge-Kutta formulas with stepsize control", NASA TR R-315 (1969), table II.
    Dense output: order 2, from the stages.
    """

    references = ("Fehlberg1969",)
    tableau = ButcherTableau(
        order=2,
        c=(0, 1 / 2, 1),
        a=((), (1 / 2,), (1 / 256, 255 / 256)),
        b=(1 / 512, 255 / 256, 1 / 512),
        b_embedded=(1 / 256, 255 / 256, 0),
        dense=StagePolynomials(order=2, b=((1, -511 / 512), (0, 255 / 256), (0, 1 / 512))),
        predicts=True,
    )
