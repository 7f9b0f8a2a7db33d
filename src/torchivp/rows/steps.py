"""One step of some rows, with any method: many rows at once, or one row as the engine of one row takes it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import EachWithin
from torchivp.error_norm import ErrorNorm
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import Method, Step, Work, choice, map_rows
from torchivp.rows.changes import Slopes, function_on, one_sided
from torchivp.rows.function import FunctionOnRows
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import WithinSteps
from torchivp.stepsize.order import size_next_step, size_next_steps
from torchivp.stepsize.pid import History, PIDController, RowHistory
from torchivp.times import time_scalar
from torchivp.torch_func import read_rows


class TakenSteps:
    """Steps of some rows from `t0` to `t1`."""

    def __init__(self, stepper: Stepper, t0: np.ndarray, t1: np.ndarray, step: Step):
        self._stepper = stepper
        self._within: WithinSteps | None = None
        self.t0 = t0
        self.t1 = t1
        self.step = step

    @property
    def y1(self) -> Tensor:
        """The states at their ends, [m, size]."""
        return self.step.y1

    def within(self) -> WithinSteps:
        """The solutions within the steps; valid until the next step."""
        if self._within is None:
            self._within = self._stepper.within(self)
        return self._within

    def of(self, i: int) -> Step:
        """The step of one of the rows, as far as it matters to why it failed."""
        step = self.step
        error = None if step.error is None else step.error[i : i + 1]
        t0, t1 = float(self.t0[i]), float(self.t1[i])
        failure = {0: step.failure[i]} if self.failed[i] and step.failure else None
        return Step(t0, t1, step.y0[i : i + 1], step.y1[i : i + 1], error, None, None, None, failure=failure)

    @property
    def orders(self) -> np.ndarray | None:
        """Their orders, or what else is recorded of them, if the method varies them."""
        return None if self.step.recorded is None else np.full(len(self.t0), self.step.recorded)

    @property
    def failed(self) -> np.ndarray:
        """Which rows have no `y1` to speak of."""
        failed = np.zeros(len(self.t0), dtype=bool)
        failed[list(self.step.failure or ())] = True
        return failed


class Chosen:
    """The solutions within the steps of a choice of the rows; None for all of them."""

    def __init__(self, within: WithinSteps, rows: Tensor | None):
        self._within = within
        self._rows = rows

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        return self._within.at(rows if self._rows is None else self._rows[rows], theta, t)

    def at_fractions(self, theta: tuple[float, ...], *further: Tensor) -> Tensor:
        if self._rows is None:
            return self._within.at_fractions(theta, *further)
        y = self._within.at_fractions(theta).unflatten(0, (len(theta), -1))
        return torch.cat([y[:, self._rows].flatten(0, 1), *further])

    def kept(self) -> Chosen:
        return Chosen(self._within.kept(), self._rows)


class Stepper:
    """Takes steps of a choice of the rows, all of them at once.

    Args:
        problem: the problem of all rows.
        method: the method.
        norm: measures the errors of all rows.
        rows: the numbers of the rows.

    Attributes:
        work: what the steps of each row have cost besides evaluations of func, [rows, kinds], in the order of `Work`.
        one_sided: the right-hand side as the last step has evaluated it.
    """

    def __init__(self, problem: RowProblem, method: Method, norm: ErrorNorm, rows: np.ndarray):
        self.problem = problem
        self.work = np.zeros((len(rows), len(Work._fields)), dtype=np.int64)
        self.method = method
        self.rows = rows
        self.norm = norm.take(problem.select(rows))
        self.func: FunctionOnRows = function_on(problem, rows)
        self.one_sided: Slopes = self.func

    def slopes(self, t: np.ndarray, y: Tensor) -> Tensor:
        """dy/dt at the starts of steps."""
        func = one_sided(self.problem, self.rows, self.func, t, None)
        return slopes_of(func)(self.problem.user_time(t), y)

    def step(
        self, t0: np.ndarray, t1: np.ndarray, y: Tensor, carry: Any, ends: tuple[Tensor, Tensor] | None = None
    ) -> TakenSteps:
        """A step of every row; `ends` are `t0` and `t1` as tensors, if they move."""
        start, end = (self.problem.time(t0), self.problem.time(t1)) if ends is None else map(self.problem.moved, ends)
        self.one_sided = one_sided(self.problem, self.rows, self.func, t0, t1)
        return self._taken(t0, t1, end, self.method.step_rows(self.one_sided, start, end, y, carry, self.norm))

    def _taken(self, t0: np.ndarray, t1: np.ndarray, end: float | Tensor, step: Step) -> TakenSteps:
        """The step from `t0`, which was to end on `t1`; that is, on `end`, as the method was told."""
        if step.t1 is not end:
            t1 = read_rows(torch.as_tensor(step.t1, dtype=torch.float64).reshape(-1))
        if step.work is not None:
            self.work += step.work.by_row(len(self.work))
        return TakenSteps(self, t0, t1, step)

    def within(self, taken: TakenSteps) -> WithinSteps:
        """The solutions within the steps."""
        return self.method.interpolant_rows(self.one_sided, taken.step)

    def errors(self, taken: TakenSteps) -> np.ndarray:
        """The scaled errors of the steps."""
        step = taken.step
        assert step.error is not None
        errors = self.norm.rows(step.error, step.y0, step.y1)
        return errors if step.failure is None else np.where(taken.failed, np.inf, errors)

    def judge(
        self,
        controller: PIDController,
        taken: TakenSteps,
        errors: np.ndarray,
        proposed: np.ndarray,
        history: RowHistory,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which steps to accept, the sizes of the next, and the errors to remember of the accepted ones."""
        length = np.abs(taken.t1 - taken.t0)
        return size_next_steps(controller, self.method, self.norm, taken.step, errors, length, proposed, history)

    def at_orders(self, carry: Any, orders: np.ndarray) -> Any:
        """The carry with which the rows take steps again of which these orders were recorded."""
        return self.method.again_at(carry, orders)

    def choose_carry(self, step: Step, accept: np.ndarray) -> Any:
        """The carry of the next step: that of an accepted step, or that of a step to be taken again."""
        if accept.all():
            return step.carry
        if not accept.any():
            return step.retry
        return map_rows(choice(accept), step.carry, step.retry)

    def take_carry(self, carry: Any, rows: Tensor) -> Any:
        """The carry of a choice of these rows."""
        return map_rows(lambda x: x.index_select(0, rows.to(x.device)), carry)

    def put_carry(self, carry: Any, rows: Tensor, other: Any) -> Any:
        """The carry, with `other` for some of these rows."""
        return map_rows(lambda x, y: x.index_copy(0, rows.to(x.device), y.to(x.dtype)), carry, other)


