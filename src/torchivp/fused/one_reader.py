"""Functions are read by one thread at a time: what reads them changes settings of the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


if os.name == "posix":
    os.register_at_fork(after_in_child=_renew)  # a thread that held it has not come along


@contextmanager
def one_reader() -> Iterator[None]:
    """Wait until no other thread reads a function."""
    with _lock:
        yield
