"""What a training compares: the trajectories of the model with those observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchivp.data.series import Series
from torchivp.nn.neural_ode import NeuralODE

Loss = Callable[[Tensor, Tensor], Tensor]


def predict(model: nn.Module, batch: Series) -> Tensor:
    """The model's states at the times of a batch, [B, T, *state].

    Raises:
        TypeError: the model does not return a tensor.
        ValueError: it returns something else than the trajectories that were asked for.
    """
    t, shift = batch.t, None
    if t.ndim == 2 and isinstance(model, NeuralODE) and not model.batch_dims:
        t, shift = _shared_times(t)
    y: Any = model(batch.y0, t) if shift is None else model(batch.y0, t, shift=shift)
    if not isinstance(y, Tensor):
        raise TypeError(f"the model must return trajectories as one tensor, got {type(y).__name__}")
    by_sample = t.ndim == 2 or (isinstance(model, NeuralODE) and model.batch_dims > 0)
    expected = batch.y.shape if by_sample else torch.Size([len(t), len(batch.y), *batch.y.shape[2:]])
    if y.shape != expected:
        raise ValueError(
            f"called as model(y0, t) with y0 of shape {tuple(batch.y0.shape)} and t of shape {tuple(t.shape)}, the "
            f"model must return trajectories of shape {tuple(expected)}, got {tuple(y.shape)}: write "
            "NeuralODE(field, output='trajectory'), and keep_augmented=False with augment"
        )
    return y if by_sample else y.transpose(0, 1)


def _shared_times(t: Tensor) -> tuple[Tensor, Tensor | None]:
    """Times from zero on that all samples share, and by how much each sample's are later; `t`, None if they differ.

    Samples that share their times can share their steps, which costs far less than steps of their own.
    """
    start = t[:, 0]
    relative = t - start[:, None]
    rounding = 4 * torch.finfo(t.dtype).eps * t.abs().max()
    if t.isnan().any() or (relative - relative[0]).abs().max() > rounding:
        return t, None
    return relative[0], start


def misfit(loss: Loss, predicted: Tensor, observed: Tensor) -> Tensor:
    """The loss over the values that are not missing.

    Raises:
        ValueError: all are missing, or the loss is not one number.
    """
    missing = observed.isnan()
    if missing.any():
        if missing.all():
            raise ValueError("a batch holds no observed value at all: leave out trajectories that are missing entirely")
        predicted, observed = predicted[~missing], observed[~missing]
    value = loss(predicted, observed)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss(predicted, observed) must return a tensor of one number, got {shape}")
    return value.reshape(())


def cut(series: Series, horizon: float | None) -> Series:
    """The beginning of a trajectory up to `horizon` after its start, at least two times; None for all of it."""
    if horizon is None:
        return series
    count = max(2, int((series.t - series.t[0] <= horizon).sum()))
    return Series(series.t[:count], series.y[:count], series.y0)
