"""The method "srk": the stochastic Runge-Kutta method that suits the noise."""

from typing import ClassVar

from torchivp.methods.sde.method import SDEMethod
from torchivp.methods.sde.sra1 import SRA1
from torchivp.methods.sde.srid2 import SRID2


class SRK(SDEMethod):
    """SRID2 for diagonal or scalar noise, SRA1 for additive noise, in Itô's calculus.

    Strong order 3/2; weak order 3/2, of additive noise 2. A step evaluates the drift three times and the diffusion
    four, of additive noise both twice. Rößler, "Runge-Kutta methods for the strong approximation of solutions of
    stochastic differential equations", SIAM J. Numer. Anal. 48 (2010).
    """

    references = ("Rossler2010",)
    orders: ClassVar = {**SRID2.orders, ("ito", "additive"): SRA1.orders["ito", "additive"]}
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        method = _ADDITIVE if terms.noise_type == "additive" else _ELEMENTWISE
        return method.step(terms, t0, t1, y0, noise, carry)


_ADDITIVE, _ELEMENTWISE = SRA1(), SRID2()
