"""The Adams method of varying order: two evaluations a step, whatever the order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import Interpolant
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.methods.ode.past_slopes import PastSlopes, first_slope, with_current
from torchivp.methods.ode.slope_polynomial import Array, SlopePolynomials, integrals, newton_terms, weighted
from torchivp.times import time_scalar

_HIGHEST = 12
"""The highest order of the error estimate."""


class AdamsCarry(NamedTuple):
    """What a step starts from besides the state.

    Attributes:
        past: the slopes at the ends of past steps.
        order: the order of the step.
        starting: whether the order still rises with every step.
    """

    past: PastSlopes
    order: int
    starting: bool


class Adams(Method):
    """Adams, Bashforth and Moulton's methods of varying order up to 13(12), adaptive: two evaluations a step.

    For problems that are smooth, precise solutions and expensive right-hand sides. A step at order k integrates the
    polynomial through k past slopes to predict its end, evaluates `func` there, and corrects with that slope as well,
    which makes the result of order k + 1. The correction estimates the error of a step at order k; what it would have
    been at the orders next to k says at which one to go on. The coefficients fit steps of any sizes.

    Shampine and Gordon, "Computer Solution of Ordinary Differential Equations" (1975); Hairer, Norsett and Wanner,
    "Solving Ordinary Differential Equations I", III.5 and III.7. Dense output: the polynomial that was integrated.
    """

    order = _HIGHEST + 1
    error_order = 1
    varies_order = True

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        # Where steps have grown fast, weights of opposite signs are so large that they magnify rounding.
        self._largest_weights = 1e3 if torch.finfo(y0.dtype).eps < 1e-10 else 1e2

    def initial_carry(self, f0: Tensor) -> Tensor:
        return f0

    def step(
        self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: AdamsCarry | Tensor | None
    ) -> Step:
        past, order, starting = self._begin(func, t0, y0, carry)
        dt = t1 - t0
        nodes = past.nodes(t0, t1)
        # Row k is that by which the corrector of order k + 1 differs from the one of order k.
        terms = newton_terms(nodes[: order + 2])
        k = self._order(terms, order)
        predicted = weighted(y0, dt * integrals(nodes[1 : k + 1]), past.slopes[:k])
        slope = func(time_scalar(t1, self._real_dtype, y0.device), predicted)
        stages = torch.cat((slope, past.slopes[: len(terms) - 1]))
        used = stages[: k + 1]
        y1 = weighted(y0, dt * terms[: k + 1].sum(0)[: k + 1], used)
        error, others = self._errors(dt, terms, stages, k)
        starting = starting and k == order
        after = AdamsCarry(past._replace(current=False), min(k + starting, _HIGHEST), starting)
        again = AdamsCarry(past, k, False)
        return Step(t0, t1, y0, y1, error, after, again, (nodes[: k + 1], used), k, others)

    def _begin(self, func: FlatFunc, t0: float | Tensor, y0: Tensor, carry: AdamsCarry | Tensor | None) -> AdamsCarry:
        """The carry with the slope at the start."""
        if isinstance(carry, AdamsCarry):
            past = with_current(carry.past, func, t0, y0, self._real_dtype, _HIGHEST)
            return carry._replace(past=past, order=min(carry.order, len(past.times)))
        past = with_current(None if carry is None else first_slope(t0, carry), func, t0, y0, self._real_dtype, _HIGHEST)
        return AdamsCarry(past, 1, True)

    def _order(self, terms: Array, order: int) -> int:
        """The highest order, up to `order`, at which the weights of the corrector are not too large."""
        while order > 1 and abs(terms[: order + 1].sum(0)).sum() > self._largest_weights:
            order -= 1
        return order

    def _errors(
        self, dt: float | Tensor, terms: Array, stages: Tensor, k: int
    ) -> tuple[Tensor, tuple[tuple[int, Tensor], ...]]:
        """The estimated error at order `k`, and those at the orders next to it, each with its order.

        The estimate is the difference between the corrector and the explicit method that predicts for it: a divided
        difference, in which the slope at the end has the weight that it has in the corrector.
        """
        highest = min(k + 1, len(terms) - 1, _HIGHEST)
        if highest > k and self._order(terms, highest) < highest:
            highest = k
        orders = range(max(k - 1, 1), highest + 1)
        with torch.no_grad():
            corrections = terms * (terms[:, 0].cumsum(0) / terms[:, 0])[:, None]
            rows = dt * corrections[orders.start : orders.stop]
            if not isinstance(rows, Tensor):
                rows = torch.from_numpy(rows)
            errors = torch.mm(rows.to(stages.device, stages.dtype), stages).split(1)
        by_order = dict(zip(orders, errors, strict=True))
        return by_order.pop(k), tuple(by_order.items())

    def at_order(self, carry: Any, order: int | np.ndarray) -> Any:
        if not isinstance(carry, AdamsCarry) or order == carry.order:
            return carry
        assert isinstance(order, int)
        return AdamsCarry(carry.past, order, False)

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        nodes, slopes = step.stages
        b = SlopePolynomials(torch.as_tensor(nodes), slopes.device)
        return Interpolant(step.t0, step.t1, step.y0, slopes, b)
