"""What every Brownian motion offers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from torchivp.noise import brownian
from torchivp.noise.increment import Increment


class BaseBrownian(brownian.BaseBrownian):
    """A Brownian motion that is queried for what it does over an interval.

    Subclasses define `__call__`, which returns W, (W, U), (W, A) or (W, U, A), and `__repr__`, `shape`, `dtype`,
    `device` and `levy_area_approximation`.
    """

    @abstractmethod
    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any: ...

    @abstractmethod
    def __repr__(self) -> str: ...

    def increment(self, ta: float, tb: float) -> Increment:
        dt = float(tb) - float(ta)
        if self.levy_area_approximation == "none":
            return Increment(dt, self(ta, tb))
        W, U, A = self(ta, tb, return_U=True, return_A=True)
        return Increment(dt, W, U / dt - W / 2 if dt else torch.zeros_like(W), A)


def returned(
    W: Tensor, U: Tensor | None, A: Tensor | None, return_U: bool, return_A: bool
) -> Tensor | tuple[Tensor | None, ...]:
    """What a query returns of the increment and its Lévy areas; those the path does not have are None."""
    wanted = (W, *([U] if return_U else []), *([A] if return_A else []))
    return wanted if len(wanted) > 1 else W
