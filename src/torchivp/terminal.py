"""How a long computation is getting on, on the terminal."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

_PAUSE = 5.0  # seconds between two lines about the same stage

Say: TypeAlias = Callable[[str, str, tuple[int, int] | None], None]
"""Called with the stage a computation is in, words about it, and how many of how many parts are done, or None."""


@contextmanager
def live_line(doing: str) -> Iterator[Say]:
    """What to call with news of a computation.

    Where rich is installed and standard error is a terminal, they are a line that changes in its place: the time so
    far, the words, a bar that fills where parts are counted. Else a line is printed when a stage begins, when its last
    part is done, and every few seconds within it.

    Args:
        doing: what to say before there is anything to say.
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _live_line(doing) as say:
            yield say
    else:
        yield _Lines()


def duration(seconds: float) -> str:
    """A time span in words, as exact as a guess may be: "8 s", "3 min", "1 h 20 min"."""
    if seconds < 99.5:
        return f"{math.ceil(seconds):d} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _live_line(doing: str) -> Iterator[Say]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    one_line: dict[str, Any] = {"no_wrap": True}
    columns = (
        SpinnerColumn(table_column=Column(**one_line)),
        TimeElapsedColumn(table_column=Column(min_width=7, **one_line)),
        TextColumn("{task.description}", table_column=Column(ratio=1, overflow="ellipsis", **one_line)),
        BarColumn(bar_width=10, table_column=Column(min_width=10, **one_line)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task(doing, total=None)

        def show(stage: str, words: str, parts: tuple[int, int] | None) -> None:
            done, total = parts or (0, None)
            bar.update(task, description=escape(words), completed=done, total=total)

        yield show


class _Lines:
    """A line when a stage begins, when its last part is done, and every few seconds within it."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._last = time.monotonic()

    def __call__(self, stage: str, words: str, parts: tuple[int, int] | None) -> None:
        over = parts is not None and parts[0] == parts[1]
        now = time.monotonic()
        if stage != self._stage or over or now - self._last > _PAUSE:
            print(f"{words} ({duration(now - self._began)})", file=sys.stderr, flush=True)
            self._stage, self._last = stage, now
