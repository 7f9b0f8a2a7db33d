"""Times at which the solution has a kink or func a jump."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from torchivp.split import summands_of
from torchivp.times import Times
from torchivp.torch_func import moves


@dataclass(frozen=True)
class Stops:
    """Times that steps must end on, besides those of the controller, and on which side of them func is evaluated.

    Attributes:
        step_times: times that steps end on, in any order; those outside the span do not matter.
        jump_times: times at which func is discontinuous: steps end on them, evaluate it on their own side of them only,
            and take nothing over from one side to the other.
        one_sided: whether every step evaluates func within its ends, never at them.
    """

    step_times: Collection[float] = ()
    jump_times: Collection[float] = ()
    one_sided: bool = False

    def within(self, times: Times) -> list[float]:
        """Those of the times that lie strictly inside the span, in the order of integration."""
        low, high = sorted((times.start, times.end))
        inside = {t for t in (*self.step_times, *self.jump_times) if low < t < high}
        return sorted(inside, reverse=times.direction < 0)

    def function(
        self, func: Callable[[Tensor, Tensor], Tensor], t0: float, t1: float, time: Callable[[float], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`func` for a step from `t0` to `t1`: where it jumps at an end of the step, its values on the step's side.

        `time` gives a time as `func` receives it.
        """
        if not self.avoid_ends:
            return func
        avoid_start, avoid_end = self.one_sided or t0 in self.jump_times, self.one_sided or t1 in self.jump_times
        if not (avoid_start or avoid_end):
            return func
        start, end = time(t0), time(t1)
        return OneSided(
            func,
            torch.nextafter(start, end) if avoid_start else start,
            torch.nextafter(end, start) if avoid_end else end,
        )

    @property
    def avoid_ends(self) -> bool:
        """Whether there is a step that must not evaluate func at one of its ends."""
        return self.one_sided or bool(self.jump_times)


def merge(targets: Iterable[float], others: Sequence[float], direction: float) -> Iterator[float]:
    """Two ordered series of times as one without repetitions; `targets` may be endless."""
    last = None
    for t in heapq.merge(targets, others, key=lambda t: t * direction):
        if t != last:
            yield t
        last = t


class OneSided:
    """`func`, evaluated next to the ends of a step instead of at them, and otherwise the same.

    Args:
        func: the function, of one row or of several.
        start: the time just after the start of the step, or the start itself; [rows, 1] of several rows.
        end: the time just before the end of the step, or the end itself.
    """

    def __init__(self, func: Callable[[Tensor, Tensor], Tensor], start: Tensor, end: Tensor):
        self._func = func
        self._low, self._high = torch.minimum(start, end), torch.maximum(start, end)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self._func(self._inside(t), y)

    def __getattr__(self, name: str) -> Any:
        if name == "_func":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._func, name)

    @property
    def jacobian(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """That of the function, at the same times."""
        jacobian = getattr(self._func, "jacobian", None)
        return jacobian and self._likewise(jacobian)

    @property
    def summands(self) -> tuple[OneSided, OneSided] | None:
        """The explicit and the implicit part, if it is the sum of two functions."""
        parts = summands_of(self._func)
        return parts and (self._likewise(parts[0]), self._likewise(parts[1]))

    def alone(self, rows: int) -> Sequence[OneSided]:
        """The function of each of the `rows` that there are."""
        bounds = (x.expand(rows, 1).reshape(-1) for x in (self._low, self._high))
        return [OneSided(*each) for each in zip(cast("Any", self._func).alone(rows), *bounds, strict=True)]

    def _likewise(self, func: Callable[[Tensor, Tensor], Tensor]) -> OneSided:
        return OneSided(func, self._low, self._high)

    def _inside(self, t: Tensor) -> Tensor:
        inside = torch.clamp(t.detach(), self._low, self._high)
        # A gradient flows through t as if it had not been moved.
        return t + (inside - t.detach()) if moves(t) else inside
