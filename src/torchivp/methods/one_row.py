"""Methods that step one row at a time: batches step one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torchivp.dense import EachWithin
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc, Memory, Method, Step


@runtime_checkable
class OneByOne(Protocol):
    """A function of rows that can be had for each of them alone."""

    def alone(self, rows: int) -> Sequence[FlatFunc]:
        """The function of each of the `rows` that there are."""
        ...


class OneRowMethod(Method):
    """A method that has `step` alone; each row is stepped by one of its own, with the tolerances of that row."""

    def initial_carry(self, f0: Tensor) -> OfRows:
        return OfRows([None] * len(f0))

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: OfRows | None, norm: ErrorNorm
    ) -> Step:
        assert isinstance(func, OneByOne)
        entries, taken = [None] * len(y0) if carry is None else carry.entries, []
        times = t0.reshape(-1).tolist(), t1.reshape(-1).tolist()
        for i, (alone, start, end) in enumerate(zip(func.alone(len(y0)), *times, strict=True)):
            of_row, y = norm.take(torch.tensor([i], device=y0.device)), y0[i : i + 1]
            method, own = entries[i] or (type(self)(y, y0.dtype.to_real(), of_row), None)
            if start == end:  # a row that is through
                taken.append((method, Step(start, end, y, y, None, own, own, None)))
            else:
                taken.append((method, method.step(alone, start, end, y, own)))
        after, again = (OfRows([(m, getattr(step, name)) for m, step in taken]) for name in ("carry", "retry"))
        steps = [step for _, step in taken]
        ends, y1 = t1.new_tensor([[step.t1] for step in steps]), torch.cat([step.y1 for step in steps])
        failure = {i: step.failure[0] for i, step in enumerate(steps) if step.failure}
        return Step(t0, ends, y0, y1, None, after, again, taken, failure=failure or None)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> EachWithin:
        return EachWithin([method.interpolant(func, alone) for method, alone in step.stages])


@dataclass(frozen=True, slots=True)
class OfRows(Memory):
    """The method of each row, with what its step hands on; None where there is none yet."""

    entries: Sequence[Any]

    def map(self, function: Callable[..., Tensor], *others: OfRows) -> OfRows:
        everything, numbers = [], []
        for of_rows in (self, *others):
            numbers.append(torch.arange(len(everything), len(everything) + len(of_rows.entries)))
            everything += of_rows.entries
        return OfRows([everything[number] for number in function(*numbers).tolist()])
