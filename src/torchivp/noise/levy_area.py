"""Approximations of the antisymmetric Lévy area of an increment whose W and H are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchivp.noise.increment import outer


def area(W: Tensor, H: Tensor, dt: float, kind: str, normals: Tensor) -> Tensor:
    """An area A of shape [..., m, m] with the mean, and on average the variance, of the true one given W and H.

    The mean of A_ij given W and H is H_i W_j - W_i H_j. Its variance is dt² / 12 on average over H, which is what
    'davie' adds, and dt² / 20 + (dt / 5)(H_i² + H_j²) given H, which is what 'foster' adds (Foster and Habermann,
    "Brownian bridge expansions for Lévy area approximations and particular values of the Riemann zeta function",
    2021). With either, A_ij has the variance dt² / 4.

    Args:
        W: the change of the path, [..., m].
        H: its space-time Lévy area, [..., m].
        dt: the length of the interval.
        kind: 'davie' or 'foster'.
        normals: standard normals of shape [..., m, m], of which those above the diagonal are used.
    """
    noise = torch.triu(normals, diagonal=1)
    if kind == "foster":
        squares = H * H
        noise = noise * (dt * dt / 20 + dt / 5 * (squares.unsqueeze(-1) + squares.unsqueeze(-2))).sqrt()
    else:
        noise = noise * (dt / math.sqrt(12))
    half = outer(H, W) + noise
    return half - half.transpose(-1, -2)
