"""The drift-implicit Milstein method, for stiff drifts."""

from torchivp.methods.sde.implicit import ImplicitDriftMethod
from torchivp.methods.sde.milstein import Milstein, milstein_term


class ImplicitMilstein(ImplicitDriftMethod):
    """Milstein's method with the drift at the end of the step: Y' = Y + f(t1, Y') dt + g(t0, Y) W + Milstein's term.

    Strong and weak order 1. The drift is that of the calculus in which the SDE is meant. Strong noise that grows with
    the state limits the size of steps, since its term is explicit. A step evaluates the diffusion once, with the
    derivatives that Milstein's method takes, and the drift and its Jacobian as often as Newton's iteration needs.
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations" (1992), 12.2.
    """

    references = ("KloedenPlaten1992",)
    orders = Milstein.orders

    def explicit_part(self, terms, t0, y0, noise):
        if terms.noise_type == "additive":
            return y0 + terms.g_prod(t0, y0, noise.W)
        prod, term = milstein_term(terms, t0, y0, noise)
        return y0.add(prod).add(term, alpha=0.5)
