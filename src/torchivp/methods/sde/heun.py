"""Heun's method: two evaluations a step."""

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class Heun(SDEMethod):
    """The trapezoidal rule with an Euler step as its guess.

    Strong order 1, of noise that does not commute 1/2; weak order 1, of additive noise 2. Rümelin, "Numerical treatment
    of stochastic differential equations", SIAM J. Numer. Anal. 19 (1982).
    """

    references = ("Rumelin1982",)
    orders = by_noise("stratonovich", Orders(1.0, 1.0), additive=Orders(1.0, 2.0), general=Orders(0.5, 1.0))

    def step(self, terms, t0, t1, y0, noise, carry):
        f0, prod0 = terms.f_and_g_prod(t0, y0, noise.W)
        guess = y0.add(f0, alpha=noise.dt).add(prod0)
        f1, prod1 = terms.f_and_g_prod(t1, guess, noise.W)
        return y0.add(f0 + f1, alpha=0.5 * noise.dt).add(prod0 + prod1, alpha=0.5), ()
