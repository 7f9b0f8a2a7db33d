"""Milstein's method: one evaluation a step, and the diffusion's derivative for order 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import elementwise
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms

_NOISES = ("diagonal", "scalar", "additive", "commutative")


class Milstein(SDEMethod):
    """Euler's method and the term of the diffusion's derivative: for one noise, (∂g/∂y) g (W² - dt) / 2.

    In Stratonovich's calculus the term is (∂g/∂y) g W² / 2. Strong and weak order 1. A step evaluates drift and
    diffusion once, and differentiates each column of the diffusion; without derivatives it evaluates the diffusion
    twice, in Itô's calculus 2 m + 2 times for m > 1 noises that are not diagonal. Milstein, "Approximate integration of
    stochastic differential equations", Theory Probab. Appl. 19 (1975); Kloeden and Platen, "Numerical Solution of
    Stochastic Differential Equations" (1992), 10.3 and, without derivatives, 11.1.

    Args:
        grad_free: replace the derivatives of the diffusion by differences.
    """

    references = ("Milstein1975", "KloedenPlaten1992")
    orders: ClassVar = {(sde, noise): Orders(1.0, 1.0) for sde in ("ito", "stratonovich") for noise in _NOISES}
    options = ("grad_free",)

    def __init__(self, grad_free: bool = False) -> None:
        if not isinstance(grad_free, bool):
            raise TypeError(f"grad_free must be True or False, got {grad_free!r}")
        self.grad_free = grad_free

    def step(self, terms, t0, t1, y0, noise, carry):
        if terms.noise_type == "additive":
            f, prod = terms.f_and_g_prod(t0, y0, noise.W)
            return y0.add(f, alpha=noise.dt).add(prod), ()
        if self.grad_free:
            f, g = terms.f_and_g(t0, y0)
            guess = y0.add(f, alpha=noise.dt)
            prod, term = _differences(terms, t0, y0, noise, g, guess)
        elif _needs_product_alone(terms):
            f, prod, term = terms.f_prod_and_derivative(t0, y0, noise.W)
            guess = y0.add(f, alpha=noise.dt)
        else:
            f, g, term = terms.f_g_and_derivative(t0, y0, _directions(terms, noise))
            guess, prod = y0.add(f, alpha=noise.dt), terms.prod(g, noise.W)
        return guess.add(prod).add(term, alpha=0.5), ()


def milstein_term(terms: Terms, t: Tensor, y: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
    """The diffusion times the increment, and the diffusion's derivative times itself and the double integrals, doubled.

    Args:
        terms: an SDE whose noise is diagonal, scalar or commutative.
        t: the time at the start of the step.
        y: the state there.
        noise: the increment of the path.

    Returns:
        g W and, of one noise, (∂g/∂y) g (W² - dt); in Stratonovich's calculus (∂g/∂y) g W².
    """
    if _needs_product_alone(terms):
        return terms.prod_and_derivative(t, y, noise.W)
    g, term = terms.g_and_derivative(t, y, _directions(terms, noise))
    return terms.prod(g, noise.W), term


def _needs_product_alone(terms: Terms) -> bool:
    """Whether the term is the derivative of g W in its own direction, and g itself is not needed."""
    return terms.sde_type == "stratonovich" and not terms.diagonal


def _directions(terms: Terms, noise: Increment) -> Callable[[Tensor], Tensor]:
    """The directions of the derivatives of g in the term, as a function of g.

    Of several noises only the symmetric part of the double integrals matters: to g_j belongs g W W_j, less dt g_j in
    Itô's calculus.
    """
    if terms.diagonal:
        return lambda g: g * _double(terms, noise)
    if terms.channels == 1:
        return lambda g: g * _double(terms, noise).unsqueeze(2)

    def directions(g: Tensor) -> Tensor:
        along = terms.prod(g, noise.W).unsqueeze(2) * noise.W.unsqueeze(1)
        return along.sub(g, alpha=noise.dt) if terms.sde_type == "ito" else along

    return directions


def _differences(
    terms: Terms, t: Tensor, y: Tensor, noise: Increment, g: Tensor, guess: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with differences, such that what they leave out is zero on average, to the order of the method.

    For that a difference to one side must be multiplied by a factor that is zero on average, W² - dt, or its own size
    must be, as that of g W is; the other differences are central.

    Args:
        terms: an SDE whose noise is diagonal, scalar or commutative.
        t: the time at the start of the step.
        y: the state there.
        noise: the increment of the path.
        g: the diffusion there.
        guess: the state after the step without its noise, to find differences at.
    """
    W, root = noise.W, math.sqrt(noise.dt)
    prod = terms.prod(g, W)
    if terms.sde_type == "ito" and (terms.diagonal or terms.channels == 1):
        values = elementwise(g)
        after = elementwise(terms.g(t, guess.add(values, alpha=root)))
        return prod, (after - values) * (_double(terms, noise) / root)
    term = terms.g_prod(t, y + prod, W) - prod
    if terms.sde_type == "ito":
        for j, unit in enumerate(terms.units(W)):
            step = terms.column(g, j) * root
            term = term.sub(terms.g_prod(t, y + step, unit) - terms.g_prod(t, y - step, unit), alpha=0.5 * root)
    return prod, term


def _double(terms: Terms, noise: Increment) -> Tensor:
    """Twice the integral of the path over itself, of each noise."""
    square = noise.W * noise.W
    return square - noise.dt if terms.sde_type == "ito" else square
