"""The tensors that functions use besides time and state, and whether they still are what a kernel was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHANGED = (
    "a tensor that func or an event function uses was changed in place after the solve, and the derivatives of the "
    "times of events, and derivatives of gradients, need it as it was: change a copy"
)


class Used:
    """Tensors as the user holds them, and as a kernel reads them.

    Args:
        tensors: as the user holds them; None for time and state.
        read: what the kernel reads, in their places.
    """

    def __init__(self, tensors: Sequence[Tensor | None], read: Sequence[Tensor | None]):
        self._tensors = tensors
        self.read = read

    @property
    def changed(self) -> bool:
        """Whether the user has changed one in place since it was read, if that is a copy."""
        pairs = zip(self._tensors, self.read, strict=True)
        return not all(read is None or (x is not None and same_values(x.detach(), read)) for x, read in pairs)

    def check(self) -> None:
        """See to it that functions may be called again for a gradient.

        Raises:
            RuntimeError: they use a tensor that was changed.
        """
        if self.changed:
            raise RuntimeError(_CHANGED)


def same_values(x: Tensor, read: Tensor) -> bool:
    """Whether a tensor has the values that were read, not a number among them."""
    if x.shape != read.shape:
        return False
    x = x.to(read.device, read.dtype)
    return x.data_ptr() == read.data_ptr() or torch.allclose(x, read, rtol=0.0, atol=0.0, equal_nan=True)
