"""The accepted steps of the rows, taken again so that a gradient can flow through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torchivp.generators import Generators
from torchivp.gradients.draws import Drawn, RepeatedDraws
from torchivp.gradients.moving_time import Slope, event_time, moved
from torchivp.methods.method import Method
from torchivp.rows.changes import apply_firing, changes_state, event_on, function_on, groups
from torchivp.rows.loop import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.record import ChangeRecord, Firing, RowCheckpoint, RowOutputs, RowTrail
from torchivp.rows.steps import SingleStepper, TakenSteps, make_stepper
from torchivp.torch_func import derivatives_enabled, moves


def at_moving_time(
    problem: RowProblem, firing: Firing, rows: np.ndarray, t: np.ndarray, y: Tensor
) -> tuple[Tensor, Tensor]:
    """When something happens, [n, 1], and the states then, as functions of all that they depend on.

    Args:
        problem: the problem.
        firing: what happens.
        rows: in which rows.
        t: when.
        y: the states at these times, as functions of all but the times.
    """
    time = problem.user_time(t)
    # An event tells when it is; what is scheduled for the same time does not move it.
    number, column = next((entry for entry in firing if entry[1] < 0), firing[0])
    action = problem.actions[number]
    if action.g is None:
        if action.moving is None:
            return time, y
        moving = action.moving[torch.from_numpy(rows), column].to(y.device, time.dtype).unsqueeze(1)
        return moving, moved(y, _slopes(problem, rows, time, y), moving)
    if not derivatives_enabled():
        return time, y
    function = event_on(problem, action, rows)
    with torch.enable_grad():
        leaf_t, leaf_y = time.detach().requires_grad_(), y.detach().requires_grad_()
        value = function(leaf_t, leaf_y).sum()
    if not value.requires_grad:  # an event function of booleans, say
        return time, y
    g_t, g_y = torch.autograd.grad(value, (leaf_t, leaf_y), allow_unused=True)
    slopes = _slopes(problem, rows, time, y)
    slope = torch.zeros_like(time) if g_t is None else g_t
    if g_y is not None:
        slope = slope + (g_y.conj() * slopes.value).real.sum(1, keepdim=True).to(slope.dtype)
    when = event_time(function(time, y).to(time.dtype), Slope(slope, slopes.drawn), time)
    return when, moved(y, slopes, when)


def _slopes(problem: RowProblem, rows: np.ndarray, t: Tensor, y: Tensor) -> Slope:
    return Slope.of(function_on(problem, rows), t, y)


def after_change(problem: RowProblem, firing: Firing, rows: np.ndarray, t: np.ndarray, y: Tensor) -> Tensor:
    """The states with which to go on at the times `t` after what happens then, as functions of all they depend on.

    What happens moves in time: the state before it changes with the slope there, the state after it is brought back to
    the same time with its own slope (the saltation of hybrid systems).
    """
    if not changes_state(problem, firing):
        return y
    when, before = at_moving_time(problem, firing, rows, t, y)
    after = apply_firing(problem, firing, rows, when, before)
    if not moves(when):
        return after
    slopes = _slopes(problem, rows, problem.user_time(t), after)
    return moved(after, slopes.back, when)


@dataclass
class ReplayedSteps:
    """What steps that were taken again lead to.

    Attributes:
        outputs: the outputs that lie in them.
        places: which of all changes happened in them, those reported within them included.
        before: the states before these changes, [n, size].
        rows: the rows that go on after the last of the steps.
        y: their states, [m, size].
        carry: what the method carries on.
    """

    outputs: RowOutputs
    places: np.ndarray
    before: list[Tensor]
    rows: np.ndarray
    y: Tensor
    carry: Any


class Replay:
    """The way that a solve of rows has taken.

    Args:
        plan: how it was solved.
        trail: the steps.
        changes: all that happened.
        drawn: what the generators were for each step of all rows; None if func draws no numbers.
    """

    def __init__(
        self, plan: RowIntegration, trail: RowTrail, changes: ChangeRecord, drawn: Sequence[Drawn] | None = None
    ):
        self.plan = plan
        self.method = plan.make_method()
        self.trail = trail
        self._ends = trail.ends()
        self.steps = trail.steps
        self.most = int(trail.steps.max(initial=0))
        self.changes = changes
        self._changes_after = self._by_step(~changes.within)
        self._reports_in = self._by_step(changes.within)
        self._orders = trail.orders
        self._generators = Generators(plan.problem.y0.device)
        self.drawn = drawn

    def _by_step(self, which: np.ndarray) -> list[np.ndarray]:
        """The places of a choice of the changes, step by step."""
        chosen = np.flatnonzero(which)
        order = chosen[np.argsort(self.changes.steps[chosen], kind="stable")]
        bounds = np.searchsorted(self.changes.steps[order], np.arange(self.most + 2)).tolist()
        return [order[a:b] for a, b in pairwise(bounds)]

    def run(
        self, problem: RowProblem, start: RowCheckpoint, y: Tensor, carry: Any, last: int, dense: bool = False
    ) -> ReplayedSteps:
        """Take the steps after `start`, up to number `last`, again from the states `y`, [rows, size].

        `dense` says whether to keep the solutions within them.
        """
        if self.drawn is None:
            return self._run(problem, start, y, carry, last, self.method, dense)
        with self._generators.kept():
            drawn = self.drawn[start.step : last]
            method = RepeatedDraws(self.method, self._generators, drawn, problem.real_dtype)
            return self._run(problem, start, y, carry, last, cast("Method", method), dense)

    def _run(
        self, problem: RowProblem, start: RowCheckpoint, y: Tensor, carry: Any, last: int, method: Method, dense: bool
    ) -> ReplayedSteps:
        outputs = RowOutputs(problem.times, dense)
        outputs.resume(start.next)
        replayed = ReplayedSteps(outputs, np.zeros(0, dtype=np.int64), [], np.arange(problem.rows), y, carry)
        # Events were looked for within every step, and what that draws the step after it goes on from.
        watched = self.drawn is not None and any(action.g is not None for action in problem.actions)
        if start.step == 0:
            self._change(problem, replayed, 0, problem.times.start)
            outputs.end(replayed.rows, problem.times.start, replayed.y)
            self._finish(problem, replayed, 0)
        stepper = None
        for n in range(start.step, last):
            going = self.steps[replayed.rows] > n
            if stepper is None or not going.all():
                keep = problem.select(np.flatnonzero(going))
                replayed.rows, replayed.y = replayed.rows[going], replayed.y[keep]
                stepper = make_stepper(problem, method, self.plan.norm, replayed.rows)
                replayed.carry = stepper.take_carry(replayed.carry, keep)
            rows = replayed.rows
            t0, t1 = self._ends[rows, n], self._ends[rows, n + 1]
            if isinstance(stepper, SingleStepper) and (order := self._orders[n]) is not None:
                replayed.carry = stepper.method.at_order(replayed.carry, order)
            steps = stepper.step(t0, t1, replayed.y, replayed.carry)
            if watched:
                steps.within()
            outputs.step(rows, t0, t1, steps.within)
            self._report(problem, replayed, n + 1, steps)
            replayed.y, replayed.carry = steps.y1, steps.step.carry
            self._change(problem, replayed, n + 1, self._ends[:, n + 1])
            outputs.end(rows, t1, replayed.y)
            self._finish(problem, replayed, n + 1)
        return replayed

    def _finish(self, problem: RowProblem, replayed: ReplayedSteps, step: int) -> None:
        """The rows that take no step after that with this number have come to their last state."""
        through = self.steps[replayed.rows] == step
        if through.any():
            rows = replayed.rows[through]
            replayed.outputs.finish(rows, self._ends[rows, step], replayed.y[problem.select(through)])

    def _report(self, problem: RowProblem, replayed: ReplayedSteps, step: int, steps: TakenSteps) -> None:
        """The states at the events reported within the step with this number."""
        places = self._reports_in[step]
        if len(places):
            replayed.places = np.concatenate([replayed.places, places])
            where = problem.select(_positions(problem, replayed)[self.changes.rows[places]])
            replayed.before.append(steps.within().at(where, self.changes.theta[places]))

    def _change(self, problem: RowProblem, replayed: ReplayedSteps, step: int, t: np.ndarray) -> None:
        """What happens after the step with this number, at the times `t` of all rows."""
        places = self._changes_after[step]
        if not len(places):
            return
        where = _positions(problem, replayed)[self.changes.rows[places]]
        firings = [self.changes.firings[i] for i in places]
        replayed.places = np.concatenate([replayed.places, places])
        y, anew = replayed.y, []
        replayed.before.append(y[problem.select(where)])
        for firing, chosen in groups(firings).items():
            if changes_state(problem, firing):
                there, rows = problem.select(where[chosen]), self.changes.rows[places[chosen]]
                before = y[there]
                replayed.outputs.before_change(rows, t[rows], before)
                y = y.index_copy(0, there, after_change(problem, firing, rows, t[rows], before))
                anew.append(where[chosen])
        replayed.y = y
        if anew and replayed.carry is not None:  # these rows go on as they did when they were solved
            places = np.concatenate(anew)
            there, rows = problem.select(places), replayed.rows[places]
            slopes = function_on(problem, rows)(problem.user_time(t[rows]), y[there]).clone()
            carry = self.method.initial_carry(slopes)
            stepper = make_stepper(problem, self.method, self.plan.norm, replayed.rows)
            replayed.carry = stepper.put_carry(replayed.carry, there, carry)


def _positions(problem: RowProblem, replayed: ReplayedSteps) -> np.ndarray:
    """The place of every row among those that go on, -1 for the others."""
    position = np.full(problem.rows, -1)
    position[replayed.rows] = np.arange(len(replayed.rows))
    return position


def join_changes(changes: Sequence[ChangeRecord], problem: RowProblem) -> ChangeRecord:
    """All that happened as one record."""
    if not changes:
        empty = np.zeros(0, dtype=np.int64)
        return ChangeRecord(empty, empty, np.zeros(0), [], problem.y0.detach()[:0], np.zeros(0))
    return ChangeRecord(
        np.concatenate([change.rows for change in changes]),
        np.concatenate([change.steps for change in changes]),
        np.concatenate([change.t for change in changes]),
        [firing for change in changes for firing in change.firings],
        torch.cat([change.y for change in changes]),
        np.concatenate([change.theta for change in changes]),
    )
