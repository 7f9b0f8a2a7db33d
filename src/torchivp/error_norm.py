"""The size of an error estimate, in units of the tolerance."""

from __future__ import annotations

import copy
import math
import numbers
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.state import StateLayout
from torchivp.torch_func import may_be_tracked, moves, read, read_rows

Tolerance = float | Tensor


class ErrorNorm:
    """The norm of `error / (atol + rtol max(|y0|, |y1|))`, a float; at most 1 means: within the tolerance.

    The default norm is the root mean square over a tensor, and for a pytree the largest of its leaves' root
    mean squares.

    Args:
        rtol: relative tolerance, a float, or for each element, [1, size] or [rows, size].
        atol: absolute tolerance, likewise.
        parts: the leaves of the state in the flat tensor.
        dtype: the dtype of the state.
        norm: another norm, called with the scaled error, [1, size].
    """

    def __init__(
        self,
        rtol: Tolerance,
        atol: Tolerance,
        parts: Sequence[slice],
        dtype: torch.dtype,
        norm: Callable[[Tensor], float] | None = None,
    ):
        self.rtol = rtol
        # Where nothing is tolerated and nothing is wrong, the ratio shall be zero and not undefined.
        self._tiny = torch.finfo(dtype).tiny
        self.atol = atol.clamp(min=self._tiny) if isinstance(atol, Tensor) else max(atol, self._tiny)
        self._parts = [(part.start, part.stop - part.start) for part in parts if part.stop > part.start]
        self._norm = norm
        self._whole = len(self._parts) == 1
        self._last: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._seen: tuple[weakref.ref[Tensor], Any] | None = None

    @property
    def tolerates_nothing(self) -> bool:
        """Whether both tolerances are zero."""
        rtol, atol = (_largest(x) for x in (self.rtol, self.atol))
        return rtol == 0.0 and atol <= self._tiny

    def __call__(self, error: Tensor, y0: Tensor, y1: Tensor) -> float:
        """The scaled size of the `error` of a step from `y0` to `y1`."""
        return self._measured(self.size, error, y0, y1)

    def rows(self, error: Tensor, y0: Tensor, y1: Tensor) -> np.ndarray:
        """The scaled size of the error of each row's step, [rows]; a row does not depend on the others."""
        return self._measured(self.sizes, error, y0, y1)

    def _measured(self, size: Callable[[Tensor], Any], error: Tensor, y0: Tensor, y1: Tensor) -> Any:
        # A method that wants to know the size of its error is followed by the loop, which asks for the same.
        if self._seen is None or self._seen[0]() is not error:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return self._measured(size, error, y0, y1)
            self._seen = weakref.ref(error), size(self.scaled(error, y0, y1))
        return self._seen[1]

    def of_equations(self) -> ErrorNorm:
        """The default norm with these tolerances: how well a method must solve the equations of a step.

        A norm of the user's is for the error of a step. It may be blind to part of the state, or to all of it.
        """
        other = copy.copy(self)
        other._norm, other._last, other._seen = None, None, None
        return other

    def take(self, rows: Tensor) -> ErrorNorm:
        """The norm for a choice of the rows."""
        other = copy.copy(self)
        other.rtol, other.atol = (
            x[rows] if isinstance(x, Tensor) and len(x) > 1 else x for x in (self.rtol, self.atol)
        )
        other._last, other._seen = None, None
        return other

    def scaled(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """The error in units of the tolerance, element by element."""
        start, end = y0, y1
        if may_be_tracked():  # forward derivatives, which no_grad does not stop, cannot follow what is in place
            error, start, end = error.detach(), y0.detach(), y1.detach()
        # The state at the start of a step was that at the end of the one before.
        size0 = self._last[1] if self._last is not None and self._last[0]() is y0 else start.abs()
        size1 = end.abs()
        self._last = (weakref.ref(y1), size1)
        return error / torch.maximum(size0, size1).mul_(self.rtol).add_(self.atol)

    def tolerated(self, y: Tensor) -> Tensor:
        """The tolerance at a state, element by element; `y` has no derivatives."""
        return y.abs().mul_(self.rtol).add_(self.atol)

    def size(self, scaled: Tensor) -> float:
        """The size of an error in units of the tolerance, [1, size]."""
        return self._root_mean_square(scaled) if self._norm is None else self._norm(scaled)

    def sizes(self, scaled: Tensor) -> np.ndarray:
        """The sizes of errors in units of the tolerance, [rows, size]; a row does not depend on the others."""
        if self._norm is not None:
            return np.array([self._norm(row.unsqueeze(0)) for row in scaled])
        if self._whole:
            return read_rows(torch.linalg.vector_norm(scaled, dim=1)) / math.sqrt(scaled.shape[1])
        if not self._parts:
            return np.zeros(len(scaled))
        leaves = [scaled.narrow(1, start, size) for start, size in self._parts]
        sizes = torch.stack([torch.linalg.vector_norm(x, dim=1) / math.sqrt(x.shape[1]) for x in leaves])
        return read_rows(sizes.amax(0))

    def untolerated(self, y: Tensor) -> Tensor:
        """Where no error is tolerated in the state `y`: it is zero there, and so is the absolute tolerance."""
        return y.abs() * self.rtol + self.atol <= self._tiny

    def _root_mean_square(self, x: Tensor) -> float:
        if self._whole:
            return _root_mean_square(x)
        sizes = [_root_mean_square(x.narrow(1, start, size)) for start, size in self._parts]
        # NaN must win: max() over floats would depend on the order.
        return math.nan if math.isnan(sum(sizes)) else max(sizes, default=0.0)


def _root_mean_square(x: Tensor) -> float:
    return read(torch.linalg.vector_norm(x)) / math.sqrt(x.numel()) if x.numel() else 0.0


def _largest(tolerance: Tolerance) -> float:
    """The largest element; infinite where there is none, as nothing is refused then."""
    if not isinstance(tolerance, Tensor):
        return tolerance
    return float(tolerance.max()) if tolerance.numel() else math.inf


def check_tolerance(name: str, tolerance: Any, layout: StateLayout) -> Tolerance:
    """Check a tolerance and lay it out like the state: a float stays one, all else becomes [1, size].

    Raises:
        TypeError: it is not a number, a tensor or a pytree of these.
        ValueError: it is negative, not finite, requires a gradient, or does not fit the state.
    """
    if isinstance(tolerance, np.ndarray):
        tolerance = torch.as_tensor(tolerance)
    flat: Tolerance
    if isinstance(tolerance, numbers.Real):
        flat = float(tolerance)
    else:
        flat = layout.laid_out(_broadcast(name, tolerance, layout)).real.detach()
    if isinstance(flat, Tensor) and flat.numel() == 0:
        return flat
    smallest, largest = (float(flat.min()), float(flat.max())) if isinstance(flat, Tensor) else (flat, flat)
    if not (smallest >= 0 and math.isfinite(largest)):
        raise ValueError(f"{name} must be finite and not negative, got {tolerance}: write {name}=1e-6")
    return flat


def _broadcast(name: str, tolerance: Any, layout: StateLayout) -> list[Tensor]:
    """One tolerance for each element of each leaf of the state."""
    if layout.is_tensor and isinstance(tolerance, tuple | list):
        tolerance = torch.stack([torch.as_tensor(_leaf(name, entry)) for entry in tolerance])
    leaves: list[Any] = [None] * len(layout.shapes)
    _assign(name, tolerance, layout.skeleton, leaves, layout)
    expanded = []
    for leaf, shape in zip(leaves, layout.shapes, strict=True):
        try:
            expanded.append(torch.as_tensor(leaf, device=layout.device).broadcast_to((*layout.lead, *shape)))
        except RuntimeError:
            raise ValueError(
                f"{name} of shape {tuple(torch.as_tensor(leaf).shape)} does not broadcast to the state's "
                f"shape {(*layout.lead, *shape)}"
            ) from None
    return expanded


def _assign(name: str, tolerance: Any, node: Any, leaves: list[Any], layout: StateLayout) -> None:
    """Give the leaves under `node`, numbered in the skeleton of the state, the tolerance that stands there."""
    if isinstance(node, dict) and isinstance(tolerance, dict) and node.keys() == tolerance.keys():
        for key, child in node.items():
            _assign(name, tolerance[key], child, leaves, layout)
    elif isinstance(node, tuple | list) and isinstance(tolerance, tuple | list) and len(node) == len(tolerance):
        for entry, child in zip(tolerance, node, strict=True):
            _assign(name, entry, child, leaves, layout)
    elif isinstance(tolerance, dict | tuple | list):
        kind = f"keys {sorted(map(str, tolerance))}" if isinstance(tolerance, dict) else f"{len(tolerance)} entries"
        raise ValueError(
            f"{name} with {kind} does not match the state: give one number, or one for each of {layout.describe()}"
        )
    else:
        for index in pytree.tree_leaves(node):
            leaves[index] = _leaf(name, tolerance)


def _leaf(name: str, tolerance: Any) -> Any:
    if isinstance(tolerance, Tensor):
        if moves(tolerance):
            raise ValueError(f"{name} must not require a gradient: write {name}={name}.detach()")
        return tolerance
    if isinstance(tolerance, numbers.Real | np.ndarray):
        return torch.as_tensor(tolerance)
    raise TypeError(f"{name} must be made of numbers or tensors, got {type(tolerance).__name__}: write {name}=1e-6")
