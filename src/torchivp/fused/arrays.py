"""Values of a graph as the kernel holds them: arrays of numbers, seen through strides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["real", "int", "bool"]
Index = Sequence[int | str]
"""The place of an element: a number, or the name of a loop variable, for each dimension."""

TYPES: dict[Kind, str] = {"real": "typename Lanes<W>::R", "int": "typename Lanes<W>::I", "bool": "typename Lanes<W>::M"}
"""What they are in C++."""

UNROLL = 16
"""Loops over so many elements are written out."""


def kind_of(dtype: torch.dtype) -> Kind:
    """The kind of numbers that a kernel computes with for a dtype."""
    return "real" if dtype.is_floating_point else "bool" if dtype is torch.bool else "int"


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of an array in the order of its elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def literal(value: float, kind: Kind) -> str:
    """A number in C++."""
    if kind == "bool":
        return "true" if value else "false"
    if kind == "int":
        return f"{int(value)}LL" if value > -(2**63) else "INT64_MIN"
    value = float(value)
    if math.isnan(value):
        return "real(NAN)"
    if math.isinf(value):
        return "real(INFINITY)" if value > 0 else "real(-INFINITY)"
    return f"real({value!r})"


@dataclass(frozen=True)
class Array:
    """An array in the kernel, or a view of one.

    Attributes:
        place: the C++ name of the memory.
        shape: the shape.
        strides: how far apart elements are in each dimension.
        offset: where the first is.
        kind: what the numbers are.
        lanes: whether they differ from row to row.
        constant: their values, if known when the kernel is made; there is no memory then.
    """

    place: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    kind: Kind = "real"
    lanes: bool = True
    constant: Tensor | None = None

    @staticmethod
    def stored(place: str, shape: Sequence[int], kind: Kind = "real", lanes: bool = True, offset: int = 0) -> Array:
        """All of the memory at `place`, in order."""
        return Array(place, tuple(shape), contiguous(shape), offset, kind, lanes)

    @staticmethod
    def known(value: Tensor) -> Array:
        """An array whose values are known."""
        shape = tuple(value.shape)
        return Array("", shape, contiguous(shape), 0, kind_of(value.dtype), lanes=False, constant=value)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def is_zero(self) -> bool:
        """Whether all elements are known to be zero."""
        return self.constant is not None and not bool(self.constant.any())

    def flat_index(self, index: Index) -> str:
        """The position of an element in memory, a C++ expression."""
        number, terms = self.offset, []
        for i, stride in zip(index, self.strides, strict=True):
            if isinstance(i, int):
                number += i * stride
            elif stride:
                terms.append(i if stride == 1 else f"{stride} * {i}")
        return " + ".join([*terms, str(number)] if number or not terms else terms)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """The places of all elements, in order."""
        return itertools.product(*map(range, self.shape))

    # Views: the same memory, seen otherwise.

    def permuted(self, order: Sequence[int]) -> Array:
        constant = None if self.constant is None else self.constant.permute(*order)
        shape, strides = (tuple(of[i] for i in order) for of in (self.shape, self.strides))
        return replace(self, shape=shape, strides=strides, constant=constant)

    def expanded(self, shape: Sequence[int]) -> Array:
        """Broadcast to `shape`, in which -1 stands for what is there."""
        new = len(shape) - len(self.shape)
        own_shape, own_strides = (1,) * new + self.shape, (0,) * new + self.strides
        full = tuple(n if wanted == -1 else wanted for n, wanted in zip(own_shape, shape, strict=True))
        strides = tuple(0 if n == 1 else s for n, s in zip(own_shape, own_strides, strict=True))
        constant = None if self.constant is None else self.constant.expand(full)
        return replace(self, shape=full, strides=strides, constant=constant)

    def selected(self, dim: int, i: int) -> Array:
        dim, i = dim % len(self.shape), i % self.shape[dim]
        return self.sliced(dim, i, i + 1, 1).squeezed([dim])

    def sliced(self, dim: int, start: int | None, end: int | None, step: int) -> Array:
        chosen = range(self.shape[dim])[slice(start, end, step)]
        shape = tuple(len(chosen) if d == dim else n for d, n in enumerate(self.shape))
        strides = tuple(s * step if d == dim else s for d, s in enumerate(self.strides))
        offset = self.offset + (chosen[0] * self.strides[dim] if len(chosen) else 0)
        constant = self.constant
        if constant is not None:
            constant = constant.index_select(dim, torch.tensor(list(chosen), dtype=torch.int64))
        return replace(self, shape=shape, strides=strides, offset=offset, constant=constant)

    def flipped(self, dims: Sequence[int]) -> Array:
        dims = [d % len(self.shape) for d in dims]
        offset = self.offset + sum(self.strides[d] * (self.shape[d] - 1) for d in dims)
        strides = tuple(-s if d in dims else s for d, s in enumerate(self.strides))
        constant = None if self.constant is None else self.constant.flip(dims)
        return replace(self, strides=strides, offset=offset, constant=constant)

    def unsqueezed(self, dim: int) -> Array:
        dim %= len(self.shape) + 1
        constant = None if self.constant is None else self.constant.unsqueeze(dim)
        shape = (*self.shape[:dim], 1, *self.shape[dim:])
        strides = (*self.strides[:dim], 0, *self.strides[dim:])
        return replace(self, shape=shape, strides=strides, constant=constant)

    def squeezed(self, dims: Sequence[int]) -> Array:
        gone = {d % len(self.shape) for d in dims if self.shape and self.shape[d] == 1}
        keep = [d for d in range(len(self.shape)) if d not in gone]
        shape, strides = (tuple(of[d] for d in keep) for of in (self.shape, self.strides))
        constant = None if self.constant is None else self.constant.reshape(shape)
        return replace(self, shape=shape, strides=strides, constant=constant)

    def reshaped(self, shape: Sequence[int]) -> Array | None:
        """The same elements in the same order in another shape; None if their strides do not allow it."""
        shape = tuple(shape)
        if self.constant is not None:
            return Array.known(self.constant.reshape(shape))
        if not self.size:
            return replace(self, shape=shape, strides=contiguous(shape))
        own = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        wanted = [d for d, n in enumerate(shape) if n != 1]
        strides = [0] * len(shape)
        while own:
            # As few dimensions as make up as many elements on both sides; the own must follow each other in memory.
            (n, s), group = own.pop(0), [wanted.pop(0)]
            while n != (taken := math.prod(shape[d] for d in group)):
                if taken < n:
                    group.append(wanted.pop(0))
                    continue
                next_n, next_s = own.pop(0)
                if next_s * next_n != s:
                    return None
                n, s = n * next_n, next_s
            for d in reversed(group):
                strides[d] = s
                s *= shape[d]
        return replace(self, shape=shape, strides=tuple(strides))
