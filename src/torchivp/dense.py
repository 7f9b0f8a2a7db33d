"""Dense output: the solution between step ends, as a polynomial per step."""

from __future__ import annotations

import bisect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import own_precision
from torchivp.copies import ValuesTravel
from torchivp.dual_numbers import at_rest
from torchivp.times import joined, snap, time_dtype, time_value
from torchivp.torch_func import moves

HERMITE = ((0, 3, -2), (1, -2, 1), (0, -1, 1))
"""The cubic through both ends of a step with the slopes there, in terms of the slope of the chord and these two.

Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", (II.6.7).
"""


class StepPolynomials:
    """Polynomials b_j in the fraction theta of a step, all of them zero at theta = 0.

    They are evaluated in the dtype of time: their values are small, their coefficients need not be.

    Args:
        coefficients: for each j the coefficients of theta, theta^2, ...
        device: where they are evaluated.
    """

    def __init__(self, coefficients: Sequence[Sequence[float]], device: torch.device):
        dtype = time_dtype(device)
        self._by_polynomial = [tuple(reversed(row)) for row in coefficients]
        self._columns = torch.tensor(coefficients, dtype=dtype, device=device).t().contiguous()
        self._exponents = torch.arange(1, len(self._columns) + 1, dtype=dtype, device=device)
        self._known: dict[tuple[tuple[float, ...], torch.dtype], Tensor] = {}

    def __call__(self, theta: Sequence[float | Tensor]) -> Tensor:
        """The values at each `theta`, [len(theta), number of polynomials]."""
        if len(theta) == 1 and isinstance(theta[0], float):
            return torch.tensor([self.at(theta[0])], dtype=self._columns.dtype, device=self._columns.device)
        column = as_time_tensor(theta, self._columns.device).unsqueeze(1)
        return torch.mm(torch.pow(column, self._exponents), self._columns)

    def at(self, theta: float) -> list[float]:
        """The values at one `theta`, in fewer operations than tensors need."""
        return [float(value or 0.0) for value in self.values(theta)]

    def known(self, theta: tuple[float, ...], dtype: torch.dtype) -> Tensor:
        """The values at each `theta`, which are the same in many steps, [len(theta), number of polynomials]."""
        if (theta, dtype) not in self._known:
            self._known[theta, dtype] = torch.cat([self([x]) for x in theta]).to(dtype)
        return self._known[theta, dtype]

    def values(self, theta: Any) -> list[Any]:
        """The values of each polynomial at `theta`, a number, array or tensor, in kind; None for one that is zero.

        By Horner's scheme, since a matrix product may round by its size; of arrays in place, since there may be
        millions.
        """
        values: list[Any] = []
        for highest, *others in self._by_polynomial:
            if not (highest or any(others)):
                values.append(None)
                continue
            total = highest * theta
            for coefficient in others:
                if isinstance(total, np.ndarray):
                    total += coefficient
                    total *= theta
                else:
                    total = (total + coefficient) * theta
            values.append(total)
        return values

    def of_rows(self, rows: Tensor, theta: np.ndarray | Tensor) -> Sequence[Any]:
        """The values of each polynomial at a `theta` of each of the `rows`; None for one that is zero."""
        return self.values(theta)


class RowPolynomials(Protocol):
    """Polynomials in the fraction of a step, others in each row."""

    def of_rows(self, rows: Tensor, theta: np.ndarray | Tensor) -> Sequence[Any]:
        """The values of each polynomial at a `theta` of each of the `rows`; None for one that is zero."""
        ...


class StepInterpolant(Protocol):
    """The solution within one step."""

    @property
    def t0(self) -> float | Tensor:
        """The start of the step."""
        ...

    @property
    def t1(self) -> float | Tensor:
        """Its end."""
        ...

    @property
    def y0(self) -> Tensor:
        """The state at its start, [1, size]."""
        ...

    def evaluate(self, times: Sequence[float | Tensor]) -> Tensor:
        """The states at `times`, [len(times), size]."""
        ...

    def kept(self) -> StepInterpolant:
        """The same, on data of its own, so that it is valid after the next step too."""
        ...


