"""Compiled kernels: each is compiled once on a machine, and kept in a directory of the user's.

An entry is a library `NAME-KEY.so`, or code for a GPU, `NAME-KEY.cubin`, and, beside it, `NAME-KEY.sha256`, a line as
`sha256sum` writes it. A file is opened only if that line is right; otherwise, whatever has happened to it, it is
compiled again. Files come into the directory whole, by being renamed, and go at any time: no process needs to know of
another, and none waits for one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torchivp
from torchivp.boundary import warn
from torchivp.fused.compiler import CompileError, find_compiler

_log = logging.getLogger("torchivp")

_LIMIT = 512 * 2**20
"""How many bytes the directory may hold before the entries that were not used for longest are removed."""

_ENTRY = re.compile(r"(\w+-[0-9a-f]{32})\.(?:so|cubin|ptx|sha256|cpp|cu)")
"""The names of the files of an entry, and of the source of a kernel that did not compile. No other file is touched."""

_UNFINISHED = ".torchivp-unfinished-"
"""How the names of files begin that are being written."""

_ABANDONED = 3600.0
"""Seconds after which the process that began to write a file is taken to have been killed."""

_SLOW = 2.0
"""Seconds of compiling after which one line says what is going on."""

_libraries: dict[Hashable, Any] = {}
_locks: dict[Hashable, threading.Lock] = {}
if os.name == "posix":
    os.register_at_fork(after_in_child=_locks.clear)  # a thread that held one has not come along


_T = TypeVar("_T")


class Builds(Protocol):
    """What compiles sources, as `Compiler` does.

    Attributes:
        identity: all that what it makes of a source depends on, on one machine.
        suffixes: how the names of files end that it makes, and of sources.
        target: what it compiles for.
    """

    @property
    def identity(self) -> tuple[object, ...]: ...
    @property
    def suffixes(self) -> tuple[str, str]: ...
    @property
    def target(self) -> str: ...

    def build(self, source: str, name: str, flags: Sequence[str], folder: Path) -> Path:
        """Compile a source into a file of the `folder`, and return its path."""
        ...


def load(source: str, name: str, *, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The shared library that a C++ source compiles to: from memory, from the user's cache directory, or compiled.

    Threads that ask for the same library wait for the first of them, and get the same.

    Args:
        source: C++17, complete. The macro `TORCHIVP_LIBMVEC` is defined where glibc's vector functions are linked.
        name: a short name of letters, digits and underscores, for file names and messages.
        flags: flags for the compiler, after those that it always gets.

    Raises:
        NoCompiler: there is no C++ compiler. The message says how to get one.
        CompileError: the source does not compile. The message has the compiler's first lines, and says where the source
            is kept.
    """
    request = source, name, tuple(flags)
    return once(
        request, lambda: from_disk_or_compiled(*request, find_compiler(), lambda path, _: ctypes.CDLL(str(path)))
    )


def once(request: Hashable, make: Callable[[], _T]) -> _T:
    """What is made for a request, which this process makes once: other threads wait for the first of them."""
    if (library := _libraries.get(request)) is not None:
        return library
    with _locks.setdefault(request, threading.Lock()):
        if request not in _libraries:
            _libraries[request] = make()
        return _libraries[request]


