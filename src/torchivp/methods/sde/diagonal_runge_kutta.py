"""Runge-Kutta methods for diagonal or scalar noise in Itô's calculus: their coefficients, and the engine for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import (
    Coefficients,
    Combination,
    Rows,
    StageTimes,
    elementwise,
    lower_triangle,
    nonzero,
    require,
    space_time,
)


class _Stage(NamedTuple):
    """One stage: the states at which drift and diffusion are evaluated, of which either may not be needed."""

    drift: bool
    c0: float
    a0: Coefficients
    b0: Combination | None
    diffusion: bool
    c1: float
    a1: Coefficients
    b1: Coefficients


class _Sums(NamedTuple):
    """The diffusions of the stages combined, as factors of W, of (W^2 - h) / sqrt(h), of W^3 / h and of H."""

    linear: Combination
    square: Combination
    cube: Combination
    area: Combination


@dataclass(frozen=True)
class DiagonalTableau:
    """The coefficients of a method for diagonal or scalar noise, in Rößler's names. Checks itself when it is made.

    With x = W / 2 + H, u = (W^2 - h) / (2 sqrt(h)) and v = (W^3 - 3 h W) / (6 h), the method is, elementwise,

        X_i = y + h sum_j A0_ij f(t + c0_j h, X_j) + sum_j B0_ij g(t + c1_j h, Z_j) x
        Z_i = y + h sum_j A1_ij f(t + c0_j h, X_j) + sqrt(h) sum_j B1_ij g(t + c1_j h, Z_j)
        y'  = y + h sum_i alpha_i f(t + c0_i h, X_i)
                + sum_i (beta1_i W + beta2_i u + beta3_i x + beta4_i v) g(t + c1_i h, Z_i).

    Attributes:
        c0: the nodes of the drift.
        c1: the nodes of the diffusion.
        A0: the rows after the first, which has no entries; row i has i entries, and zeros at its end may be left out.
        A1: likewise.
        B0: likewise.
        B1: likewise.
        alpha: the weights of the drift.
        beta1: the weights of the diffusion times W.
        beta2: those times u.
        beta3: those times x.
        beta4: those times v.

    Raises:
        ValueError: a condition of strong order 1.5 does not hold.
    """

    c0: Sequence[float]
    c1: Sequence[float]
    A0: Rows
    A1: Rows
    B0: Rows
    B1: Rows
    alpha: Sequence[float]
    beta1: Sequence[float]
    beta2: Sequence[float]
    beta3: Sequence[float]
    beta4: Sequence[float]
    stages: tuple[tuple[int, _Stage], ...] = field(init=False)
    drift_weights: Coefficients = field(init=False)
    sums: _Sums = field(init=False)

    def __post_init__(self) -> None:
        A0, A1, B0, B1 = map(lower_triangle, (self.A0, self.A1, self.B0, self.B1))
        betas = np.array([self.beta1, self.beta2, self.beta3, self.beta4])
        self._check(A0, A1, B0, B1, betas)
        slopes, diffusions = np.array([self.alpha, *A0, *A1]), np.array([*betas, *B0, *B1])
        drift_used, diffusion_used = (slopes != 0).any(0), (diffusions != 0).any(0)
        stages = [
            _Stage(
                bool(drift_used[i]),
                self.c0[i],
                nonzero(A0[i]),
                Combination(B0[i]) if B0[i].any() else None,
                bool(diffusion_used[i]),
                self.c1[i],
                nonzero(A1[i]),
                nonzero(B1[i]),
            )
            for i in range(len(self.alpha))
        ]
        object.__setattr__(self, "stages", tuple(enumerate(stages))[1:])
        object.__setattr__(self, "drift_weights", nonzero(self.alpha))
        linear = betas[0] + 0.5 * betas[2] - 0.5 * betas[3]
        sums = _Sums(*map(Combination, (linear, 0.5 * betas[1], betas[3] / 6.0, betas[2])))
        object.__setattr__(self, "sums", sums)

    def _check(self, A0: np.ndarray, A1: np.ndarray, B0: np.ndarray, B1: np.ndarray, betas: np.ndarray) -> None:
        alpha, c0, c1 = map(np.array, (self.alpha, self.c0, self.c1))
        a0, a1, b0, b1 = (matrix.sum(1) for matrix in (A0, A1, B0, B1))
        require(
            [
                a0 - c0,
                a1 - c1,
                alpha.sum() - 1.0,
                alpha @ a0 - 0.5,
                alpha @ b0 - 1.0,
                alpha @ b0**2 - 1.5,
                (0.5 * betas[0] + betas[2] / 3.0) @ (A1 @ b0),
                betas.sum(1) - [1.0, 0.0, 0.0, 0.0],
                betas @ b1 - [0.0, 1.0, 0.0, 0.0],
                betas @ a1 - [1.0, 0.0, -1.0, 0.0],
                betas @ b1**2 - [1.0, 0.0, -1.0, 2.0],
                betas @ B1 @ b1 - [0.0, 0.0, 0.0, 1.0],
            ],
            "a Runge-Kutta method for diagonal noise",
        )


class DiagonalRungeKutta(SDEMethod):
    """A method for diagonal or scalar noise, of strong and weak order 3/2.

    The weak order is not 2, since for the terms with sqrt(h) the error of an expectation over one step is of order 5/2.
    """

    tableau: ClassVar[DiagonalTableau]
    orders: ClassVar = {("ito", noise): Orders(1.5, 1.5) for noise in ("diagonal", "scalar")}
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        tableau, dt, root, W = self.tableau, noise.dt, math.sqrt(noise.dt), noise.W
        H = space_time(noise)
        x = torch.add(H, W, alpha=0.5)
        times = StageTimes(t0, t1)
        slopes: dict[int, Tensor] = {}
        diffusions: dict[int, Tensor] = {}
        slopes[0], g = terms.f_and_g(t0, y0)
        diffusions[0] = elementwise(g)
        for i, stage in tableau.stages:
            if stage.drift:
                at = y0
                for j, a in stage.a0:
                    at = at.add(slopes[j], alpha=a * dt)
                if stage.b0 is not None:
                    at = torch.addcmul(at, stage.b0.of(diffusions), x, value=stage.b0.factor)
                slopes[i] = terms.f(times[stage.c0], at)
            if stage.diffusion:
                at = y0
                for j, a in stage.a1:
                    at = at.add(slopes[j], alpha=a * dt)
                for j, b in stage.b1:
                    at = at.add(diffusions[j], alpha=b * root)
                diffusions[i] = elementwise(terms.g(times[stage.c1], at))
        total = y0
        for i, alpha in tableau.drift_weights:
            total = total.add(slopes[i], alpha=alpha * dt)
        linear, square, cube, area = tableau.sums
        squares = square.of(diffusions)
        # Horner's scheme for the powers of W.
        powers = torch.addcmul(squares, cube.of(diffusions), W, value=cube.factor / (square.factor * root))
        powers = torch.addcmul(linear.of(diffusions), powers, W, value=square.factor / (linear.factor * root))
        total = torch.addcmul(total, powers, W, value=linear.factor)
        total = torch.addcmul(total, area.of(diffusions), H, value=area.factor)
        return total.add(squares, alpha=-square.factor * root), ()
