"""Dense output: the solution between step ends, as a polynomial per step."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchivp.times import snap, time_dtype, time_value

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

    def __call__(self, theta: Sequence[float | Tensor]) -> Tensor:
        """The values at each `theta`, [len(theta), number of polynomials]."""
        if len(theta) == 1 and isinstance(theta[0], float):
            return torch.tensor([self.at(theta[0])], dtype=self._columns.dtype, device=self._columns.device)
        column = as_time_tensor(theta, self._columns.device).unsqueeze(1)
        return torch.mm(torch.pow(column, self._exponents), self._columns)

    def at(self, theta: float) -> list[float]:
        """The values at one `theta`, in fewer operations than tensors need."""
        values = []
        for row in self._by_polynomial:
            total = 0.0
            for coefficient in row:
                total = (total + coefficient) * theta
            values.append(total)
        return values

    def values(self, theta: np.ndarray) -> list[np.ndarray | None]:
        """The values of each polynomial at each `theta`, independent of how many there are; None if it is zero.

        By Horner's scheme, since a matrix product may round by its size, and in place, since there may be millions.
        """
        values: list[np.ndarray | None] = []
        for highest, *others in self._by_polynomial:
            if not (highest or any(others)):
                values.append(None)
                continue
            total = highest * theta
            for coefficient in others:
                total += coefficient
                total *= theta
            values.append(total)
        return values


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
class Interpolant:
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
class RowInterpolant:
    """The solutions of many rows, each within its step, `y(t0 + theta dt) = y0 + sum_j b_j(theta) increments_j`.

    Attributes:
        y0: the states at their starts, [rows, size].
        increments: slopes times the sizes of the steps, [n, rows * size].
        b: the polynomials b_j.
    """

    y0: Tensor
    increments: Tensor
    b: StepPolynomials

    def at_fraction(self, theta: float) -> Tensor:
        """The state of every row at the same fraction of its step, [rows, size]."""
        at_once = torch.tensor([self.b.at(theta)], dtype=self.y0.dtype, device=self.y0.device)
        return torch.addmm(self.y0.reshape(1, self.y0.numel()), at_once, self.increments).view_as(self.y0)

    def at(self, rows: Tensor, theta: np.ndarray) -> Tensor:
        """The states of `rows`, which may repeat, each at its fraction `theta` of its step, [len(rows), size]."""
        rows = rows.to(self.y0.device)
        y = self.y0.index_select(0, rows)
        # One after the other: a batch of matrix products may round by its size, one of a single row by many does not.
        for weights, increment in zip(self.b.values(theta), self.increments, strict=True):
            if weights is not None:
                column = torch.from_numpy(weights).to(y.device, y.dtype).unsqueeze(1)
                y.addcmul_(column, increment.view_as(self.y0).index_select(0, rows))
        return y


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

    def __call__(self, t: float | Tensor) -> Any:
        """The solution at `t`.

        Raises:
            ValueError: a time lies outside the span that was integrated.
        """
        reference = self._steps[0].y0
        times = torch.as_tensor(t, dtype=time_dtype(reference.device), device=reference.device)
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

    def __repr__(self) -> str:
        return f"DenseSolution(t in [{self.t_min:g}, {self.t_max:g}], {len(self._steps)} steps)"
