"""What a training leaves behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        epoch: its number, from 1.
        loss: the mean over its batches of what was minimised, penalties included.
        validation: the loss on the validation data after it; None without such data.
        lr: the learning rate of its last step.
        horizon: up to how long after its start a trajectory was compared; None for the whole.
        nfe_forward: calls of the fields of all `NeuralODE`s of the model in forward passes of the training.
        nfe_backward: the same in backward passes.
        seconds: how long it took.
    """

    epoch: int
    loss: float
    validation: float | None
    lr: float
    horizon: float | None
    nfe_forward: int
    nfe_backward: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        """What there is to plot: everything but the number of the epoch and what is None or infinite."""
        values = asdict(self)
        del values["epoch"]
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


@dataclass
class History:
    """The epochs of a training, in order.

    Attributes:
        epochs: a record of each.
        best_epoch: the epoch with the smallest validation loss, or without validation data the smallest loss, among
            those that compared whole trajectories; None before there was one.
        stopped_early: whether it ended because the loss no longer fell.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False

    @property
    def losses(self) -> list[float]:
        """The loss of every epoch."""
        return [record.loss for record in self.epochs]

    @property
    def validation_losses(self) -> list[float | None]:
        """The validation loss of every epoch."""
        return [record.validation for record in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        early = ", stopped early" if self.stopped_early else ""
        return f"History({len(self)} epochs, loss from {self.losses[0]:.6g} to {self.losses[-1]:.6g}{early})"
