"""Milstein's method: the diffusion's derivative for order 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import elementwise
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms

_NOISES = ("diagonal", "scalar", "additive", "commutative")


class Milstein(SDEMethod):
    """Euler's method and the term of the diffusion's derivative: for one noise, (∂g/∂y) g (W² - dt) / 2.

    In Stratonovich's calculus the term is (∂g/∂y) g W² / 2. Strong and weak order 1. Milstein, Theory Probab. Appl. 19
    (1974); Kloeden and Platen (1992), 10.3 and, without derivatives, 11.1.

    Args:
        grad_free: replace the derivatives of the diffusion by differences.
    """

    orders: ClassVar = {(sde, noise): Orders(1.0, 1.0) for sde in ("ito", "stratonovich") for noise in _NOISES}
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
        prod, term = milstein_term(terms, t0, y0, noise, guess if self.grad_free else None)
        return guess.add_(prod).add_(term, alpha=0.5), ()


def milstein_term(
    terms: Terms, t: Tensor, y: Tensor, noise: Increment, guess: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The diffusion times the increment, and the diffusion's derivative times itself and the double integrals, doubled.

    Args:
        terms: an SDE whose noise is diagonal, scalar or commutative.
        t: the time at the start of the step.
        y: the state there.
        noise: the increment of the path.
        guess: the state after the step without its noise, to find differences at in place of derivatives; None for
            derivatives.

    Returns:
        g W and, of one noise, (∂g/∂y) g (W² - dt); in Stratonovich's calculus (∂g/∂y) g W². New tensors.
    """
    if guess is not None:
        return _differences(terms, t, y, noise, guess)
    if terms.diagonal:
        g, term = terms.g_and_slope(t, y, _double(terms, noise))
        return terms.prod(g, noise.W), term
    return _commutative(terms, t, y, noise)


def _commutative(terms: Terms, t: Tensor, y: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
    """Only the symmetric part of the double integrals matters."""
    g = terms.g(t, y)
    prod = terms.prod(g, noise.W)
    if terms.channels == 1:
        slope = terms.derivative(t, y, torch.ones_like(noise.W), terms.column(g, 0))
        return prod, slope * _double(terms, noise)
    term = terms.derivative(t, y, noise.W, prod)
    if terms.sde_type == "ito":
        for j, unit in _units(noise.W):
            term = term - noise.dt * terms.derivative(t, y, unit, terms.column(g, j))
    return prod, term


def _differences(terms: Terms, t: Tensor, y: Tensor, noise: Increment, guess: Tensor) -> tuple[Tensor, Tensor]:
    """The same with differences, such that what they leave out is zero on average, to the order of the method.

    For that a difference to one side must be multiplied by a factor that is zero on average, W² - dt, or its own size
    must be, as that of g W is; the other differences are central.
    """
    g, W, root = terms.g(t, y), noise.W, math.sqrt(noise.dt)
    prod = terms.prod(g, W)
    if terms.sde_type == "ito" and (terms.diagonal or terms.channels == 1):
        values = elementwise(g)
        after = elementwise(terms.g(t, guess.add(values, alpha=root)))
        return prod, (after - values) * (_double(terms, noise) / root)
    term = terms.g_prod(t, y + prod, W) - prod
    if terms.sde_type == "ito":
        for j, unit in _units(W):
            step = terms.column(g, j) * root
            term = term.sub(terms.g_prod(t, y + step, unit) - terms.g_prod(t, y - step, unit), alpha=0.5 * root)
    return prod, term


def _units(W: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The numbers of the channels, and weights [rows, channels] that choose each."""
    for j in range(W.shape[1]):
        unit = torch.zeros_like(W)
        unit[:, j] = 1.0
        yield j, unit


def _double(terms: Terms, noise: Increment) -> Tensor:
    """Twice the integral of the path over itself, of each noise."""
    square = noise.W * noise.W
    return square - noise.dt if terms.sde_type == "ito" else square
