"""Runge-Kutta methods for additive noise: their coefficients, and the one engine that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.sde.method import Orders, SDEMethod
from torchivp.methods.sde.stages import Coefficients, Rows, StageTimes, lower_triangle, nonzero, require, space_time


class _Stage(NamedTuple):
    """One stage: where its drift is evaluated, and whether its diffusion, and that times x, is needed."""

    c0: float
    drifts: Coefficients
    noises: Coefficients
    alpha: float
    c1: float
    beta1: float
    beta2: float
    along: bool
    diffusion: bool


@dataclass(frozen=True)
class AdditiveTableau:
    """The coefficients of a method for dX = f(t, X) dt + g(t) dW, in Rößler's names. Checks itself when it is made.

    With x = W / 2 + H, the method is

        X_i = y + h sum_j A0_ij f(t + c0_j h, X_j) + sum_j B0_ij g(t + c1_j h) x
        y'  = y + h sum_i alpha_i f(t + c0_i h, X_i) + sum_i g(t + c1_i h) (beta1_i W + beta2_i x).

    Attributes:
        c0: the nodes of the drift.
        c1: the nodes of the diffusion.
        A0: the rows after the first, which has no entries; row i has i entries, and zeros at its end may be left out.
        B0: the same of the noise.
        alpha: the weights of the drift.
        beta1: the weights of the diffusion times W.
        beta2: the weights of the diffusion times x.

    Raises:
        ValueError: a condition of strong order 1.5 does not hold.
    """

    c0: Sequence[float]
    c1: Sequence[float]
    A0: Rows
    B0: Rows
    alpha: Sequence[float]
    beta1: Sequence[float]
    beta2: Sequence[float]
    stages: tuple[_Stage, ...] = field(init=False)

    def __post_init__(self) -> None:
        A0, B0 = lower_triangle(self.A0), lower_triangle(self.B0)
        self._check(A0, B0)
        columns = (B0 != 0).any(0)
        stages = []
        for i, (c0, c1, alpha, beta1, beta2) in enumerate(
            zip(self.c0, self.c1, self.alpha, self.beta1, self.beta2, strict=True)
        ):
            along = bool(columns[i] or beta2)
            stages.append(
                _Stage(c0, nonzero(A0[i]), nonzero(B0[i]), alpha, c1, beta1, beta2, along, along or bool(beta1))
            )
        object.__setattr__(self, "stages", tuple(stages))

    def _check(self, A0: np.ndarray, B0: np.ndarray) -> None:
        alpha, beta1, beta2, c0, c1 = map(np.array, (self.alpha, self.beta1, self.beta2, self.c0, self.c1))
        a, b = A0.sum(1), B0.sum(1)
        require(
            [
                a - c0,
                alpha.sum() - 1.0,
                beta1.sum() - 1.0,
                beta2.sum(),
                alpha @ b - 1.0,
                alpha @ a - 0.5,
                alpha @ b**2 - 1.5,
                beta1 @ c1 - 1.0,
                beta2 @ c1 + 1.0,
            ],
            "a Runge-Kutta method for additive noise",
        )


class AdditiveRungeKutta(SDEMethod):
    """A method for additive noise, of strong order 1.5 and weak order 2, also where the diffusion depends on time."""

    tableau: ClassVar[AdditiveTableau]
    orders: ClassVar = {(calculus, "additive"): Orders(1.5, 2.0) for calculus in ("ito", "stratonovich")}
    levy_area = "space-time"

    def step(self, terms, t0, t1, y0, noise, carry):
        dt, W = noise.dt, noise.W
        x = torch.add(space_time(noise), W, alpha=0.5)
        times = StageTimes(t0, t1)
        slopes: list[Tensor] = []
        along: dict[int, Tensor] = {}
        total = y0
        for i, stage in enumerate(self.tableau.stages):
            at = y0
            for j, a in stage.drifts:
                at = at.add(slopes[j], alpha=a * dt)
            for j, b in stage.noises:
                at = at.add(along[j], alpha=b)
            slopes.append(terms.f(times[stage.c0], at))
            total = total.add(slopes[i], alpha=stage.alpha * dt)
            if not stage.diffusion:
                continue
            g = terms.g(times[stage.c1], y0)
            if stage.along:
                along[i] = terms.prod(g, x)
            if stage.beta2:
                total = total.add(along[i], alpha=stage.beta2)
            if stage.beta1:
                total = total.add(terms.prod(g, W), alpha=stage.beta1)
        return total, ()