@dataclass(slots=True)
class Interpolant(ValuesTravel):
    """The solution within one step, `y(t0 + theta dt) = y0 + dt sum_j b_j(theta) slopes_j`.

    Attributes:
        t0: the start of the step.
        t1: its end.
        y0: the state at its start, [1, size].
        slopes: [n, size].
        b: the polynomials b_j; called with values of theta, returns [len(theta), n].
    """

    t0: float | Tensor
    t1: float | Tensor
    y0: Tensor
    slopes: Tensor
    b: Callable[[Sequence[float | Tensor]], Tensor]

    def evaluate(self, times: Sequence[float | Tensor]) -> Tensor:
        """The states at `times`, [len(times), size]."""
        t0, dt = self.t0, self.t1 - self.t0
        weights = self.b([(t - t0) / dt for t in times]) * dt
        return torch.addmm(self.y0, weights.to(self.y0.dtype), self.slopes)

    def kept(self) -> Interpolant:
        """The same, on data of its own, so that it is valid after the next step too."""
        return replace(self, slopes=self.slopes.clone())


@dataclass(slots=True)
class RowInterpolant(ValuesTravel):
    """The solutions of many rows, each within its step, `y(t0 + theta dt) = y0 + sum_j b_j(theta) increments_j`.

    Attributes:
        y0: the states at their starts, [rows, size].
        increments: slopes times the sizes of the steps, [n, rows * size].
        b: the polynomials b_j.
    """

    y0: Tensor
    increments: Tensor
    b: StepPolynomials | RowPolynomials

    def at_fractions(self, theta: tuple[float, ...], *further: Tensor) -> Tensor:
        if isinstance(self.b, StepPolynomials):
            flat, weights = self.y0.reshape(1, self.y0.numel()), self.b.known(theta, self.y0.dtype)
            # One after the other, as in `at`.
            states = [torch.addmm(flat, row, self.increments) for row in weights.split(1)]
            return torch.cat([*states, *(y.reshape(flat.shape) for y in further)]).view(-1, self.y0.shape[1])
        rows = torch.arange(len(self.y0))
        return torch.cat([*(self.at(rows, np.full(len(rows), x)) for x in theta), *further])

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        """The states of `rows`, which may repeat, each at its fraction `theta` of its step, [len(rows), size].

        Differentiable with respect to `theta`, if that is a tensor; `t`, the times that these are, does not matter.
        """
        rows = rows.to(self.y0.device)
        y = self.y0.index_select(0, rows)
        # One after the other: a batch of matrix products may round by its size, one of a single row by many does not.
        for weights, increment in zip(self.b.of_rows(rows, theta), self.increments, strict=True):
            if weights is not None:
                column = at_rest(torch.as_tensor(weights).to(y.device, y.dtype).unsqueeze(1))
                y.addcmul_(column, increment.view_as(self.y0).index_select(0, rows))
        return y

    def kept(self) -> RowInterpolant:
        """The same, on data of its own, so that it is valid after the next step too."""
        return replace(self, increments=self.increments.clone())


