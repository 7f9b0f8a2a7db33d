"""The Euler-Heun method: one drift and two diffusions a step."""

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class EulerHeun(SDEMethod):
    """Euler's method for the drift, Heun's for the noise: Y' = Y + f(Y) dt + (g(Y) + g(Y + g(Y) W)) W / 2.

    Strong order 1, of noise that does not commute 1/2; weak order 1. Kloeden and Platen, "Numerical Solution of
    Stochastic Differential Equations" (1992), 4.9 and 11.1.
    """

    references = ("KloedenPlaten1992",)
    orders = by_noise("stratonovich", Orders(1.0, 1.0), general=Orders(0.5, 1.0))

    def step(self, terms, t0, t1, y0, noise, carry):
        f, prod = terms.f_and_g_prod(t0, y0, noise.W)
        after = terms.g_prod(t1, y0 + prod, noise.W)
        return y0.add(f, alpha=noise.dt).add(prod + after, alpha=0.5), ()
