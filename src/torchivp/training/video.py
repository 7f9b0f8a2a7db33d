"""The video of a training: how the model's trajectory comes to lie on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchivp.checks import check_whole_number
from torchivp.data.series import Series
from torchivp.training.objective import predict

_POINTS = 200
_FRAMES = 100


@dataclass(frozen=True)
class Video:
    """What `record=` takes besides a path.

    Args:
        path: the GIF file to write.
        every: a frame after so many epochs, besides the first and the last; None for about a hundred frames in all.
        trajectory: the number of the trajectory that is shown.
        fps: frames per second.

    Raises:
        TypeError, ValueError: an argument does not make sense.
    """

    path: str | Path
    every: int | None = None
    trajectory: int = 0
    fps: int = 15

    def __post_init__(self) -> None:
        if Path(self.path).suffix.lower() != ".gif":
            raise ValueError(f"the video is written as a GIF, got the path {str(self.path)!r}: let it end on .gif")
        if self.every is not None:
            check_whole_number("every", self.every, 1)
        check_whole_number("trajectory", self.trajectory, 0)
        check_whole_number("fps", self.fps, 1, 50)


class Recorder:
    """Takes the frames of a video, and draws it in the end.

    Args:
        video: what to record.
        series: the trajectory that is shown.
        names: the names of the states.
        epochs: how many epochs there will be at most.

    Attributes:
        frames: for each frame the epoch, its loss and the model's states, [points, n].

    Raises:
        ImportError: matplotlib is not installed.
    """

    def __init__(self, video: Video, series: Series, names: list[str], epochs: int):
        import torchivp.plot  # noqa: F401 (to fail now, and not after the training)

        self._video = video
        self._series = series
        self._names = names
        self._every = video.every or math.ceil(epochs / _FRAMES)
        self.frames: list[tuple[int, float, Tensor]] = []

    def take(self, model: nn.Module, epoch: int, loss: float, last: bool) -> None:
        """Take a frame after an epoch (0: before the first) if it is time for one."""
        if (epoch % self._every and not last) or (self.frames and self.frames[-1][0] >= epoch):
            return
        t = self._times()
        blank = self._series.y.new_full((1, len(t), *self._series.y.shape[1:]), math.nan)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            states = predict(model, Series(t, blank, self._series.y0[None]))[0]
        model.train(was_training)
        self.frames.append((epoch, loss, states.flatten(1).cpu()))

    def _times(self) -> Tensor:
        t = self._series.t
        return torch.linspace(float(t[0]), float(t[-1]), _POINTS, dtype=t.dtype, device=t.device)

    def write(self) -> None:
        """Draw the video."""
        from torchivp.plot.training import save_training_video

        observed: Any = self._series.y.flatten(1).cpu().numpy()
        save_training_video(
            Path(self._video.path),
            self._times().cpu().numpy(),
            [(epoch, loss, states.numpy()) for epoch, loss, states in self.frames],
            (self._series.t.cpu().numpy(), observed),
            self._names,
            self._video.fps,
        )
