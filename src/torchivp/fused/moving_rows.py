"""Rows whose initial states and parameters move: what sensitivities are computed of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.stepsize.pid import PIDController


@dataclass(frozen=True, eq=False)
class MovingRows:
    """The problems of a call, one a row, float64 on the CPU.

    Attributes:
        y0: the initial states, [rows, n].
        tangents: how they move in each direction, [rows, D, n].
        parameters: [n_parameters, rows].
        t0: when each row starts, [rows].
        t1: when it ends, [rows].
        t: the outputs, [rows, T].
        moving: the numbers of the parameters that move, in the last directions.
        rtol: the relative tolerance.
        atol: the absolute tolerance of each state, [n].
        controller: what sizes the steps.
        max_steps: the largest number of step attempts of a row.
    """

    y0: Tensor
    tangents: Tensor
    parameters: Tensor
    t0: Tensor
    t1: Tensor
    t: Tensor
    moving: tuple[int, ...]
    rtol: float
    atol: Tensor
    controller: PIDController
    max_steps: int

    def check(self, states: int, count: int) -> None:
        """Check that everything fits a function of so many states and parameters.

        Raises:
            ValueError: a tensor has another shape, dtype or device, or a parameter that moves is none.
        """
        rows, directions, outputs = self.y0.shape[0], self.tangents.shape[1:-1], self.t.shape[1:]
        self._check_tensor("y0", self.y0, (rows, states), "[rows, n]")
        self._check_tensor("tangents", self.tangents, (rows, *directions, states), "[rows, D, n]")
        self._check_tensor("parameters", self.parameters, (count, rows), "[n_parameters, rows]")
        self._check_tensor("t0", self.t0, (rows,), "[rows]")
        self._check_tensor("t1", self.t1, (rows,), "[rows]")
        self._check_tensor("t", self.t, (rows, *outputs), "[rows, T]")
        self._check_tensor("atol", self.atol, (states,), "[n]")
        if len(self.moving) > directions[0] or not all(0 <= p < count for p in self.moving):
            raise ValueError(
                f"moving must hold numbers of the {count} parameters, counted from 0, at most as many as there are "
                f"directions ({directions[0]}), and is {self.moving}"
            )

    @staticmethod
    def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], words: str) -> None:
        fits = len(shape) == words.count(",") + 1
        if fits and x.shape == shape and x.dtype is torch.float64 and x.is_cpu:
            return
        wanted = f"{words} = {list(shape)}" if fits else words
        raise ValueError(
            f"{name} must be a float64 tensor on the CPU of shape {wanted}: it is {x.dtype} on {x.device} of shape "
            f"{list(x.shape)}"
        )

    def out_of_order(self) -> str:
        """Which outputs are not in order, in a sentence."""
        row = next(row for row in range(len(self.t)) if not self._in_order(row))
        return (
            f"the outputs of row {row}, {self.t[row].tolist()}, must lie between t0 = {float(self.t0[row]):g} and "
            f"t1 = {float(self.t1[row]):g} in the order in which the row comes to them, NaN for none: sort them"
        )

    def _in_order(self, row: int) -> bool:
        ends = sorted((float(self.t0[row]), float(self.t1[row])))
        known = [x for x in self.t[row].tolist() if not math.isnan(x)]
        backwards = bool(self.t1[row] < self.t0[row])
        return all(ends[0] <= x <= ends[1] for x in known) and known == sorted(known, reverse=backwards)
