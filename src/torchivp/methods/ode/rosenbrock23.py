"""Shampine and Reichelt's Rosenbrock pair of order 2(3), that of MATLAB's ode23s."""

from math import sqrt

from torchivp.methods.ode.rosenbrock import Rosenbrock, of_untransformed
from torchivp.methods.ode.tableau import StagePolynomials

_D = 1 / (2 + sqrt(2))
_E32 = 6 + sqrt(2)


class Rosenbrock23(Rosenbrock):
    """Shampine and Reichelt's pair of order 2(3), L-stable, adaptive: for stiff problems at loose tolerances.

    Shampine and Reichelt, "The MATLAB ODE suite", SIAM J. Sci. Comput. 18 (1997), section 3, with their third stage
    written as one of a Rosenbrock method. Dense output: order 2, from the stages.
    """

    references = ("ShampineReichelt1997",)
    tableau = of_untransformed(
        order=2,
        alpha=((), (1 / 2,), (0, 1)),
        gammas=((_D,), (-_D, _D), ((_E32 - 2) * _D, -_E32 * _D, _D)),
        b=(0, 1, 0),
        b_embedded=(1 / 6, 2 / 3, 1 / 6),
        embedded_order=3,
        dense=StagePolynomials(
            2, b=((1 / (1 - 2 * _D), -1 / (1 - 2 * _D)), (-2 * _D / (1 - 2 * _D), 1 / (1 - 2 * _D)), (0, 0))
        ),
    )
