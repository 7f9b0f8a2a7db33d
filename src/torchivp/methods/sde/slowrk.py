"""SlowRK: two drifts and five diffusions a step, for noise that commutes."""

from typing import ClassVar

import torch

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import space_time

_NOISES = ("commutative", "additive", "scalar", "diagonal")


class SlowRK(SDEMethod):
    """The classical Runge-Kutta method along the noise from the middle, and further stages for the drift and H.

    Strong order 3/2, weak order 2. Foster, dos Reis and Strange, "High order splitting methods for SDEs satisfying a
    commutativity condition", SIAM J. Numer. Anal. 62 (2024), (6.2).
    """

    references = ("FosterDosReisStrange2024",)
    orders: ClassVar = {("stratonovich", noise): Orders(1.5, 2.0) for noise in _NOISES}
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        dt, W, H = noise.dt, noise.W, space_time(noise)
        middle = torch.lerp(t0, t1, 0.5)
        f1 = terms.f(t0, y0)
        centre = y0.add(f1, alpha=0.5 * dt)
        prod2 = terms.g_prod(middle, centre, W)
        prod3 = terms.g_prod(middle, centre.add(prod2, alpha=0.5), W)
        g4 = terms.g(middle, centre.add(prod3, alpha=0.5))
        prod4, area = terms.prod(g4, W), terms.prod(g4, H)
        prod5 = terms.g_prod(middle, centre + prod4, W)
        at = y0.add(f1, alpha=0.75 * dt).add(prod4, alpha=0.75).add(area, alpha=1.5)
        f6 = terms.f(torch.lerp(t0, t1, 0.75), at)
        last = terms.g_prod(t1, y0.add(f1, alpha=dt).add(prod3, alpha=0.5), H)
        y1 = y0.add(f1, alpha=dt / 3.0).add(f6, alpha=dt / 1.5)
        y1 = y1.add(prod2 + prod5, alpha=1 / 6).add(prod3 + prod4, alpha=1 / 3)
        return y1.add(area - last, alpha=2.0), ()