class SingleStepper(Stepper):
    """Takes steps of one row, as a solve of that row alone does."""

    def step(
        self, t0: np.ndarray, t1: np.ndarray, y: Tensor, carry: Any, ends: tuple[Tensor, Tensor] | None = None
    ) -> TakenSteps:
        start, end = float(t0[0]), float(t1[0])
        func = one_sided(self.problem, self.rows, self.func, t0, t1)
        self.one_sided = self.problem.stops.function(func, start, end, self._time)
        times = (start, end) if ends is None else (ends[0].reshape(()), ends[1].reshape(()))
        return self._taken(t0, t1, times[1], self.method.step(self.one_sided, *times, y, carry))

    def within(self, taken: TakenSteps) -> WithinSteps:
        return EachWithin([self.method.interpolant(self.one_sided, taken.step)])

    def _time(self, t: float) -> Tensor:
        return time_scalar(t, self.problem.real_dtype, self.problem.y0.device)

    def errors(self, taken: TakenSteps) -> np.ndarray:
        step = taken.step
        if step.failure is not None:
            return np.array([math.inf])
        assert step.error is not None
        return np.array([self.norm(step.error, step.y0, step.y1)])

    def judge(
        self,
        controller: PIDController,
        taken: TakenSteps,
        errors: np.ndarray,
        proposed: np.ndarray,
        history: RowHistory,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before = History(float(history.last[0]), float(history.before_last[0]), bool(history.rejected[0]))
        length = float(abs(taken.t1[0] - taken.t0[0]))
        decision = size_next_step(
            controller, self.method, self.norm, taken.step, float(errors[0]), length, float(proposed[0]), before
        )
        return np.array([decision.accept]), np.array([decision.h]), np.array([decision.history.last])

    def at_orders(self, carry: Any, orders: np.ndarray) -> Any:
        return self.method.again_at(carry, int(orders[0]))

    def choose_carry(self, step: Step, accept: np.ndarray) -> Any:
        return step.carry if accept[0] else step.retry

    def take_carry(self, carry: Any, rows: Tensor) -> Any:
        return carry

    def put_carry(self, carry: Any, rows: Tensor, other: Any) -> Any:
        return other if len(rows) else carry


def carry_to_keep(method: Method, carry: Any) -> Any:
    """What is kept of the carry of rows: of many nothing, if it is slopes that can be computed anew."""
    return method.carry_to_keep(carry) if method.rows_keep_carry else None


def make_stepper(problem: RowProblem, method: Method, norm: ErrorNorm, rows: np.ndarray) -> Stepper:
    """What takes the steps of a choice of the rows; without batch dimensions, as the engine of one row takes them."""
    return (Stepper if problem.batched else SingleStepper)(problem, method, norm, rows)
