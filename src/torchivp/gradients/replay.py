"""The accepted steps of the rows, taken again so that a gradient can flow through them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torchivp.generators import Generators
from torchivp.gradients.draws import RepeatedDraws, drawn_together
from torchivp.gradients.moving_time import Slope, carried_on, event_time, moved
from torchivp.gradients.step_ends import StepEnds
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import Method
from torchivp.record import Checkpoint, Firing, Record
from torchivp.rows.changes import apply_firing, changes_state, event_on, function_after, function_before, groups
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import Carry, RowOutputs
from torchivp.rows.steps import Stepper, TakenSteps, make_stepper
from torchivp.torch_func import derivatives_enabled, moves


def at_moving_time(
    problem: RowProblem, firing: Firing, rows: np.ndarray, end: np.ndarray | Tensor, y: Tensor, is_own: bool = False
) -> tuple[Tensor, Tensor]:
    """When something happens, [n, 1], and the states then, as functions of all that they depend on.

    Args:
        problem: the problem.
        firing: what happens.
        rows: in which rows.
        end: the ends of the steps that lead there, numbers [n], or a tensor [n, 1] where they move.
        y: the states at these ends.
        is_own: whether the ends move just as what is scheduled for them.
    """
    time = problem.user_time(end)
    # An event tells when it is; what is scheduled for the same time does not move it.
    number, column = next((entry for entry in firing if entry[1] < 0), firing[0])
    action = problem.actions[number]
    if action.g is None:
        if is_own or (action.moving is None and not isinstance(end, Tensor)):
            return time, y
        assert action.times is not None
        series = torch.from_numpy(action.times) if action.moving is None else action.moving
        moving = series[torch.from_numpy(rows), column].to(y.device, time.dtype).unsqueeze(1)
        return moving, moved(y, _slopes(problem, rows, end, y), time.detach() + (moving - time))
    if not derivatives_enabled():
        return time, y
    function = event_on(problem, action, rows)
    with torch.enable_grad():
        leaf_t, leaf_y = time.detach().requires_grad_(), y.detach().requires_grad_()
        value = function(leaf_t, leaf_y).sum()
    if not value.requires_grad:  # an event function of booleans, say
        return time, y
    g_t, g_y = torch.autograd.grad(value, (leaf_t, leaf_y), allow_unused=True)
    slopes = _slopes(problem, rows, end, y)
    slope = torch.zeros_like(time) if g_t is None else g_t
    if g_y is not None:
        slope = slope + (g_y.conj() * slopes.value).real.sum(1, keepdim=True).to(slope.dtype)
    when = event_time(function(time, y).to(time.dtype), Slope(slope, slopes.drawn), time)
    return when, moved(y, slopes, when)


def _slopes(problem: RowProblem, rows: np.ndarray, end: np.ndarray | Tensor, y: Tensor, after: bool = False) -> Slope:
    """The slopes at the ends of steps, as the steps have them, or those after what happens there."""
    t = end.detach().squeeze(1).cpu().numpy() if isinstance(end, Tensor) else end
    func = (function_after if after else function_before)(problem, rows, t)
    return Slope.of(slopes_of(func), problem.user_time(end), y)


def after_change(
    problem: RowProblem, firing: Firing, rows: np.ndarray, end: np.ndarray | Tensor, y: Tensor, is_own: bool = False
) -> Tensor:
    """The states with which to go on from the ends of steps after what happens, as functions of all they depend on.

    What happens moves against the end of the step: the state before it changes with the slope there, the state after it
    is brought back to the same time with its own slope (the saltation of hybrid systems). The arguments are those of
    `at_moving_time`.
    """
    if not changes_state(problem, firing):
        return y
    when, before = at_moving_time(problem, firing, rows, end, y, is_own)
    after = apply_firing(problem, firing, rows, when, before)
    time = problem.user_time(end)
    if is_own or not (moves(when) or moves(time)):
        return after
    slopes = _slopes(problem, rows, end, after, after=True)
    return moved(after, slopes.back, time.detach() + (when - time))


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
        evaluations: how often func was called for each of all rows.
    """

    outputs: RowOutputs
    places: np.ndarray
    before: list[Tensor]
    rows: np.ndarray
    y: Tensor
    carry: Any
    evaluations: np.ndarray


