"""What a solve returns: the solution, how it ended and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.copies import ValuesTravel
from torchivp.dense import DenseSolution, NoDenseOutput, RowDenseSolution
from torchivp.references import Sources

_T = TypeVar("_T")


class Outcome(Enum):
    """How a solve ended."""

    SUCCESS = "success"
    EVENT = "event"
    MAX_STEPS = "max_steps"
    STEP_UNDERFLOW = "step_underflow"
    TOLERANCE_NOT_MET = "tolerance_not_met"
    NON_FINITE = "non_finite"
    NOT_CONVERGED = "not_converged"
    NO_EVENT = "no_event"
    ZENO = "zeno"


@dataclass(frozen=True)
class Status:
    """How a solve ended, with a sentence: what happened, where, and what to try.

    Attributes:
        outcome: the kind of ending.
        message: the sentence.
        t: the time that was reached.
    """

    outcome: Outcome
    message: str
    t: float

    @property
    def ok(self) -> bool:
        """Whether the end of the span, or an event that ends the solve, was reached."""
        return self.outcome in (Outcome.SUCCESS, Outcome.EVENT)

    def __str__(self) -> str:
        return self.message


class SolveError(RuntimeError, AssertionError):
    """A solve that could not reach the end of its span; `status` says why.

    It is an AssertionError too because programs written for torchdiffeq expect one.
    """

    def __init__(self, status: Status):
        super().__init__(status.message)
        self.status = status

    def __reduce__(self) -> Any:  # that of other exceptions calls __init__ with the message
        return _remade, (type(self), *self.args), self.__dict__


class LeanFailures:
    """A `SolveError` that leaves this block is raised as if by the caller of the function with the block.

    The frames from which it came, in its traceback, would keep the whole solve for as long as the error is kept: the
    loop, what it has recorded, and the graph.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, SolveError):
            error.__traceback__ = None


def _remade(kind: type[SolveError], *args: Any) -> SolveError:
    return kind.__new__(kind, *args)


_FAILURE: ContextVar[type[SolveError]] = ContextVar("_FAILURE", default=SolveError)


def failure_class() -> type[SolveError]:
    """What a solve that begins now raises if it fails, be it in its backward pass."""
    return _FAILURE.get()


@contextmanager
def raising(failure: type[SolveError]) -> Iterator[None]:
    """Solves that begin within this context raise `failure` if they fail."""
    token = _FAILURE.set(failure)
    try:
        yield
    finally:
        _FAILURE.reset(token)


@dataclass
class Stats:
    """What a solve cost.

    Attributes:
        evaluations: calls of `func` by the steps; of a row, if it was one of those that `func` was called with.
        accepted: steps taken.
        rejected: step attempts that were thrown away.
        backward: the same for the last backward pass; None before there was one, and for `direct`, whose
            backward pass is autograd's. For `forward` it is that of taking the steps again, in the forward pass. In a
            batch, or with events, `checkpointed` counts its steps alone.
        jacobians: matrices of derivatives that implicit methods made.
        factorisations: matrices of linear systems that they factorised.
        solves: linear systems that they solved.
        iterations: iterations of Newton's method.
        stiff: of the accepted steps and rejected attempts, those that method "auto" took with its stiff method.
        switches: how often it has switched between its two methods.
        backend: what took the steps: "fused" or "eager"; if `backend="auto"` found no kernel, "eager: " and why.
    """

    evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    backward: Stats | None = None
    jacobians: int = 0
    factorisations: int = 0
    solves: int = 0
    iterations: int = 0
    stiff: int = 0
    switches: int = 0
    backend: str = "eager"


