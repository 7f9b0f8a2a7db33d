"""A lock that does not get in the way of copies."""

from __future__ import annotations

import threading
from typing import Any


class Guard:
    """Lets one thread at a time into a `with` block, again and again the same. Copied or unpickled it is a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *args: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, ()