class Replay:
    """The way that a solve of rows has taken.

    Args:
        plan: how it was solved.
        record: what it has left behind.

    Attributes:
        checkpoints: from where steps can be taken again.
        most: the largest number of steps of a row.
        drawn: what the generators were for each step of all rows; None if func draws no numbers.

    Raises:
        RuntimeError: func draws random numbers, and cannot draw the same again.
    """

    def __init__(self, plan: RowIntegration, record: Record):
        self.plan = plan
        self.method = plan.make_method()
        self.ends, self.steps, self._orders, self.changes = record.ends, record.steps, record.orders, record.changes
        self.most = int(record.steps.max(initial=0))
        self.drawn = drawn_together(record)
        self._keeps_carry = record.keeps_carry
        self.checkpoints = record.checkpoints
        if self.drawn is not None and not record.keeps_carry:  # drawn anew, the carry would be another
            afresh = {0, *(n for n, drawn in enumerate(self.drawn) if not drawn.carried)}
            self.checkpoints = [checkpoint for checkpoint in record.checkpoints if checkpoint.step in afresh]
        self._changes_after = self._by_step(~self.changes.within)
        self._reports_in = self._by_step(self.changes.within)
        self._generators = Generators(plan.problem.y0.device)

    def _by_step(self, which: np.ndarray) -> list[np.ndarray]:
        """The places of a choice of the changes, step by step."""
        chosen = np.flatnonzero(which)
        order = chosen[np.argsort(self.changes.steps[chosen], kind="stable")]
        bounds = np.searchsorted(self.changes.steps[order], np.arange(self.most + 2)).tolist()
        return [order[a:b] for a, b in pairwise(bounds)]

    def run(
        self, problem: RowProblem, start: Checkpoint, y: Tensor, carry: Any, last: int, dense: bool = False
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
        self, problem: RowProblem, start: Checkpoint, y: Tensor, carry: Any, last: int, method: Method, dense: bool
    ) -> ReplayedSteps:
        ends = StepEnds.of(self.ends, problem, self.changes, self.plan.controller)
        outputs = RowOutputs(problem.times, dense, None if ends is None else _asked(problem))
        outputs.resume(start.next)
        none, count = np.zeros(0, dtype=np.int64), np.zeros(problem.rows, dtype=np.int64)
        replayed = ReplayedSteps(outputs, none, [], np.arange(problem.rows), y, carry, count)
        # Events were looked for within every step, and the step after it goes on from what that draws and hands on.
        goes_on = self.drawn is not None or self._keeps_carry
        watched = goes_on and any(action.g is not None for action in problem.actions)
        if start.step == 0:
            self._change(problem, replayed, 0, ends)
            outputs.end(replayed.rows, problem.times.start, replayed.y, self._carry(problem, ends, 0))
            self._finish(problem, replayed, 0)
        stepper = None
        for n in range(start.step, last):
            going = self.steps[replayed.rows] > n
            if stepper is None or not going.all():
                _count(replayed, stepper)
                keep = problem.select(np.flatnonzero(going))
                replayed.rows, replayed.y = replayed.rows[going], replayed.y[keep]
                stepper = make_stepper(problem, method, self.plan.norm, replayed.rows)
                replayed.carry = stepper.take_carry(replayed.carry, keep)
            rows = replayed.rows
            t0, t1 = self.ends[rows, n], self.ends[rows, n + 1]
            if problem.stops.jump_times and t0[0] in problem.stops.jump_times:
                replayed.carry = None
            moving = None if ends is None else (ends.of_steps(rows, n), ends.of_steps(rows, n + 1))
            if self._orders is not None:
                replayed.carry = stepper.at_orders(replayed.carry, self._orders[rows, n])
            steps = stepper.step(t0, t1, replayed.y, replayed.carry, moving)
            if watched:
                steps.within()
            outputs.step(rows, t0, t1, steps.within, moving)
            self._report(problem, replayed, n + 1, steps, moving)
            replayed.y, replayed.carry = steps.y1, steps.step.carry
            self._change(problem, replayed, n + 1, ends)
            outputs.end(rows, t1, replayed.y, self._carry(problem, ends, n + 1, stepper))
            self._finish(problem, replayed, n + 1)
        _count(replayed, stepper)
        return replayed

    def _finish(self, problem: RowProblem, replayed: ReplayedSteps, step: int) -> None:
        """The rows that take no step after that with this number have come to their last state."""
        through = self.steps[replayed.rows] == step
        if through.any():
            rows = replayed.rows[through]
            replayed.outputs.finish(rows, self.ends[rows, step], replayed.y[problem.select(through)])

    def _carry(
        self, problem: RowProblem, ends: StepEnds | None, step: int, stepper: Stepper | None = None
    ) -> Carry | None:
        """Carries outputs at the end of the step with this number to their times, which move on their own.

        `stepper` has taken the step.
        """
        asked = _asked(problem)
        if ends is None or asked is None or not ends.loose.any():
            return None

        def carry(rows: np.ndarray, places: np.ndarray, y: Tensor) -> Tensor:
            loose = np.flatnonzero(ends.loose[rows, places])
            if not len(loose):
                return y
            where, rows, places = problem.select(loose), rows[loose], places[loose]
            end = ends.of_steps(rows, step)
            motion = asked[torch.from_numpy(rows), torch.from_numpy(places)].unsqueeze(1) - end
            if stepper is not None and problem.stops.avoid_ends:  # of one row
                func = stepper.one_sided
            else:
                func = function_after(problem, rows, self.ends[rows, step])
            moving = carried_on(slopes_of(func), y[where], problem.user_time(end), problem.user_time(motion))
            return y.index_copy(0, where, moving)

        return carry

    def _report(
        self,
        problem: RowProblem,
        replayed: ReplayedSteps,
        step: int,
        steps: TakenSteps,
        ends: tuple[Tensor, Tensor] | None,
    ) -> None:
        """The states at the events reported within the step with this number; `ends` are its ends, if they move."""
        places = self._reports_in[step]
        if not len(places):
            return
        replayed.places = np.concatenate([replayed.places, places])
        where = torch.from_numpy(_positions(problem, replayed)[self.changes.rows[places]])
        t, theta = self.changes.t[places], self.changes.theta[places]
        if ends is not None:
            start, end = (x.squeeze(1)[where] for x in ends)
            theta = (torch.from_numpy(t) - start) / (end - start)
            replayed.before.append(steps.within().at(where, theta, t))
            return
        replayed.before.append(steps.within().at(where, theta))

    def _change(self, problem: RowProblem, replayed: ReplayedSteps, step: int, ends: StepEnds | None) -> None:
        """What happens after the step with this number."""
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
                before, t = y[there], self.ends[rows, step]
                replayed.outputs.before_change(rows, t, before)
                end, is_own = end_of(ends, firing, rows, t, step)
                y = y.index_copy(0, there, after_change(problem, firing, rows, end, before, is_own))
                anew.append(where[chosen])
        replayed.y = y
        if anew and replayed.carry is not None:  # these rows go on as they did when they were solved
            places = np.concatenate(anew)
            there, rows = problem.select(places), replayed.rows[places]
            end = self.ends[rows, step] if ends is None else ends.of_steps(rows, step)
            func = function_after(problem, rows, self.ends[rows, step])
            slopes = slopes_of(func)(problem.user_time(end), y[there]).clone()
            carry = self.method.initial_carry(slopes)
            stepper = make_stepper(problem, self.method, self.plan.norm, replayed.rows)
            replayed.carry = stepper.put_carry(replayed.carry, there, carry)


def end_of(
    ends: StepEnds | None, firing: Firing, rows: np.ndarray, t: np.ndarray, step: np.ndarray | int
) -> tuple[np.ndarray | Tensor, bool]:
    """The ends of steps at which something happens, and whether they move just as what is scheduled for them."""
    if ends is None:
        return t, False
    is_own = all(column >= 0 for _, column in firing) and ends.owner[rows, step] == StepEnds.SCHEDULED + firing[0][0]
    return ends.of_steps(rows, step), bool(np.all(is_own))


def _asked(problem: RowProblem) -> Tensor | None:
    """The requested times, [rows, T], of which those that move are functions of the user's; None if there are none."""
    moving, outputs = problem.moving.outputs, problem.times.outputs
    return torch.from_numpy(outputs) if moving is None and outputs is not None else moving


def _count(replayed: ReplayedSteps, stepper: Stepper | None) -> None:
    if stepper is not None:
        replayed.evaluations[stepper.rows] += stepper.func.evaluations


def _positions(problem: RowProblem, replayed: ReplayedSteps) -> np.ndarray:
    """The place of every row among those that go on, -1 for the others."""
    position = np.full(problem.rows, -1)
    position[replayed.rows] = np.arange(len(replayed.rows))
    return position
