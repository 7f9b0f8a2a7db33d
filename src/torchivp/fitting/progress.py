"""Telling the user how a fit is getting on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torchivp.terminal import live_line


class Progress(Protocol):
    """Called at every iteration of a fit with the stage it is in, a running number and the negative log-likelihood.

    The likelihood is that of the part of the data that the stage uses.
    """

    def __call__(self, stage: str, iteration: int, nll: float) -> None:
        """Take note of an iteration."""


@contextmanager
def show_progress(progress: bool | Progress) -> Iterator[Progress]:
    """What to call at every iteration.

    Args:
        progress: False for silence, True for the terminal (a live line where rich is installed and standard error is
            a terminal, else a line for each stage), or a function to call.
    """
    if progress is False:
        yield silent
    elif progress is not True:
        yield progress
    else:
        with live_line("fitting") as say:
            yield lambda stage, iteration, nll: say(stage, _line(stage, iteration, nll))


def _line(stage: str, iteration: int, nll: float) -> str:
    return f"{stage}: iteration {iteration}, negative log-likelihood {nll:.6g}"


def silent(stage: str, iteration: int, nll: float) -> None:
    """Say nothing."""
