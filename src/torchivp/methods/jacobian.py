"""The derivative of a right-hand side with respect to the state: as matrices, or as products with one.

Outside of function transforms plain autograd finds them, and not `torch.func`: func may then call
`torch.autograd.grad` itself, as Hamiltonian networks and continuous flows do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.torch_func import inside_transform, pull_back


def jacobians(func: FlatFunc, t: Tensor, y: Tensor) -> Tensor:
    """The matrices d func_i / d y_j at real `y`, [rows, size], of each row: [rows, size, size], without history."""
    return slopes_and_jacobians(_at(func, t), y)[1]


def slopes_and_jacobians(func: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes at real `y`, [rows, size], and the matrix of each row's derivatives, [rows, size, size].

    Both without history. A row of slopes depends on its own state alone, so that the gradient of an element summed over
    the rows has the derivatives of all of them.
    """
    rows, size = y.shape
    unit = torch.eye(size, dtype=y.dtype, device=y.device).unsqueeze(1).expand(size, rows, size)
    if inside_transform():
        slopes, pull = torch.func.vjp(func, y)[:2]
        found = pull_back(lambda v: pull(v)[0], unit)
    else:
        leaf, slopes = _on_a_leaf(func, y)
        found = torch.zeros_like(unit)
        if slopes.requires_grad:
            found = pull_back(
                lambda v: torch.autograd.grad(slopes, leaf, v, retain_graph=True, materialize_grads=True)[0], unit
            )
    return slopes.detach(), found.detach().transpose(0, 1)


class Linearisation:
    """Products of vectors with the Jacobians of `func` at real `y`, [rows, size], and with their transposes.

    One evaluation of `func`, and its graph, serve all products.
    """

    def __init__(self, func: FlatFunc, t: Tensor, y: Tensor):
        self._y, self._slope = _on_a_leaf(_at(func, t), y)
        self._seed = torch.zeros_like(self._slope, requires_grad=True)
        self._pulled: Tensor | None = None
        if self._slope.requires_grad:
            # A function of the seed, linear: its derivative is the Jacobian.
            (self._pulled,) = torch.autograd.grad(
                self._slope, self._y, self._seed, create_graph=True, allow_unused=True
            )

    def times(self, v: Tensor) -> Tensor:
        """The Jacobians times `v`, [rows, size]."""
        if self._pulled is None or not self._pulled.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._pulled, self._seed, v, retain_graph=True)[0]

    def transposed_times(self, v: Tensor) -> Tensor:
        """The transposes of the Jacobians times `v`, [rows, size]."""
        if self._pulled is None:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._slope, self._y, v, retain_graph=True)[0]


def _at(func: FlatFunc, t: Tensor) -> Callable[[Tensor], Tensor]:
    """`func` of the state alone, at a copy of the time, which may come from inference mode."""
    return lambda y: func(t.detach().clone(), y)


def _on_a_leaf(func: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf that equals `y`, and the slope there with its graph, also where the caller records none."""
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        return y, func(y)
