"""The drift-implicit Euler-Maruyama method, for stiff drifts."""

from torchivp.methods.sde.implicit import ImplicitDriftMethod
from torchivp.methods.sde.method import Orders, by_noise


class ImplicitEuler(ImplicitDriftMethod):
    """Y' = Y + f(t1, Y') dt + g(t0, Y) W.

    Strong order 1/2, of additive noise 1; weak order 1. Stable in the mean square with steps of any size wherever the
    linear test equation itself is. A step evaluates the diffusion once, and the drift and its Jacobian as often as
    Newton's iteration needs. Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations" (1992),
    12.2; Higham, "Mean-square and asymptotic stability of the stochastic theta method", SIAM J. Numer. Anal. 38 (2000).
    """

    references = ("KloedenPlaten1992", "Higham2000")
    orders = by_noise("ito", Orders(0.5, 1.0), additive=Orders(1.0, 1.0))

    def explicit_part(self, terms, t0, y0, noise):
        return y0 + terms.g_prod(t0, y0, noise.W)
