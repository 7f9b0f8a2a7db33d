"""A file of all that a fit has solved, from which it goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from torchivp.fitting.solving.stretches import Accuracy

Entry = tuple[NDArray[np.float64], ...] | None
"""The numbers of predictions; None where the model could not be solved."""

_FORMAT = "torchivp fit journal 1"


class Journal:
    """The solves of a fit by what was asked for.

    A fit decides nothing by chance or by the clock. So a repeated fit that finds its solves here asks for the same ones
    in the same order, up to where it was interrupted, and goes on from there: to the same bits.

    Args:
        path: of the file, which is made if it does not exist.
        fit: what identifies the fit; a file of another fit is refused.

    Raises:
        ValueError: the file is of another fit, or no journal.
    """

    def __init__(self, path: str | Path, fit: Sequence[Any]):
        self._path = Path(path)
        self._entries: dict[bytes, Entry] = {}
        identity = hashlib.sha256(repr(_identity(fit)).encode()).hexdigest()
        if self._path.exists() and self._path.stat().st_size:
            end = self._read(identity)
            with self._path.open("r+b") as file:  # an entry that was being written when the fit was killed
                file.truncate(end)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("wb") as file:
                _write(file, (_FORMAT, identity))
        self._file: BinaryIO = self._path.open("ab")

    def _read(self, identity: str) -> int:
        """Read the entries; returns where the last whole one ends."""
        with self._path.open("rb") as file:
            header = _read(file)
            if not (isinstance(header, tuple) and header[:1] == (_FORMAT,)):
                raise ValueError(f"{self._path} is no journal of a fit: give checkpoint= another name")
            if header[1] != identity:
                raise ValueError(
                    f"{self._path} is the journal of another fit (other data, model or arguments): give checkpoint= "
                    "another name, or delete the file"
                )
            end = file.tell()
            while (entry := _read(file)) is not None:
                self._entries[entry[0]] = entry[1]
                end = file.tell()
            return end

    def key(
        self,
        accuracy: Accuracy,
        theta: NDArray[np.float64],
        horizon: float,
        derivatives: bool,
        shifts: Tensor | None = None,
    ) -> bytes:
        """What identifies a solve."""
        said = repr((accuracy, horizon, derivatives)).encode()
        moved = b"" if shifts is None else np.ascontiguousarray(shifts).tobytes()
        return hashlib.sha256(said + np.ascontiguousarray(theta).tobytes() + moved).digest()

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __getitem__(self, key: bytes) -> Entry:
        return self._entries[key]

    def add(self, key: bytes, entry: Entry) -> None:
        """Write down a solve."""
        self._entries[key] = entry
        _write(self._file, (key, entry))

    def flush(self) -> None:
        """Make sure that all of it is in the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _identity(value: Any) -> Any:
    """What is the same in another process: without addresses, functions by what they do."""
    if isinstance(value, Mapping):
        return [(str(key), _identity(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_identity(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return _identity(value.to_dict())
    if isinstance(value, MethodType):
        return [_identity(value.__func__), _identity(value.__self__)]
    if isinstance(value, FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, _code(value.__code__), repr(value.__defaults__), _identity(inner)]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, *(_identity(getattr(value, each.name)) for each in fields(value))]
    if hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        return [identity_of_class(type(value)), _identity(vars(value))]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def identity_of_class(kind: type) -> Any:
    """What the functions of a class do, those of its bases outside of torch included."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("builtins", "torch."))]
    functions = [each for base in own for each in vars(base).values() if isinstance(each, FunctionType)]
    return [kind.__qualname__, [[each.__qualname__, _code(each.__code__)] for each in functions]]


def _code(code: CodeType) -> Any:
    """What a function does: its instructions, and the names and constants in them."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_freevars, constants]


def _write(file: BinaryIO, value: Any) -> None:
    """A value, with its length before it, by which a torn end is known."""
    data = pickle.dumps(value, protocol=5)
    file.write(len(data).to_bytes(8, "little") + data)


def _read(file: BinaryIO) -> Any:
    """The next value; None at the end, or where it is torn."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    data = file.read(length) if len(head) == 8 and length < 1 << 40 else b""
    if not data or len(data) < length:
        return None
    return _Plain(data).load()


class _Plain(pickle.Unpickler):
    """Reads arrays, numbers, text and bytes, and nothing that could run code."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype")}
        if (module, name) in allowed or (module.startswith("numpy.") and name in ("_reconstruct", "_frombuffer")):
            return super().find_class(module, name)
        raise ValueError(f"a journal of a fit holds no {module}.{name}: the file is damaged")
