"""Runge-Kutta methods of weak order 2 for any noise in Itô's calculus: their coefficients, and the engine for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from torchivp.methods.sde.method import Orders, SDEMethod, by_noise
from torchivp.methods.sde.stages import (
    Coefficients,
    Rows,
    StageTimes,
    elementwise,
    lower_triangle,
    nonzero,
    require,
    space_time,
)
from torchivp.noise.increment import outer


class _DriftStage(NamedTuple):
    """One stage of the drift after the first, and its weight in the result."""

    c0: float
    drifts: Coefficients
    noise: float
    alpha: float


class _NoiseStage(NamedTuple):
    """One stage of the diffusion after the first, and its weights in the result."""

    drift: float
    noise: float
    across: Coefficients
    beta1: float
    beta2: float
    beta3: float
    beta4: float


@dataclass(frozen=True)
class WeakTableau:
    """The coefficients of a method of weak order 2, in Rößler's names. Checks itself when it is made.

    With g_k for the column k of the diffusion, and G_jk for its value g_k(t + c1_j h, Z_jk), the method is

        X_i  = y + h sum_j A0_ij f(t + c0_j h, X_j) + B0_i g(t, y) W
        Z_ik = y + h A1_i f(t, y) + sqrt(h) B1_i g_k(t, y)
        V_il = y + sqrt(h) sum_j B2_ij G_jl
        y'   = y + h sum_i alpha_i f(t + c0_i h, X_i)
                 + sum_ik (beta1_i W_k + beta2_i (W_k^2 - h) / (2 sqrt(h))) G_ik
                 + sum_il sum_{k != l} (beta3_i W_k + beta4_i I_kl / sqrt(h)) g_k(t, V_il),

    where I_kl is (W_k W_l - 12 H_k H_l) / 2 for k < l and (W_k W_l + 12 H_k H_l) / 2 for k > l. The first stages X_1,
    Z_1k and V_1l are y; the nodes of the other diffusions are A1.

    Attributes:
        A0: the rows of the drift after the first, which has no entries; zeros at their ends may be left out. They sum
            to the nodes c0.
        B0: one number for each stage after the first.
        alpha: the weights of the drift.
        A1: one number for each stage after the first.
        B1: likewise.
        B2: the rows after the first, which has no entries; each with three.
        beta1: the weights of the diffusions G times W.
        beta2: those times (W^2 - h) / (2 sqrt(h)).
        beta3: the weights of the diffusions at V times W.
        beta4: those times I / sqrt(h); the first is zero.

    Raises:
        ValueError: a condition does not hold.
    """

    A0: Rows
    B0: Sequence[float]
    alpha: Sequence[float]
    A1: Sequence[float]
    B1: Sequence[float]
    B2: Rows
    beta1: Sequence[float]
    beta2: Sequence[float]
    beta3: Sequence[float]
    beta4: Sequence[float]
    drift_stages: tuple[_DriftStage, ...] = field(init=False)
    noise_stages: tuple[_NoiseStage, ...] = field(init=False)
    nodes: Mapping[float, float] = field(init=False)

    def __post_init__(self) -> None:
        A0, B2 = lower_triangle(self.A0), np.array([[0.0] * 3, *self.B2])
        self._check(A0, B2)
        drifts = [
            _DriftStage(float(A0[i].sum()), nonzero(A0[i]), self.B0[i - 1], self.alpha[i])
            for i in range(1, len(self.alpha))
            if self.alpha[i] or A0[:, i].any()
        ]
        noises = [
            _NoiseStage(self.A1[i - 1], self.B1[i - 1], nonzero(B2[i]), *(beta[i] for beta in self._betas))
            for i in range(1, len(self.beta1))
        ]
        object.__setattr__(self, "drift_stages", tuple(drifts))
        nodes: dict[float, float] = {}
        for stage in noises:
            nodes[stage.drift] = nodes.get(stage.drift, 0.0) + stage.beta1
        object.__setattr__(self, "noise_stages", tuple(noises))
        object.__setattr__(self, "nodes", nodes)

    @property
    def _betas(self) -> tuple[Sequence[float], ...]:
        return self.beta1, self.beta2, self.beta3, self.beta4

    def _check(self, A0: np.ndarray, B2: np.ndarray) -> None:
        alpha, beta1, beta2, beta3, beta4 = (np.array(x) for x in (self.alpha, *self._betas))
        a0, a1, b0, b1 = A0.sum(1), *(np.array([0.0, *x]) for x in (self.A1, self.B0, self.B1))
        b2 = B2.sum(1)
        own, across = np.array([beta1, beta2]), np.array([beta3, beta4])
        require(
            [
                alpha.sum() - 1.0,
                alpha @ a0 - 0.5,
                alpha @ b0 - 0.5,
                alpha @ b0**2 - 0.5,
                own.sum(1) - [1.0, 0.0],
                own @ a1 - [0.5, 0.0],
                own @ b1 - [0.0, 1.0],
                own @ b1**2 - [0.5, 0.0],
                across.sum(1),
                across @ b2 - [0.0, 1.0],
                across @ b2**2 - [0.5, 0.0],
                across @ (B2 @ b1),
                beta2[0],
                beta4[0],
            ],
            "a Runge-Kutta method of weak order 2",
        )


class WeakRungeKutta(SDEMethod):
    """A method of weak order 2; of strong order 1, of noise that does not commute 1/2.

    The changes W of the path serve as its Gaussian variables, and 12 H_k H_l as those for pairs of noises, so that it
    converges on a path, too. A step evaluates the diffusion three times, of additive noise twice, and 4 m + 1 times for
    m > 1 noises of the other types that are not diagonal.
    """

    tableau: ClassVar[WeakTableau]
    orders = by_noise("ito", Orders(1.0, 2.0), general=Orders(0.5, 2.0))
    levy_area = "space-time"

    @classmethod
    def area_for(cls, noise_type):
        return cls.levy_area if noise_type in ("commutative", "general") else "none"

    def step(self, terms, t0, t1, y0, noise, carry):
        times, dt, W = StageTimes(t0, t1), noise.dt, noise.W
        f, g = terms.f_and_g(t0, y0)
        change = terms.prod(g, W)
        total = self._drift(terms, times, y0, dt, f, change)
        if terms.noise_type == "additive":
            return self._additive(terms, times, y0, W, change, total), ()
        if terms.diagonal or terms.channels == 1:
            return self._elementwise(terms, times, y0, dt, W, f, g, change, total), ()
        return self._pairs(terms, times, y0, noise, f, g, change, total), ()

    def _drift(self, terms, times, y0, dt, f, change):
        """The initial state and the drifts of all stages."""
        slopes = [f]
        total = y0.add(f, alpha=self.tableau.alpha[0] * dt)
        for stage in self.tableau.drift_stages:
            at = y0
            for j, a in stage.drifts:
                at = at.add(slopes[j], alpha=a * dt)
            if stage.noise:
                at = at.add(change, alpha=stage.noise)
            slopes.append(terms.f(times[stage.c0], at))
            total = total.add(slopes[-1], alpha=stage.alpha * dt)
        return total

    def _additive(self, terms, times, y0, W, change, total):
        """The end of a step of additive noise, of which only the nodes of the diffusion matter."""
        total = total.add(change, alpha=self.tableau.beta1[0])
        for node, weight in self.tableau.nodes.items():
            total = total.add(terms.g_prod(times[node], y0, W), alpha=weight)
        return total

    def _elementwise(self, terms, times, y0, dt, W, f, g, change, total):
        """The end of a step in which every element of the state has one noise."""
        root = math.sqrt(dt)
        half = (W * W).sub(dt)
        g = elementwise(g)
        total = total.add(change, alpha=self.tableau.beta1[0])
        for stage in self.tableau.noise_stages:
            at = y0.add(f, alpha=stage.drift * dt).add(g, alpha=stage.noise * root)
            value = elementwise(terms.g(times[stage.drift], at))
            total = total.addcmul(value, W, value=stage.beta1).addcmul(value, half, value=0.5 * stage.beta2 / root)
        return total

    def _pairs(self, terms, times, y0, noise, f, g, change, total):
        """The end of a step in which several noises act on one element of the state."""
        tableau, dt, root, W, H = self.tableau, noise.dt, math.sqrt(noise.dt), noise.W, space_time(noise)
        channels = torch.arange(terms.channels, device=W.device)
        sign = torch.sign(channels - channels.unsqueeze(1)).to(W.dtype)
        apart = sign.abs()
        others = W.unsqueeze(1) * apart
        doubles = 0.5 * (others * W.unsqueeze(2)) + 6.0 * (outer(H, H) * sign)
        half = (W * W).sub(dt).mul(0.5 / root)
        total = total.add(change, alpha=tableau.beta1[0] + (terms.channels - 1) * tableau.beta3[0])
        for k in range(terms.channels):
            column = terms.column(g, k)
            values = [column]
            for stage in tableau.noise_stages:
                at = y0.add(f, alpha=stage.drift * dt).add(column, alpha=stage.noise * root)
                values.append(terms.column(terms.g(times[stage.drift], at), k))
                weight = (stage.beta1 * W[:, k : k + 1]).add(half[:, k : k + 1], alpha=stage.beta2)
                total = total.addcmul(values[-1], weight)
            for stage in tableau.noise_stages:
                at = y0
                for j, b in stage.across:
                    at = at.add(values[j], alpha=b * root)
                weights = (stage.beta3 * others[:, k]).add(doubles[:, k], alpha=stage.beta4 / root)
                total = total.add(terms.g_prod(times[0.0], at, weights))
        return total
