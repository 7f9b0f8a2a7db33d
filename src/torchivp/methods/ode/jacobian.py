"""The derivative of a right-hand side with respect to the state: as a matrix, or as products with it.

Outside of function transforms plain autograd finds them, and not `torch.func`: func may then call
`torch.autograd.grad` itself, as Hamiltonian networks and continuous flows do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.torch_func import inside_transform


def jacobian(func: FlatFunc, t: Tensor, y: Tensor) -> Tensor:
    """The matrix d func_i / d y_j at a real `y`, [size, size], without history."""
    size = y.shape[1]
    if inside_transform():
        return torch.func.jacrev(lambda y: func(t, y))(y).detach().reshape(size, size)
    y, slope = _on_a_leaf(func, t, y)
    rows = None
    if slope.requires_grad and size > 0:
        unit = torch.eye(size, dtype=y.dtype, device=y.device).unsqueeze(1)
        (rows,) = torch.autograd.grad(slope, y, unit, is_grads_batched=True, allow_unused=True)
    return y.new_zeros(size, size) if rows is None else rows.reshape(size, size)


class Linearisation:
    """Products of vectors with the Jacobian of `func` at a real `y`, and with its transpose.

    One evaluation of `func`, and its graph, serve all products.
    """

    def __init__(self, func: FlatFunc, t: Tensor, y: Tensor):
        self._y, self._slope = _on_a_leaf(func, t, y)
        self._seed = torch.zeros_like(self._slope, requires_grad=True)
        self._pulled: Tensor | None = None
        if self._slope.requires_grad:
            # A function of the seed, linear: its derivative is the Jacobian.
            (self._pulled,) = torch.autograd.grad(
                self._slope, self._y, self._seed, create_graph=True, allow_unused=True
            )

    def times(self, v: Tensor) -> Tensor:
        """The Jacobian times `v`, [1, size]."""
        if self._pulled is None or not self._pulled.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._pulled, self._seed, v, retain_graph=True)[0]

    def transposed_times(self, v: Tensor) -> Tensor:
        """The transpose of the Jacobian times `v`, [1, size]."""
        if self._pulled is None:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._slope, self._y, v, retain_graph=True)[0]


def _on_a_leaf(func: FlatFunc, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf that equals `y`, and the slope there with its graph, also where the caller records none."""
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        return y, func(t.detach().clone(), y)
