"""Summaries of ensembles: means, variances and quantiles over their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.solution import BatchSolution


@dataclass(repr=False)
class EnsembleSummary:
    """What the rows of an ensemble are like on the whole.

    Rows that failed are left out, and counted. Of the others each entry is summarised over the rows that have one: NaN
    is none, such as after an event that ended the row.

    Attributes:
        mean: over the rows, [T, *state] for the states of a `BatchSolution` (each leaf of a pytree), [...] for a tensor
            [rows, ...].
        variance: over the rows, divided by their number less one; NaN where there are fewer than two.
        count: how many rows have an entry.
        quantiles: the values below which these shares of the rows lie, by share; empty if there are none.
        rows: how many rows there are, with those that failed.
        failed: how many of them failed: `solve_ivp` could not reach their end.
        t: the times, [T]; None if they are not known.
    """

    mean: Any
    variance: Any
    count: Any
    quantiles: dict[float, Any] = field(default_factory=dict)
    rows: int = 0
    failed: int = 0
    t: Tensor | None = None

    @property
    def std(self) -> Any:
        """The standard deviation over the rows."""
        return pytree.tree_map(torch.sqrt, self.variance)

    @property
    def standard_error(self) -> Any:
        """That of the mean: the standard deviation over the square root of the count."""
        return pytree.tree_map(lambda variance, count: torch.sqrt(variance / count), self.variance, self.count)

    def __repr__(self) -> str:
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), self.mean)
        return (
            f"EnsembleSummary({self.rows} rows, {self.failed} failed\n  mean: {shapes}\n"
            f"  quantiles: {', '.join(map(str, self.quantiles)) or 'none'})"
        )


def summarise(
    found: Any, quantiles: Sequence[float] = (0.025, 0.25, 0.5, 0.75, 0.975), t: Any = None
) -> EnsembleSummary:
    """Mean, variance and quantiles of what an ensemble has found, at each of its times.

    Args:
        found: a `BatchSolution` whose rows have the same times, or a tensor or a structure of tensors with an entry for
            each row in the first dimension, as `ensemble` returns it.
        quantiles: shares between 0 and 1; between two rows they are interpolated linearly.
        t: the times that belong to the second dimension, [T], to be kept with the summary of tensors.

    Raises:
        ValueError, TypeError: the rows have different times, a share is none, or there are complex numbers.

    Examples:
        >>> import torch
        >>> from torchivp.ensembles import summarise
        >>> summarise(torch.tensor([[1.0], [2.0], [6.0]]), quantiles=[0.5]).mean
        tensor([3.], dtype=torch.float64)
    """
    for share in quantiles:
        if not 0 <= share <= 1:
            raise ValueError(f"quantiles must be shares between 0 and 1, such as 0.975, got {share}")
    summary = moments(None, found)
    if isinstance(found, BatchSolution):
        if t is not None:
            raise ValueError("t is that of the BatchSolution: leave it out")
    else:
        summary.t = None if t is None else torch.as_tensor(t, dtype=torch.float64)
    tree, _, _ = _rows(found)
    leaves, spec = pytree.tree_flatten(tree)
    by_leaf = [_quantiles(leaf, quantiles) for leaf in leaves]
    for k, share in enumerate(quantiles):
        summary.quantiles[float(share)] = pytree.tree_unflatten([each[k] for each in by_leaf], spec)
    return summary


def moments(total: EnsembleSummary | None, found: Any) -> EnsembleSummary:
    """Mean and variance of an ensemble as it is solved, for `ensemble(..., reduce=moments)`.

    Quantiles need all rows: `summarise` has them. Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances", COMPSTAT (1982).

    Args:
        total: those of the rows so far, None at first; it is not changed.
        found: what `solve` returned for the following rows, as for `summarise`.

    Returns:
        Those of the rows so far and these.

    Raises:
        ValueError, TypeError: as in `summarise`.
    """
    tree, t, failed = _rows(found)
    rows = _number(found)
    pairs = pytree.tree_map(_moments, tree)
    leaves, spec = pytree.tree_flatten(pairs, is_leaf=lambda each: isinstance(each, _Moments))
    if total is not None:
        t = _common([each for each in (total.t, t) if each is not None])
        before = zip(*(pytree.tree_leaves(each) for each in (total.count, total.mean, total.variance)), strict=True)
        leaves = [_Moments(*one).joined(two) for one, two in zip(before, leaves, strict=True)]
        rows, failed = rows + total.rows, failed + total.failed
    parts = [
        pytree.tree_unflatten(list(each), spec)
        for each in zip(*((m.mean, m.variance, m.count) for m in leaves), strict=True)
    ]
    return EnsembleSummary(parts[0], parts[1], parts[2], rows=rows, failed=failed, t=t)


_TIMES = (
    "a summary needs rows with the same times, which these have not: give t_eval, the same for all rows, or "
    "summarise what solution.sol(t) or solution.final is"
)


@dataclass
class _Moments:
    """Those of some rows, NaN left out.

    Attributes:
        count: how many there are, [...].
        mean: theirs, NaN if there are none.
        variance: theirs, NaN if there are fewer than two.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def joined(self, other: _Moments) -> _Moments:
        """Those of these rows and others."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"a summary needs blocks of rows of the same shape, got {tuple(self.mean.shape)} and "
                f"{tuple(other.mean.shape)}: return the same for all rows"
            )
        count = self.count + other.count
        step = torch.nan_to_num(other.mean) - torch.nan_to_num(self.mean)
        mean = torch.nan_to_num(self.mean) + step * (other.count / count)
        squares = self._squares() + other._squares() + step**2 * (self.count * other.count / count)
        mean = torch.where(self.count == 0, other.mean, torch.where(other.count == 0, self.mean, mean))
        squares = torch.where((self.count == 0) | (other.count == 0), self._squares() + other._squares(), squares)
        return _Moments(count, mean, _variance(squares, count))

    def _squares(self) -> Tensor:
        return torch.where(self.count > 1, self.variance * (self.count - 1), 0.0)


def _moments(leaf: Tensor) -> _Moments:
    """Those of rows in the first dimension."""
    there = ~leaf.isnan()
    count = there.sum(0).to(leaf.dtype)
    mean = leaf.nanmean(0)
    squares = torch.where(there, leaf - mean, 0.0).square().sum(0)
    return _Moments(count, mean, _variance(squares, count))


def _quantiles(leaf: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Those of rows in the first dimension, NaN left out."""
    count = (~leaf.isnan()).sum(0)
    ordered = leaf.sort(0).values  # NaN is last
    found = []
    for share in shares:
        if not len(leaf):
            found.append(leaf.new_full(leaf.shape[1:], torch.nan))
            continue
        place = share * (count - 1).clamp(min=0).double()
        low, high = (ordered.gather(0, end.long()[None])[0] for end in (place.floor(), place.ceil()))
        found.append(torch.where(low == high, low, torch.lerp(low, high, place - place.floor())))
    return found


