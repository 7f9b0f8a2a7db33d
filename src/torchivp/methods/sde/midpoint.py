"""The midpoint method: two evaluations a step."""

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class Midpoint(SDEMethod):
    """A step with the drift and diffusion of the middle, to which half an Euler step leads.

    Strong order 1, of noise that does not commute 1/2; weak order 1. Kloeden and Platen, "Numerical Solution of
    Stochastic Differential Equations" (1992), 4.9.
    """

    references = ("KloedenPlaten1992",)
    orders = by_noise("stratonovich", Orders(1.0, 1.0), general=Orders(0.5, 1.0))

    def step(self, terms, t0, t1, y0, noise, carry):
        f, prod = terms.f_and_g_prod(t0, y0, noise.W)
        middle = y0.add(f, alpha=0.5 * noise.dt).add(prod, alpha=0.5)
        f, prod = terms.f_and_g_prod(t0 + 0.5 * (t1 - t0), middle, noise.W)
        return y0.add(f, alpha=noise.dt).add(prod), ()
