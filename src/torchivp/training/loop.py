"""`train`: the loop that everybody writes by hand."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from torchivp.checks import check_flag, check_positive, check_whole_number
from torchivp.data.series import Series, as_series, collate
from torchivp.data.trajectories import TrajectoryDataset
from torchivp.nn.neural_ode import NeuralODE, penalty
from torchivp.training.callbacks import Callback, ProgressBar, Told
from torchivp.training.checkpoint import load, random_state, save, set_random_state
from torchivp.training.history import EpochRecord, History
from torchivp.training.horizon import Horizon
from torchivp.training.objective import Loss, cut, misfit, predict
from torchivp.training.shooting import Segments, Shooting
from torchivp.training.video import Recorder, Video


def train(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    epochs: int = 100,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], Any] | None = None,
    loss: Loss = nn.functional.mse_loss,
    clip_norm: float | None = None,
    validation: Dataset[Any] | None = None,
    patience: int | None = None,
    horizon: tuple[float, int] | Callable[[int], float] | None = None,
    shooting: int | Shooting | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback | Callable[[EpochRecord], Any]] = (),
    progress: bool = False,
    record: str | Path | Video | None = None,
) -> History:
    """Train a model until its trajectories follow the observed ones. The model is changed in place.

    Every batch is solved and compared with its data where these are not missing, the penalties of regularisers are
    added (see `torchivp.nn.penalty`), and the optimiser takes a step.

    Args:
        model: `NeuralODE(field, output="trajectory")`, or any module that is called as `model(y0, t)` and returns the
            states that it does: [T, B, *state] for times [T], [B, T, *state] for times [B, T].
        dataset: `TrajectoryDataset`, `SimulatedTrajectories`, or any dataset of pairs `(t, y)` or `Series`. Batches
            are moved to the device of the model's parameters.
        epochs: how often to go through the dataset.
        batch_size: the number of trajectories in a batch, drawn without replacement by torch's generator; None for all.
        lr: the learning rate of the default optimiser, Adam; None for 1e-3.
        optimizer: another optimiser, or a function that makes one of parameters, such as `torch.optim.LBFGS`.
        scheduler: a function that makes a scheduler of the optimiser, which then steps after every epoch.
        loss: a function of predicted and observed states of the same shape, that returns one number.
        clip_norm: the largest norm of the gradient; longer ones are shortened to it.
        validation: other trajectories, compared whole after every epoch.
        patience: stop when the validation loss (without such data, the loss) has not fallen to a new minimum for so
            many epochs, and put the best state back into the model. Epochs whose horizon grows do not count.
        horizon: compare only the beginning of the trajectories at first: a pair `(first, epochs)`, which grows evenly
            from the time `first` after the start to the whole over so many epochs, or a function that returns the
            horizon of an epoch (from 1).
        shooting: cut the trajectories into segments that are all solved as one batch: a `Shooting`, or the length of
            segments that start from the data.
        checkpoint: a file that holds all of the state after every epoch. If it is there, the training goes on from it,
            to the last bit as if it had not stopped, on a machine and with functions that give the same bits again.
        checkpoint_every: write it after so many steps of the optimiser too.
        resume: if False, begin anew, and overwrite the file.
        callbacks: who is told of every epoch: `TensorBoard`, `MLflow`, `WandB`, other `Callback`s, or functions of an
            `EpochRecord`.
        progress: draw a bar on standard error, with Rich.
        record: the path of a GIF, or a `Video`: how the model comes to follow the first trajectory, over time and in
            the plane of the first two states.

    Returns:
        The loss and the cost of every epoch.

    Raises:
        SolveError: a trajectory could not be solved.
        RuntimeError: the loss or its gradient is not finite; the model is as it was before that step.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.
        ImportError: a library that `progress` or `record` needs is not installed.

    Examples:
        >>> import torch
        >>> from torchivp import train
        >>> from torchivp.data import SimulatedTrajectories
        >>> from torchivp.models import Pendulum
        >>> from torchivp.nn import NeuralODE
        >>> data = SimulatedTrajectories(Pendulum().float(), torch.linspace(0, 2, 11), [1.0, 0.0], n=4, seed=0)
        >>> model = NeuralODE(torch.nn.Linear(2, 2), output="trajectory", method="rk4", step_size=0.2)
        >>> len(train(model, data, epochs=2).losses)
        2
    """
    if checkpoint is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every needs a file: give checkpoint='training.pt' too")
    if horizon is not None and shooting is not None:
        raise ValueError("segments are short already: give either horizon or shooting")
    training = _Training(
        model,
        dataset,
        epochs=check_whole_number("epochs", epochs, 1),
        batch_size=None if batch_size is None else check_whole_number("batch_size", batch_size, 1),
        lr=None if lr is None else check_positive("lr", lr),
        optimizer=optimizer,
        scheduler=scheduler,
        loss=loss,
        clip_norm=None if clip_norm is None else check_positive("clip_norm", clip_norm),
        validation=validation,
        patience=None if patience is None else check_whole_number("patience", patience, 1),
        horizon=horizon,
        shooting=shooting if shooting is None or isinstance(shooting, Shooting) else Shooting(shooting),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=None
        if checkpoint_every is None
        else check_whole_number("checkpoint_every", checkpoint_every, 1),
        callbacks=_check_callbacks(callbacks, check_flag("progress", progress), epochs),
        video=record if record is None or isinstance(record, Video) else Video(record),
    )
    if check_flag("resume", resume):
        training.resume()
    return training.run()


class _Training:
    """A training under way: what it was called with, and all of its state."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Any],
        *,
        epochs: int,
        batch_size: int | None,
        lr: float | None,
        optimizer: Optimizer | Callable[[Any], Optimizer] | None,
        scheduler: Callable[[Optimizer], Any] | None,
        loss: Loss,
        clip_norm: float | None,
        validation: Dataset[Any] | None,
        patience: int | None,
        horizon: Any,
        shooting: Shooting | None,
        checkpoint: Path | None,
        checkpoint_every: int | None,
        callbacks: list[Callback],
        video: Video | None,
    ):
        self._model = model
        self._epochs = epochs
        self._loss = loss
        self._clip_norm = clip_norm
        self._patience = patience
        self._checkpoint, self._checkpoint_every = checkpoint, checkpoint_every
        self._callbacks = callbacks
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to train")
        self._device = parameters[0].device
        numbered = _Numbered(dataset)
        size = batch_size or len(numbered)
        self._batches = DataLoader(numbered, size, shuffle=batch_size is not None, collate_fn=list)
        self._validation = None
        if validation is not None:
            self._validation = DataLoader(_Numbered(validation), size, collate_fn=list)
        every = [] if horizon is None and shooting is None else [numbered[i][1] for i in range(len(numbered))]
        self._horizon = Horizon(horizon, max((float(each.t[-1] - each.t[0]) for each in every), default=0.0))
        self._shooting = shooting
        self._segments = None if shooting is None else Segments(shooting, every, self._device)
        free = [] if self._segments is None or self._segments.states is None else [self._segments.states]
        self._optimizer = _make_optimizer(optimizer, lr, parameters, free)
        self._scheduler = None if scheduler is None else scheduler(self._optimizer)
        self._settings = {
            "trajectories": len(numbered),
            "batch_size": batch_size,
            "optimizer": type(self._optimizer).__name__,
            "lr": self._optimizer.param_groups[0]["lr"],
            "scheduler": type(self._scheduler).__name__,
            "loss": getattr(loss, "__name__", type(loss).__name__),
            "clip_norm": clip_norm,
            "patience": patience,
            "horizon": "function" if callable(horizon) else repr(horizon),
            "shooting": repr(shooting),
        }
        self._recorder = None
        if video is not None:
            self._recorder = _make_recorder(video, dataset, numbered, self._device, epochs)
        self._history = History()
        self._best_loss = math.inf
        self._best_state: dict[str, Any] | None = None
        self._epoch_start = random_state()
        self._resumed: dict[str, Any] | None = None
        """The random state to go on from."""
        self._losses: list[float] = []
        """The losses of the batches of the current epoch."""
        self._spent = (0, 0, 0.0)
        """Evaluations, forward and backward, and seconds of the current epoch before the training was resumed."""

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return
        state = load(self._checkpoint, self._settings)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        if self._segments is not None and self._segments.states is not None:
            self._segments.states.data.copy_(state["states"])
        if self._recorder is not None:
            self._recorder.frames = state["frames"]
        epochs = [EpochRecord(**record) for record in state["epochs"]]
        self._history = History(epochs, state["best_epoch"], state["stopped_early"])
        self._best_loss, self._best_state = state["best_loss"], state["best_state"]
        self._losses, self._spent = state["losses"], tuple(state["spent"])
        self._epoch_start, self._resumed = state["epoch_start"], state["now"]

    def _save(self, spent: tuple[int, int, float]) -> None:
        if self._checkpoint is None:
            return
        free = None if self._segments is None or self._segments.states is None else self._segments.states.data
        state = {
            "settings": self._settings,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "states": free,
            "frames": [] if self._recorder is None else self._recorder.frames,
            "epochs": [asdict(record) for record in self._history],
            "best_epoch": self._history.best_epoch,
            "stopped_early": self._history.stopped_early,
            "best_loss": self._best_loss,
            "best_state": self._best_state,
            "losses": self._losses,
            "spent": spent,
            "epoch_start": self._epoch_start,
            "now": random_state(),
        }
        save(self._checkpoint, state)

    def run(self) -> History:
        """Train to the end."""
        was_training = self._model.training
        with ExitStack() as told:
            told.callback(self._model.train, was_training)
            for callback in self._callbacks:
                callback.begin(self._settings | {"epochs": self._epochs}, len(self._history))
                told.callback(callback.end, self._history)
            if self._recorder is not None and not (self._history.epochs or self._losses):
                self._recorder.take(self._model, 0, math.nan, last=False)
            if self._resumed is not None:
                set_random_state(self._resumed)
            while len(self._history) < self._epochs and not self._history.stopped_early:
                self._run_epoch(len(self._history) + 1)
        if self._patience is not None and self._best_state is not None:
            self._model.load_state_dict(self._best_state)
        if self._recorder is not None:
            self._recorder.write()
        return self._history

    def _run_epoch(self, number: int) -> None:
        spent = _Spent(self._model, self._spent)
        horizon = self._horizon.at(number)
        self._model.train()
        for entries in self._remaining_batches():
            self._losses.append(self._step(entries, horizon, number))
            steps = (number - 1) * len(self._batches) + len(self._losses)
            if (
                self._checkpoint_every
                and steps % self._checkpoint_every == 0
                and len(self._losses) < len(self._batches)
            ):
                self._save(spent.so_far())
        lr = self._optimizer.param_groups[0]["lr"]
        loss = sum(self._losses) / len(self._losses)
        forward, backward, seconds = spent.so_far()
        validation = None if self._validation is None else self._validate(self._validation)
        record = EpochRecord(number, loss, validation, lr, horizon, forward, backward, seconds)
        self._history.epochs.append(record)
        self._compare_with_best(record)
        self._schedule(record)
        self._losses, self._spent = [], (0, 0, 0.0)
        if self._recorder is not None:
            last = number == self._epochs or self._history.stopped_early
            self._recorder.take(self._model, number, loss, last)
        for callback in self._callbacks:
            callback.epoch(record)
        self._save(self._spent)

    def _remaining_batches(self) -> Iterator[list[tuple[int, Series]]]:
        """The batches of the epoch that have not been trained on, in the order that was drawn at its start."""
        done = len(self._losses)
        now = random_state()
        if done:
            set_random_state(self._epoch_start)
        else:
            self._epoch_start = now
        batches = iter(self._batches)
        for _ in range(done):
            next(batches)
        if done:
            set_random_state(now)
        return batches

    def _step(self, entries: list[tuple[int, Series]], horizon: float | None, epoch: int) -> float:
        """Take a step of the optimiser, and return the loss before it."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        losses: list[float] = []

        def evaluate() -> float:
            self._optimizer.zero_grad()
            value = self._objective(entries, horizon)
            losses.append(value.item())
            if math.isfinite(losses[-1]):
                value.backward()
            norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm or math.inf)
            if not (math.isfinite(losses[-1]) and norm.isfinite()):
                raise RuntimeError(
                    f"the loss is {losses[-1]:g} and the norm of its gradient {norm.item():g} in epoch {epoch}: take a "
                    "smaller lr, clip_norm=1.0, or shorter trajectories at first, horizon= or shooting="
                )
            return losses[-1]

        self._optimizer.step(evaluate)
        return losses[0]

    def _objective(self, entries: list[tuple[int, Series]], horizon: float | None) -> Tensor:
        """What is minimised."""
        if self._segments is None or self._shooting is None:
            value = self._misfit(collate([cut(_moved(series, self._device), horizon) for _, series in entries]))
            return value + penalty(self._model)
        batch = self._segments.batch([number for number, _ in entries])
        predicted = predict(self._model, batch.series)
        value = misfit(self._loss, predicted, batch.series.y)
        if self._shooting.continuity and len(batch.joints):
            value = value + self._shooting.continuity * batch.gaps(predicted).square().mean()
        return value + penalty(self._model)

    def _misfit(self, batch: Series) -> Tensor:
        return misfit(self._loss, predict(self._model, batch), batch.y)

    @torch.no_grad()
    def _validate(self, batches: DataLoader[Any]) -> float:
        """The loss on other data, with the model in eval mode: the mean over all observed values."""
        self._model.eval()
        total, count = 0.0, 0
        for entries in batches:
            batch = collate([_moved(series, self._device) for _, series in entries])
            observed = int((~batch.y.isnan()).sum())
            total += self._misfit(batch).item() * observed
            count += observed
        return total / count

    def _compare_with_best(self, record: EpochRecord) -> None:
        if record.horizon is not None:
            return
        loss = record.loss if record.validation is None else record.validation
        if loss < self._best_loss:
            self._best_loss = loss
            self._history.best_epoch = record.epoch
            if self._patience is not None:
                self._best_state = copy.deepcopy(self._model.state_dict())
        elif self._patience is not None and self._history.best_epoch is not None:
            self._history.stopped_early = record.epoch - self._history.best_epoch >= self._patience

    def _schedule(self, record: EpochRecord) -> None:
        if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(record.loss if record.validation is None else record.validation)
        elif self._scheduler is not None:
            self._scheduler.step()


class _Numbered(Dataset[tuple[int, Series]]):
    """The trajectories of a dataset with their numbers."""

    def __init__(self, dataset: Dataset[Any]):
        self._dataset: Any = dataset
        if not len(self._dataset):
            raise ValueError("the dataset holds no trajectories")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[int, Series]:
        return index, as_series(self._dataset[index])


class _Spent:
    """What an epoch has cost: evaluations, forward and backward, and seconds."""

    def __init__(self, model: nn.Module, before: tuple[int, int, float]):
        self._layers = [module for module in model.modules() if isinstance(module, NeuralODE)]
        self._before = before
        self._start = self._now()

    def _now(self) -> tuple[int, int, float]:
        forward = sum(layer.nfe.forward for layer in self._layers)
        backward = sum(layer.nfe.backward for layer in self._layers)
        return forward, backward, time.perf_counter()

    def so_far(self) -> tuple[int, int, float]:
        now = self._now()
        forward, backward, seconds = (b + n - s for b, n, s in zip(self._before, now, self._start, strict=True))
        return int(forward), int(backward), seconds


def _moved(series: Series, device: torch.device) -> Series:
    return Series(*(tensor.to(device) for tensor in series))


def _make_optimizer(
    optimizer: Any, lr: float | None, parameters: list[nn.Parameter], free: list[nn.Parameter]
) -> Optimizer:
    """The optimiser of the model's parameters and of free initial states."""
    if optimizer is not None and lr is not None:
        raise ValueError("lr is for the default optimiser: give it to your own, torch.optim.SGD(parameters, lr=0.1)")
    if optimizer is None:
        return torch.optim.Adam([*parameters, *free], lr=lr or 1e-3)
    if isinstance(optimizer, Optimizer):
        if free:
            optimizer.add_param_group({"params": free})
        return optimizer
    made = optimizer([*parameters, *free]) if callable(optimizer) else optimizer
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"optimizer must be an optimiser of torch.optim or a function that makes one of parameters, got {made!r}"
        )
    return made


def _make_recorder(video: Video, dataset: Any, numbered: _Numbered, device: torch.device, epochs: int) -> Recorder:
    if video.trajectory >= len(numbered):
        raise ValueError(f"there is no trajectory {video.trajectory} to record: the dataset holds {len(numbered)}")
    series = _moved(numbered[video.trajectory][1], device)
    names = [f"y{i}" for i in range(series.y0.numel())]
    if isinstance(dataset, TrajectoryDataset):
        names = dataset.names
    return Recorder(video, series, names, epochs)


def _check_callbacks(callbacks: Any, progress: bool, epochs: int) -> list[Callback]:
    checked: list[Callback] = [ProgressBar(epochs)] if progress else []
    for callback in callbacks:
        if not isinstance(callback, Callback) and not callable(callback):
            raise TypeError(f"callbacks must be Callbacks or functions of an EpochRecord, got {callback!r}")
        checked.append(callback if isinstance(callback, Callback) else Told(callback))
    return checked
