"""The door for steady states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.api.arguments import default_tolerances, norm_of
from torchivp.api.ivp import solve_ivp
from torchivp.api.row_problem import build_problem
from torchivp.boundary import door
from torchivp.checks import check_flag, check_number, check_whole_number
from torchivp.copies import ValuesTravel
from torchivp.methods import MethodName, find_method
from torchivp.methods.jacobian import Linearisation
from torchivp.methods.method import Method
from torchivp.methods.real_pairs import on_real_pairs, to_real
from torchivp.pseudo_transient import Equilibria, Found
from torchivp.references import Sources
from torchivp.rows.problem import RowProblem
from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.solution import BatchSolution, Outcome, SolveError, Status
from torchivp.state import StateLayout, elsewhere
from torchivp.torch_func import inside_transform, read_rows, without_derivatives

_DECADES = 12
"""How many times the span of a solve towards the steady state is made ten times as long."""

_POLISH = 40
"""The largest number of steps of the search that begins where such a solve ends."""


@dataclass(repr=False)
class SteadyState(ValuesTravel):
    """Where a system comes to rest.

    Attributes:
        y: the state, shaped like `y0`; NaN in rows in which none was found. Differentiable.
        status: how the search ended; of a batch a list with an entry for each row, the batch dimensions flattened.
        iterations: how many steps of the search led there; of a batch [*batch].
        spans: over what time the solution was followed before; zero if it was not; of a batch [*batch].
        sources: what it was computed with, in words, and where that was published; `torchivp.cite` prints it.
    """

    y: Any
    status: Status | list[Status]
    iterations: Tensor
    spans: Tensor
    sources: Sources

    def __repr__(self) -> str:
        status = [self.status] if isinstance(self.status, Status) else self.status
        ok = sum(s.ok for s in status)
        return f"SteadyState({ok} of {len(status)} found: {status[0].message})"


@door
def steady_state(
    func: Callable[..., Any],
    y0: Any,
    *,
    args: Sequence[Any] = (),
    t: float = 0.0,
    follow: bool = False,
    method: MethodName | type[Method] = "rodas5p",
    rtol: Any = None,
    atol: Any = None,
    max_iters: int = 200,
    max_steps: int = 10_000,
    batch_dims: int = 0,
    throw: bool = True,
) -> SteadyState:
    """Find a steady state of `dy/dt = func(t, y, *args)`: a stable state at which the slope is zero.

    Newton's method from `y0`, by way of implicit steps that grow (pseudo-transient continuation); where that does not
    lead to a stable state, the solution from `y0` is followed, over spans that grow, until it does. Where a system has
    several steady states, `follow=True` follows the solution first, so that the one is found to which `y0` leads.

    Linear combinations of the states that the equations conserve, such as the total amount of a substance, keep the
    values that they have in `y0`.

    Differentiable, twice, with respect to `y0` (through conserved sums alone), the tensors in `args` and whatever
    `func` uses, by the implicit function theorem: a gradient costs one linear system, however long the way was.

    Args:
        func: the right-hand side, as `solve_ivp` takes it; it must not depend on `t`.
        y0: where to start, as in `solve_ivp`.
        args: further arguments of `func`.
        t: the time that `func` is called with.
        follow: whether to follow the solution from `y0` at first.
        method: the method with which it is followed; stiff problems need an implicit one.
        rtol: relative tolerance, as in `solve_ivp`. Newton's corrections are repeated until they are smaller, and then
            twice more.
        atol: absolute tolerance, likewise.
        max_iters: the largest number of steps of the search.
        max_steps: the largest number of steps of each solve, if the solution is followed.
        batch_dims: how many leading dimensions of `y0` number the rows of a batch. Each row is a search of its own.
        throw: raise `SolveError` if no steady state is found; if False, return NaN for it.

    Returns:
        A `SteadyState`.

    Raises:
        SolveError: no steady state was found, and `throw` is true; the message says what happened and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch, torchivp
        >>> rates = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
        >>> def reaction(t, y):  # a <-> b
        ...     flow = rates[0] * y[0] - rates[1] * y[1]
        ...     return torch.stack((-flow, flow))
        >>> state = torchivp.steady_state(reaction, torch.tensor([1.0, 0.0], dtype=torch.float64)).y
        >>> [round(x, 9) for x in state.tolist()]
        [0.2, 0.8]
    """
    if inside_transform():
        raise ValueError(
            "steady_state does not work inside torch.func transforms such as vmap or grad: rows need no vmap, pass "
            "them with batch_dims=1; for derivatives use torch.autograd.grad or torch.autograd.functional.jacobian"
        )
    layout = StateLayout(y0, check_whole_number("batch_dims", batch_dims, 0))
    start = np.full(layout.rows, check_number("t", t))
    problem = build_problem(func, y0, layout, RowTimes(start, start, None), MovingTimes(), args, (), None)
    defaults = default_tolerances(y0)
    norm = norm_of(layout, defaults[0] if rtol is None else rtol, defaults[1] if atol is None else atol)
    _check_autonomous(problem)
    _check_seen(problem)
    search = _Search(
        Equilibria(problem.func.on(None), problem.user_time(start), problem.y0, norm),
        _Follower(func, layout, tuple(args), find_method(method), check_whole_number("max_steps", max_steps, 1)),
        problem.y0,
    )
    with torch.no_grad():
        found = search.run(check_flag("follow", follow), check_whole_number("max_iters", max_iters, 1))
    status = [search.status(row, layout, problem) for row in range(layout.rows)]
    failed = [(row, one) for row, one in enumerate(status) if not one.ok]
    if throw and failed:
        row, first = failed[0]
        where = f"{len(failed)} of {layout.rows} rows have no steady state. Row {row}: " if batch_dims else ""
        raise SolveError(replace(first, message=where + first.message))
    states = search.equilibria.recorded(found)
    if failed:
        states = torch.where(torch.from_numpy(search.steady).to(states.device).unsqueeze(1), states, torch.nan)
    numbers = [torch.from_numpy(x).reshape(layout.lead) for x in (search.iterations, search.spans)]
    sources: Sources = {"pseudo-transient continuation": ("KelleyKeyes1998",)}
    if search.spans.any():
        sources |= find_method(method).cited()
    return SteadyState(
        layout.unflatten(states, layout.lead), status if batch_dims else status[0], *numbers, sources=sources
    )


def _check_autonomous(problem: RowProblem) -> None:
    """Check that func is the same at another time.

    Raises:
        ValueError: it is not.
    """
    func, y = problem.func.on(None), problem.y0
    with torch.no_grad():
        now, later = (func(problem.user_time(problem.times.start + dt), y).clone() for dt in (0.0, 1.2345))
    differ = (now != later) & ~(now.isnan() & later.isnan())
    if bool(differ.any()):
        index = int(differ.nonzero()[0, 1])
        raise ValueError(
            f"func depends on t: d/dt of {problem.func.layout.name(index)} is another at t = "
            f"{problem.times.start[0]:g} than 1.2345 later, so that no state stays. For a steady state at one moment "
            "fix the time: steady_state(lambda t, y: func(torch.tensor(5.0), y), y0)"
        )


def _check_seen(problem: RowProblem) -> None:
    """Check that autograd sees how func depends on the state, if it does.

    Raises:
        ValueError: it does not.
    """
    func, t, y = problem.func.on(None), problem.user_time(problem.times.start), problem.y0
    with without_derivatives():
        if not y.numel() or Linearisation(on_real_pairs(func) if y.is_complex() else func, t, to_real(y)).seen:
            return
        here, there = func(t, y).clone(), func(t, elsewhere(y))
    if bool(((here != there) & here.isfinite() & there.isfinite()).any()):
        raise ValueError(
            "steady_state needs the derivatives of func, and autograd does not see how func(t, y) depends on y: "
            "compute in torch, without .item(), .detach() or NumPy, or follow the solution with solve_ivp and a "
            "method such as 'scipy_solver'"
        )


class _Follower:
    """Follows solutions.

    Args:
        func: the user's.
        layout: the state.
        args: further arguments.
        method: the method.
        max_steps: the largest number of steps.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        layout: StateLayout,
        args: tuple[Any, ...],
        method: type[Method],
        max_steps: int,
    ):
        self._func, self._layout, self._args, self._method, self._max_steps = func, layout, args, method, max_steps

    def over(self, y: Tensor, spans: np.ndarray) -> tuple[Tensor, list[Status]]:
        """Where the solutions from these states are after these spans, and how it went."""
        layout = self._layout
        lead = layout.lead
        begin, end = (torch.from_numpy(x).reshape(lead) for x in (np.zeros(len(spans)), spans))
        solution = solve_ivp(
            self._func,
            (begin, end),
            layout.unflatten(y, lead),
            t_eval=torch.from_numpy(spans).reshape(*lead, 1) if lead else end.reshape(1),
            args=self._args,
            method=self._method,
            max_steps=self._max_steps,
            batch_dims=len(lead),
            throw=False,
        )
        of_rows = isinstance(solution, BatchSolution)
        return layout.flatten(solution.final), [*solution.status] if of_rows else [solution.status]


