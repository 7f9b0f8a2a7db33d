"""How a long computation is getting on, on the terminal."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def live_line(doing: str) -> Iterator[Callable[[str, str], None]]:
    """What to call with the stage a computation is in and a line about it.

    Where rich is installed and standard error is a terminal the line is a live one; else it is printed when a stage
    begins, and every few seconds within one.

    Args:
        doing: what to say before there is anything to say.
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console

        with Console(stderr=True).status(doing) as status:
            yield lambda stage, line: status.update(line)
    else:
        yield _StageLines()


class _StageLines:
    """A line when a stage begins, and every few seconds within one."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._last = 0.0

    def __call__(self, stage: str, line: str) -> None:
        if stage != self._stage or time.monotonic() - self._last > 5:
            print(line, file=sys.stderr, flush=True)
            self._stage, self._last = stage, time.monotonic()
