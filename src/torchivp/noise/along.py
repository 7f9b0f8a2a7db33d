"""The increments of a path that was given as an object, over the steps of a solve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchivp.noise.increment import Increment, has_A, has_H


class PathNoise:
    """Increments of a Brownian path in the order of integration, which may be backwards in time, as [rows, channels].

    Args:
        path: called as `path(ta, tb)` with ta <= tb, and with `return_U=True` and `return_A=True` if areas are needed;
            or with a method `increment(ta, tb)`.
        rows: the number of rows.
        channels: the number of noises in one row.
        levy_area: what the increments must come with.
        dtype: the dtype of the increments.
    """

    block = 64
    """As many steps are asked for at once."""

    def __init__(self, path: Any, rows: int, channels: int, levy_area: str, dtype: torch.dtype) -> None:
        self.path = path
        self.levy_area = levy_area
        self.dtype = dtype
        self._shape = (rows, channels)
        self._has_H, self._has_A = has_H(levy_area), has_A(levy_area)
        self._increment = getattr(path, "increment", None) or self._called

    def steps(self, block: int, times: Sequence[float]) -> list[Increment]:
        """The increments between each of the `times` and the next."""
        return [self.between(a, b) for a, b in pairwise(times)]

    def between(self, ta: float, tb: float) -> Increment:
        """The increment on the way from `ta` to `tb`.

        Seen backwards in time, a path has its change and its Lévy area reversed, and its space-time area unchanged.
        """
        found = self._increment(min(ta, tb), max(ta, tb))
        W, H, A = self._laid_out(found.W), None, None
        if self._has_H:
            assert found.H is not None, "the kinds of areas were checked before"
            H = self._laid_out(found.H)
        if self._has_A:
            assert found.A is not None, "the kinds of areas were checked before"
            A = found.A.to(self.dtype).reshape(*self._shape, self._shape[1])
        if tb < ta:
            W, A = -W, None if A is None else -A
        return Increment(abs(tb - ta), W, H, A)

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).reshape(self._shape)

    def _called(self, ta: float, tb: float) -> Increment:
        dt = tb - ta
        if not self._has_H:
            return Increment(dt, self.path(ta, tb))
        if not self._has_A:
            W, U = self.path(ta, tb, return_U=True)
            return Increment(dt, W, U / dt - 0.5 * W)
        W, U, A = self.path(ta, tb, return_U=True, return_A=True)
        return Increment(dt, W, U / dt - 0.5 * W, A)