class _Search:
    """The way to the steady states of all rows.

    Attributes:
        steady: where one was found.
        iterations: how many steps of the search there were.
        spans: over what time the solutions were followed.
    """

    def __init__(self, equilibria: Equilibria, follower: _Follower, y0: Tensor):
        self.equilibria = equilibria
        self._follower = follower
        self._y0 = y0.detach()
        rows = len(y0)
        self.steady = np.zeros(rows, dtype=bool)
        self.iterations = np.zeros(rows, dtype=np.int64)
        self.spans = np.zeros(rows)
        self._why = ["" for _ in range(rows)]

    def run(self, follow: bool, max_iters: int) -> Tensor:
        """The states, [rows, size], where `steady`."""
        y = self._y0
        if not follow:
            y = self._search(y, y, None, max_iters)
        there, end = self._y0, np.where(self.steady, 0.0, 10.0 * self.equilibria.first_steps(self._y0))
        for _ in range(_DECADES):
            if not (end > 0.0).any():
                break
            there, status = self._follower.over(there, end)
            self.spans += end
            for row in np.flatnonzero(end > 0.0).tolist():
                if not status[row].ok:
                    self._why[row] = f"the solution does not lead to one either: {status[row].message}"
            lost = np.array([not one.ok for one in status])
            y = self._search(torch.where(_column(lost, y), self._y0, there), y, np.maximum(end, 1e-300), _POLISH, lost)
            end = np.where(self.steady | lost, 0.0, 10.0 * end)
        return y

    def _search(
        self, start: Tensor, y: Tensor, h: np.ndarray | None, max_iters: int, lost: np.ndarray | None = None
    ) -> Tensor:
        """Search from `start` in the rows that have not come to rest, nor are `lost`; the others keep `y`.

        Where the solution was followed to `start`, what is found must be near: it may be another steady state.
        """
        found = self.equilibria.search(start, h, max_iters)
        new = ~self.steady if lost is None else ~self.steady & ~lost
        steady = found.steady if lost is None else found.steady & self._is_near(start, found.y)
        self.iterations += np.where(new, found.iterations, 0)
        for row in np.flatnonzero(new & ~steady).tolist():
            self._why[row] = _why_not(found, row, max_iters)
        self.steady |= new & steady
        return torch.where(_column(new & steady, y), found.y, y)

    def _is_near(self, here: Tensor, found: Tensor) -> np.ndarray:
        """Whether most of the way from the initial states to those that were found lies behind, element by element."""
        size = torch.maximum(found.abs(), self._y0.abs())
        size = torch.where(size == 0.0, 1.0, size)
        ahead, whole = (((x - found).abs() / size).amax(1) for x in (here, self._y0))
        return read_rows(ahead) <= np.maximum(0.1 * read_rows(whole), 1e-6)

    def status(self, row: int, layout: StateLayout, problem: RowProblem) -> Status:
        """How the search of a row has ended."""
        t = float(self.spans[row])
        if self.steady[row]:
            way = f"after following the solution over {t:.3g}" if t else "by Newton's method"
            sentence = f"found in {self.iterations[row]} steps {way}"
            return Status(Outcome.SUCCESS, sentence, t)
        sentence = f"no stable steady state was found: {self._why[row]}"
        return Status(Outcome.NOT_CONVERGED, sentence, t)


def _why_not(found: Found, row: int, max_iters: int) -> str:
    """Why a search has not found a stable steady state in a row."""
    if found.unstable[row]:
        return "the state where the slope is zero is unstable, and the solution leads away from it"
    if found.singular[row]:
        return (
            "the Jacobian is singular where the slope is small, so that steady states are not isolated or are "
            "approached more and more slowly"
        )
    if not np.isfinite(found.size[row]):
        return "func is not finite where the search has led"
    return (
        f"after {found.iterations[row]} steps of the search the corrections are still {found.size[row]:.3g} times the "
        "tolerance: does the solution come to rest at all, or does it grow or oscillate?"
        + (" Raise max_iters" if found.iterations[row] >= max_iters > _POLISH else "")
    )


def _column(which: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(which).to(like.device).unsqueeze(1)
