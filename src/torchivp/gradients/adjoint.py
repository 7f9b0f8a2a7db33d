"""The continuous adjoint of a solve of rows, each row solved backwards on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm, Tolerance
from torchivp.generators import Generators
from torchivp.gradients.backsolve import Backsolve, failed_backwards
from torchivp.gradients.captured import LateLeaves
from torchivp.gradients.draws import APPLY_NOT_REPEATED, is_repeated, solving_backwards
from torchivp.gradients.drift import Drift
from torchivp.gradients.refusals import refuse_preconditioner
from torchivp.gradients.replay import after_change
from torchivp.gradients.step_ends import StepEnds
from torchivp.gradients.vjp import vjp
from torchivp.integrate import Controller, at_steps, check_controller
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.record import Firing, Record
from torchivp.rows.changes import function_after, function_before, function_on, groups, rounds
from torchivp.rows.function import RowByRow
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import Action, RowProblem
from torchivp.rows.recorders import RowOutputs, RowTrail, WithinSteps
from torchivp.rows.times import RowTimes
from torchivp.solution import SolveError, Stats


class _Inputs(Protocol):
    problem: RowProblem
    late: LateLeaves

    def on_leaves(self, y: Tensor) -> tuple[RowProblem, list[Tensor]]: ...


class _Solved(Protocol):
    plan: RowIntegration
    times: np.ndarray
    last: np.ndarray
    record: Record
    stats: list[Stats]

    @property
    def inputs(self) -> _Inputs: ...


def check_adjoint_of_rows(plan: RowIntegration, options: Backsolve) -> None:
    """Check that the options can be had for rows.

    Raises:
        ValueError: they cannot.
    """
    method, controller = _method_and_controller(plan, options)
    if options.norm is not None:
        raise ValueError("Backsolve(norm=...) does not go with batch_dims or events: leave it out")
    check_controller(controller, method)
    refuse_preconditioner(method)


def _method_and_controller(plan: RowIntegration, options: Backsolve) -> tuple[type[Method], Controller]:
    """What the backward solve is taken with."""
    controller = options.controller or plan.controller
    return at_steps(plan.method if options.method is None else find_method(options.method), controller), controller


def adjoint_gradients(
    solve: _Solved, options: Backsolve, states: Tensor, before: Tensor, grad: Tensor, grad_before: Tensor
) -> list[Tensor]:
    """The gradients of all inputs, given those of the outputs and of the states before what happened.

    State and adjoint of a row make up its state on the way back. The gradients of what all rows share are no part of
    it: they are integrals along the way, computed by Gauss' quadrature on the dense output of every accepted step.
    Where something happened, the adjoint is pulled back through it, and the state is set to the one before it; at an
    output its gradient joins, and the state is set to the output.

    Raises:
        SolveError: a row could not be solved backwards.
    """
    plan = solve.plan
    problem, leaves = solve.inputs.on_leaves(plan.problem.y0)
    way = _WayBack(solve, grad, grad_before)
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    rows = np.flatnonzero(way.matters)
    if not len(rows):
        return totals
    size = problem.y0.shape[1]
    late = solve.inputs.late
    function = _AdjointFunction(problem, rows, size, leaves, late)
    drift = Drift(states, grad, plan.norm.rtol, plan.norm.atol)
    joins = _Joins(problem, way, rows, (states, before, grad, grad_before), leaves, totals, late, drift)
    table = way.times[rows]
    columns = torch.arange(table.shape[1]).expand(len(rows), -1)
    action = Action(apply=joins, times=table, values=columns)  # pyright: ignore[reportArgumentType]
    start = table[:, 0]
    backward = RowProblem(
        function,  # pyright: ignore[reportArgumentType]
        states.new_zeros(len(rows), 2 * size),
        RowTimes(start, plan.problem.times.start[rows], np.zeros((len(rows), 0))),
        [action],
        problem.real_dtype,
    )
    method, controller = _method_and_controller(plan, options)
    integral = _Integral(backward.times, problem, rows, leaves, totals, method.order)
    integration = RowIntegration(
        backward,
        method,
        controller,
        _norm(plan, options, problem, rows),
        plan.max_steps if options.max_steps is None else options.max_steps,
        lambda i: f"element {i} of the state" if i < size else f"element {i - size} of the adjoint",
    )
    with late.watching(), solving_backwards("gradient='backsolve'", backward.y0.device):
        status, stats = integration.run(integral, RowTrail(backward.y0, start, 0, replayable=False))
    for row, ended, cost in zip(rows, status, stats, strict=True):
        solve.stats[row].backward = cost
        if not ended.ok:
            raise SolveError(failed_backwards(f"in the backward solve of row {row}", ended))
    chosen = problem.select(rows)
    drift.compare(integral.final[:, :size], problem.y0[chosen], integral.final[:, size:], chosen)
    drift.warn()
    totals[0][chosen] = integral.final[:, size:]
    for i, gradient in enumerate(_of_times(solve, problem, leaves, states, grad, before, grad_before, totals[0])):
        if gradient is not None:
            totals[i] = totals[i] + gradient
    return totals


def _of_times(
    solve: _Solved,
    problem: RowProblem,
    leaves: Sequence[Tensor],
    states: Tensor,
    grad: Tensor,
    before: Tensor,
    grad_before: Tensor,
    adjoint: Tensor,
) -> Sequence[Tensor | None]:
    """The gradients that come of times that move: <dL/dy, f> at an output and before a change, -<a, f> at the start."""
    ends, changes, rows = solve.record.ends, solve.record.changes, np.arange(problem.rows)
    with torch.enable_grad():
        moving = StepEnds.of(ends, problem, changes, solve.plan.controller)
        if moving is None:
            return []
        asked, count = problem.moving.outputs, 0 if problem.times.outputs is None else problem.times.outputs.shape[1]
        times = [moving.at(ends, solve.times[:, count:]), moving.table[:, :1], moving.table]
        if count:
            times.append(torch.from_numpy(problem.times.outputs) if asked is None else asked)
    with torch.no_grad(), Generators(problem.y0.device).kept():
        along = []
        for j in range(grad.shape[1]):
            t = solve.times[:, j].copy()
            slopes = function_after(problem, rows, t)(problem.user_time(t), states[:, j])
            along.append(_along(grad[:, j], slopes))
        at_outputs = torch.cat([x.cpu() for x in along], dim=1) if along else torch.zeros(problem.rows, 0)
        start = problem.times.start
        func = function_before(problem, rows, start)  # nothing has happened there yet
        at_start = -_along(adjoint, func(problem.user_time(start), problem.y0.detach()))
        at_changes = torch.zeros(ends.shape, dtype=torch.float64)
        for where in rounds(changes.rows):
            select, chosen = problem.select(where), changes.rows[where]
            slopes = function_before(problem, chosen, changes.t[where])(
                problem.user_time(changes.t[where]), before[select].detach()
            )
            share = _along(grad_before[select], slopes).cpu().squeeze(1)
            share = torch.where(torch.from_numpy(changes.within[where]), 0.0, share)
            at_changes[chosen, changes.steps[where]] += share
    seeds = [at_outputs[:, count:], at_start.cpu(), at_changes, at_outputs[:, :count]]
    return vjp(times, [seed.to(t.dtype) for seed, t in zip(seeds, times, strict=False)], leaves)


def _along(grad: Tensor, slope: Tensor) -> Tensor:
    """How what the gradient belongs to changes with the time of each row, [rows, 1]."""
    # A row that nobody asks about contributes nothing, whatever its slope.
    return torch.where(grad != 0, grad.conj() * slope, 0.0).real.sum(1, keepdim=True).to(torch.float64)


def _norm(plan: RowIntegration, options: Backsolve, problem: RowProblem, rows: np.ndarray) -> ErrorNorm:
    layout, size = problem.func.layout, problem.y0.shape[1]
    rtol, atol = options.tolerances(plan.norm, layout)

    def doubled(tolerance: Tolerance) -> Tolerance:
        if not isinstance(tolerance, Tensor):
            return tolerance
        chosen = tolerance[problem.select(rows)] if len(tolerance) > 1 else tolerance
        return torch.cat([chosen, chosen], dim=1)

    parts = [slice(part.start + i, part.stop + i) for i in (0, size) for part in layout.parts()]
    return ErrorNorm(doubled(rtol), doubled(atol), parts, layout.dtype)


class _WayBack:
    """What there is on the way back of every row, in order.

    Attributes:
        changes: all that happened.
        times: when, [rows, n], NaN for nothing.
        kinds: 0 for an output, 1 for a change, [rows, n].
        places: the place of the output in its row, or the number of the change, [rows, n].
        matters: in which rows there is a gradient at all.
    """

    def __init__(self, solve: _Solved, grad: Tensor, grad_before: Tensor):
        self.changes = solve.record.changes
        changes, rows = solve.record.changes, solve.plan.problem.rows
        asked = (grad != 0).any(2).cpu().numpy() if grad.numel() else np.zeros(grad.shape[:2], dtype=bool)
        asked_before = (grad_before != 0).any(1).cpu().numpy() if len(grad_before) else np.zeros(0, dtype=bool)
        of_row: list[list[int]] = [[] for _ in range(rows)]
        for number, row in enumerate(changes.rows):
            of_row[row].append(number)
        lists = [self._of(solve, row, of_row[row], asked[row], asked_before) for row in range(rows)]
        most = max(map(len, lists), default=0)
        self.times = np.full((rows, most), math.nan)
        self.kinds, self.places = np.zeros((2, rows, most), dtype=np.int64)
        for row, entries in enumerate(lists):
            for column, (t, kind, place) in enumerate(entries):
                self.times[row, column] = t
                self.kinds[row, column], self.places[row, column] = kind, place
        self.matters = np.array([bool(entries) for entries in lists])

    @staticmethod
    def _of(
        solve: _Solved, row: int, numbers: Sequence[int], asked: np.ndarray, asked_before: np.ndarray
    ) -> list[tuple[float, int, int]]:
        """From the last entry with a gradient on, in the order of the way back."""
        changes, kept = solve.record.changes, int(solve.last[row]) + 1
        times = solve.times[row, :kept]
        order = times * solve.plan.problem.times.direction[row]
        twice = solve.plan.problem.times.outputs is None
        entries: list[tuple[float, int, int]] = []
        j = 0
        for number in numbers:
            if not (asked_before[number] or np.isnan(changes.theta[number])):
                continue  # an event that was merely reported, and that nobody asks about
            t = float(changes.t[number])
            at = t * solve.plan.problem.times.direction[row]
            while j < kept and order[j] < at:
                entries.append((float(times[j]), 0, j))
                j += 1
            if twice and j + 1 < kept and order[j] == at == order[j + 1]:  # the state before the change was kept too
                entries.append((t, 0, j))
                j += 1
            entries.append((t, 1, number))
        entries += [(float(times[i]), 0, i) for i in range(j, kept)]
        while entries and not (asked_before if entries[-1][1] else asked)[entries[-1][2]]:
            entries.pop()
        return entries[::-1]


class _OnRows(RowByRow):
    """A function of the backward problem for a choice of its rows."""

    def __init__(self, call: Any):
        super().__init__()
        self._call = call

    def __call__(self, t: Tensor, z: Tensor, *extra: Tensor) -> Tensor:
        self.calls += 1
        return self._call(t, z, *extra)


class _AdjointFunction:
    """The right-hand side for state and adjoint, side by side."""

    row_wise = True

    def __init__(self, problem: RowProblem, rows: np.ndarray, size: int, leaves: Sequence[Tensor], late: LateLeaves):
        self._problem = problem
        self._rows = rows
        self._size = size
        self._leaves = leaves
        self._late = late

    def on(self, rows: Tensor | None) -> _OnRows:
        chosen = self._rows if rows is None else self._rows[rows.cpu().numpy()]
        func, size = function_on(self._problem, chosen), self._size

        def evaluate(t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
            with torch.enable_grad():
                y = y if y.requires_grad else y.detach().requires_grad_()
                return func(t, y), [y, *self._leaves]

        def slopes(t: Tensor, z: Tensor) -> Tensor:
            differentiated = z.requires_grad  # by an implicit method
            slope, leaves = evaluate(t, z[:, :size])
            if strangers := self._late.among(slope, [*leaves, t]):
                self._late.meet(strangers, partial(evaluate, t.detach().clone(), z[:, :size].detach().clone()))
            if not slope.requires_grad:
                return torch.cat([slope, torch.zeros_like(slope)], dim=1)
            (found,) = vjp([slope], [-z[:, size:]], leaves[:1], create_graph=differentiated)
            slope = slope if differentiated else slope.detach()
            return torch.cat([slope, torch.zeros_like(slope) if found is None else found], dim=1)

        made = _OnRows(slopes)
        made.of_rows = lambda some: self.on(some if rows is None else rows[some])
        return made


class _Joins:
    """Where something happens on the way back, or an output lies."""

    def __init__(
        self,
        problem: RowProblem,
        way: _WayBack,
        rows: np.ndarray,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        leaves: Sequence[Tensor],
        totals: list[Tensor],
        late: LateLeaves,
        drift: Drift,
    ):
        self._problem = problem
        self._late = late
        self._drift = drift
        self._way = way
        self._rows = rows
        self._states, self._before, self._grad, self._grad_before = tensors
        self._leaves = leaves
        self._totals = totals
        self._size = problem.y0.shape[1]

    def on(self, rows: Tensor | None) -> _OnRows:
        chosen = self._rows if rows is None else self._rows[rows.cpu().numpy()]
        return _OnRows(lambda t, z, columns: self._join(chosen, columns.cpu().numpy(), z.clone()))

    def _join(self, rows: np.ndarray, columns: np.ndarray, z: Tensor) -> Tensor:
        kinds, places = self._way.kinds[rows, columns], self._way.places[rows, columns]
        select = self._problem.select
        at_output, at_change = np.flatnonzero(kinds == 0), np.flatnonzero(kinds == 1)
        if len(passed := np.flatnonzero((kinds == 0) & (columns > 0))):  # the first is where it begins
            found = z[select(passed), : self._size]
            adjoint = z[select(passed), self._size :]
            chosen = select(rows[passed])
            self._drift.compare(found, self._states[chosen, select(places[passed])], adjoint, chosen)
        if len(at_output):
            where, entry = select(at_output), (select(rows[at_output]), select(places[at_output]))
            z[where, : self._size] = self._states[entry]
            z[where, self._size :] += self._grad[entry]
        if len(at_change):
            self._pull_back(select(at_change), places[at_change], z)
        return z

    def _pull_back(self, where: Tensor, numbers: np.ndarray, z: Tensor) -> None:
        """Through what happened: the adjoint after it becomes the adjoint before it."""
        entry = self._problem.select(numbers)
        after, leaves = self._after(numbers)
        if strangers := self._late.among(after, leaves):
            self._late.meet(strangers, partial(self._after, numbers))
        seeds = [z[where[self._problem.select(chosen)], self._size :] for chosen in self._groups(numbers).values()]
        found = vjp(after, seeds, leaves)
        assert found[0] is not None
        z[where, : self._size] = self._before[entry]
        z[where, self._size :] = found[0] + self._grad_before[entry]
        _add(self._totals, found)

    def _after(self, numbers: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
        """The states after what happened, group by group, and the leaves that they are functions of."""
        changes, after = self._way.changes, []
        before = self._before[self._problem.select(numbers)].detach().requires_grad_()
        with torch.enable_grad():
            for firing, chosen in self._groups(numbers).items():
                rows, t = changes.rows[numbers[chosen]], changes.t[numbers[chosen]]
                select = self._problem.select(chosen)
                after.append(after_change(self._problem, firing, rows, t, before[select]))
                if not is_repeated(after[-1], changes.after[self._problem.select(numbers)][select], before[select]):
                    raise RuntimeError(APPLY_NOT_REPEATED)
        return after, [before, *self._leaves[1:]]

    def _groups(self, numbers: np.ndarray) -> dict[Firing, np.ndarray]:
        return groups([self._way.changes.firings[i] for i in numbers])


@cache
def _gauss(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], exact for polynomials of twice the degree of the dense output, about."""
    nodes, weights = np.polynomial.legendre.leggauss(max(2, math.ceil((order + 1) / 2)))
    return (nodes + 1) / 2, weights / 2


