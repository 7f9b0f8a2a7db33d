"""Drift and diffusion as methods see them: functions of states laid out as [rows, size]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Terms(ABC):
    """The SDE dY = f(t, Y) dt + g(t, Y) dW on states [rows, size].

    Of diagonal noise, `g` is [rows, size] and its product with the increment of the path is elementwise; of all others
    `g` is [rows, size, channels].

    Attributes:
        sde_type: "ito" or "stratonovich".
        noise_type: "diagonal", "scalar", "additive", "commutative" or "general".
        size: the number of elements of the state in one row.
        channels: the number of independent noises in one row.
        args: further arguments of the user's functions.
    """

    sde_type: str
    noise_type: str
    size: int
    channels: int
    args: tuple[Any, ...]

    @abstractmethod
    def with_args(self, args: Sequence[Any]) -> Terms:
        """The same SDE with other arguments."""

    @abstractmethod
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift, [rows, size]."""

    @abstractmethod
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion, [rows, size] or [rows, size, channels]."""

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.f(t, y), self.g(t, y)

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion times `v` of shape [rows, channels], [rows, size]."""
        return self.prod(self.g(t, y), v)

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The drift, and the diffusion times `v`."""
        return self.f(t, y), self.g_prod(t, y, v)

    @property
    def diagonal(self) -> bool:
        """Whether each element of the state has its own noise."""
        return self.noise_type == "diagonal"

    def prod(self, g: Tensor, v: Tensor) -> Tensor:
        """The product of a value of the diffusion with `v`."""
        if g.ndim == 2:
            return g * v
        if g.shape[2] == 1:
            return g.squeeze(2) * v
        return torch.bmm(g, v.unsqueeze(2)).squeeze(2)

    def column(self, g: Tensor, j: int) -> Tensor:
        """The diffusion of the noise `j`, [rows, size], from a value of a diffusion that is not diagonal."""
        return g[:, :, j]

    def derivative(self, t: Tensor, y: Tensor, weights: Tensor, direction: Tensor) -> Tensor:
        """The derivative of `g(t, y) weights` with respect to `y` in a direction, [rows, size].

        The weights are [rows, channels]. The result can be differentiated itself. For noise that is not diagonal.
        """
        return torch.func.jvp(lambda x: self.g_prod(t, x, weights), (y,), (direction,))[1]

    def g_and_slope(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of diagonal noise, the diffusion g, and (dg/dy) g v, elementwise."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            y = y if y.requires_grad and differentiable else y.detach().requires_grad_()
            g = self.g(t, y)
            if not g.requires_grad:
                return g, torch.zeros_like(g)
            (slope,) = torch.autograd.grad(g, y, g * v, create_graph=differentiable, allow_unused=True)
        if not differentiable:
            g = g.detach()
        return g, torch.zeros_like(g) if slope is None else slope


class StratonovichTerms(Terms):
    """An Itô SDE written in Stratonovich's calculus: the drift less half of the sum of (∂g_j/∂y) g_j."""

    sde_type = "stratonovich"

    def __init__(self, ito: Terms) -> None:
        self._ito = ito
        self.noise_type, self.size, self.channels = ito.noise_type, ito.size, ito.channels
        self.args = ito.args

    def with_args(self, args: Sequence[Any]) -> StratonovichTerms:
        return StratonovichTerms(self._ito.with_args(args))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self._ito.f(t, y) - 0.5 * correction(self._ito, t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._ito.g(t, y)

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._ito.g_prod(t, y, v)


def correction(terms: Terms, t: Tensor, y: Tensor) -> Tensor:
    """The sum over the noises of (∂g_j/∂y) g_j, [rows, size]: twice what the two calculi differ by in the drift."""
    if terms.noise_type == "additive":
        return torch.zeros_like(y)
    if terms.diagonal:
        return terms.g_and_slope(t, y, torch.ones_like(y))[1]
    total = torch.zeros_like(y)
    g = terms.g(t, y)
    for j in range(terms.channels):
        unit = y.new_zeros(len(y), terms.channels)
        unit[:, j] = 1.0
        total = total + terms.derivative(t, y, unit, terms.column(g, j))
    return total
