"""Complex states as pairs of real numbers: functions of them need not be holomorphic."""

from __future__ import annotations

import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc


def to_real(y: Tensor) -> Tensor:
    """Complex rows [n, size] as real ones [n, 2 size]; real ones as they are."""
    return torch.view_as_real(y.resolve_conj()).flatten(1) if y.is_complex() else y


def to_complex(y: Tensor) -> Tensor:
    """The inverse of `to_real` for complex rows."""
    return torch.view_as_complex(y.unflatten(1, (-1, 2)))


def on_real_pairs(func: FlatFunc) -> FlatFunc:
    """A function of complex states, [1, size], as one of real states, [1, 2 size]."""
    return lambda t, y: to_real(func(t, to_complex(y)))
