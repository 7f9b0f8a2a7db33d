"""Explicit Runge-Kutta methods: the one engine that reads their tableaux."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import HERMITE, Interpolant, RowInterpolant, StepPolynomials
from torchivp.dual_numbers import at_rest
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.methods.ode.tableau import ButcherTableau
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import derivatives_enabled, may_be_tracked


class ExplicitRungeKutta(Method):
    """The engine of the explicit Runge-Kutta methods. A method is a subclass with a `tableau`.

    While no gradient flows, the stages lie in one preallocated buffer and a stage combination is one matrix
    product with rows of it; otherwise they are a list of tensors, which autograd can follow.
    """

    tableau: ClassVar[ButcherTableau]

    def __init_subclass__(cls) -> None:
        if "tableau" not in cls.__dict__:
            return
        cls.order = cls.tableau.order
        cls.rows_keep_carry = cls.tableau.predicts
        cls.widest_gap = float(np.diff(sorted({0, *cls.tableau.c, 1})).max())
        cls.error_order = cls.tableau.error_order

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._in_state = {"dtype": y0.dtype, "device": y0.device}
        self._size = y0.shape[1]
        self._on_host = y0.device.type == "cpu"
        self._is_short = self.error_order is None and self.tableau.dense is None
        self._end = (math.nan, y0, y0)
        self._row_buffer: RowBuffer | None = None

    # Most solves need some of what follows, none needs all of it.

    @cached_property
    def _terms(self) -> list[list[tuple[int, float]]]:
        """For each stage the later ones, and the end of the step, that it enters, with its weight there."""
        columns = np.concatenate([self.tableau.matrix, [self.tableau.b]]).T.tolist()
        return [[(i, a) for i, a in enumerate(column) if a] for column in columns]

    @cached_property
    def _coefficients(self) -> tuple[Tensor, list[int]]:
        """What combines the stages, and the lengths of its parts.

        The rows of `a` after the first, which is empty, then the weights of the end and of the error.
        """
        b, embedded = np.array(self.tableau.b), np.array(self.tableau.b_embedded or self.tableau.b)
        rows = [*self.tableau.a[1:], b, b - embedded]
        return torch.tensor(np.concatenate(rows)[None], **self._in_state), [len(row) for row in rows]

    @cached_property
    def _rows(self) -> tuple[Tensor, ...]:
        coefficients, lengths = self._coefficients
        return coefficients.split(lengths, dim=1)

    @cached_property
    def _buffer(self) -> _StageBuffer:
        k = torch.zeros((len(self.tableau.c), self._size), **self._in_state)
        return _StageBuffer(*self._coefficients, k)

    @cached_property
    def _inner_c(self) -> Tensor:
        """The nodes other than the start and the end."""
        device = self._in_state["device"]
        inner = [c for c in self.tableau.c if c not in (0, 1)]
        return torch.tensor(inner, dtype=time_dtype(device), device=device)

    @cached_property
    def _time_of_stage(self) -> list[int]:
        """The place of each node among the start, the end and those within."""
        places = iter(range(2, 2 + len(self.tableau.c)))
        return [int(c) if c in (0, 1) else next(places) for c in self.tableau.c]

    @cached_property
    def _dense_rows(self) -> list[Tensor]:
        return [torch.tensor([row], **self._in_state) for row in self.tableau.dense.a] if self.tableau.dense else []

    @cached_property
    def _dense_b(self) -> StepPolynomials:
        dense = self.tableau.dense
        return StepPolynomials(dense.b if dense else HERMITE, self._in_state["device"])

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Tensor | None) -> Step:
        if self._is_short and isinstance(t0, float) and isinstance(t1, float):
            return self._short_step(func, t0, t1, y0, carry)
        recorded = torch.is_grad_enabled() and (y0.requires_grad or isinstance(t0, Tensor) or isinstance(t1, Tensor))
        known = [] if carry is None else [carry]
        if recorded or may_be_tracked():
            return self._recorded_step(func, t0, t1, y0, known)
        buffer = self._buffer
        buffer.scale(t1 - t0)
        times = self.stage_times(t0, t1)
        y = y0
        for i, (slot, row, head) in enumerate(buffer.stages):
            if row is not None:
                y = torch.addmm(y0, row, head)
            k = func(times[i], y) if i > 0 or carry is None else carry
            if k.requires_grad:
                return self._recorded_step(func, t0, t1, y0, [*buffer.first(i), k])
            if k is not slot:
                slot.copy_(k)
        fsal = self.tableau.fsal
        return self._finish(t0, t1, y0, y if fsal else torch.addmm(y0, buffer.weights, buffer.k), buffer)

    def _short_step(self, func: FlatFunc, t0: float, t1: float, y0: Tensor, known: Tensor | None) -> Step:
        """A step without an error estimate, as a person would write it, whether autograd follows it or not.

        Methods without one have few stages, and a handful of additions is less work than laying the stages out for a
        matrix product, in the backward pass too.
        """
        dt, first, all_terms, times = t1 - t0, y0, self._terms, self.stage_times(t0, t1)
        states = [y0] * (len(all_terms) + 1)  # of the stages, then of the end of the step
        for i, terms in enumerate(all_terms):
            k = func(times[i], states[i]) if i > 0 or known is None else known
            for j, a in terms:  # at once, since func may use its memory again
                states[j] = states[j].add(k, alpha=a * dt)
            if i == 0:
                first = k if len(all_terms) == 1 or k.requires_grad else k.clone()
        return Step(t0, t1, y0, states[-1], None, None, known, _FirstStage(first))

    def _recorded_step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, known: Sequence[Tensor]
    ) -> Step:
        """A step that autograd and function transforms can follow, given the first stages."""
        coefficients, lengths = self._coefficients
        record = _StageRecord((coefficients * (t1 - t0)).split(lengths, dim=1))
        y = y0
        for i, t in enumerate(self.stage_times(t0, t1)):
            if i > 0:
                y = record.combine(i, y0)
            record.append(known[i] if i < len(known) else func(t, y))
        return self._finish(t0, t1, y0, y if self.tableau.fsal else record.combine(len(self.tableau.c), y0), record)

    def _finish(
        self, t0: float | Tensor, t1: float | Tensor, y0: Tensor, y1: Tensor, stages: _StageBuffer | _StageRecord
    ) -> Step:
        error = stages.error() if self.error_order is not None else None
        carry = stages.last() if self.tableau.fsal or self.tableau.predicts else None
        return Step(t0, t1, y0, y1, error, carry, stages.first_stage(), stages)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: Tensor | None, norm: ErrorNorm
    ) -> Step:
        # The sizes of the steps are part of the stages here, not of the coefficients, which all rows share.
        dt = at_rest((t1 - t0).to(y0.dtype))
        inner = torch.lerp(t0, t1, self._inner_c.view(-1, 1, 1))
        times = (t0, t1, *inner.unbind())
        if t0.dtype != self._real_dtype:
            times = [t.to(self._real_dtype) for t in times]
        stages = RecordedRows() if derivatives_enabled() else self._stages_of_rows(y0)
        flat, rows = y0.reshape(1, y0.numel()), self._rows
        first, y, k = carry, y0, y0
        for i, place in enumerate(self._time_of_stage):
            if i > 0:
                y = torch.addmm(flat, rows[i - 1], stages.first(i))
                y = y if len(y0) == 1 else y.view_as(y0)
            if i > 0 or carry is None:
                k = func(times[place], y)
                first = k.clone() if first is None else first  # func may use its memory again
            else:
                k = carry
            stages.put(i, k, dt)
        count, error, fsal = len(self.tableau.c), None, self.tableau.fsal
        y1 = y if fsal else torch.addmm(flat, self._rows[-2], stages.first(count)).view_as(y0)
        if self.error_order is not None:
            with torch.no_grad():
                error = torch.mm(self._rows[-1], stages.first(count)).view_as(y0)
        after = k.clone() if fsal or self.tableau.predicts else None
        return Step(t0, t1, y0, y1, error, after, first, stages.first(count))

    def _stages_of_rows(self, y0: Tensor) -> RowBuffer:
        if self._row_buffer is None or self._row_buffer.shape != y0.shape:
            self._row_buffer = RowBuffer(len(self.tableau.c), y0)
        return self._row_buffer

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        t0, t1, y0, stages = step.t0, step.t1, step.y0, step.stages
        assert isinstance(t0, Tensor) and isinstance(t1, Tensor)
        dt, dense = (t1 - t0).to(y0.dtype), self.tableau.dense
        if dense is None:
            if step.carry is None:
                step.carry = func(t1.to(self._real_dtype), step.y1).clone()
            increments = torch.cat(
                [(step.y1 - y0).reshape(1, y0.numel()), stages[:1], (step.carry * dt).reshape(1, y0.numel())]
            )
            return RowInterpolant(y0, increments, self._dense_b)
        for c, row in zip(dense.c, self._dense_rows, strict=True):
            y = torch.addmm(y0.reshape(1, y0.numel()), row, stages).view_as(y0)
            k = func(torch.lerp(t0, t1, c).to(self._real_dtype), y)
            stages = torch.cat((stages, (k * dt).reshape(1, k.numel())))
        return RowInterpolant(y0, stages, self._dense_b)

    def stage_times(self, t0: float | Tensor, t1: float | Tensor) -> list[Tensor]:
        """The times of the stages, in the dtype that `func` receives. A node c = 1 gives `t1` exactly."""
        if self._on_host and isinstance(t0, float) and isinstance(t1, float):
            at, dt = self._real_dtype, t1 - t0
            return [torch.scalar_tensor(t1 if c == 1 else t0 + c * dt, dtype=at) for c in self.tableau.c]
        device, dtype = self._inner_c.device, self._inner_c.dtype
        last, start, first = self._end  # the start of a step is, as a rule, the end of the one before
        if last != t0 or isinstance(t0, Tensor):
            start = time_scalar(t0, dtype, device)
            first = start.to(self._real_dtype)
        end = time_scalar(t1, dtype, device)
        final = end if dtype == self._real_dtype else end.to(self._real_dtype)
        self._end = (t1 if isinstance(t1, float) else math.nan, end, final)
        times = (first, final)
        if self._inner_c.numel():
            times += torch.lerp(start, end, self._inner_c).to(self._real_dtype).unbind()
        return [times[i] for i in self._time_of_stage]

    def initial_carry(self, f0: Tensor) -> Tensor:
        return f0

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        dt = step.t1 - step.t0
        dense = self.tableau.dense
        if dense is None:
            slopes = self._hermite_slopes(func, step, dt)
        else:
            slopes = step.stages.all()
            for c, row in zip(dense.c, self._dense_rows, strict=True):
                y = torch.addmm(step.y0, row * dt, slopes)
                slopes = torch.cat([slopes, func(self._time(step.t0 + c * dt), y)])
        return Interpolant(step.t0, step.t1, step.y0, slopes, self._dense_b)

    def _hermite_slopes(self, func: FlatFunc, step: Step, dt: float | Tensor) -> Tensor:
        """The slope of the chord and those at both ends of the step."""
        slopes = torch.cat([(step.y1 - step.y0) / dt, step.stages.first_stage()])
        if step.carry is None:  # func may use the memory of the first stage again
            step.carry = func(self._time(step.t1), step.y1)
        return torch.cat([slopes, step.carry])

    def _time(self, t: float | Tensor) -> Tensor:
        return time_scalar(t, self._real_dtype, self._in_state["device"])


class _FirstStage:
    """The slope at the start of a step, which is all that Hermite's interpolant needs; valid until func is called."""

    def __init__(self, slope: Tensor):
        self._slope = slope

    def first_stage(self) -> Tensor:
        return self._slope


