"""What the solvers must know of the function transforms of `torch.func`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import debug_unwrap


def inside_transform() -> bool:
    """Whether a transform such as `torch.func.vmap` or `torch.func.grad` is at work.

    Then tensors may be batched or tracked behind the scenes, and must not be written into tensors that are not.
    """
    return torch._C._functorch.maybe_current_level() is not None  # pyright: ignore[reportAttributeAccessIssue]


def read(x: Tensor) -> float:
    """The value of a 0-d tensor; under `vmap`, where it has one for each entry of the batch, the largest, or NaN."""
    if inside_transform():
        x = debug_unwrap(x).amax()
    return x.item()
