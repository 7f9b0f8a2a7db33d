"""The random numbers that func draws: recorded in a solve, and drawn again when its steps are taken again.

A func with dropout draws other numbers in each evaluation. Taking a step again gives the same state only if it draws
the same, so what the generators were is noted before every step, and put back before the step is taken again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.error_norm import ErrorNorm, Tolerance
from torchivp.generators import Generators, GeneratorState
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.record import Record
from torchivp.rows.recorders import RowTrail
from torchivp.times import time_scalar


class Drawn(NamedTuple):
    """What the generators were for one step.

    Attributes:
        origin: before the first evaluation, if that was made before the step, for its size or for an earlier attempt.
        before: before the step.
        rows: how many rows took it.
        carried: whether it went on from something that the step before it, or the search for its size, had left.
    """

    origin: GeneratorState | None
    before: GeneratorState
    rows: int
    carried: bool


class _Attended(ABC):
    """A method whose generators are attended to before each of its steps."""

    def __init__(self, method: Method, generators: Generators) -> None:
        self._method = method
        self._generators = generators

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Any) -> Step:
        return self._method.step(func, t0, t1, y0, self._attend(func, t0, y0, carry))

    def step_rows(self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: Any, norm: ErrorNorm) -> Step:
        return self._method.step_rows(func, t0, t1, y0, self._attend(func, t0, y0, carry), norm)

    @abstractmethod
    def _attend(self, func: FlatFunc, t0: float | Tensor, y0: Tensor, carry: Any) -> Any:
        """Attend to them; returns what the step starts from."""


class RecordedDraws(_Attended):
    """A method that notes what the generators are before each of its steps.

    Args:
        method: the method.
        generators: the generators.

    Attributes:
        last: those of the last step, tried or taken.
    """

    last: Drawn

    def __init__(self, method: Method, generators: Generators) -> None:
        super().__init__(method, generators)
        self.begin()

    def begin(self) -> None:
        """A solve begins."""
        self._start = self._generators.now()
        self._origin: GeneratorState | None = self._start

    def _attend(self, func: FlatFunc, t0: float | Tensor, y0: Tensor, carry: Any) -> Any:
        before = self._generators.now()
        if carry is None:
            self._origin = before
        self.last = Drawn(None if self._origin == before else self._origin, before, len(y0), carry is not None)
        return carry

    def accepted(self) -> Drawn:
        """Those of the last step, which was accepted: the next one goes on from its carry."""
        self._origin = None
        return self.last

    def any(self) -> bool:
        """Whether anything was drawn since the solve began."""
        return self._generators.now() != self._start


class RepeatedDraws(_Attended):
    """A method that puts the generators back before each of its steps.

    Args:
        method: the method.
        generators: the generators.
        drawn: what they were for the steps to come.
        real_dtype: the dtype of the `t` that func receives.
    """

    def __init__(self, method: Method, generators: Generators, drawn: Sequence[Drawn], real_dtype: torch.dtype) -> None:
        super().__init__(method, generators)
        self._drawn = iter(drawn)
        self._real_dtype = real_dtype

    def _attend(self, func: FlatFunc, t0: float | Tensor, y0: Tensor, carry: Any) -> Any:
        origin, before, *_ = next(self._drawn)
        if carry is None and origin is not None:
            self._generators.put_back(origin)
            if isinstance(t0, Tensor) and t0.ndim > 0:  # of rows
                t = t0.to(self._real_dtype)
            else:
                t = time_scalar(t0, self._real_dtype, y0.device)
            carry = self._method.initial_carry(slopes_of(func)(t, y0))
        self._generators.put_back(before)
        return carry


class DrawingTrail(RowTrail):
    """The trail of rows, and what the generators were for each of their steps."""

    def __init__(self, method: RecordedDraws, *args: Any) -> None:
        self._method = method
        super().__init__(*args)

    def begin(self, y: Tensor, kept: np.ndarray) -> None:
        super().begin(y, kept)
        self._method.begin()
        self._drawn: list[tuple[np.ndarray, Drawn]] = []

    def step(self, rows: np.ndarray, t: np.ndarray, orders: np.ndarray | None) -> None:
        self._drawn.append((self.steps[rows], self._method.accepted()))
        super().step(rows, t, orders)

    def record(self) -> Record:
        drawn = self._drawn if self._method.any() else None
        return replace(super().record(), keeps_carry=self._method.rows_keep_carry, drawn=drawn)


def drawn_together(record: Record) -> list[Drawn] | None:
    """What the generators were for the first steps of all rows, for the second ones, ...; None if nothing is drawn.

    Raises:
        RuntimeError: rows did not take them together, so they cannot be taken again together.
    """
    if record.drawn is None:
        return None
    for n, (numbers, drawn) in enumerate(record.drawn):
        going = np.count_nonzero(record.steps > n)
        if not (len(numbers) == drawn.rows == going and (numbers == n).all()):
            raise RuntimeError(NOT_REPEATED)
    return [drawn for _, drawn in record.drawn]


NOT_REPEATED = (
    "func draws random numbers, and its steps cannot be taken again with the same ones, as this gradient would have "
    "to: let all rows take the same steps, of fixed size (step_size=0.01), or use odeint, which takes no step again"
)

APPLY_NOT_REPEATED = (
    "apply gave another state than in the solve when it was called again for derivatives: it draws random numbers, or "
    "something that it uses has changed. Pass what it draws through Scheduled(..., values=...) or args, and change "
    "copies"
)


_CHANGED = (
    "the steps of this solve, taken again for its gradient, do not lead to where they had led: something that func "
    "uses has changed since the solve, such as a tensor that was written into, the mode of a module (train() and "
    "eval()), or a variable. Compute the gradient before that, or let func use a copy. If nothing has changed, the "
    "solution is so sensitive that rounding, or what an iteration leaves of the equations of a step, leads elsewhere: "
    "solve a shorter span, or keep more states, gradient=Checkpointed(checkpoints=1000)"
)


_TERMS = 64
"""So many roundings of where steps start from may be left where they lead to nothing."""


@contextmanager
def solving_backwards(gradient: str, device: torch.device, subject: str = "func") -> Iterator[None]:
    """Within this the adjoint equations are solved; warn if that draws random numbers.

    Numbers that func has drawn once for all, as FFJORD does, are not drawn again on the way back.
    """
    generators = Generators(device)
    before = generators.now()
    yield
    if generators.now() != before:
        warn(
            f"{subject} draws random numbers, and {gradient} has drawn others on the way back: the gradient is not "
            "that of the numbers drawn in the solve. Use gradient='checkpointed', which draws the same again"
        )


def check_repeated(y: Tensor, expected: Tensor, start: Tensor) -> None:
    """Check that steps taken again from the states `start` lead to the states `y` that they led to before.

    Raises:
        RuntimeError: they do not.
    """
    if not is_repeated(y, expected, start):
        raise RuntimeError(NOT_REPEATED)


def check_led_back(y: Tensor, expected: Tensor, start: Tensor, rtol: Tolerance = 0.0, atol: Tolerance = 0.0) -> None:
    """Check that steps taken again, without random numbers, lead to the states `y` that they led to before.

    Raises:
        RuntimeError: they do not, by more than the tolerances, to which equations of a step may be solved.
    """
    if not is_repeated(y, expected, start, rtol, atol):
        raise RuntimeError(_CHANGED)


def is_repeated(y: Tensor, expected: Tensor, start: Tensor, rtol: Tolerance = 0.0, atol: Tolerance = 0.0) -> bool:
    """Whether states that were computed again are the `expected` ones, but for rounding or the tolerances.

    All are [..., size], and `start` is what they were computed from. Each element is compared on its own: a change that
    only small elements, or rows of small states, show is one too.
    """
    if not y.numel():
        return True
    with torch.no_grad():
        y, expected, start = (torch.nan_to_num(x) for x in (y, expected, start))
        eps = torch.finfo(y.dtype).eps
        size = expected.abs()
        # Rounding in the large elements of a state reaches the small ones, and differences are as exact as their terms.
        rounding = eps**0.75 * size.amax(-1, keepdim=True) + _TERMS * eps * start.abs().amax(-1, keepdim=True)
        least = max(eps**0.5, float(torch.as_tensor(rtol).max()))
        if not isinstance(atol, float) or atol > 0.0:  # what iterations leave is of the size of the whole state
            size = size.amax(-1, keepdim=True)
        return not bool(((y - expected).abs() > least * size + rounding + atol).any())
