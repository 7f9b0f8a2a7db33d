"""Heun's method without an error estimate: two evaluations a step, second order."""

from dataclasses import replace

from torchivp.methods.ode.heun import Heun
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta


class Heun2(ExplicitRungeKutta):
    """Heun's method (the explicit trapezoidal rule), order 2, fixed steps; `Heun` adapts them.

    Heun, Z. Math. Phys. 45 (1900). Dense output: order 2, from the stages.
    """

    references = ("Heun1900",)
    tableau = replace(Heun.tableau, b_embedded=None, embedded_order=None)
