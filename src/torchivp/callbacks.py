"""Functions of the user's that are told of every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.times import time_dtype

Callback = Callable[[Tensor, Any, Tensor], Any]
"""Called with the start of the step, the state there, and the size of the step."""


def null_callback(*args: Any, **kwargs: Any) -> None:
    """What stands where a program has no callback: it is not called, and nothing warns of it."""


@dataclass(frozen=True)
class Callbacks:
    """What is called at every step; a gradient's replay of a step calls nothing.

    Attributes:
        step: called before every attempt.
        accept: called when it was accepted.
        reject: called when it was rejected.
        unflatten: gives the flat state the shape in which it is handed on.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None
    unflatten: Callable[[Tensor], Any] = lambda y: y

    def call(self, callback: Callback | None, t: float, y: Tensor, size: float) -> None:
        """Call one of the callbacks, if there is one."""
        if callback is not None:
            dtype = time_dtype(y.device)
            start, dt = (torch.scalar_tensor(s, dtype=dtype, device=y.device) for s in (t, size))
            callback(start, self.unflatten(y), dt)
