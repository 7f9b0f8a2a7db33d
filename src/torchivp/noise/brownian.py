"""What a solver and a user ask of a Brownian motion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number
from torchivp.noise.increment import Increment

Answer = Tensor | tuple[Tensor | None, ...]


class BaseBrownian(ABC):
    """A Brownian motion, asked for its increments: `bm(ta, tb)`, as in torchsde.

    A path must be a function of time: what it answers may not depend on what it was asked before.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of W."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of W."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of W."""

    @property
    @abstractmethod
    def levy_area_approximation(self) -> str:
        """Which areas the path provides: 'none', 'space-time', 'davie' or 'foster'."""

    @abstractmethod
    def increment(self, ta: float, tb: float) -> Increment:
        """What the path does from ta to tb, ta <= tb, with the areas that it provides."""

    def size(self) -> tuple[int, ...]:
        """The shape of W."""
        return self.shape

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Answer:
        """W(tb) - W(ta), and if asked for, the integral U and the area A: None where the path does not provide them.

        Args:
            ta: the start, a number or a tensor of one element.
            tb: the end; None for the increment from the start of the path to ta.
            return_U: give the integral of W(s) - W(ta) over the interval as well.
            return_A: give the antisymmetric Lévy area as well.

        Raises:
            TypeError: a time is no number.
            ValueError: a time is NaN, or outside of the path.
            RuntimeError: ta is later than tb.
        """
        start, end = (self._start, self._time("ta", ta)) if tb is None else (self._time("ta", ta), self._time("tb", tb))
        increment = self.increment(start, end)
        if not (return_U or return_A):
            return increment.W
        answer: list[Tensor | None] = [increment.W]
        if return_U:
            answer.append(None if increment.H is None else increment.U)
        if return_A:
            answer.append(increment.A)
        return tuple(answer)

    @property
    def _start(self) -> float:
        """Where W(t) is counted from if only t is given."""
        raise ValueError(f"{type(self).__name__} has no start to count from: give both ends, bm(ta, tb)")

    def _time(self, name: str, value: Any) -> float:
        """A time that the user gives."""
        return check_number(name, value)


def check_order(ta: float, tb: float) -> None:
    """Refuse an interval that runs backwards.

    Raises:
        RuntimeError: ta is later than tb.
    """
    if ta > tb:
        raise RuntimeError(
            f"Query times ta={ta} and tb={tb} must respect ta <= tb: swap them, and negate W, if you mean the way back"
        )
