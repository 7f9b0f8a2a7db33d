"""The Euler-Maruyama method: one evaluation a step."""

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class Euler(SDEMethod):
    """Y' = Y + f dt + g W.

    Strong order 1/2, of additive noise 1; weak order 1. Maruyama, "Continuous Markov processes and stochastic
    equations", Rend. Circ. Mat. Palermo 4 (1955); Kloeden and Platen, "Numerical Solution of Stochastic Differential
    Equations" (1992), 10.2.
    """

    references = ("Maruyama1955", "KloedenPlaten1992")
    orders = by_noise("ito", Orders(0.5, 1.0), additive=Orders(1.0, 1.0))

    def step(self, terms, t0, t1, y0, noise, carry):
        f, prod = terms.f_and_g_prod(t0, y0, noise.W)
        return y0.add(f, alpha=noise.dt).add(prod), ()
