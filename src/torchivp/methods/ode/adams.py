"""The Adams method of varying order: two evaluations a step, whatever the order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import Interpolant, RowInterpolant
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc, Memory, Method, Step, on_arrays
from torchivp.methods.ode.combined import combined
from torchivp.methods.ode.past_slopes import PastSlopes, with_current
from torchivp.methods.ode.slope_polynomial import Array, SlopesWithin, in_rows, integrals, library
from torchivp.times import time_scalar
from torchivp.torch_func import read_rows

_HIGHEST = 12
"""The highest order of the error estimate."""


class AdamsCarry(NamedTuple):
    """What a step starts from besides the state.

    Attributes:
        past: the slopes at the ends of past steps.
        next: the orders of the next steps.
    """

    past: PastSlopes
    next: NextOrder


@dataclass(frozen=True, slots=True)
class NextOrder(Memory):
    """The orders of the steps to come.

    Attributes:
        order: [rows].
        starting: whether they still rise with every step, [rows].
    """

    order: np.ndarray
    starting: np.ndarray

    def map(self, function: Callable[..., Tensor], *others: NextOrder) -> NextOrder:
        steps = (self, *others)
        order, starting = (on_arrays(function, *(getattr(x, n) for x in steps)) for n in ("order", "starting"))
        return NextOrder(order, starting)


class Adams(Method):
    """Adams, Bashforth and Moulton's methods of varying order up to 13(12), adaptive: two evaluations a step.

    For problems that are smooth, precise solutions and expensive right-hand sides. A step at order k integrates the
    polynomial through k past slopes to predict its end, evaluates `func` there, and corrects with that slope as well,
    which makes the result of order k + 1. The correction estimates the error of a step at order k; what it would have
    been at the orders next to k says at which one to go on. The coefficients fit steps of any sizes.

    Shampine and Gordon, "Computer Solution of Ordinary Differential Equations" (1975); Hairer, Norsett and Wanner,
    "Solving Ordinary Differential Equations I", III.5 and III.7. Dense output: the polynomial that was integrated.
    """

    references = ("ShampineGordon1975", "HairerNorsettWanner1993")
    order = _HIGHEST + 1
    error_order = 1
    varies_order = True
    rows_keep_carry = True

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        # Where steps have grown fast, weights of opposite signs are so large that they magnify rounding.
        self._largest_weights = 1e3 if torch.finfo(y0.dtype).eps < 1e-10 else 1e2

    def initial_carry(self, f0: Tensor) -> AdamsCarry:
        one = np.ones(len(f0), dtype=np.int64)
        return AdamsCarry(PastSlopes.none(f0, _HIGHEST), NextOrder(one, one > 0))

    def at_order(self, carry: AdamsCarry | None, order: int | np.ndarray) -> AdamsCarry | None:
        if carry is None:
            return carry
        before = carry.next.order
        order = np.full_like(before, order) if isinstance(order, int) else np.where(order == 0, before, order)
        return carry._replace(next=NextOrder(order, carry.next.starting & (order == before)))

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: AdamsCarry | None
    ) -> Step:
        return self._step(func, t0, t1, y0, carry).of_one_row(t0, t1)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: AdamsCarry | None, norm: ErrorNorm
    ) -> Step:
        return self._step(func, t0, t1, y0, carry)

    def _step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: AdamsCarry | None
    ) -> Step:
        """A step of every row, or of a single one, whose times are floats or 0-d."""
        past, known = with_current(carry and carry.past, func, t0, y0, self._real_dtype, _HIGHEST)
        carry = AdamsCarry(past, carry.next) if carry else self.initial_carry(known[:, 0])
        grid = past.grid(t0, t1)
        order = np.minimum(carry.next.order, grid.count)
        used = min(int(order.max()) + 2, _HIGHEST + 1)
        nodes, recent = grid.nodes[:, :used], known[:, : used - 1]
        # By what a corrector differs from the explicit method that predicts for it the error is estimated.
        correctors, corrections = integrals(nodes)
        fits = self._fits(correctors)
        k = _highest(fits, order)
        places = np.stack((k, k - 1, np.minimum(k + 1, used - 1)), 1)
        rises = in_rows(fits, places[:, 2:])[:, 0] & (k + 1 <= np.minimum(grid.count, _HIGHEST))
        corrector, errors = in_rows(correctors, places[:, :1]), in_rows(corrections, places)
        weights = grid.weights(library(nodes).concatenate((corrector - errors[:, :1], corrector, errors), 1), y0)
        predicted = y0 + combined(weights[:, :1, 1:], recent).squeeze(1)
        slope = func(time_scalar(t1, self._real_dtype, y0.device), predicted)
        stages = torch.cat((slope.unsqueeze(1), recent), 1)
        change, *errors = combined(weights[:, 1:], stages).unbind(1)
        error, lower, higher = (x.detach() for x in errors)
        starting = carry.next.starting & (k == order)
        return Step(
            t0,
            t1,
            y0,
            y0 + change,
            error,
            AdamsCarry(past.after(t0, known), NextOrder(np.minimum(k + starting, _HIGHEST), starting)),
            AdamsCarry(past, NextOrder(k, starting & False)),
            (nodes, stages, k),
            k,
            ((np.where(k > 1, k - 1, 0), lower), (np.where(rises, k + 1, 0), higher)),
        )

    def _fits(self, correctors: Array) -> np.ndarray:
        """At which orders the weights of the correctors are not too large, [rows, n]."""
        sizes = abs(correctors).cumsum(2)[:, :, -1]
        return ~((sizes if isinstance(sizes, np.ndarray) else read_rows(sizes)) > self._largest_weights)

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        return self._within(step).of_one_row(step)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        return self._within(step).of_rows(step)

    def _within(self, step: Step) -> SlopesWithin:
        nodes, stages, k = step.stages
        return SlopesWithin.through(nodes, k + 1, stages)


def _highest(fits: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The highest order, up to `order`, that fits, or 1."""
    if in_rows(fits, order[:, None]).all():
        return order
    places = np.arange(fits.shape[1])
    return np.where(fits & (places <= order[:, None]), places, 1).max(1)
