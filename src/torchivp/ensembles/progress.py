"""Telling the user how far an ensemble has got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torchivp.terminal import live_line


class Progress(Protocol):
    """Called after every block with the number of rows that are through, those of an earlier run included, and all."""

    def __call__(self, done: int, n: int) -> None:
        """Take note of a block."""


@contextmanager
def show_progress(progress: bool | Progress, n: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of rows that are through.

    Args:
        progress: False for silence, True for the terminal, or a function to call.
        n: how many rows there are.
    """
    if progress is False:
        yield lambda done: None
    elif progress is not True:
        yield lambda done: progress(done, n)
    else:
        with live_line("solving") as say:
            yield lambda done: say("rows", f"{done} of {n} rows", (done, n))
