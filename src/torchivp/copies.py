"""Copies of results, and results sent to another process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class ValuesTravel:
    """What `pickle`, `copy.deepcopy` and another process get of an object: its tensors as values, without a graph.

    A graph cannot leave its process, and torch refuses to copy tensors that hang on one. `copy.copy` keeps the graph.
    """

    __slots__ = ()

    def __getstate__(self) -> Any:
        return pytree.tree_map_only(Tensor, torch.Tensor.detach, super().__getstate__())

    def __copy__(self) -> Any:
        other = type(self).__new__(type(self))
        for name in getattr(self, "__dict__", self.__slots__):
            setattr(other, name, getattr(self, name))
        return other
