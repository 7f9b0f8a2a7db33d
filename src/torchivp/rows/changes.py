"""Changes of the state on the way: what events and schedules do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchivp.mass import projection_of
from torchivp.methods.consistent import consistent
from torchivp.record import Firing
from torchivp.rows.function import FunctionOnRows
from torchivp.rows.problem import Action, RowProblem
from torchivp.stepsize.stops import OneSided

Slopes = Callable[[Tensor, Tensor], Tensor]
"""A function of the times and the states of some rows."""


def groups(firings: Sequence[Firing]) -> dict[Firing, np.ndarray]:
    """The positions at which the same happens."""
    found: dict[Firing, list[int]] = {}
    for i, firing in enumerate(firings):
        found.setdefault(firing, []).append(i)
    return {firing: np.array(where) for firing, where in found.items()}


def rounds(rows: np.ndarray) -> list[np.ndarray]:
    """Positions such that no row is twice among them: the first of every row, then the second, ..."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    start = np.searchsorted(ordered, ordered)  # where the entries of the same row begin
    number = np.arange(len(rows)) - start
    return [order[number == i] for i in range(int(number.max(initial=-1)) + 1)]


def changes_state(problem: RowProblem, firing: Firing) -> bool:
    """Whether one of the actions changes the state."""
    return any(problem.actions[action].apply is not None for action, _ in firing)


def changing(problem: RowProblem, firings: Sequence[Firing]) -> np.ndarray:
    """Which of them change the state, [n]: few are different."""
    known = {firing: changes_state(problem, firing) for firing in set(firings)}
    return np.array([known[firing] for firing in firings], dtype=bool)


def apply_firing(problem: RowProblem, firing: Firing, rows: np.ndarray, t: Tensor, y: Tensor) -> Tensor:
    """The states of `rows`, [n, size], after all that happens at `t`, [n, 1], one after the other.

    With a singular mass matrix, consistent; NaN where no consistent state is found.
    """
    select = problem.select(rows)
    for number, column in firing:
        action = problem.actions[number]
        if action.apply is not None:
            bound = _bound(problem, action.apply, rows, select)
            y = bound(t, y, *_value(action, select, column))
    if not changes_state(problem, firing):
        return y
    func: Slopes = function_on(problem, rows)
    if projection_of(func) is not None and any(column >= 0 for _, column in firing):
        onward = problem.user_time(math.inf * problem.times.direction[rows])
        func = OneSided(func, torch.nextafter(t.detach(), onward), onward)
    return consistent(func, t, y)[0]


def function_on(problem: RowProblem, rows: np.ndarray) -> FunctionOnRows:
    """The right-hand side of a choice of the rows."""
    return _bound(problem, problem.func, rows, problem.select(rows))


def event_on(problem: RowProblem, action: Action, rows: np.ndarray) -> FunctionOnRows:
    """The event function of a choice of the rows."""
    assert action.g is not None
    return _bound(problem, action.g, rows, problem.select(rows))


def _bound(problem: RowProblem, function, rows: np.ndarray, select: Tensor) -> FunctionOnRows:
    everything = len(rows) == problem.rows and bool((rows == np.arange(problem.rows)).all())
    return function.on(None if everything else select)


def _value(action: Action, rows: Tensor, column: int) -> tuple[Tensor, ...]:
    return () if action.values is None else (action.values[rows, column],)


def scheduled(problem: RowProblem, rows: np.ndarray, t: np.ndarray) -> list[Firing]:
    """What is scheduled in the `rows` at the times `t`."""
    if not _is_scheduled(problem, rows, t).any():
        return [()] * len(rows)
    found: list[list[tuple[int, int]]] = [[] for _ in rows]
    for number, action in enumerate(problem.actions):
        if action.times is not None:
            for position, column in zip(*np.nonzero(action.times[rows] == t[:, None]), strict=True):
                found[position].append((number, int(column)))
    return [tuple(firing) for firing in found]


def one_sided(
    problem: RowProblem, rows: np.ndarray, func: Slopes, start: np.ndarray | None, end: np.ndarray | None
) -> Slopes:
    """The right-hand side `func` of the `rows` in steps from `start` to `end`, as it is between them.

    Inputs switch at scheduled times: at one at an end of a step, `func` is evaluated on the step's side of it. None for
    an end that does not matter.
    """
    bounds = side_times(problem, rows, start, end)
    return func if bounds is None else OneSided(func, *(bound.unsqueeze(1) for bound in bounds))


def function_before(problem: RowProblem, rows: np.ndarray, t: np.ndarray) -> Slopes:
    """The right-hand side of the `rows`, at `t` as it is just before what is scheduled then."""
    return one_sided(problem, rows, function_on(problem, rows), None, t)


def function_after(problem: RowProblem, rows: np.ndarray, t: np.ndarray) -> Slopes:
    """The right-hand side of the `rows`, at `t` as it is just after what is scheduled then."""
    return one_sided(problem, rows, function_on(problem, rows), t, None)


def side_times(
    problem: RowProblem, rows: np.ndarray, start: np.ndarray | None, end: np.ndarray | None
) -> tuple[Tensor, Tensor] | None:
    """The lowest and the highest times at which functions are evaluated in such steps, [n]; None if nowhere bounded."""
    if not len(problem.scheduled_times):
        return None
    there = [None if t is None else _is_scheduled(problem, rows, t) for t in (start, end)]
    if not any(which is not None and which.any() for which in there):
        return None
    ahead, dtype = math.inf * problem.times.direction[rows], problem.real_dtype
    bounds = [-ahead, ahead]
    for i, (t, which, inwards) in enumerate(zip((start, end), there, (ahead, -ahead), strict=True)):
        if t is not None and which is not None and which.any():
            beside = torch.nextafter(*(torch.from_numpy(x).to(dtype) for x in (t, inwards)))
            bounds[i] = np.where(which, beside.double().numpy(), bounds[i])
    low, high = (torch.from_numpy(order(*bounds)).to(problem.y0.device, dtype) for order in (np.minimum, np.maximum))
    return low, high


def _is_scheduled(problem: RowProblem, rows: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Whether anything is scheduled in the `rows` at the times `t`, [n]."""
    known = problem.scheduled_times
    if not len(known):
        return np.zeros(len(rows), dtype=bool)
    found = known[np.minimum(np.searchsorted(known, t), len(known) - 1)] == t
    if (some := np.flatnonzero(found)).size:  # in these rows or in others
        tables = [action.times for action in problem.actions if action.times is not None]
        found[some] = np.logical_or.reduce([(times[rows[some]] == t[some, None]).any(1) for times in tables])
    return found


def all_scheduled(problem: RowProblem) -> np.ndarray:
    """All scheduled times, [rows, n], NaN for none."""
    tables = [action.times for action in problem.actions if action.times is not None]
    return np.concatenate([np.zeros((problem.rows, 0)), *tables], axis=1)


def finite_rows(y: Tensor) -> np.ndarray:
    """Which rows are finite, [rows]."""
    return torch.isfinite(y).all(1).cpu().numpy()