def cache_directory() -> Path:
    """Where compiled kernels are kept.

    `TORCHIVP_CACHE_DIR`; otherwise `torchivp` in `XDG_CACHE_HOME`, `~/Library/Caches` (macOS) or `~/.cache`.

    Raises:
        RuntimeError: nothing says where the user's home is.
    """
    if own := os.environ.get("TORCHIVP_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # nor does it count by its specification
        caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return caches / "torchivp"


def from_disk_or_compiled(
    source: str, name: str, flags: tuple[str, ...], compiler: Builds, opened: Callable[[Path, bytes], _T]
) -> _T:
    """What a source compiles to, opened: from the user's cache directory, or compiled.

    Args:
        source: the source, complete.
        name: a short name of letters, digits and underscores, for file names and messages.
        flags: flags for the compiler.
        compiler: compiles it.
        opened: makes of a file, given by its path and what is in it, what is returned; an `OSError` if it cannot.

    Raises:
        CompileError: the source does not compile, as for `load`.
    """
    assert name.isidentifier(), name
    entry = f"{name}-{_key(source, compiler, flags)}"
    suffix, of_source = compiler.suffixes
    directory = _private_directory()
    if directory is not None and (library := _stored(directory / f"{entry}{suffix}", opened)):
        return library
    try:
        with tempfile.TemporaryDirectory(prefix="torchivp-", ignore_cleanup_errors=True) as folder:
            with _told_if_slow(name, compiler.target, directory):
                built = compiler.build(source, name, flags, Path(folder))
            content = built.read_bytes()
            if directory is not None and (library := _store(content, directory / f"{entry}{suffix}", opened)):
                return library
            return opened(built, content)  # an open library needs its file no more
    except CompileError as error:
        path = _keep(source, f"{entry}{of_source}", directory)
        raise CompileError(f"{error}\nIts source is kept in {path}") from None
    except OSError as error:
        raise CompileError(f"the kernel {name} cannot be compiled with {compiler} and opened: {error}") from error


def _key(source: str, compiler: Builds, flags: tuple[str, ...]) -> str:
    """A name for all that a library depends on."""
    parts = source, compiler.identity, flags, torchivp.__version__, _processor()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """The processor, and what it can do, as far as the system tells: libraries are compiled for no other."""
    if sys.platform == "darwin":
        question = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return platform.machine() + subprocess.run(question, capture_output=True, text=True, check=False).stdout
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return platform.machine() + platform.processor()
    telling = "flags", "Features", "features", "isa", "model name", "cpu\t"
    return "\n".join([platform.machine(), *(line for line in first.splitlines() if line.startswith(telling))])


def _private_directory() -> Path | None:
    """The cache directory, made if need be; None, with a warning, if it can't be had or others could write into it."""
    try:
        directory = cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{directory} belongs to another user")
        if status.st_mode & 0o022:
            raise PermissionError(f"{directory} can be written by others (chmod go-w {shlex.quote(str(directory))})")
    except (OSError, RuntimeError) as error:
        _warn_once(str(error))
        return None
    return directory


@functools.cache
def _warn_once(reason: str) -> None:
    warn(
        f"compiled kernels are not kept, and every program compiles its own: {reason}. The environment variable "
        "TORCHIVP_CACHE_DIR may name a directory of yours for them"
    )


def _stored(path: Path, opened: Callable[[Path, bytes], _T]) -> _T | None:
    """What is in an entry, opened; None if there is none, or not as it was written."""
    try:
        content = path.read_bytes()
        if path.with_suffix(".sha256").read_bytes() != _checksum_line(path.name, content):
            _log.info("%s is not as it was written: it is compiled again", path)
            return None
        library = opened(path, content)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.info("%s cannot be opened: it is compiled again: %s", path, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used now
    return library


def _store(content: bytes, path: Path, opened: Callable[[Path, bytes], _T]) -> _T | None:
    """Make an entry and open it; None, with a warning, if it can't be kept."""
    try:
        _write(path, content)
        _write(path.with_suffix(".sha256"), _checksum_line(path.name, content))
        _limit(path.parent)
    except OSError as error:
        _warn_once(str(error))
        return None
    return _stored(path, opened)


def _checksum_line(name: str, content: bytes) -> bytes:
    """What `sha256sum` writes. The name is in it, so that an entry that was given another name is found out."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _keep(source: str, file_name: str, directory: Path | None) -> Path:
    """Write the source of a kernel that did not compile to where its user may read it, and return its path."""
    if directory is not None:
        path = directory / file_name
        with contextlib.suppress(OSError):
            _write(path, source.encode())
            return path
    entry = Path(file_name)
    descriptor, name = tempfile.mkstemp(prefix=f"{entry.stem}-", suffix=entry.suffix)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(source)
    return Path(name)


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody sees unfinished."""
    descriptor, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _limit(directory: Path) -> None:
    """Remove the entries that were not used for longest while there is too much, and what killed processes left."""
    entries = defaultdict[str, list[tuple[float, int, str]]](list)
    for file in list(os.scandir(directory)):
        with contextlib.suppress(OSError):  # another process may remove any
            status = file.stat(follow_symlinks=False)
            if match := _ENTRY.fullmatch(file.name):
                entries[match[1]].append((status.st_mtime, status.st_size, file.path))
            elif file.name.startswith(_UNFINISHED) and status.st_mtime < time.time() - _ABANDONED:
                os.unlink(file.path)
    too_much = sum(size for files in entries.values() for _, size, _ in files) - _LIMIT
    for files in sorted(entries.values(), key=max):  # by the time of the file that was used last
        for _, size, path in files if too_much > 0 else ():
            too_much -= size
            with contextlib.suppress(OSError):
                os.unlink(path)


@contextlib.contextmanager
def _told_if_slow(name: str, target: str, directory: Path | None) -> Iterator[None]:
    """Say what is going on if it takes long: to the log, and to who sits before a terminal."""

    def tell() -> None:
        line = f"torchivp: compiling the kernel {name} for {target}" + (
            f", once: it will be in {directory}" if directory else ""
        )
        _log.info(line)
        if sys.stderr is not None and sys.stderr.isatty():
            print(line, file=sys.stderr)

    timer = threading.Timer(_SLOW, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
