"""A file of all that a long computation has found, from which it goes on where it was interrupted."""

from __future__ import annotations

import dis
import hashlib
import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, BinaryIO

Entry = Any
"""What is kept: arrays of NumPy's, numbers, text and bytes, in tuples, lists and dicts; or None."""


class Journal:
    """What has been found, by what was asked for.

    A computation that decides nothing by chance or by the clock, and finds here what it found before, asks for the same
    in the same order, up to where it was interrupted, and goes on from there: to the same bits. What is found stays in
    the file, and is read when it is asked for.

    Args:
        path: of the file, which is made if it does not exist.
        of: what identifies the computation; the file of another one is refused.
        kind: what computes, "fit" or "ensemble".
        other: what may differ between two of them, in words.

    Raises:
        ValueError: the file is of another computation, or no journal.
    """

    def __init__(self, path: str | Path, of: Sequence[Any], kind: str, other: str):
        self._path, self._kind, self._other = Path(path), kind, other
        self._of = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        self._places: dict[bytes, int] = {}
        identity = hashlib.sha256(repr(identity_of(of)).encode()).hexdigest()
        header = (f"torchivp {kind} journal 1", identity)
        if self._path.exists() and self._path.stat().st_size:
            end = self._index(header)
            with self._path.open("r+b") as file:  # an entry that was being written when the program was killed
                file.truncate(end)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("wb") as file:
                _write(file, header)
        self._file: BinaryIO = self._path.open("ab")
        self._entries: BinaryIO = self._path.open("rb")

    def _index(self, header: tuple[str, str]) -> int:
        """Find the entries; returns where the last whole one ends."""
        with self._path.open("rb") as file:
            found = _read(file, self._of)
            if not (isinstance(found, tuple) and found[:1] == header[:1]):
                raise ValueError(f"{self._path} is no journal of {self._of}: give checkpoint= another name")
            if found[1] != header[1]:
                raise ValueError(
                    f"{self._path} is the journal of another {self._kind} ({self._other}): give checkpoint= "
                    "another name, or delete the file"
                )
            end = file.tell()
            while (entry := _read(file, self._of)) is not None:
                self._places[entry[0]] = end
                end = file.tell()
            return end

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __getitem__(self, key: bytes) -> Entry:
        self._file.flush()
        self._entries.seek(self._places[key])
        return _read(self._entries, self._of)[1]

    def add(self, key: bytes, entry: Entry) -> None:
        """Write down what was found."""
        self._places[key] = self._file.tell()
        _write(self._file, (key, entry))

    def flush(self) -> None:
        """Make sure that all of it is in the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._entries.close()


def identity_of(value: Any) -> Any:
    """What is the same in another process: without addresses, functions by what they do."""
    if isinstance(value, Mapping):
        return [(str(key), identity_of(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [identity_of(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return identity_of(value.to_dict())
    if isinstance(value, MethodType):
        return [identity_of(value.__func__), identity_of(value.__self__)]
    if isinstance(value, partial):
        return [identity_of(value.func), identity_of(value.args), identity_of(value.keywords)]
    if isinstance(value, FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or ()]
        named = [value.__qualname__, _code(value.__code__), repr(value.__defaults__)]
        return [*named, identity_of(inner), _globals(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, *(identity_of(getattr(value, each.name)) for each in fields(value))]
    if hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        return [identity_of_class(type(value)), identity_of(vars(value))]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def identity_of_class(kind: type) -> Any:
    """What the functions of a class do, those of its bases outside of torch included."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("builtins", "torch."))]
    functions = [each for base in own for each in vars(base).values() if isinstance(each, FunctionType)]
    return [kind.__qualname__, [[each.__qualname__, _code(each.__code__)] for each in functions]]


def _globals(function: FunctionType) -> Any:
    """What a function finds in its module: numbers, texts, arrays, and functions with what these find there."""
    found: dict[str, Any] = {}
    waiting = [function]
    while waiting:
        one = waiting.pop()
        for name in _names(one.__code__):
            value = one.__globals__.get(name)
            if name in found or value is None:
                continue
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                found[name] = [_code(value.__code__), repr(value.__defaults__)]
                waiting.append(value)
            elif _is_plain(value) or (isinstance(value, list | tuple) and all(map(_is_plain, value))):
                found[name] = identity_of(value)
    return sorted(found.items())


def _names(code: CodeType) -> set[str]:
    """The global names that a code reads and does not assign."""
    inner = {name for each in code.co_consts if isinstance(each, CodeType) for name in _names(each)}
    assigned = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_GLOBAL"}
    return (inner | set(code.co_names)) - assigned


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | complex | str) or (hasattr(value, "tolist") and not isinstance(value, type))


def _code(code: CodeType) -> Any:
    """What a function does: its instructions, and the names and constants in them."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_freevars, constants]


def _write(file: BinaryIO, value: Any) -> None:
    """A value, with its length before it, by which a torn end is known."""
    data = pickle.dumps(value, protocol=5)
    file.write(len(data).to_bytes(8, "little") + data)


def _read(file: BinaryIO, of: str) -> Any:
    """The next value; None at the end, or where it is torn."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    data = file.read(length) if len(head) == 8 and length < 1 << 40 else b""
    if not data or len(data) < length:
        return None
    return _Plain(data, of).load()


class _Plain(pickle.Unpickler):
    """Reads arrays, numbers, text and bytes, and nothing that could run code."""

    def __init__(self, data: bytes, of: str):
        super().__init__(io.BytesIO(data))
        self._of = of

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype")}
        if (module, name) in allowed or (module.startswith("numpy.") and name in ("_reconstruct", "_frombuffer")):
            return super().find_class(module, name)
        raise ValueError(f"a journal of {self._of} holds no {module}.{name}: the file is damaged")
