"""How `solve_ivp` solves by a compiled kernel where there are events and schedules on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.api.fused_kernels import (
    as_read,
    checked_kernel,
    field_of,
    first_slopes,
    misread,
    reads_right,
    rows_mix,
    tolerance_of,
    wanted_of,
)
from torchivp.api.rows import plan_rows, solution_of_rows
from torchivp.api.statement import Statement
from torchivp.events.event import Event, Scheduled
from torchivp.fused.eventful import KernelRows
from torchivp.fused.field import Field, Reading
from torchivp.fused.kernel import Kernel, Watched
from torchivp.fused.nvidia import on_gpu
from torchivp.fused.refusal import CannotFuse, FuncFails
from torchivp.fused.solve import Rows
from torchivp.fused.used import Used, same_values
from torchivp.gradients.inputs import Parameters, check_parameters
from torchivp.gradients.node import as_node
from torchivp.gradients.replayed import RowResult
from torchivp.gradients.row_inputs import RowInputs, search_row_inputs
from torchivp.gradients.step_ends import StepEnds
from torchivp.methods.jacobian import autograd_sees
from torchivp.methods.method import Method
from torchivp.methods.ode.auto import Auto
from torchivp.record import ChangeRecord, Record
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import Action, RowProblem
from torchivp.solution import BatchSolution, Solution, Stats
from torchivp.stepsize.pid import PIDController

NOT_SEEN = (
    "stability limits the steps of tsit5, and autograd does not see how func depends on the state, so that no other "
    "method can take over"
)
"""Why rows that were found stiff have no kernel."""

_COMPUTED = (
    "with events, kernels do not differentiate through tensors that functions use and that were computed elsewhere: "
    "pass them through args=(tensor,)"
)

_CHANGED_BY_APPLY = (
    "an apply has changed what {name} uses, and a kernel goes on with what that was: make it part of the state, with "
    "the derivative 0, or write backend='eager'"
)


def solve_with_events(
    stated: Statement, events: Sequence[Event | Scheduled], params: Sequence[Tensor] | None
) -> Solution | BatchSolution:
    """`solve_ivp` by a kernel that leaves what happens on the way to the step loop.

    Args:
        stated: the problem.
        events: what happens, checked.
        params: the tensors that gradients are wanted of besides; None for all.

    Raises:
        CannotFuse: there is no kernel for it; the message says what stands in the way.
    """
    func, args, method = stated.func, stated.args, stated.method
    field = field_of(stated.y0, stated.batch_dims)
    if on_gpu(field.layout.device):
        raise CannotFuse("kernels on GPUs take steps without events: move y0 to the CPU, or leave events out")
    plan, layout = plan_rows(stated, events)
    _refuse_times(plan)
    problem = plan.problem
    reading = _read(field, func, args, lambda: first_slopes(plan))
    watched = [
        _read_event(field, event.g, args, problem, number)
        for number, event in enumerate(events)
        if isinstance(event, Event)
    ]
    readings = [reading, *(each.reading for each in watched)]
    inputs, wanted = _inputs(problem, params, readings)
    used = _used(readings, problem.y0, inputs.used)
    rows = Rows(
        problem.y0.detach(),
        used.read,
        tolerance_of("rtol", stated.rtol, layout, field),
        tolerance_of("atol", stated.atol, layout, field),
        plan.controller if isinstance(plan.controller, PIDController) else None,
        stated.max_steps,
    )

    def kernel_of(method: type[Method]) -> Kernel:
        adaptive, kernels = rows.controller is not None, reading.traced.kernels
        seen = [each.watched for each in watched]
        key = method, adaptive, *((x.traced, x.roles, x.checks, x.name) for x in seen), "led"
        if key not in kernels:
            apart = field.apart(func, args, reading)
            why = next((why for each in watched if (why := _why_not(each, field, args, problem))), None)
            kernels[key] = why or checked_kernel(reading, method, adaptive, plan, layout, apart, seen)
        if isinstance(kernels[key], CannotFuse):
            raise kernels[key]
        return kernels[key]

    def solve_by(kernel: Kernel, method: type[Method], only: np.ndarray | None = None) -> tuple[KernelRows, RowResult]:
        solve = KernelRows(replace(plan, method=method), inputs, kernel, rows, used, wanted, only)
        found = as_node(solve, inputs.tensors) if inputs.used else solve.run()
        return solve, solve.result(*found)

    explicit, implicit = method.parts if issubclass(method, Auto) else (method, None)
    solve, result = solve_by(kernel_of(method), explicit)
    if implicit is not None and solve.stiff.any():
        t, y = problem.user_time(problem.times.start), problem.y0.detach()
        if not autograd_sees(problem.func.on(None), t, y)[solve.stiff].all():
            raise CannotFuse(NOT_SEEN)
        result = _joined(result, solve_by(kernel_of(implicit), implicit, solve.stiff)[1], solve.stiff, problem)
    if any(action.apply is not None for action in problem.actions):
        functions = [("func", func, reading, False)]
        functions += [(x.watched.name, x.g, x.reading, True) for x in watched]
        for name, function, known, is_event in functions:
            if used.changed or not _still_holds(field, function, args, known, is_event):
                raise ValueError(_CHANGED_BY_APPLY.format(name=name))
    return solution_of_rows(problem, layout, result, stated.throw)


def _refuse_times(plan: RowIntegration) -> None:
    """Refuse what kernels cannot do with times.

    Raises:
        CannotFuse: there is something.
    """
    if not isinstance(plan.controller, PIDController) and bool(np.isinf(plan.problem.times.end).any()):
        raise CannotFuse("kernels take fixed steps to an end that is known, and t_span is infinite: give a finite one")


@dataclass(frozen=True)
class _ReadEvent:
    """An event function as it was read, what the kernel is told of it, and what it was made of."""

    reading: Reading
    watched: Watched
    g: Callable[..., Any]
    action: Action


def _read(
    field: Field, func: Callable[..., Any], args: Sequence[Any], evaluate: Callable[[], Any], is_event: bool = False
) -> Reading:
    """A function as it is read; `evaluate` calls it, so that it raises what it raises."""
    try:
        return field.read(func, args, is_event=is_event)
    except FuncFails:
        evaluate()
        raise


def _read_event(
    field: Field, g: Callable[..., Any], args: Sequence[Any], problem: RowProblem, number: int
) -> _ReadEvent:
    """The event function with this number among the events.

    Raises:
        CannotFuse: it has no kernel.
    """
    name, action = f"events[{number}].g", problem.actions[number]
    try:
        reading = _read(field, g, args, partial(_event_values, problem, action), is_event=True)
    except CannotFuse as error:
        raise CannotFuse(_of_event(name, error)) from None
    return _ReadEvent(reading, Watched(reading.traced, reading.kinds, action.checks, name), g, action)


def _of_event(name: str, error: CannotFuse) -> str:
    """What is said of func, of an event function."""
    return re.sub(r"(?<!torch\.)\bfunc\b", name, str(error))


def _why_not(event: _ReadEvent, field: Field, args: Sequence[Any], problem: RowProblem) -> CannotFuse | None:
    """Why there is no kernel with an event function that was read; None if there may be one."""
    reading, name, g = event.reading, event.watched.name, event.action.g
    try:
        for x in reading.inputs:
            as_read(x, problem.y0.dtype, problem.y0.device)
        apart = field.apart(event.g, args, reading, is_event=True)
    except CannotFuse as error:
        return CannotFuse(_of_event(name, error))
    if not (g is not None and g.row_wise and apart):
        return CannotFuse(rows_mix(name))
    with torch.no_grad():
        expected = _event_values(problem, event.action).to(problem.y0.dtype)
    return None if reads_right(reading, problem, expected) else CannotFuse(misread(name))


def _event_values(problem: RowProblem, action: Action) -> Tensor:
    """What an event function gives at the start, [rows, 1]."""
    assert action.g is not None
    return action.g.on(None)(problem.user_time(problem.times.start), problem.y0.detach())


def _inputs(
    problem: RowProblem, params: Sequence[Tensor] | None, readings: Sequence[Reading]
) -> tuple[RowInputs, dict[int, int]]:
    """What the solve is differentiated with respect to, and which inputs of the first function are among that.

    Raises:
        CannotFuse: a function uses a tensor that was computed elsewhere.
    """
    if not torch.is_grad_enabled():
        return RowInputs(problem, Parameters()), {}
    reading = readings[0]
    given = reading.tensors
    wanted = wanted_of(reading, given, params)
    if params is not None:
        inputs = RowInputs(problem, Parameters(check_parameters("params", params)))
    else:
        leaves = {id(leaf) for leaf in reading.leaves}
        captured = [given[i] for i in wanted if id(given[i]) not in leaves]
        inputs, computed = search_row_inputs(problem, captured)
        if computed or not all(x.is_leaf for x in captured):
            raise CannotFuse(_COMPUTED)
    first = len(inputs.start)
    places = {id(x): first + i for i, x in reversed(list(enumerate(inputs.tensors[first:])))}
    if not all(id(given[i]) in places for i in wanted):
        raise CannotFuse(_COMPUTED)
    return inputs, {i: places[id(given[i])] for i in wanted}


def _used(readings: Sequence[Reading], y0: Tensor, keeps: bool) -> Used:
    """What functions are called with, as kernels read it; `keeps` says whether it is needed later as it is now."""
    tensors = [x for reading in readings for x in reading.used]
    found = [None if x is None else as_read(x, y0.dtype, y0.device) for x in tensors]
    return Used(tensors, [x.clone() if keeps and x is not None else x for x in found])


def _still_holds(
    field: Field, function: Callable[..., Any], args: Sequence[Any], known: Reading, is_event: bool
) -> bool:
    """Whether a function is still what was read: an `apply` may have changed what it uses."""
    try:
        now = field.read(function, args, is_event=is_event)
    except CannotFuse:
        return False
    return now.traced is known.traced and all(
        x is y or same_values(x.detach(), y.detach()) for x, y in zip(now.inputs, known.inputs, strict=True)
    )


def _joined(first: RowResult, second: RowResult, chosen: np.ndarray, problem: RowProblem) -> RowResult:
    """The second result in the rows that are `chosen`, the first elsewhere."""
    mask = torch.from_numpy(chosen)
    count = max(first.times.shape[1], second.times.shape[1])
    states = [_wide(x.states, count, torch.nan) for x in (first, second)]
    times = [_wide(torch.from_numpy(x.times), count, torch.nan).numpy() for x in (first, second)]
    records = first.record, second.record
    most = max(record.ends.shape[1] for record in records)
    ends = [_wide(torch.from_numpy(record.ends), most, torch.nan).numpy() for record in records]
    record = Record(
        np.where(chosen[:, None], ends[1], ends[0]),
        np.where(chosen, records[1].steps, records[0].steps),
        None,
        records[0].checkpoints,
        ChangeRecord.joined([_of_rows(records[0].changes, ~chosen), _of_rows(records[1].changes, chosen)], first.final),
        keeps_carry=False,
    )
    return RowResult(
        torch.where(mask[:, None, None], states[1], states[0]),
        np.where(chosen[:, None], times[1], times[0]),
        torch.where(mask[:, None], second.final, first.final),
        np.where(chosen, second.final_times, first.final_times),
        record,
        None if first.moving is None else StepEnds.of(record.ends, problem, record.changes),
        None,
        [b if stiff else a for a, b, stiff in zip(first.status, second.status, chosen, strict=True)],
        [_stiff(a, b) if stiff else a for a, b, stiff in zip(first.stats, second.stats, chosen, strict=True)],
        first.moves or second.moves,
    )


def _wide(x: Tensor, count: int, value: float) -> Tensor:
    """A tensor filled up to so many columns."""
    more = x.new_full((x.shape[0], count - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, more], 1)


def _of_rows(changes: ChangeRecord, chosen: np.ndarray) -> ChangeRecord:
    """What happened to a choice of the rows."""
    where = np.flatnonzero(chosen[changes.rows])
    return ChangeRecord(
        changes.rows[where],
        changes.steps[where],
        changes.t[where],
        [changes.firings[i] for i in where.tolist()],
        changes.y[torch.from_numpy(where)],
        changes.after[torch.from_numpy(where)],
        changes.theta[where],
    )


def _stiff(first: Stats, second: Stats) -> Stats:
    """What a row has cost that the first of two methods has left to the second."""
    tries = second.accepted + second.rejected
    return replace(second, evaluations=first.evaluations + second.evaluations, stiff=tries, switches=1)
