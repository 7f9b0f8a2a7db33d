"""Radau IIA of order 5 with an error estimate: the usual choice for stiff problems."""

from math import sqrt

import numpy as np

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.radau_iia5 import RadauIIA5
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials

_COLLOCATION = RadauIIA5.tableau
_C = (0, *_COLLOCATION.c)
_A = ((), *((0, *row) for row in _COLLOCATION.a))
_B = (0, *_COLLOCATION.b)

# The embedded method adds the slope at the start, with the real eigenvalue of `a` as its weight, and is of order 3.
_START = 1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3))
_E = _START / 3 * np.array([-13 - 7 * sqrt(6), -13 + 7 * sqrt(6), -1])
_EMBEDDED = (_START, *(np.array(_COLLOCATION.b) + _E @ _COLLOCATION.matrix).tolist())


class Radau5(ImplicitRungeKutta):
    """The Radau IIA method with three stages, order 5(3), L-stable, adaptive. The usual choice for stiff problems.

    Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8, with their estimate of the error. Dense
    output: order 3, the collocation polynomial.
    """

    references = ("HairerWanner1996",)
    filters_error = True
    tableau = ButcherTableau(
        order=5,
        c=_C,
        a=_A,
        b=_B,
        b_embedded=_EMBEDDED,
        embedded_order=3,
        dense=StagePolynomials(3, b=((0, 0, 0), *StagePolynomials.collocation(_COLLOCATION.c).b)),
    )