def _variance(squares: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 1, squares / (count - 1), torch.nan)


def _rows(found: Any) -> tuple[Any, Tensor | None, int]:
    """The numbers of the rows that did not fail, [rows, ...], in float64; the times; how many failed."""
    if not isinstance(found, BatchSolution):
        return pytree.tree_map(_numbers, found), None, 0
    if len(found.batch_shape) != 1:
        raise ValueError(
            f"a summary is one over rows, and the batch has the shape {tuple(found.batch_shape)}: solve with "
            "batch_dims=1"
        )
    well = found.success
    times = _common(list(found.t[well].detach().double().cpu()))
    return pytree.tree_map(lambda leaf: _numbers(leaf[well.to(leaf.device)]), found.y), times, int((~well).sum())


def _common(times: Sequence[Tensor]) -> Tensor | None:
    """The times that rows have in common; a row that an event has ended has NaN from there on."""
    if not times:
        return None
    if len({len(each) for each in times}) > 1:
        raise ValueError(_TIMES)
    every = torch.stack(list(times))
    common = torch.where(every.isnan(), -torch.inf, every).amax(0) if every.shape[1] else every[0]
    common = torch.where(common.isinf(), torch.nan, common)
    if not bool(((every == common) | every.isnan()).all()):
        raise ValueError(_TIMES)
    return common


def _number(found: Any) -> int:
    return found.batch_shape[0] if isinstance(found, BatchSolution) else len(pytree.tree_leaves(found)[0])


def _numbers(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        raise TypeError(f"a summary is one of tensors with an entry for each row, got {type(leaf).__name__}")
    if leaf.is_complex():
        raise TypeError("a summary is one of real numbers: take torch.view_as_real of the complex ones")
    return leaf.detach().double().cpu()