def as_time_tensor(times: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """A series of times, floats or 0-d tensors with their gradient, as one tensor."""
    dtype = time_dtype(device)
    if isinstance(times[0], Tensor):
        return torch.stack([torch.as_tensor(t) for t in times]).to(device, dtype)
    return torch.tensor(times, dtype=dtype, device=device)


class DenseSolution:
    """The solution at any time of the span, `sol(t)`.

    `t` is a float or a tensor of any shape; the result has the shape `t.shape + y0.shape` (each leaf of a
    pytree state). Where the solve was differentiable, so is `sol(t)`, with respect to `t` too.

    Args:
        interpolants: one for every accepted step, in the order of integration.
        unflatten: gives flat states the user's shape, called as `unflatten(flat, lead)`.
    """

    def __init__(self, interpolants: Sequence[StepInterpolant], unflatten: Callable[[Tensor, tuple[int, ...]], Any]):
        self._steps = interpolants
        self._unflatten = unflatten
        start, *ends = (time_value(t) for t in (interpolants[0].t0, *(step.t1 for step in interpolants)))
        self.t_min, self.t_max = sorted((start, ends[-1]))
        self._direction = 1.0 if ends[-1] >= start else -1.0
        self._ends = [end * self._direction for end in ends]

    @own_precision
    def __call__(self, t: float | Tensor) -> Any:
        """The solution at `t`.

        Raises:
            ValueError: a time lies outside the span that was integrated.
        """
        reference = self._steps[0].y0
        times = torch.as_tensor(joined(t), dtype=time_dtype(reference.device), device=reference.device)
        flat_times = times.reshape(-1)
        groups: dict[int, list[int]] = {}
        for position, value in enumerate(snap(flat_times.detach().tolist(), t, (self.t_min, self.t_max))):
            groups.setdefault(self._step_at(value), []).append(position)
        pieces = [self._steps[step].evaluate(list(flat_times[where].unbind())) for step, where in groups.items()]
        order = torch.tensor([i for where in groups.values() for i in where], device=reference.device)
        flat = torch.cat(pieces)[torch.argsort(order)] if pieces else reference[:0]
        return self._unflatten(flat, tuple(times.shape))

    def _step_at(self, t: float) -> int:
        if not self.t_min <= t <= self.t_max:
            raise ValueError(
                f"t = {t} lies outside the solution's span [{self.t_min}, {self.t_max}]: solve over a longer t_span"
            )
        return bisect.bisect_left(self._ends, t * self._direction)

    def __getstate__(self) -> dict[str, Any]:
        # Sent to another process one by one, each of the many tensors would need an open file.
        return self.__dict__ | {"_steps": pickle.dumps(self._steps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _steps=pickle.loads(state["_steps"]))

    def __copy__(self) -> DenseSolution:
        return DenseSolution(self._steps, self._unflatten)

    def __repr__(self) -> str:
        return f"DenseSolution(t in [{self.t_min:g}, {self.t_max:g}], {len(self._steps)} steps)"


class WithinSteps(Protocol):
    """The solutions of rows within their steps."""

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        """The states of `rows`, which may repeat, each at its fraction `theta` of its step, [len(rows), size].

        `t` are the times that these fractions are, where the user gave them, lest they be rounded.
        """
        ...

    def at_fractions(self, theta: tuple[float, ...], *further: Tensor) -> Tensor:
        """The states of all rows at each of the same fractions of their steps, [len(theta) * rows, size].

        `further` states, [rows, size] each, are put behind them.
        """
        ...

    def kept(self) -> WithinSteps:
        """The same, on data of their own, so that they are valid after the next step too."""
        ...


class EachWithin:
    """The solutions of rows within their steps, each as the engine of one row has it.

    Args:
        interpolants: one for each row.
    """

    def __init__(self, interpolants: Sequence[StepInterpolant]):
        self._interpolants = interpolants

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        if len(self._interpolants) == 1:
            return self._of_row(0, theta, t)
        numbers = rows.cpu().numpy()
        places = [np.flatnonzero(numbers == number) for number in range(len(self._interpolants))]
        pieces = [
            self._of_row(number, theta[where], None if t is None else t[where])
            for number, where in enumerate(places)
            if len(where)
        ]
        y = torch.cat(pieces)
        return y.index_select(0, torch.from_numpy(np.argsort(np.concatenate(places))).to(y.device))

    def _of_row(self, number: int, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None) -> Tensor:
        interpolant = self._interpolants[number]
        if t is not None:
            return interpolant.evaluate(_unbound(t))
        t0, t1 = time_value(interpolant.t0), time_value(interpolant.t1)
        return interpolant.evaluate([t0 + x * (t1 - t0) for x in _unbound(theta)])

    def at_fractions(self, theta: tuple[float, ...], *further: Tensor) -> Tensor:
        states = [_at_fractions(interpolant, theta) for interpolant in self._interpolants]
        return torch.cat([states[0] if len(states) == 1 else torch.stack(states, 1).flatten(0, 1), *further])

    def kept(self) -> EachWithin:
        return EachWithin([interpolant.kept() for interpolant in self._interpolants])


def _at_fractions(interpolant: StepInterpolant, theta: tuple[float, ...]) -> Tensor:
    """The states at fractions of a step, [len(theta), size]."""
    t0, dt = time_value(interpolant.t0), time_value(interpolant.t1) - time_value(interpolant.t0)
    if isinstance(interpolant, Interpolant) and isinstance(interpolant.b, StepPolynomials):
        y0 = interpolant.y0
        return torch.addmm(y0, interpolant.b.known(theta, y0.dtype), interpolant.slopes, alpha=dt)
    return interpolant.evaluate([t0 + x * dt for x in theta])


def _unbound(theta: np.ndarray | Tensor) -> Sequence[float | Tensor]:
    return theta.unbind() if isinstance(theta, Tensor) else theta.tolist()


class KeptSteps(Protocol):
    """The solutions of some rows within steps, on data of their own."""

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        """The states of `rows`, which may repeat, each at its fraction `theta` of its step, [len(rows), size]."""
        ...


@dataclass(frozen=True)
class RowSteps(ValuesTravel):
    """Steps that some rows took at once.

    Attributes:
        rows: the numbers of the rows, [m].
        t0: where their steps begin, [m].
        t1: where they end, [m].
        within: the solutions within the steps.
        ends: where they begin and end as tensors, [m, 1] each, if they move.
    """

    rows: np.ndarray
    t0: np.ndarray
    t1: np.ndarray
    within: KeptSteps
    ends: tuple[Tensor, Tensor] | None = None


class RowDenseSolution(ValuesTravel):
    """The solutions of rows, or of a problem with events, at any time of their spans, `sol(t)`.

    In a batch, `t` holds times for all rows, a number or [n], or times for each, [*batch, n]; the result is
    [*batch, n, *state] (each leaf of a pytree), for a number [*batch, *state]. It is NaN where a row was not: outside
    its span, and after its failure or the event that ended it. Without batch dimensions `t` may have any shape, the
    result has the shape `t.shape + y0.shape`, and a time outside the span raises.

    A solution is continuous from the right, in the direction of integration: where an event or a schedule changes the
    state, it is the state after the change. Where the solve was differentiable, so is `sol(t)`, and with respect to
    `t`.

    Args:
        steps: all accepted steps, those of a row in the order of integration.
        start: where each row starts, [rows].
        end: where each ends, or ended on the way, [rows].
        final: the states there, [rows, size].
        final_is_new: in which rows that is not the state at the end of the last step, [rows].
        unflatten: gives flat states the user's shape, called as `unflatten(flat, lead)`.
        lead: the sizes of the batch dimensions; None without.
    """

    def __init__(
        self,
        steps: Sequence[RowSteps],
        start: np.ndarray,
        end: np.ndarray,
        final: Tensor,
        final_is_new: np.ndarray,
        unflatten: Callable[[Tensor, tuple[int, ...]], Any],
        lead: tuple[int, ...] | None,
    ):
        self.steps = steps
        self.start, self.end = start, end
        self.final, self.final_is_new = final, final_is_new
        self._unflatten = unflatten
        self._lead = lead
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(step.rows for step in steps)])
        order = np.argsort(rows, kind="stable")
        self._bounds = np.searchsorted(rows[order], np.arange(len(start) + 1))
        self._begins = np.concatenate([np.zeros(0), *(step.t0 for step in steps)])[order]
        self._step = np.repeat(np.arange(len(steps)), [len(step.rows) for step in steps])[order]
        self._place = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(len(s.rows)) for s in steps)])[order]

    @own_precision
    def __call__(self, t: float | Tensor) -> Any:
        """The solutions at `t`.

        Raises:
            ValueError: `t` is of the wrong shape; without batch dimensions, a time lies outside the span.
        """
        device = self.final.device
        times = torch.as_tensor(joined(t), dtype=time_dtype(device), device=device)
        rows = len(self.start)
        if self._lead is None:
            table, shape = times.reshape(1, -1), tuple(times.shape)
        elif times.ndim < 2:
            table, shape = times.reshape(1, -1).expand(rows, -1), (*self._lead, *times.shape)
        elif tuple(times.shape[:-1]) == self._lead:
            table, shape = times.reshape(rows, times.shape[-1]), tuple(times.shape)
        else:
            wanted = ", ".join(map(str, (*self._lead, "n")))
            raise ValueError(
                f"t must be a number, of shape (n,) for all rows or of shape ({wanted}), times for each row, got shape "
                f"{tuple(times.shape)}: one time for each row is t[..., None]"
            )
        given = table.detach().cpu().double().numpy()
        where, step, place, theta_of = self._find(given, t)
        return self._unflatten(self._states(table, where, step, place, theta_of), shape)

    def _find(self, times: np.ndarray, given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For the entries of `times` within the spans: which, the number of the step, the place in it, the time.

        The number of the step is -1 for the state at the end of a row.
        """
        found = []
        for row, wanted in enumerate(times):
            start, end = float(self.start[row]), float(self.end[row])
            at = np.array(snap(wanted.tolist(), given, (start, end)), dtype=np.float64)
            inside = (at >= min(start, end)) & (at <= max(start, end))
            if self._lead is None and not inside.all():
                raise ValueError(
                    f"t = {at[~inside][0]} lies outside the solution's span [{min(start, end)}, {max(start, end)}]: "
                    "solve over a longer t_span"
                )
            entries = np.flatnonzero(inside)
            low, high = self._bounds[row : row + 2]
            sign = 1.0 if end >= start else -1.0
            number = low - 1 + np.searchsorted(self._begins[low:high] * sign, at[entries] * sign, side="right")
            at_end = (at[entries] == end) & (self.final_is_new[row] or low == high)
            number = np.maximum(number, low)
            step, place = (np.where(at_end, -1, _entries(x, number)) for x in (self._step, self._place))
            found.append((entries + row * times.shape[1], step, np.where(at_end, row, place), at[entries]))
        empty = np.zeros(0, dtype=np.int64)
        return (
            np.concatenate([empty, *(f[0] for f in found)]),
            np.concatenate([empty, *(f[1] for f in found)]),
            np.concatenate([empty, *(f[2] for f in found)]),
            np.concatenate([np.zeros(0), *(f[3] for f in found)]),
        )

    def _states(self, times: Tensor, where: np.ndarray, step: np.ndarray, place: np.ndarray, at: np.ndarray) -> Tensor:
        """The states at all entries of `times`, [rows * n, size]."""
        device, flat = self.final.device, times.reshape(-1)
        pieces, entries = [], []
        for number in np.unique(step):
            here = np.flatnonzero(step == number)
            entries.append(where[here])
            rows = torch.from_numpy(place[here]).to(device)
            if number < 0:
                pieces.append(self.final[rows])
                continue
            taken = self.steps[number]
            t0, t1 = taken.t0[place[here]], taken.t1[place[here]]
            if taken.ends is None and not moves(flat):
                pieces.append(taken.within.at(rows, (at[here] - t0) / (t1 - t0)))
                continue
            asked = flat[torch.from_numpy(where[here]).to(device)]
            t = torch.from_numpy(at[here]).to(device, flat.dtype) + (asked - asked.detach())
            ends = (torch.from_numpy(x) for x in (t0, t1))
            if taken.ends is not None:
                ends = (x.squeeze(1)[torch.from_numpy(place[here])] for x in taken.ends)
            start, end = (x.to(device, flat.dtype) for x in ends)
            pieces.append(taken.within.at(rows, (t - start) / (end - start), t))
        states = self.final.new_full((flat.numel(), self.final.shape[1]), torch.nan)
        if not pieces:
            return states
        index = torch.from_numpy(np.concatenate(entries)).to(device)
        return states.index_copy(0, index, torch.cat(pieces))

    def __repr__(self) -> str:
        steps = len(self._begins)
        if self._lead is None:
            low, high = sorted((float(self.start[0]), float(self.end[0])))
            return f"RowDenseSolution(t in [{low:g}, {high:g}], {steps} steps)"
        return f"RowDenseSolution({len(self.start)} rows, {steps} steps)"


def _entries(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`values[index]`, zero where there are no values."""
    return values[np.minimum(index, len(values) - 1)] if len(values) else np.zeros(len(index), dtype=np.int64)


@dataclass(frozen=True)
class NoDenseOutput:
    """Stands for the solution at any time where there is none; false, and calling it says why.

    Attributes:
        reason: the sentence.
    """

    reason: str = "there is no dense output to call: solve with dense_output=True, or ask for the times in t_eval"

    def __call__(self, t: float | Tensor) -> Any:
        """Says why there is nothing to call.

        Raises:
            ValueError: always.
        """
        raise ValueError(self.reason)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "None"
