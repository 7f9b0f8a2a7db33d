"""Milstein's method: the diffusion's derivative for order 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms

_NOISES = ("diagonal", "scalar", "additive", "commutative")


class Milstein(SDEMethod):
    """Euler's method and the term of the diffusion's derivative: for one noise, (∂g/∂y) g (W² - dt) / 2.

    In Stratonovich's calculus the term is (∂g/∂y) g W² / 2. Strong and weak order 1. Milstein, Theory Probab. Appl. 19
    (1974); Kloeden and Platen (1992), 10.3 and, without derivatives, 11.1.

    Args:
        grad_free: replace the derivative of the diffusion by a difference.
    """

    orders = {(sde, noise): Orders(1.0, 1.0) for sde in ("ito", "stratonovich") for noise in _NOISES}
    options = ("grad_free",)

    def __init__(self, grad_free: bool = False) -> None:
        if not isinstance(grad_free, bool):
            raise TypeError(f"grad_free must be True or False, got {grad_free!r}")
        self.grad_free = grad_free

    def step(self, terms, t0, t1, y0, noise, carry):
        if terms.noise_type == "additive":
            f, prod = terms.f_and_g_prod(t0, y0, noise.W)
            return y0.add(f, alpha=noise.dt).add_(prod), ()
        f = terms.f(t0, y0)
        guess = y0.add(f, alpha=noise.dt)
        if terms.diagonal:
            g, term = self._diagonal(terms, t0, y0, guess, noise)
        else:
            g, term = self._commutative(terms, t0, y0, guess, noise)
        return guess.add_(terms.prod(g, noise.W)).add_(term, alpha=0.5), ()

    def _diagonal(self, terms: Terms, t: Tensor, y: Tensor, guess: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
        """The diffusion, and its derivative times itself and the double integral."""
        double = noise.W * noise.W
        if terms.sde_type == "ito":
            double = double - noise.dt
        if not self.grad_free:
            return terms.g_and_slope(t, y, double)
        root = math.sqrt(noise.dt)
        g = terms.g(t, y)
        return g, (terms.g(t, guess.add(g, alpha=root)) - g) * (double / root)

    def _commutative(
        self, terms: Terms, t: Tensor, y: Tensor, guess: Tensor, noise: Increment
    ) -> tuple[Tensor, Tensor]:
        """The same of commutative noise, in which only the symmetric part of the double integrals matters."""
        g = terms.g(t, y)
        prod = terms.prod(g, noise.W)
        if terms.channels == 1 and not self.grad_free:
            slope = terms.derivative(t, y, torch.ones_like(noise.W), terms.column(g, 0))
            double = noise.W * noise.W
            return g, slope * (double - noise.dt if terms.sde_type == "ito" else double)
        term = self._along(terms, t, y, guess, g, noise.W, prod, noise.dt)
        if terms.sde_type == "ito":
            for j in range(terms.channels):
                unit = torch.zeros_like(noise.W)
                unit[:, j] = 1.0
                term = term - noise.dt * self._along(terms, t, y, guess, g, unit, terms.column(g, j), noise.dt)
        return g, term

    def _along(
        self, terms: Terms, t: Tensor, y: Tensor, guess: Tensor, g: Tensor, weights: Tensor, v: Tensor, dt: float
    ) -> Tensor:
        """The derivative of `g weights` in the direction `v`, or a difference that stands for it."""
        if not self.grad_free:
            return terms.derivative(t, y, weights, v)
        root = math.sqrt(dt)
        return (terms.g_prod(t, y.add(v, alpha=root), weights) - terms.prod(g, weights)) / root
