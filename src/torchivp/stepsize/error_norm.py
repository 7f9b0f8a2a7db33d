"""The size of an error estimate, in units of the tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.state import StateLayout

Tolerance = float | Tensor


class ErrorNorm:
    """The norm of `error / (atol + rtol max(|y0|, |y1|))`, a float; at most 1 means: within the tolerance.

    The default norm is the root mean square over a tensor, and for a pytree the largest of its leaves' root
    mean squares.

    Args:
        rtol: relative tolerance, a float or [1, size].
        atol: absolute tolerance, a float or [1, size].
        parts: the leaves of the state in the flat tensor.
        norm: a norm of one's own, called with the scaled error, [1, size].
    """

    def __init__(
        self,
        rtol: Tolerance,
        atol: Tolerance,
        parts: Sequence[slice],
        norm: Callable[[Tensor], float | Tensor] | None = None,
    ):
        self.rtol = rtol
        self.atol = atol
        self._parts = [part for part in parts if part.stop > part.start]
        self._norm = norm if norm is not None else self._root_mean_square
        self._whole = len(self._parts) == 1
        self._known: tuple[Tensor | None, Tensor | None] = (None, None)

    def __call__(self, error: Tensor, y0: Tensor, y1: Tensor) -> float:
        """The scaled size of the `error` of a step from `y0` to `y1`."""
        with torch.no_grad():
            return float(self._norm(self.scaled(error, y0, y1)))

    def scaled(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """The error in units of the tolerance, element by element."""
        size0 = self._known[1] if self._known[0] is y0 and self._known[1] is not None else y0.abs()
        size1 = y1.abs()
        self._known = (y1, size1)
        return error / torch.maximum(size0, size1).mul_(self.rtol).add_(self.atol)

    def _root_mean_square(self, x: Tensor) -> float:
        if self._whole:
            return torch.linalg.vector_norm(x).item() / math.sqrt(x.numel())
        # NaN must win: max() over floats would depend on the order.
        sizes = [self._part_size(x[:, part]) for part in self._parts]
        return math.nan if any(size != size for size in sizes) else max(sizes, default=0.0)

    @staticmethod
    def _part_size(x: Tensor) -> float:
        return torch.linalg.vector_norm(x).item() / math.sqrt(x.numel())


def check_tolerance(name: str, tolerance: Any, layout: StateLayout) -> Tolerance:
    """Check a tolerance and lay it out like the state: a float stays one, all else becomes [1, size].

    Raises:
        TypeError: it is not a number, a tensor or a pytree of these.
        ValueError: it is negative, not finite, requires a gradient, or does not fit the state.
    """
    if isinstance(tolerance, int | float):
        flat: Tolerance = float(tolerance)
    else:
        flat = layout.flatten(_broadcast(name, tolerance, layout)).real.detach()
    smallest, largest = (float(torch.as_tensor(flat).min()), float(torch.as_tensor(flat).max()))
    if not (smallest >= 0 and math.isfinite(largest)):
        raise ValueError(f"{name} must be finite and not negative, got {tolerance}: write {name}=1e-6")
    return flat


def _broadcast(name: str, tolerance: Any, layout: StateLayout) -> Any:
    leaves = pytree.tree_leaves(tolerance)
    for leaf in leaves:
        if not isinstance(leaf, int | float | Tensor):
            raise TypeError(f"{name} must be made of numbers or tensors, got {type(leaf).__name__}: write {name}=1e-6")
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise ValueError(f"{name} must not require a gradient: write {name}={name}.detach()")
    if layout.is_tensor and not isinstance(tolerance, Tensor):
        leaves = [torch.as_tensor(tolerance)]
    elif len(leaves) == 1:
        leaves = leaves * len(layout.shapes)
    if len(leaves) != len(layout.shapes):
        raise ValueError(
            f"{name} has {len(leaves)} entries for a state of {len(layout.shapes)} tensors: "
            f"give one number, or one for each of {layout.describe()}"
        )
    expanded = []
    for leaf, shape in zip(leaves, layout.shapes, strict=True):
        try:
            expanded.append(torch.as_tensor(leaf, device=layout.device).broadcast_to(shape))
        except RuntimeError:
            raise ValueError(
                f"{name} of shape {tuple(torch.as_tensor(leaf).shape)} does not broadcast to the state's "
                f"shape {tuple(shape)}"
            ) from None
    return expanded
