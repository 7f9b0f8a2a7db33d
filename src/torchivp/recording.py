"""What is kept of the accepted steps: outputs, dense output, and the trail along which a solve is replayed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.dense import StepInterpolant
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.solution import Outcome, Status
from torchivp.times import Times, carried, time_scalar


class Recorder(Protocol):
    """Told of the start and of every accepted step."""

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        """The integration starts at `(t, y)`; what was kept of an earlier one is dropped."""
        ...

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        """A step was accepted; it ends at `t1`."""
        ...


class Outputs:
    """The states at the requested times, or at the end of every accepted step if none were requested.

    Args:
        times: the times of the problem.

    Attributes:
        t: the times of those kept.
        last: the state at the end of the last step.
    """

    def __init__(self, times: Times):
        self._times = times
        self._wanted = times.outputs
        self._next = 0
        self._chunks: list[Tensor] = []
        self.last: Tensor
        self.t: list[float] = []

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self._next, self._chunks, self.t = 0, [], []
        self.last = y
        if self._wanted is None or (self._wanted and self._wanted[0] == t):
            self._keep([t], y)

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        self.last = step.y1
        if self._wanted is None:
            self._keep([t1], step.y1)
            return
        if self._next == len(self._wanted):
            return
        due = self._wanted[self._next]
        if due != t1:
            if (due - t1) * self._times.direction > 0:
                return
            inside = self._inside(t1)
            interpolant = method.interpolant(func, step)
            self._keep(inside, interpolant.evaluate([self._times.at(t) for t in inside]))
            if self._next == len(self._wanted) or self._wanted[self._next] != t1:
                return
        self._keep([t1], step.y1 if self._times.tensor is None else self._end_of(step, func, t1))

    def _end_of(self, step: Step, func: FlatFunc, t1: float) -> Tensor:
        """The state at the end of a step, as a function of the output's time, which may move when the end does not."""
        motion = self._times.motion(t1)
        if motion is None:
            return step.y1
        return carried(slopes_of(func), step.y1, time_scalar(t1, step.y1.dtype.to_real(), step.y1.device), motion)

    def _inside(self, t1: float) -> list[float]:
        """The requested times that have not been kept and lie before `t1`."""
        wanted, direction = self._wanted or (), self._times.direction
        stop = self._next
        while stop < len(wanted) and (t1 - wanted[stop]) * direction > 0:
            stop += 1
        return list(wanted[self._next : stop])

    def _keep(self, times: list[float], states: Tensor) -> None:
        self._next += len(times)
        self.t.extend(times)
        self._chunks.append(states)

    def states(self) -> list[Tensor]:
        """The states kept so far, tensors of shape [n, size]."""
        return self._chunks

    def complete(self, status: Status) -> Tensor:
        """All requested states, [T, size]: NaN where the integration did not arrive.

        After an event there are those before it, and the state at the event.
        """
        missing = 0 if self._wanted is None else len(self._wanted) - self._next
        if status.outcome is Outcome.EVENT:
            if self.t[-1:] != [status.t]:
                self._keep([status.t], self.last)
        elif missing:
            self.t.extend((self._wanted or ())[self._next :])
            self._chunks.append(torch.full_like(self.last, torch.nan).expand(missing, -1))
        return torch.cat(self._chunks) if self._chunks else self.last[:0]


class Interpolants:
    """The interpolant of every accepted step."""

    def __init__(self) -> None:
        self.steps: list[StepInterpolant] = []

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self.steps = []

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        self.steps.append(method.interpolant(func, step).kept())


class Trail:
    """The ends and orders of the accepted steps, and the state at some of them: enough to replay any stretch.

    Checkpoints are laid every `stride` steps. When there are more than `limit` of them (by default, more than
    the stride), every other one is dropped and the stride doubles, so that neither the number of steps need be
    known in advance nor a checkpoint be laid twice.

    Args:
        outputs: where the outputs of the same solve go.
        limit: the largest number of checkpoints to hold; None for about the square root of the number of steps.
    """

    def __init__(self, outputs: Outputs, limit: int | None):
        self._outputs = outputs
        self._limit = limit
        self._stride = 1
        self.times: list[float] = []
        self.orders: list[Any] = []
        self.checkpoints: list[Checkpoint] = []

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self._stride = 1
        self.times, self.orders = [t], []
        self.checkpoints = [Checkpoint(0, y, np.array([0]), carry)]

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        self.times.append(t1)
        self.orders.append(step.recorded)
        taken = len(self.times) - 1
        if taken % self._stride == 0:
            carry = pytree.tree_map_only(Tensor, Tensor.clone, method.carry_to_keep(step.carry))
            self.checkpoints.append(Checkpoint(taken, step.y1, np.array([len(self._outputs.t)]), carry))
            if len(self.checkpoints) > (self._limit or 2 * self._stride + 1):
                self.checkpoints = self.checkpoints[::2]
                self._stride *= 2

    def record(self) -> Record:
        """What is left when the solve is over."""
        steps, ends = np.array([len(self.orders)]), np.array([self.times])
        orders = None if None in self.orders else np.array([self.orders], dtype=np.int64)
        nothing = ChangeRecord.joined([], self.checkpoints[0].y)
        return Record(ends, steps, orders, self.checkpoints, nothing)
