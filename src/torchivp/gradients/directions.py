"""The directions in which the inputs of a solve can move, and the derivatives along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torchivp.gradients.row_inputs import RowInputs


@dataclass(frozen=True)
class Block:
    """The directions in which one tensor moves: an entry at a time, of complex numbers also by i.

    Attributes:
        like: the tensor.
        rows: how many of its leading elements are entries of rows, each of which moves with its own entry alone, so
            that those of all rows move at once; None if it is shared.
        first: the number of its first direction.
        count: how many it has.
    """

    like: Tensor
    rows: int | None
    first: int
    count: int

    @staticmethod
    def of(x: Tensor, rows: int | None, first: int) -> Block:
        """That of a tensor with the next directions after `first` others."""
        parts = 2 if x.is_complex() else 1
        return Block(x, rows, first, parts * x.numel() // (rows or 1))

    def tangents(self, directions: int) -> Tensor:
        """By how much the tensor moves along each of all `directions`, [directions, *shape]."""
        moved = self.like.new_zeros(directions, self.rows or 1, self.like.numel() // (self.rows or 1))
        real = torch.view_as_real(moved).flatten(2) if moved.is_complex() else moved
        number = torch.arange(self.count, device=moved.device)
        real[self.first + number, :, number] = 1.0
        return moved.reshape(directions, *self.like.shape)

    def gradient(self, slopes: Tensor) -> Tensor:
        """That of the tensor, given the derivatives of a number along all directions, [rows, directions]."""
        own = slopes.narrow(1, self.first, self.count)  # a slice of all has no batched form
        own = own if self.rows is not None else own.sum(0)
        if self.like.is_complex():
            own = torch.view_as_complex(own.reshape(-1, 2).contiguous())
        return own.reshape(self.like.shape).to(self.like)


class Directions:
    """The directions in which all inputs of a solve move, one after the other.

    Where all functions treat each row by itself, all rows move at once along a direction of what has an entry for each
    of them.

    Args:
        inputs: what the solve is differentiated with respect to.
        row_wise: whether the functions treat each row by itself.
    """

    def __init__(self, inputs: RowInputs, row_wise: bool) -> None:
        rows = inputs.problem.rows if row_wise else None
        per_row = inputs.problem.func.args.per_row
        owners = [*[rows] * len(inputs.start), *(rows if per_row[i] else None for i in inputs.moving)]
        owners += [None] * len(inputs.parameters)
        self.blocks: list[Block | None] = []
        self.count = 0
        for x, owner in zip(inputs.tensors, owners, strict=True):
            block = Block.of(x, owner, self.count) if x.requires_grad and x.numel() else None
            self.blocks.append(block)
            self.count += 0 if block is None else block.count

    def tangents(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """By how much each of the inputs moves along each direction, [directions, *shape]."""
        for x, block in zip(tensors, self.blocks, strict=True):
            yield x.new_zeros(self.count, *x.shape) if block is None else block.tangents(self.count)


@dataclass(frozen=True)
class Sensitivities:
    """The derivatives of the results of a solve along all directions.

    Attributes:
        states: of the outputs, [rows, directions, T, size].
        before: of the states before changes, [changes, directions, size].
        rows: in which row each change is, [changes].
        blocks: which directions belong to which input; None for those that need no gradient.
    """

    states: Tensor
    before: Tensor
    rows: np.ndarray
    blocks: Sequence[Block | None]

    @cached_property
    def _finite(self) -> bool:
        return bool(torch.isfinite(self.states).all()) and bool(torch.isfinite(self.before).all())

    def gradients(self, grad: Tensor, grad_before: Tensor) -> list[Tensor | None]:
        """The gradients of all inputs, given those of the outputs, [rows, T, size], and of states before changes."""
        count = len(self.states)
        slopes = _along(self.states.flatten(2), grad.reshape(count, self.states[0, 0].numel()), self._finite)
        if len(self.rows):
            rows = torch.from_numpy(self.rows).to(slopes.device)
            slopes = slopes.index_add(0, rows, _along(self.before, grad_before, self._finite))
        return [None if block is None else block.gradient(slopes) for block in self.blocks]


def _along(tangents: Tensor, grad: Tensor, finite: bool) -> Tensor:
    """The derivatives of a real number along directions, [n, directions], by `tangents` [n, directions, m] of values.

    `grad` are its gradients by these, [n, m]. If not all tangents are `finite`, those of values that do not count,
    whose gradient is zero, do not matter: they may be those of a row that failed.
    """
    if tangents.is_complex():
        tangents, grad = torch.view_as_real(tangents).flatten(2), torch.view_as_real(grad.resolve_conj()).flatten(1)
    if finite:
        return torch.matmul(tangents, grad.unsqueeze(2)).squeeze(2)
    grad = grad.unsqueeze(1)
    return torch.where(grad == 0, 0.0, tangents * grad).sum(2)
