"""Whether what a user says of a Jacobian is true: its values, and where it has entries.

Nothing fails with a wrong one: Newton's iteration needs more and shorter steps, Rosenbrock methods lose their order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.jacobian import Linearisation, given_jacobian, sparse_jacobians, sparsity_of
from torchivp.methods.method import FlatFunc
from torchivp.sparsity import Sparsity
from torchivp.split import summands_of
from torchivp.state import elsewhere
from torchivp.torch_func import inside_transform, without_derivatives

_CLOSE = {torch.float64: 1e-3, torch.float32: 1e-2}
"""An entry may be wrong by so much of the largest one in its row,"""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""and one outside of the pattern may be so large."""


def check_given_jacobian(
    func: FlatFunc, t: Tensor, y: Tensor, name: Callable[[int], str], lead: tuple[int, ...]
) -> None:
    """Compare what the user gave with the derivatives of `func`, at the initial states and near them.

    Near them nothing vanishes by chance; where func or jac is not defined there, it is not looked at.

    Args:
        func: the right-hand side.
        t: the time where each row starts, [rows, 1], or 0-d.
        y: the initial states, [rows, size].
        name: what the user calls an element of the state.
        lead: the batch dimensions.

    Raises:
        ValueError: an entry of the Jacobian is wrong, or outside of the pattern.
    """
    if parts := summands_of(func):
        func = parts[1]  # what is given is that of the implicit one
    jac, sparsity = given_jacobian(func), sparsity_of(func)
    if (jac is None and sparsity is None) or inside_transform() or not y.numel():
        return
    with torch.inference_mode(False), without_derivatives():
        t, y = t.detach().clone(), y.detach().clone()
        _check_at(func, t, y, _Names(name, lead, t, "y0"))
        try:
            there = elsewhere(y)
            values = func(t, there), *(() if jac is None else (jac(t, there),))
        except Exception:  # whatever goes wrong where nobody has asked for it
            return
        if all(bool(torch.isfinite(x).all()) for x in values):
            _check_at(func, t, there, _Names(name, lead, t, "a state near y0"))


class _Names:
    """What things are called in messages.

    Args:
        name: what the user calls an element of the state.
        lead: the batch dimensions.
        t: the times.
        where: the state.
    """

    def __init__(self, name: Callable[[int], str], lead: tuple[int, ...], t: Tensor, where: str):
        self._name, self._lead, self._times, self._where = name, lead, t.reshape(-1), where

    def entry(self, i: int, j: int) -> str:
        return f"d func{self._name(i).removeprefix('y')} / d {self._name(j)}"

    def place(self, row: int) -> str:
        place = ", ".join(map(str, np.unravel_index(row, self._lead))) if self._lead else ""
        return f"at t = {float(self._times[row]):g} and {self._where}" + (f" of row {place}" if place else "")


def _check_at(func: FlatFunc, t: Tensor, y: Tensor, names: _Names) -> None:
    jac, sparsity, matrix = given_jacobian(func), sparsity_of(func), None
    if jac is not None:
        matrix = jac(t.clone(), y).detach().clone()
        _check_values(func, t, y, matrix, names)
    if sparsity is not None:
        _check_places(func, t, y, sparsity, matrix, names)


def _check_places(
    func: FlatFunc, t: Tensor, y: Tensor, sparsity: Sparsity, matrix: Tensor | None, names: _Names
) -> None:
    """Look for entries outside of the pattern: in the user's matrices, or by one product with those of autograd."""
    if matrix is not None:
        inside = sparsity.dense(torch.ones_like(sparsity.rows, dtype=torch.bool))
        (sums, weights), column = _weighted(matrix.masked_fill(inside, 0.0)), lambda j: matrix[:, :, j]
    else:
        exact, found = Linearisation(func, t, y), sparse_jacobians(func, sparsity, t, y, by_autograd=True)
        weights = _weights(torch.zeros_like(y).index_add(1, sparsity.rows, found.abs()))
        known = torch.zeros_like(y).index_add(1, sparsity.columns, weights[:, sparsity.rows] * found)
        sums, column = exact.transposed_times(weights) - known, partial(_column, exact, y)
    off = sums.abs().nan_to_num(0.0)
    if not bool((off > _ROUNDING.get(y.dtype, 1e-2)).any()):
        return
    row, j = divmod(int(off.argmax()), y.shape[1])
    entries = column(j)[row].index_fill(0, sparsity.rows[sparsity.columns == j], 0.0)
    i = int((entries * weights[row]).abs().argmax())
    raise ValueError(
        f"jac_sparsity has no place for {names.entry(i, j)}, which is {float(entries[i]):.6g} {names.place(row)}: the "
        f"pattern needs an entry in row {i}, column {j} of the flattened state, or a band (lower, upper) with "
        f"{'lower' if i > j else 'upper'} of at least {abs(i - j)}"
    )


