"""The step loop for rows behind something faster, which takes the steps in which nothing but a step happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.method import Method, Work
from torchivp.rows.changes import all_scheduled, scheduled, side_times
from torchivp.rows.event_loop import EventLoop
from torchivp.rows.integration import RowIntegration
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.rows.targets import RowTargets, fixed_ends
from torchivp.rows.watch import RowWatch
from torchivp.solution import Outcome, Stats, Status
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.own import OwnSteps
from torchivp.torch_func import without_derivatives

_LEFT = Status(Outcome.SUCCESS, "solved by another method", float("nan"))
"""Of rows that this solve leaves to another."""


@dataclass
class Places:
    """Where rows are on their way, an entry for each of them.

    Attributes:
        rows: their numbers.
        t: the times.
        h: the sizes proposed for their next steps.
        last: the scaled errors of their last accepted steps.
        before_last: those of the ones before.
        rejected: whether their last tries were rejected.
        overflowed: whether that was because the errors were not finite.
        until: the next times that their steps must end on.
        sides: between which times func is evaluated until then, [m]; None for any.
        smallest: the sizes below which steps get nowhere, wherever the rows are.
        y: the states, [m, size].
        slopes: the slopes that their next steps start from, [m, size]; None to compute them anew.
        steps: how many steps they have taken.
        rejections: how many tries were rejected.
        next: how many outputs were kept.
        signs: the signs of the event functions, [events, m].
        values: what they are.
        levels: below which size they say nothing about the sign.
        evaluations: how often func was evaluated on the way, [m].
        work: what it has cost besides, [m, kinds], in the order of `Work`.
        stops: whether steps must end on the next of each event, [events, m].
        crossed: which event there was in the last step, -1 for none.
        when: when.
        theta: at which fraction of the step; NaN where the step ends there.
        there: the states at such events; where the steps end there, how large the elements were in them.
        waits: which are before a step that the step loop is to take.
        stiff: which are not to go on with this method.
    """

    rows: np.ndarray
    t: np.ndarray
    h: np.ndarray
    last: np.ndarray
    before_last: np.ndarray
    rejected: np.ndarray
    overflowed: np.ndarray
    until: np.ndarray
    sides: tuple[Tensor, Tensor] | None
    smallest: np.ndarray
    y: Tensor
    slopes: Tensor | None
    steps: np.ndarray
    rejections: np.ndarray
    next: np.ndarray
    signs: np.ndarray
    values: np.ndarray
    levels: np.ndarray
    stops: np.ndarray
    crossed: np.ndarray
    when: np.ndarray
    theta: np.ndarray
    there: Tensor
    evaluations: np.ndarray
    work: np.ndarray
    waits: np.ndarray
    stiff: np.ndarray


class Ahead(Protocol):
    """What takes rows ahead.

    Attributes:
        sees_time: whether func depends on time.
    """

    sees_time: bool

    def go(self, places: Places, outputs: RowOutputs) -> None:
        """Bring rows to where they must end a step, or before one in which something else may happen.

        Outputs strictly before the ends that they were to come to are kept, or those that there is room for.
        """
        ...


def run_ahead(
    plan: RowIntegration,
    outputs: RowOutputs,
    trail: RowTrail,
    method: Method,
    ahead: Ahead,
    only: np.ndarray | None = None,
) -> tuple[list[Status], list[Stats], np.ndarray]:
    """`RowIntegration.run`, where `ahead` takes the steps in which nothing happens.

    `only` says which rows to solve, None for all. The third result is which of them are left to another method, [rows].
    """
    with without_derivatives(), np.errstate(over="ignore"):
        loop = _AheadLoop(plan, outputs, trail, method, ahead, only)
        status, stats = loop.to_the_end()
        return status, stats, loop.stiff


class _AheadLoop(EventLoop):
    def __init__(
        self,
        plan: RowIntegration,
        outputs: RowOutputs,
        trail: RowTrail,
        method: Method,
        ahead: Ahead,
        only: np.ndarray | None,
    ):
        super().__init__(plan, outputs, trail, method)
        self._ahead = ahead
        self._only = only
        self.stiff = np.zeros(self.problem.rows, dtype=bool)
        self._stops: RowTargets | None = None
        if isinstance(plan.controller, ConstantSteps | GridSteps):
            times, on = self.problem.times, all_scheduled(self.problem)
            self._stops = RowTargets(OwnSteps(), times, on)
            self.targets = RowTargets(OwnSteps(), times, fixed_ends(plan.controller, times, on))

    def _begin(self) -> None:
        if self._only is not None:
            self._leave(~self._only)
            self._drop()
        super()._begin()

    def _leave(self, rows: np.ndarray) -> None:
        """Leave rows to others."""
        self.active.gone |= rows
        self.some_through |= bool(rows.any())
        for i in np.flatnonzero(rows):
            self.status[self.active.index[i]] = _LEFT

    def _iterate_to_the_end(self) -> None:
        while len(self.active.index):
            self._go_ahead()
            if self._drop():
                self._iterate()

    def _go_ahead(self) -> None:
        """Take steps ahead, until all rows are through or wait for the loop."""
        waits = self.active.done | self.active.gone
        while not waits.all():
            waits[self._go(np.flatnonzero(~waits))] = True
            waits |= self.active.done | self.active.gone

    def _go(self, where: np.ndarray) -> np.ndarray:
        """Take steps ahead in the rows at the positions `where`; returns the positions of those that wait then."""
        active, index = self.active, self.active.index[where]
        places = self._places(where)
        before = self.trail.steps[index] + self.rejected[index]
        self._ahead.go(places, self.outputs)
        self.trail.steps[index], self.rejected[index] = places.steps, places.rejections
        self.evaluations[index] += places.evaluations
        self.work[index] += places.work
        self.iterations += int((places.steps + places.rejections - before).max())
        for name in ("t", "h", "last", "before_last", "rejected", "overflowed"):
            array = getattr(active, name).copy()  # steps hold the one before
            array[where] = getattr(places, name)
            setattr(active, name, array)
        self.some_rejected, self.some_overflowed = bool(active.rejected.any()), bool(active.overflowed.any())
        select = self.problem.select(where)
        self.y = self.y.index_copy(0, select, places.y)
        if places.slopes is None:
            self.carry = None
        else:
            carry = self.carry if isinstance(self.carry, Tensor) else torch.zeros_like(self.y)
            self.carry = carry.index_copy(0, select, places.slopes)
        if self.watch is not None:
            self.watch.put_back(index, places.signs, places.values, places.levels)
            self._met_ahead(self.watch, where, places)
        self.stiff[index] |= places.stiff
        leaves = np.zeros(len(active.index), dtype=bool)
        leaves[where[places.stiff]] = True
        self._leave(leaves)
        landed = (places.crossed >= 0) & np.isnan(places.theta)
        there = (places.t == places.until) & ~places.stiff & ~landed
        if self._stops is not None:
            self.targets.pass_to(index, places.t, there)
        if there.any():
            firings = scheduled(self.problem, index[there], places.t[there]) if self.has_schedule else []
            self._go_on(where[there], places.t[there], firings)
        return where[places.waits]

    def _met_ahead(self, watch: RowWatch, where: np.ndarray, places: Places) -> None:
        """There were events in the last steps of some rows."""
        crossed, index = places.crossed >= 0, places.rows
        if not crossed.any():
            return
        landed = crossed & np.isnan(places.theta)
        if (passed := np.flatnonzero(crossed & ~landed)).size:
            event = places.crossed[passed]
            watch.reported(index[passed], event)
            y = places.there[self.problem.select(passed)]
            self._note(index[passed], event, places.when[passed], places.theta[passed], y)
        if landed.any():
            met = watch.landed(index[landed], places.crossed[landed])
            met.size = places.there[self.problem.select(np.flatnonzero(landed))]
            self._meet(where[landed], places.t[landed], met)

    def _places(self, where: np.ndarray) -> Places:
        active, index = self.active, self.active.index[where]
        select = self.problem.select(where)
        until = self.targets.of(index)
        if self._stops is not None:
            self._stops.pass_to(index, active.t[where], np.zeros(len(where), dtype=bool))
            until = self._stops.of(index)
        none = np.zeros((0, len(where)))
        signs, values, levels = (none, none, none) if self.watch is None else self.watch.known(index)
        y = self.y[select]
        no = np.zeros(len(where), dtype=bool)
        return Places(
            rows=index,
            t=active.t[where],
            h=active.h[where],
            last=active.last[where],
            before_last=active.before_last[where],
            rejected=active.rejected[where],
            overflowed=active.overflowed[where],
            until=until,
            sides=side_times(self.problem, index, active.t[where], until) if self._ahead.sees_time else None,
            smallest=self.smallest[index],
            y=y,
            slopes=self.carry[select] if isinstance(self.carry, Tensor) else None,
            steps=self.trail.steps[index],
            rejections=self.rejected[index],
            next=self.outputs.next[index],
            signs=signs,
            values=values,
            levels=levels,
            stops=none if self.watch is None else self.watch.stops(index),
            crossed=np.full(len(where), -1),
            when=none,
            theta=none,
            there=y,
            evaluations=np.zeros(len(where), dtype=np.int64),
            work=np.zeros((len(where), len(Work._fields)), dtype=np.int64),
            waits=no,
            stiff=no,
        )
