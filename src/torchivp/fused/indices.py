"""Indices that are tensors of no dimension, read as tensors.

`x[i]` turns such an `i` into a number, which nobody knows while func is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ByNumbersOfTensors(TorchFunctionMode):
    """Within, `x[i]` and `x[i] = v` take a tensor `i` of no dimension as an index of one element."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and _has_number(args[1]):
            return _read(args[0], args[1] if isinstance(args[1], tuple) else (args[1],))
        if func is Tensor.__setitem__ and _has_number(args[1]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(i[None] if _is_number(i) else i for i in index), args[2])
        return func(*args, **(kwargs or {}))


def _is_number(i: Any) -> bool:
    return isinstance(i, Tensor) and i.ndim == 0 and i.dtype in (torch.int64, torch.int32)


def _has_number(index: Any) -> bool:
    return any(_is_number(i) for i in index) if isinstance(index, tuple) else _is_number(index)


def _read(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """The element of each dimension that has such a tensor for an index, then what the other indices see of it."""
    skipped = x.ndim - sum(_dimensions(i) for i in index)
    others: list[Any] = []
    dim = 0
    for i in index:
        if _is_number(i):
            x = x[(slice(None),) * dim + (i[None],)].squeeze(dim)
        else:
            others.append(i)
            dim += skipped if isinstance(i, EllipsisType) else _dimensions(i)
    return x[tuple(others)]


def _dimensions(i: Any) -> int:
    """How many dimensions an index takes, the ellipsis none."""
    if i is None or isinstance(i, (EllipsisType, bool)):
        return 0
    return i.ndim if isinstance(i, Tensor) and i.dtype == torch.bool else 1
