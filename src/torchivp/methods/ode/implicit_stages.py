"""The stages of an implicit Runge-Kutta method: in which order they are found, and with which coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import HERMITE, StepPolynomials
from torchivp.methods.implicit.linear import Systems
from torchivp.methods.implicit.per_row import Numbers, any_of, pick
from torchivp.methods.ode.tableau import ButcherTableau
from torchivp.times import time_dtype

_TOLERANCE = 1e-3
"""The residual that a Krylov method leaves in an iteration, relative to that at the start."""


@dataclass(frozen=True, slots=True)
class Block:
    """Stages that are found together.

    Attributes:
        first: the first of them.
        stop: the one after the last.
        before: their coefficients of the stages before them, [stages, first]; None if there are none.
        guess: what combines slopes before it to a guess of that of a single stage, in adaptive steps: the places of
            these slopes and their weights.
        own: the linear systems with their coefficients of each other; None for an explicit stage.
        precise: the same, solved to rounding.
        part: of which of the functions that the right-hand side is the sum of.
    """

    first: int
    stop: int
    before: Tensor | None
    guess: Sequence[tuple[int, float]] | None
    own: Systems | None
    precise: Systems | None
    part: int


class Stages:
    """The coefficients of a tableau, laid out for a state.

    Args:
        tableau: the tableau.
        split: whether the right-hand side is the sum of an implicit part, the first of its functions, and an explicit
            one. Each stage then has two slopes, of either, one after the other.
        systems: makes the linear systems with a block of the coefficients, solved to a tolerance.
        like: a real tensor as the state is.

    Attributes:
        count: how many slopes a step has.
        matrix: the coefficients, [count, count].
        a: the same, as the state is.
        b: the weights, [1, count].
        c: the nodes, [count], in the dtype of time.
        error: the weights of the embedded method less those of the method, [1, count], if there is one.
        blocks: the stages that are found together, in turn.
        needs_slope: whether a step starts from the slope at its start: known from the step before it, or evaluated.
            For dense output by cubics it is evaluated when that is asked for.
        hands_on_slope: whether the last slope is that at the start of the next step.
        solved: the stages of the last block whose equations are solved.
        kept: the slopes from which the next step guesses its own.
        dense: the polynomials of the dense output.
    """

    def __init__(self, tableau: ButcherTableau, split: bool, systems: Callable[[Tensor, float], Systems], like: Tensor):
        parts = 2 if split else 1
        a, self._nodes = tableau.split() if split else tableau.matrix, np.repeat(np.array(tableau.c, float), parts)

        def weights(b: Sequence[float]) -> Tensor:
            return torch.tensor([np.repeat(b, parts).tolist()], dtype=like.dtype, device=like.device)

        self._systems = systems
        self._parts = parts
        self.matrix = a
        self.count = len(a)
        self.a = torch.tensor(a, dtype=like.dtype, device=like.device)
        self.b = weights(tableau.b)
        self.c = torch.tensor(self._nodes, dtype=time_dtype(like.device), device=like.device)
        self.error = None if tableau.b_embedded is None else weights(tableau.b_embedded) - self.b
        self.blocks = [self._block(i, j) for i, j in _extents(a)]
        explicit = self.blocks[0].own is None
        self.needs_slope = not split and (explicit or (tableau.fsal and tableau.dense is None))
        self.hands_on_slope = tableau.fsal and self.needs_slope
        last = next(block for block in reversed(self.blocks) if block.own is not None)
        self.solved = slice(last.first, last.stop)
        self.kept = slice(None, None, parts)
        self._to_powers = np.linalg.pinv(np.vander(self._nodes[self.solved], increasing=True))
        self._next_slopes = self._extrapolation(1.0)
        polynomials = np.repeat(tableau.dense.b, parts, 0).tolist() if tableau.dense else HERMITE
        self.dense = StepPolynomials(polynomials, like.device)

    def _block(self, first: int, stop: int) -> Block:
        a, part = self.a[first:stop, first:stop], first % self._parts
        own = precise = guess = None
        if a.any():
            own, precise = self._systems(a, _TOLERANCE), self._systems(a, 1e3 * torch.finfo(a.dtype).eps)
            if 0 < first == stop - 1:
                places = range(part, stop, self._parts)
                guess = list(zip(places, _extrapolating(self._nodes[places]), strict=False))
        before = self.a[first:stop, :first]
        return Block(first, stop, before if before.any() else None, guess, own, precise, part)

    def times(self, t0: Tensor, t1: Tensor) -> Tensor:
        """The times of the stages, [count] or [count, rows, 1], in the dtype of time.

        A node c = 1 gives `t1` exactly.
        """
        return torch.lerp(t0, t1, self.c.view(-1, 1, 1) if t0.ndim else self.c)

    def guess(self, block: Block, known: Tensor | None, last: Tensor, ratio: Numbers, adaptive: bool) -> Tensor:
        """The slopes that the iteration starts from: those before it, or of the last step, extrapolated.

        Args:
            block: the stages.
            known: the slopes before it in this step.
            last: those of the last step that were `kept`.
            ratio: by how much this step is longer than the last one.
            adaptive: whether the step has an error estimate.
        """
        if block.stop - block.first == 1 < self.count:
            if known is None:
                return last[-1:]
            if block.guess is None or not adaptive:
                return known[-self._parts :][:1]
            first, *others = (weight * known[place : place + 1] for place, weight in block.guess)
            return sum(others, first)
        far = abs(ratio - 1.0) >= 0.01
        weights = self._extrapolation(pick(far, ratio, 1.0)) if any_of(far) else self._next_slopes
        slopes = last[self.solved]
        if isinstance(ratio, float):
            return torch.mm(weights[0], slopes.squeeze(1)).unsqueeze(1)
        # One after the other: what a matrix product does to a row may depend on how many there are.
        first, *others = (weights.permute(2, 1, 0).unsqueeze(3) * slopes.unsqueeze(1)).unbind()
        return sum(others, first)

    def _extrapolation(self, ratio: Numbers) -> Tensor:
        """What extrapolates the slopes of a step to those of the next, longer by `ratio`, [rows, stages, stages].

        By their polynomial.
        """
        nodes = self._nodes[self.solved]
        powers = (1.0 + np.reshape(ratio, (-1, 1)) * nodes)[:, :, None] ** np.arange(len(nodes))
        return torch.as_tensor(powers @ self._to_powers).to(self.a)


def _extents(a: np.ndarray) -> list[tuple[int, int]]:
    """The first stage of each block and the one after the last.

    Stage by stage if that is possible and one matrix serves all of them; otherwise all stages are one block, but for
    a first one that is the slope at the start.
    """
    stages = len(a)
    on_diagonal = np.unique(np.diag(a))
    if np.any(np.triu(a, 1)) or len(on_diagonal[on_diagonal != 0]) > 1:
        return [(0, stages)] if a[0].any() or a[:, 0].any() else [(0, 1), (1, stages)]
    return [(i, i + 1) for i in range(stages)]


def _extrapolating(nodes: np.ndarray) -> Sequence[float]:
    """The least weights that find the value at the last node from the others, for polynomials of degree 2, or less."""
    degree = min(2, len(set(nodes[:-1].tolist())) - 1)
    powers = np.vander(nodes, degree + 1)
    return (powers[-1] @ np.linalg.pinv(powers[:-1])).tolist()
