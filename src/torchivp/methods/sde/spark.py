"""SPaRK, the splitting-path Runge-Kutta method: three evaluations a step."""

import math

import torch

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise
from torchivp.methods.sde.stages import space_time

_END = (3.0 - math.sqrt(3.0)) / 6.0
_MIDDLE = math.sqrt(3.0) / 3.0


class SPaRK(SDEMethod):
    """Two guesses, of the middle and the end, then a rule with the weights (3 - √3) / 6, √3 / 3 and (3 - √3) / 6.

    Y2 = Y + f1 dt / 2 + g1 (W / 2 + √3 H), Y3 = Y + f2 dt + g2 W, and the result is the rule's, and (g1 - g3) H. Strong
    order 1, of additive noise 3/2, of noise that does not commute 1/2; weak order 1, of additive noise 2. Foster
    and Jelinčič, "On the convergence of adaptive approximations for stochastic differential equations",
    arXiv:2311.14201 (2023), Definition 1.6.
    """

    references = ("Foster2023",)
    orders = by_noise("stratonovich", Orders(1.0, 1.0), additive=Orders(1.5, 2.0), general=Orders(0.5, 1.0))
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        dt, W, H = noise.dt, noise.W, space_time(noise)
        f1, g1 = terms.f_and_g(t0, y0)
        change, area = terms.prod(g1, W), terms.prod(g1, H)
        at = y0.add(f1, alpha=0.5 * dt).add(change, alpha=0.5).add(area, alpha=math.sqrt(3.0))
        f2, prod2 = terms.f_and_g_prod(torch.lerp(t0, t1, 0.5), at, W)
        f3, prod3 = terms.f_and_g_prod(t1, y0.add(f2, alpha=dt).add(prod2), torch.sub(_END * W, H))
        y1 = y0.add(f1, alpha=_END * dt).add(f2, alpha=_MIDDLE * dt).add(f3, alpha=_END * dt)
        return y1.add(change, alpha=_END).add(prod2, alpha=_MIDDLE).add(prod3).add(area), ()
