"""Telling the user how a fit is getting on."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console

        with Console(stderr=True).status("fitting") as status:
            yield lambda stage, iteration, nll: status.update(_line(stage, iteration, nll))
    else:
        yield _StageLines()


def _line(stage: str, iteration: int, nll: float) -> str:
    return f"{stage}: iteration {iteration}, negative log-likelihood {nll:.6g}"


def silent(stage: str, iteration: int, nll: float) -> None:
    """Say nothing."""


class _StageLines:
    """A line when a stage begins, and every few seconds within one."""

    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, iteration: int, nll: float) -> None:
        if stage != self._stage or time.monotonic() - self._last > 5:
            print(_line(stage, iteration, nll), file=sys.stderr, flush=True)
            self._stage, self._last = stage, time.monotonic()