class RowBuffer:
    """The stages of many rows in the one buffer.

    Args:
        stages: how many.
        like: the states, [rows, size].
    """

    def __init__(self, stages: int, like: Tensor):
        k = like.new_zeros(stages, like.numel())
        self.shape = like.shape
        self._slots = [row.view_as(like) for row in k]
        self._first = [k[:i] for i in range(len(k) + 1)]

    def put(self, i: int, k: Tensor, dt: Tensor | None = None) -> None:
        """Keep a stage, times the sizes of the steps if these are given."""
        if dt is None:
            self._slots[i].copy_(k)
        else:
            torch.mul(k, dt, out=self._slots[i])

    def first(self, count: int) -> Tensor:
        """The first stages, [count, rows * size]; valid until the next step."""
        return self._first[count]


class RecordedRows:
    """The same as a matrix that autograd can follow."""

    def __init__(self) -> None:
        self._k: Tensor | None = None

    def put(self, i: int, k: Tensor, dt: Tensor | None = None) -> None:
        row = (k if dt is None else k * dt).reshape(1, k.numel())
        self._k = row if self._k is None else torch.cat((self._k, row))

    def first(self, count: int) -> Tensor:
        assert self._k is not None
        return self._k


class _StageBuffer:
    """The stages in one preallocated [stages, size] tensor.

    Attributes:
        k: the stages.
        stages: for each of them the row of `k`, the coefficients that combine those before it, scaled by the size of
            the step (None for the first), and those before it.
        weights: the scaled weights of the end of the step.
    """

    def __init__(self, coefficients: Tensor, row_lengths: list[int], k: Tensor):
        self.k = k
        self._coefficients = coefficients
        self._scaled = torch.empty_like(coefficients)
        *rows, self.weights, self._error = self._scaled.split(row_lengths, dim=1)
        self._slots = self.k.split(1)
        self._size: float | Tensor | None = None
        self.stages = list(zip(self._slots, [None, *rows], [k[:i] for i in range(len(k))], strict=True))

    def scale(self, dt: float | Tensor) -> None:
        """Prepare for a step of the size `dt`."""
        if dt != self._size:
            torch.mul(self._coefficients, dt, out=self._scaled)
            self._size = dt

    def error(self) -> Tensor:
        return torch.mm(self._error, self.k)

    def first_stage(self) -> Tensor:
        return self._slots[0]

    def last(self) -> Tensor:
        return self._slots[-1]

    def all(self) -> Tensor:
        return self.k

    def first(self, count: int) -> list[Tensor]:
        """Copies of the first stages."""
        return [slot.clone() for slot in self._slots[:count]]


class _StageRecord:
    """The stages as tensors that autograd and function transforms can follow.

    The matrix of stages grows by one row a stage: each of its versions has two parents in the graph, not as many as
    it has rows.
    """

    def __init__(self, rows: Sequence[Tensor]):
        self._rows = rows
        self._k: list[Tensor] = []

    def append(self, k: Tensor) -> None:
        if not k.requires_grad:
            k = k.clone()  # func may use its memory again
        self._matrix = torch.cat((self._matrix, k)) if self._k else k
        self._k.append(k)

    def combine(self, i: int, y0: Tensor) -> Tensor:
        """`y0 + dt sum_j a_ij k_j`; with as many stages as there are, the end of the step."""
        return torch.addmm(y0, self._rows[i - 1], self._matrix)

    def error(self) -> Tensor:
        with torch.no_grad():
            return torch.mm(self._rows[-1], self._matrix)

    def first_stage(self) -> Tensor:
        return self._k[0]

    def last(self) -> Tensor:
        return self._k[-1]

    def all(self) -> Tensor:
        return self._matrix
