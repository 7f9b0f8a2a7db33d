"""The log-ODE method: two evaluations a step, along one vector field that holds the Lévy areas too."""

import torch

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise


class LogODE(SDEMethod):
    """The ODE z' = f dt + g W + Σ_jk (∂g_k/∂y) g_j A_jk over unit time, by the midpoint method.

    Strong order 1, of noise that does not commute 1/2, since the areas between channels are approximate; its error is
    smaller than that of methods without them. Weak order 1. Castell and Gaines, "The ordinary differential equation
    approach to asymptotically efficient schemes for solution of stochastic differential equations", Ann. Inst. H.
    Poincaré Probab. Statist. 32 (1996).
    """

    references = ("CastellGaines1996",)
    orders = by_noise("stratonovich", Orders(1.0, 1.0), general=Orders(0.5, 1.0))
    levy_area = "foster"

    @classmethod
    def area_for(cls, noise_type):
        return cls.levy_area if noise_type == "general" else "none"

    def step(self, terms, t0, t1, y0, noise, carry):
        middle = y0.add(self._field(terms, t0, y0, noise), alpha=0.5)
        return y0 + self._field(terms, t0 + 0.5 * (t1 - t0), middle, noise), ()

    def _field(self, terms, t, y, noise):
        if terms.noise_type != "general":
            f, prod = terms.f_and_g_prod(t, y, noise.W)
            return torch.add(prod, f, alpha=noise.dt)
        f, g, brackets = terms.f_g_and_derivative(t, y, lambda g: torch.bmm(g, noise.A))
        return torch.add(terms.prod(g, noise.W), f, alpha=noise.dt).add(brackets)