class OfRows(Sequence[_T]):
    """Something of each row of a batch, made when it is looked at: there may be a million rows.

    A copy, or what another process receives, is a list.

    Args:
        count: the number of rows.
        make: makes what is of a row.
        stiff: of statistics, whether there may be steps that were found stiff: else nobody need look at each row.
    """

    def __init__(self, count: int, make: Callable[[int], _T], stiff: bool = True):
        self._count = count
        self._make = make
        self.stiff = stiff

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        chosen = range(self._count)[index]
        return [self._make(row) for row in chosen] if isinstance(chosen, range) else self._make(chosen)

    def __iter__(self) -> Iterator[_T]:
        return map(self._make, range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> Any:
        return list, (list(self),)


@dataclass(repr=False)
class EventLog(ValuesTravel):
    """What happened on the way, an entry for every event and every scheduled time that was reached.

    The entries are in the order of the rows and, within a row, of the integration. Times and states are differentiable.

    Attributes:
        t: when, [n], float64.
        y: the states before it, shaped like those of one row with a leading dimension n (each leaf of a pytree).
        y_after: the states after all that happened at the same time.
        index: which of the `events` it was, [n].
        row: the number of the row, counted through all batch dimensions, [n]; 0 without them.
    """

    t: Tensor
    y: Any
    y_after: Any
    index: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        return f"EventLog({len(self)} events)"


@dataclass(repr=False)
class Solution(ValuesTravel):
    """The solution of an initial value problem.

    Attributes:
        t: the times of the outputs, [T], float64.
        y: the states there, shaped like `y0` with a leading dimension T (each leaf of a pytree). After a
            failure, or an event that ends the solve, the outputs that were not reached are NaN.
        status: how the solve ended, with a sentence.
        stats: evaluations and steps, `stats.backward` for the backward pass.
        final: the last state, shaped like `y0`, whether or not it was asked for: at the end of the span, or after the
            event that ended the solve. After a failure the state at the last step, with `t_eval` and without `events`
            that at the last output that was reached, or `y0`.
        t_final: when that is, 0-d, float64.
        sol: the solution at any time, `sol(t)`, if `dense_output=True`; else it is false, and says so when called.
        events: what happened on the way, if `events` was given.
        sources: what it was computed with, in words, and where that was published; `torchivp.cite` prints it.
    """

    t: Tensor
    y: Any
    status: Status
    stats: Stats
    final: Any
    t_final: Tensor
    sol: DenseSolution | RowDenseSolution | NoDenseOutput = field(default_factory=NoDenseOutput)
    events: EventLog | None = None
    sources: Sources = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether the end of the span, or an event that ends the solve, was reached."""
        return self.status.ok

    @property
    def message(self) -> str:
        """The sentence of `status`."""
        return self.status.message

    def __repr__(self) -> str:
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), self.y)
        span = f"{len(self.t)} times" + (f" in [{self.t[0]:g}, {self.t[-1]:g}]" if len(self.t) else "")
        cost = (
            f"{self.stats.evaluations} evaluations, {self.stats.accepted} steps accepted, "
            f"{self.stats.rejected} rejected"
        )
        return (
            f"Solution({self.status.outcome.value}: {self.status.message}\n"
            f"  t: {span}\n  y: {shapes}\n  stats: {cost}\n  sol: {self.sol}"
            + ("" if self.events is None else f"\n  events: {self.events}")
            + ")"
        )


@dataclass(repr=False)
class BatchSolution(ValuesTravel):
    """The solutions of a batch of initial value problems, each solved on its own.

    Attributes:
        t: the times of the outputs, [*batch, T], float64; NaN where a row has no more.
        y: the states there, [*batch, T, *state] (each leaf of a pytree); NaN where a row has no output, or has ended
            before.
        batch_shape: the sizes of the batch dimensions.
        status: how each row ended, a flat sequence in the order of `y.flatten(0, k - 1)` for k batch dimensions.
        stats: evaluations and steps of each row, likewise.
        final: the last state of each row, [*batch, *state], whether or not it was asked for: at its end, after the
            event that ended it, or after a failure at its last step.
        t_final: when that is, [*batch], float64.
        sol: the solutions at any time, `sol(t)`, if `dense_output=True`; else it is false, and says so when called.
        events: what happened on the way, if `events` was given.
        sources: what it was computed with, in words, and where that was published; `torchivp.cite` prints it.
    """

    t: Tensor
    y: Any
    batch_shape: tuple[int, ...]
    status: Sequence[Status]
    stats: Sequence[Stats]
    final: Any
    t_final: Tensor
    sol: RowDenseSolution | NoDenseOutput = field(default_factory=NoDenseOutput)
    events: EventLog | None = None
    sources: Sources = field(default_factory=dict)

    @property
    def success(self) -> Tensor:
        """Whether each row reached its end, or an event that ends it, [*batch]."""
        ok = [status.ok for status in self.status]
        return torch.tensor(ok, dtype=torch.bool, device=self.t.device).reshape(self.batch_shape)

    def __repr__(self) -> str:
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), self.y)
        outcomes = Counter(status.outcome.value for status in self.status)
        ended = ", ".join(f"{count} {name}" for name, count in outcomes.most_common()) or "no rows"
        steps = [stats.accepted for stats in self.stats]
        cost = f"{min(steps, default=0)} to {max(steps, default=0)} steps, " + (
            f"{sum(stats.evaluations for stats in self.stats)} evaluations of a row"
        )
        return (
            f"BatchSolution({ended}\n  t: {tuple(self.t.shape)}\n  y: {shapes}\n  stats: {cost}\n"
            f"  sol: {self.sol}\n  events: {self.events})"
        )
