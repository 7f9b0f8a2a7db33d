"""Drift and diffusion as methods see them: functions of states laid out as [rows, size]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.torch_func import may_be_tracked


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
        if may_be_tracked():
            return torch.func.jvp(lambda x: self.g_prod(t, x, weights), (y,), (direction,))[1]
        with _Watched(y, lambda: self.g_prod(t, y, weights)) as watched:
            return watched.derivative([self.g_prod(t, watched.y, weights)], [direction])

    def g_and_slope(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of diagonal noise, the diffusion g, and (dg/dy) g v, elementwise."""
        if may_be_tracked():
            found: tuple[Any, ...] = torch.func.vjp(lambda x: self.g(t, x), y)
            g, pull_back = found
            return g, pull_back((g * v).conj())[0].conj()
        with _Watched(y, lambda: self.g(t, y)) as watched:
            g = self.g(t, watched.y)
            if not g.requires_grad:
                return g, torch.zeros_like(g)
            own = watched.result(g)
            (slope,) = torch.autograd.grad(
                g, watched.y, (own * v).conj(), create_graph=watched.differentiable, allow_unused=True
            )
        return own, torch.zeros_like(own) if slope is None else slope.conj().resolve_conj()

    def correction(self, t: Tensor, y: Tensor) -> Tensor:
        """The sum of (∂g_j/∂y) g_j over the noises: twice what the drifts of the two calculi differ by."""
        if self.noise_type == "additive":
            return torch.zeros_like(y)
        if self.diagonal:
            return self.g_and_slope(t, y, torch.ones_like(y))[1]
        if may_be_tracked():
            units = torch.eye(self.channels, dtype=y.dtype, device=y.device)
            columns = self.g(t, y).unbind(2)
            slopes = [
                self.derivative(t, y, unit.expand(len(y), -1), column)
                for unit, column in zip(units, columns, strict=True)
            ]
            return torch.stack(slopes).sum(0)
        with _Watched(y, lambda: self.g(t, y)) as watched:
            g = self.g(t, watched.y)
            return watched.derivative(g.unbind(2), watched.result(g).unbind(2))


class _Watched:
    """A state that autograd watches, within a `with`, also where it watches nothing else.

    Args:
        y: the state.
        sample: evaluates what will be differentiated at the state.

    Attributes:
        y: the state itself, or a copy of it if nothing else watches it.
        differentiable: whether derivatives are to be differentiable themselves. They must not look so where nobody asks
            for it.
    """

    def __init__(self, y: Tensor, sample: Callable[[], Tensor]) -> None:
        self.differentiable = torch.is_grad_enabled() and (y.requires_grad or sample().requires_grad)
        self._contexts = (torch.inference_mode(False), torch.enable_grad())
        self._given = y
        self.y = y

    def __enter__(self) -> _Watched:
        for context in self._contexts:
            context.__enter__()
        if not (self.differentiable and self._given.requires_grad):
            self.y = (self._given.clone() if self._given.is_inference() else self._given.detach()).requires_grad_()
        return self

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)

    def result(self, value: Tensor) -> Tensor:
        """A value computed from the state, with its history where somebody asks for it."""
        return value if self.differentiable else value.detach()

    def derivative(self, values: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        """The sum of the derivatives of the `values`, each in its direction."""
        # The gradient of <u, value> is linear in u, by the transpose of the derivative: its own gradient is the latter.
        u = torch.zeros_like(values[0], requires_grad=True)
        pulled = [
            torch.autograd.grad(value, self.y, u, create_graph=True, allow_unused=True)[0]
            if value.requires_grad
            else None
            for value in values
        ]
        pairs = [(p, d) for p, d in zip(pulled, directions, strict=True) if p is not None and p.requires_grad]
        if not pairs:
            return torch.zeros_like(self._given)
        (total,) = torch.autograd.grad(
            [p for p, _ in pairs], u, [d for _, d in pairs], create_graph=self.differentiable, allow_unused=True
        )
        return torch.zeros_like(self._given) if total is None else total


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
        return self._ito.f(t, y) - 0.5 * self._ito.correction(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._ito.g(t, y)

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._ito.g_prod(t, y, v)
