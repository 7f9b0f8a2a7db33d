"""The parameters of a model as a vector of numbers: what a fit moves, and what the model is called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Self

from torch import Tensor, nn

TENSOR = "tensor"
"""The kind of an estimate that is a tensor, and of a quantity that is an entry of one."""


@dataclass(frozen=True)
class ParameterLayout:
    """Where the numbers of each parameter stand in a vector.

    Attributes:
        names: of the parameters, as `named_parameters` has them: "alpha", "net.0.weight".
        shapes: of each; () for a single number.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """That of the parameters of a model, in its order."""
        named = list(model.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(tuple(each.shape) for _, each in named))

    def __iter__(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return zip(self.names, self.shapes, strict=True)

    @property
    def count(self) -> int:
        """The number of numbers."""
        return sum(map(prod, self.shapes))

    def numbers(self) -> list[str]:
        """What each number is called: "alpha", "net.0.weight[1,0]"."""
        return [each for name, shape in self for each in entries(name, shape)]

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """The parameters [..., *shape] by name, from their numbers [..., count]."""
        if not any(self.shapes):
            return dict(zip(self.names, values.unbind(-1), strict=True))
        parts = values.split([prod(shape) for shape in self.shapes], -1)
        return {
            name: part.unflatten(-1, shape) if shape else part.squeeze(-1)
            for (name, shape), part in zip(self, parts, strict=True)
        }


def entries(name: str, shape: Sequence[int]) -> list[str]:
    """The names of the entries of a parameter, the last index the fastest; that of a single number is its own."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in product(*map(range, shape))]
