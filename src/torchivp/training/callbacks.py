"""Who is told how a training gets on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torchivp.training.history import EpochRecord, History


class Callback:
    """Told of a training: derive from it, and write what you need of the three methods.

    `train` also takes a plain function of an `EpochRecord`, which is called after every epoch.
    """

    def begin(self, settings: Mapping[str, Any], epochs_done: int) -> None:
        """The training begins.

        Args:
            settings: the arguments of `train` that are numbers or texts.
            epochs_done: how many epochs there were before it was resumed.
        """

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is over."""

    def end(self, history: History) -> None:
        """The training is over, in whichever way."""


class Told(Callback):
    """A function of the user's that is called after every epoch."""

    def __init__(self, function: Callable[[EpochRecord], Any]):
        self._function = function

    def epoch(self, record: EpochRecord) -> None:
        self._function(record)


def _imported(name: str, package: str, module: str | None = None) -> Any:
    """The module of a package that a callback needs, of its name if no other is given."""
    try:
        return importlib.import_module(module or package)
    except ImportError:
        raise ImportError(f"torchivp.training.{name} needs {package}: pip install {package}") from None


class TensorBoard(Callback):
    """Writes every quantity of `EpochRecord` for TensorBoard.

    Args:
        log_dir: the folder; None for TensorBoard's own choice, `runs/...`.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, log_dir: Any = None):
        self._make = _imported("TensorBoard", "tensorboard", "torch.utils.tensorboard").SummaryWriter
        self._log_dir = log_dir

    def begin(self, settings: Mapping[str, Any], epochs_done: int) -> None:
        # What was written of epochs that are now repeated, after the last checkpoint, is dropped.
        self._writer = self._make(self._log_dir, purge_step=epochs_done + 1 if epochs_done else None)

    def epoch(self, record: EpochRecord) -> None:
        for name, value in record.metrics().items():
            self._writer.add_scalar(name, value, record.epoch)

    def end(self, history: History) -> None:
        self._writer.close()


class MLflow(Callback):
    """Logs the settings and every quantity of `EpochRecord` to MLflow, in the active run or in one of its own.

    Args:
        **options: further arguments of `mlflow.start_run`, such as `run_name`, or `run_id` to go on with a run.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(self, **options: Any):
        self._mlflow = _imported("MLflow", "mlflow")
        self._options = options
        self._own = False

    def begin(self, settings: Mapping[str, Any], epochs_done: int) -> None:
        self._own = self._mlflow.active_run() is None
        if self._own:
            self._mlflow.start_run(**self._options)
        self._mlflow.log_params(dict(settings))

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics(record.metrics(), step=record.epoch)

    def end(self, history: History) -> None:
        if self._own:
            self._mlflow.end_run()


class WandB(Callback):
    """Logs the settings and every quantity of `EpochRecord` to Weights & Biases.

    Args:
        **options: further arguments of `wandb.init`, such as `project`, or `id` and `resume` to go on with a run.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, **options: Any):
        self._wandb = _imported("WandB", "wandb")
        self._options = options

    def begin(self, settings: Mapping[str, Any], epochs_done: int) -> None:
        self._run = self._wandb.init(**{"config": dict(settings), **self._options})

    def epoch(self, record: EpochRecord) -> None:
        self._run.log(record.metrics(), step=record.epoch)

    def end(self, history: History) -> None:
        self._run.finish()


class ProgressBar(Callback):
    """A bar on standard error, drawn by Rich.

    Args:
        epochs: how many epochs there will be.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, epochs: int):
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            raise ImportError(
                "progress=True draws with rich, which is missing: pip install 'torchivp[train]'"
            ) from None
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[losses]}"), console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=epochs, losses="")

    def begin(self, settings: Mapping[str, Any], epochs_done: int) -> None:
        self._bar.start()
        self._bar.update(self._task, completed=epochs_done)

    def epoch(self, record: EpochRecord) -> None:
        losses = f"loss {record.loss:.4g}"
        if record.validation is not None:
            losses += f", validation {record.validation:.4g}"
        self._bar.update(self._task, completed=record.epoch, losses=losses)

    def end(self, history: History) -> None:
        self._bar.stop()