def _check_values(func: FlatFunc, t: Tensor, y: Tensor, matrix: Tensor, names: _Names) -> None:
    """Compare the user's matrices, [rows, size, size], with the derivatives of `func` there."""
    close = _CLOSE.get(y.dtype, 1e-2)
    exact = Linearisation(func, t, y)
    doubtful = torch.ones_like(matrix[0, 0], dtype=torch.bool)
    if exact.seen:
        # One product with all rows at once, with weights that do not cancel.
        sums, weights = _weighted(matrix)
        expected = exact.transposed_times(weights)
        doubtful = (~((sums - expected).abs() <= close) & expected.isfinite()).any(0)
    size, worst, sentence = matrix.abs().nan_to_num(0.0, 0.0, 0.0).amax(2), 0.0, ""
    for j in doubtful.nonzero().flatten().tolist():
        given, before, after = matrix[:, :, j], *_one_sided(func, t, y, j)
        middle, jump = (before + after) / 2, (before - after).abs()
        column = _column(exact, y, j) if exact.seen else middle
        allowed = close * torch.maximum(size, column.abs())
        # Differences excuse what autograd does not see, and what lies between the two sides of a kink.
        right = ((given - column).abs() <= allowed) | ((given - middle).abs() <= allowed + jump)
        wrong = ~right & column.isfinite() & middle.isfinite()
        off = torch.where(wrong, ((given - column).abs() / allowed).nan_to_num(torch.inf), 0.0)
        row, i = divmod(int(off.argmax()), y.shape[1])
        if float(off[row, i]) > worst:
            worst = float(off[row, i])
            sentence = (
                f"jac is not the derivative of func: {names.place(row)} it gives {float(given[row, i]):.6g} for "
                f"{names.entry(i, j)}, where the derivative is {float(column[row, i]):.6g}. Is it transposed (the "
                "index of func comes first), or made for another func or for parameters that have changed since? "
                "Leave jac out to have it found by autograd"
            )
    if sentence:
        raise ValueError(sentence)


def _weighted(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the rows of matrices, [rows, size], with weights, and these."""
    weights = _weights(matrix.abs().nan_to_num(0.0, 0.0, 0.0).amax(2))
    return (weights.unsqueeze(2) * matrix).sum(1), weights


def _weights(largest: Tensor) -> Tensor:
    """Weights with which rows whose largest entries are these, [rows, size], count alike, and do not cancel."""
    number = torch.arange(1, largest.shape[1] + 1, device=largest.device)
    signed = (1.0 + torch.frac(0.618034 * number)) * (1 - 2 * (number * number // 3 % 2))
    return signed.to(largest.dtype) / torch.where(largest > 0.0, largest, 1.0)


def _column(exact: Linearisation, y: Tensor, j: int) -> Tensor:
    """The derivatives by one element of the state, [rows, size]."""
    return exact.times(torch.zeros_like(y).index_fill(1, torch.tensor([j], device=y.device), 1.0))


def _one_sided(func: FlatFunc, t: Tensor, y: Tensor, j: int) -> tuple[Tensor, Tensor]:
    """The differences by one element of the state on its two sides, [rows, size]."""
    here = func(t, y).clone()
    size = y[:, j].abs()
    h = torch.finfo(y.dtype).eps ** (1 / 3) * torch.where(size > 0.0, size, y.abs().amax(1))
    h = torch.where(h > 0.0, h, torch.finfo(y.dtype).eps ** (1 / 3))
    sides = []
    for step in (-h, h):
        moved = y.clone()
        moved[:, j] += step
        sides.append((func(t, moved) - here) / (moved[:, j] - y[:, j]).unsqueeze(1))
    return sides[0], sides[1]
