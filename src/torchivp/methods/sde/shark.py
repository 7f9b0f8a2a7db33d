"""ShARK, the shifted additive-noise Runge-Kutta method: two drifts and two diffusions a step."""

from typing import ClassVar

import torch

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import space_time


class ShARK(SDEMethod):
    """Y' = Y + (2 f1 + 3 f2) dt / 5 + g(t) (W / 2 + H) + g(t + dt) (W / 2 - H), for additive noise.

    The drift f1 is that at Y + g(t) H, and f2 that at Y + 5/6 f1 dt + g(t) (5/6 W + H), 5/6 of the step on. Strong
    order 3/2, weak order 2. Foster, dos Reis and Strange, "High order splitting methods for SDEs satisfying a
    commutativity condition", SIAM J. Numer. Anal. 62 (2024), (6.1).
    """

    references = ("FosterDosReisStrange2024",)
    orders: ClassVar = {(calculus, "additive"): Orders(1.5, 2.0) for calculus in ("ito", "stratonovich")}
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        dt, W, H = noise.dt, noise.W, space_time(noise)
        g = terms.g(t0, y0)
        shift, early = terms.prod(g, H), terms.prod(g, torch.add(H, W, alpha=0.5))
        late = terms.g_prod(t1, y0, torch.sub(0.5 * W, H))
        f1 = terms.f(t0, y0 + shift)
        # 5/6 W + H is 5/3 (W / 2 + H) - 2/3 H.
        at = y0.add(f1, alpha=5 / 6 * dt).add(early, alpha=5 / 3).sub(shift, alpha=2 / 3)
        f2 = terms.f(torch.lerp(t0, t1, 5 / 6), at)
        return y0.add(f1, alpha=0.4 * dt).add(f2, alpha=0.6 * dt).add(early).add(late), ()
