"""Functions of the user's that are told of every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        lead: the shape of the batch; none for one problem.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None
    unflatten: Callable[[Tensor], Any] = lambda y: y
    lead: tuple[int, ...] = ()

    def call(self, callback: Callback | None, t: float, y: Tensor, size: float) -> None:
        """Call one of the callbacks, if there is one."""
        if callback is not None:
            dtype = time_dtype(y.device)
            start, dt = (torch.scalar_tensor(s, dtype=dtype, device=y.device) for s in (t, size))
            callback(start, self.unflatten(y), dt)

    def call_of_rows(self, callback: Callback | None, rows: Tensor, t: np.ndarray, y: Tensor, size: np.ndarray) -> None:
        """The same of steps of some `rows` of a batch, [m], with an entry for each in all; others are told NaN."""
        if callback is None:
            return
        count, dtype = math.prod(self.lead), time_dtype(y.device)
        starts, sizes = (
            torch.full((count,), torch.nan, dtype=dtype, device=y.device).index_copy(
                0, rows, torch.from_numpy(x).to(y.device, dtype)
            )
            for x in (t, size)
        )
        states = torch.full((count, y.shape[1]), torch.nan, dtype=y.dtype, device=y.device).index_copy(0, rows, y)
        callback(starts.reshape(self.lead), self.unflatten(states), sizes.reshape(self.lead))
