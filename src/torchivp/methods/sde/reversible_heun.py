"""The reversible Heun method: one evaluation a step, and steps that can be taken back exactly."""

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class ReversibleHeun(SDEMethod):
    """Z' = 2 Y - Z + f(Z) dt + g(Z) W, then Y' = Y + (f(Z) + f(Z')) dt / 2 + (g(Z) + g(Z')) W / 2.

    Strong order 1/2, of additive noise 1; weak order 1. Since Y and Z follow from Y' and Z', the gradient needs no
    memory for the steps in between. Not for stiff drifts: the method's region of stability is an interval. Kidger,
    Foster, Li and Lyons, "Efficient and accurate gradients for neural SDEs", NeurIPS (2021), Algorithm 1.

    What it carries from step to step is f(Z), g(Z) and Z.
    """

    references = ("KidgerFosterLiLyons2021",)
    orders = by_noise("stratonovich", Orders(0.5, 1.0), additive=Orders(1.0, 1.0))

    def start(self, terms, t0, y0):
        f, g = terms.f_and_g(t0, y0)
        return f, g, y0

    def step(self, terms, t0, t1, y0, noise, carry):
        f0, g0, z0 = carry
        z1 = (2 * y0 - z0).add(f0, alpha=noise.dt).add(terms.prod(g0, noise.W))
        f1, g1 = terms.f_and_g(t1, z1)
        y1 = y0.add(f0 + f1, alpha=0.5 * noise.dt).add(terms.prod(g0 + g1, noise.W), alpha=0.5)
        return y1, (f1, g1, z1)