class _Integral(RowOutputs):
    """Adds up the integrals of the parameters' gradients, step by step, and keeps the last states."""

    def __init__(
        self,
        times: RowTimes,
        problem: RowProblem,
        rows: np.ndarray,
        leaves: Sequence[Tensor],
        totals: list[Tensor],
        order: int,
    ):
        super().__init__(times)
        self._problem = problem
        self._numbers = rows
        self._leaves = leaves
        self._totals = totals
        self._nodes = _gauss(order)
        self.final = problem.y0.new_zeros(len(rows), 2 * problem.y0.shape[1]).detach()

    def step(
        self,
        rows: np.ndarray,
        t0: np.ndarray,
        t1: np.ndarray,
        within: Callable[[], WithinSteps],
        ends: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        parameters = self._leaves[1:]
        if not parameters:
            return
        states, size = within().at_fractions(tuple(self._nodes[0].tolist())), self._problem.y0.shape[1]
        for node, weight, z in zip(*self._nodes, states.split(len(rows)), strict=True):
            with torch.enable_grad():
                func = function_on(self._problem, self._numbers[rows])
                slope = func(self._problem.user_time(t0 + node * (t1 - t0)), z[:, :size].detach())
            if not slope.requires_grad:
                continue
            share = self._problem.time((t0 - t1) * weight).to(z.dtype)
            found = vjp([slope], [z[:, size:] * share], parameters)
            _add(self._totals, [None, *found])

    def finish(self, rows: np.ndarray, t: np.ndarray, y: Tensor) -> None:
        self.final[self._problem.select(rows)] = y


def _add(totals: list[Tensor], found: Sequence[Tensor | None]) -> None:
    """Add what was found of the gradients of the parameters, which are all but the first."""
    for i, gradient in enumerate(found):
        if i > 0 and gradient is not None:
            totals[i] = totals[i] + gradient
