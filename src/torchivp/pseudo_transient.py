"""Where the slope vanishes: Newton's method by way of implicit Euler steps that grow.

Pseudo-transient continuation: Kelley and Keyes, "Convergence analysis of pseudo-transient continuation", SIAM J. Numer.
Anal. 35 (1998). Short steps follow the solution from the initial state; the longer they are, the closer they come to
Newton's corrections. Where linear combinations of the states are conserved, as the total amount of a substance is,
the steps conserve them too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.factorised import Factorised
from torchivp.methods.jacobian import jacobians
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.method import FlatFunc
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.torch_func import derivative_depth, moves, read_rows

_FASTEST, _USUAL, _SHRINK = 10.0, 2.0, 0.25
"""The factors by which the step grows at most and at least, and shrinks where the slope grows too much."""

_WORSE = 2.0
"""A step after which the slope is so many times as large is tried again shorter."""

_NULL = 1e-9
"""Directions in which the Jacobian is smaller than this, relative to the others, may be those of conserved sums."""

_THIRD = (
    "a steady state can be differentiated twice, not three times: use nested transforms such as torch.func.grad on a "
    "solve over a long time"
)


@dataclass(frozen=True)
class Found:
    """Where a search has come to, an entry for each row.

    Attributes:
        y: the states, [rows, size].
        steady: where the slope vanishes, to rounding, and small disturbances die out.
        unstable: where it vanishes and they grow.
        singular: where the Jacobian is singular and no conserved sum tells why.
        size: the sizes of the last corrections, in units of the tolerance.
        iterations: how many steps there were.
    """

    y: Tensor
    steady: np.ndarray
    unstable: np.ndarray
    singular: np.ndarray
    size: np.ndarray
    iterations: np.ndarray


class Equilibria:
    """The steady states of rows.

    Args:
        func: the right-hand side on rows.
        t: the times at which it is evaluated, [rows, 1].
        y0: the initial states, [rows, size], which say how large conserved sums are.
        norm: the tolerances.
    """

    def __init__(self, func: FlatFunc, t: Tensor, y0: Tensor, norm: ErrorNorm):
        self._t = t
        self._complex = y0.is_complex()
        self._func = on_real_pairs(func) if self._complex else func
        self._y0 = to_real(y0)
        self._norm = norm.of_equations()
        self._one = torch.eye(self._y0.shape[1], dtype=self._y0.dtype, device=self._y0.device)

    def _as_state(self, y: Tensor) -> Tensor:
        return to_complex(y) if self._complex else y

    def _sizes(self, change: Tensor, y: Tensor) -> np.ndarray:
        """The sizes of changes of these states, in units of the tolerance."""
        return self._norm.sizes(self._as_state(change) / self._norm.tolerated(self._as_state(y)))

    def search(self, y: Tensor, h: np.ndarray | None, max_iters: int) -> Found:
        """Search from the states `y`, [rows, size], beginning with steps of the sizes `h`; None to choose them."""
        y = to_real(y).detach()
        slope = self._func(self._t, y).detach().clone()  # func may use its memory again
        h = _first_steps(y, slope) if h is None else h
        rows = len(y)
        steady, unstable, singular = np.zeros((3, rows), dtype=bool)
        size, iterations = np.full(rows, np.inf), np.zeros(rows, dtype=np.int64)
        going = read_rows(torch.isfinite(slope).all(1)) > 0
        for _ in range(max_iters):
            if not going.any():
                break
            iterations += going
            inverse = torch.from_numpy(1.0 / h).to(y).view(-1, 1, 1)
            change = self._solved(inverse * self._one - jacobians(self._func, self._t, y), slope)
            after = y + change
            slope_after = self._func(self._t, after).detach().clone()
            with np.errstate(invalid="ignore", divide="ignore"):
                growth = self._sizes(slope_after, y) / self._sizes(slope, y)
                size = np.where(going, self._sizes(change, y), size)
                better = going & (growth <= _WORSE) & np.isfinite(size)
                better |= going & (self._sizes(slope_after, y) == 0.0)
                h = h * np.where(better, np.clip(np.fmin(1.0 / growth, _FASTEST), _USUAL, _FASTEST), _SHRINK)
            taken = _column(better, y)
            y, slope = torch.where(taken, after, y), torch.where(taken, slope_after, slope)
            h = np.maximum(h, np.finfo(np.float64).tiny ** 0.5)
            near = better & (size <= 1.0)
            if near.any():
                y, slope, here, bad = self._settle(y, slope, near)
                kinds = self._stable(y)
                steady, unstable = steady | (here & kinds), unstable | (here & ~kinds)
                # It may be that the step is only small because it is short.
                singular = np.where(near, bad, singular)
                going = going & ~here
                h = np.where(near & ~here, h * _FASTEST, h)
            going = going & (h < 1e30)
        return Found(self._as_state(y), steady, unstable, singular, size, iterations)

    def first_steps(self, y: Tensor) -> np.ndarray:
        """Sizes of steps from these states in which they change little."""
        y = to_real(y).detach()
        return _first_steps(y, self._func(self._t, y).detach())

    def _solved(self, matrix: Tensor, right: Tensor) -> Tensor:
        return Factorised(matrix.nan_to_num(0.0, 0.0, 0.0)).solve(right.unsqueeze(2)).squeeze(2)

    def _settle(self, y: Tensor, slope: Tensor, near: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """Newton's corrections of the rows that seem to be `near`; where they are small, and where the matrix is bad.

        Two with the same matrix: after them nothing is left but rounding.
        """
        jacobian = jacobians(self._func, self._t, y)
        matrix = self._conserved(y, jacobian) - jacobian
        change = self._solved(matrix, slope)
        size = self._sizes(change, y)
        bad = near & ~np.isfinite(size)
        here = near & (size <= 1.0)
        chosen = _column(here, y)
        y = torch.where(chosen, y + change, y)
        slope = self._func(self._t, y).detach().clone()
        last = self._solved(matrix, slope)
        y = torch.where(chosen & torch.isfinite(last).all(1, keepdim=True), y + last, y)
        return y, self._func(self._t, y).detach().clone(), here, bad

    def _conserved(self, y: Tensor, jacobian: Tensor) -> Tensor:
        """What projects on the linear combinations of the states that are conserved, [rows, size, size].

        A combination n of the equations that is zero at every state makes the Jacobian singular, n J = 0. Those that
        are so at this state, and where the states are others, are taken for conserved.
        """
        left, values, _ = torch.linalg.svd(jacobian.nan_to_num(0.0, 0.0, 0.0))
        small = values <= _NULL * values[:, :1]
        if not small.any():
            return torch.zeros_like(jacobian)
        for factor in (0.9, 1.25):
            wave = 1.0 + 0.1 * torch.cos(torch.arange(y.shape[1], dtype=y.dtype, device=y.device))
            slope = self._func(self._t, torch.maximum(y.abs(), self._y0.detach().abs()) * factor * wave).detach()
            along = (left.mT @ slope.unsqueeze(2)).squeeze(2).abs()
            small = small & ~(along > 1e-6 * (left.mT.abs() @ slope.abs().unsqueeze(2)).squeeze(2))
        return (left * small.unsqueeze(1)) @ left.mT

    def _stable(self, y: Tensor) -> np.ndarray:
        """Where small disturbances do not grow, nor go on for ever as oscillations do about a centre."""
        values = torch.linalg.eigvals(jacobians(self._func, self._t, y).nan_to_num(0.0, 0.0, 0.0).cpu())
        least = 1e-7 * values.abs().amax(1, keepdim=True)  # of a conserved sum the value is zero, with rounding errors
        undamped = (values.imag.abs() > least) & (values.real > -1e-9 * values.abs())
        return read_rows(((values.real > least) | undamped).any(1)) == 0.0

    def recorded(self, found: Tensor) -> Tensor:
        """The steady states as functions of all that they depend on; their values stay what they are.

        By the implicit function theorem, as the recorded corrections of implicit steps: the matrix is constant, and
        each correction makes one more derivative right. Conserved sums are functions of the initial states.
        """
        y = to_real(found).detach()
        probe = self._func(self._t, y)
        if not (moves(probe) or moves(self._y0)):
            return found
        jacobian = jacobians(self._func, self._t, y)
        conserved = self._conserved(y, jacobian)
        factorised, steady = Factorised(conserved - jacobian), y
        for _ in range(2 + derivative_depth()):
            moved = (conserved @ (self._y0 - steady).unsqueeze(2)).squeeze(2)
            change = factorised.solve((self._func(self._t, steady) + moved).unsqueeze(2)).squeeze(2)
            steady = steady + (change - change.detach())
        return self._as_state(differentiable_twice(_THIRD, steady))


def _first_steps(y: Tensor, slope: Tensor) -> np.ndarray:
    largest, rate = (read_rows(x.abs().amax(1)) for x in (y, slope))
    with np.errstate(invalid="ignore", divide="ignore"):
        h = 0.01 * np.where(largest > 0.0, largest, 1e-6) / rate
    return np.where(np.isfinite(h) & (h > 0.0), h, 1.0)


def _column(which: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(which).to(like.device).unsqueeze(1)
