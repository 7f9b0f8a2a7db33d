"""What is sent to other processes: functions and models, by import or by what is in them."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections import OrderedDict
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_KEPT = 2  # values that a process keeps of those that it has received
_received: OrderedDict[bytes, Any] = OrderedDict()


class Sent(Generic[T]):
    """A value that many tasks share: written once where it comes from, and read once by each process.

    cloudpickle writes it, where that is installed, so that functions that no module holds can be sent; else pickle.

    Args:
        value: the value.
        what: what it is, for errors.
    """

    def __init__(self, value: T, what: str):
        self.value = value
        self._what = what
        self._written: tuple[bytes, bytes] | None = None

    def __getstate__(self) -> tuple[bytes, bytes]:
        if self._written is None:
            data = _written(self.value, self._what)
            self._written = hashlib.sha256(data).digest(), data
        return self._written

    def __setstate__(self, state: tuple[bytes, bytes]) -> None:
        key, data = state
        if key not in _received:
            _received[key] = pickle.loads(data)
            while len(_received) > _KEPT:
                _received.popitem(last=False)
        self.value, self._what, self._written = _received[key], "", state


def _written(value: Any, what: str) -> bytes:
    try:
        if importlib.util.find_spec("cloudpickle") is not None:
            import cloudpickle

            return cloudpickle.dumps(value)
        return pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what} cannot be sent to other processes: {error}. {_advice()}") from error


def _advice() -> str:
    if importlib.util.find_spec("cloudpickle") is not None:
        return "Make what it holds where it is used, or drop executor="
    return "Define it at the top of a module, or install cloudpickle: pip install 'torchivp[cluster]'"
