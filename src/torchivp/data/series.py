"""One trajectory, or a batch of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Series(NamedTuple):
    """Observations of one trajectory, or of a batch of them.

    Attributes:
        t: the times, [T]; in a batch [T] where all have the same, else [B, T] with NaN at the end of shorter ones.
        y: the observed states, [T, *state] or [B, T, *state], NaN where missing.
        y0: the states at the first times, [*state] or [B, *state].
    """

    t: Tensor
    y: Tensor
    y0: Tensor


def as_series(item: Series | tuple[Tensor, ...]) -> Series:
    """An entry of a dataset, a `Series` or a pair `(t, y)`, whose first state is then the one it starts from.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(item, Series):
        return item
    if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, Tensor) for part in item):
        return Series(item[0], item[1], item[1][0])
    raise TypeError(f"the entries of the dataset must be Series or pairs of tensors (t, y), got {type(item).__name__}")


def collate(items: Sequence[Series | tuple[Tensor, Tensor]]) -> Series:
    """A batch of trajectories, for the argument `collate_fn` of `torch.utils.data.DataLoader`.

    Args:
        items: `Series`, or pairs `(t, y)`, whose first states are then those they start from.

    Raises:
        ValueError: the states differ in shape.
    """
    series = [as_series(item) for item in items]
    shapes = {tuple(each.y0.shape) for each in series}
    if len(shapes) > 1:
        raise ValueError(f"the states of a batch must have the same shape, got {', '.join(map(str, sorted(shapes)))}")
    y0 = torch.stack([each.y0 for each in series])
    t = series[0].t
    if all(torch.equal(each.t, t) for each in series):
        return Series(t, torch.stack([each.y for each in series]), y0)
    times = pad_sequence([each.t for each in series], batch_first=True, padding_value=math.nan)
    return Series(times, pad_sequence([each.y for each in series], batch_first=True, padding_value=math.nan), y0)
