"""The C++ compiler of this machine: which one there is, what it accepts, and a shared library from a source text."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

_ALWAYS = ("-std=c++17", "-O3", "-shared", "-fPIC")
"""What every compiler is given. `-ffast-math` is not among it: NaN and infinity keep their meaning."""

_LINUX = sys.platform == "linux"

_WANTED = (
    (("-march=native",), ("-mcpu=native",)),  # Clang had no -march=native for ARM before version 15
    (("-fno-math-errno",),),
    (("-fno-trapping-math",),),
    *([(("-Wl,-z,defs",),)] if _LINUX else []),  # a symbol that is nowhere is an error now; on macOS it always is
    *([(("-DTORCHIVP_LIBMVEC", "-lmvec"),)] if _LINUX and platform.machine() == "x86_64" else []),
)
"""What a compiler is given if it takes it: of each, the first that it takes."""

_PROBE = """\
#include <cmath>
#ifdef TORCHIVP_LIBMVEC
typedef double Pair __attribute__((vector_size(16)));
extern "C" Pair _ZGVbN2v_exp(Pair);
extern "C" Pair probe_pair(Pair x) { return _ZGVbN2v_exp(x); }
#endif
extern "C" double probe(double x) { return std::exp(x); }
"""
"""Needs what kernels need. `_ZGVbN2v_exp` is glibc's exponential of two numbers at once, on x86-64."""

_LINES = 10
"""How many lines of what a compiler says are passed on."""

_ADVICE = (
    "install one (Debian and Ubuntu: apt install g++; macOS: xcode-select --install), or the one that is a Python "
    'package: pip install "torchivp[fused]"; or set the environment variable TORCHIVP_CXX to the path of yours'
)


class NoCompiler(RuntimeError):
    """There is no C++ compiler that fused kernels could be compiled with; the message says how to get one."""


class CompileError(RuntimeError):
    """A kernel could not be compiled; the message has the first lines of what the compiler said."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that can be run.

    Attributes:
        command: the program, and its own first arguments.
        version: what it says of itself.
    """

    command: tuple[str, ...]
    version: str

    @property
    def identity(self) -> tuple[object, ...]:
        """All that what it makes of a source depends on, on one machine."""
        return self.command, self.version, _ALWAYS, _WANTED  # and what of the wanted it takes follows

    @property
    def suffixes(self) -> tuple[str, str]:
        """How the names of libraries end, and of sources."""
        return ".so", ".cpp"

    @property
    def target(self) -> str:
        """What it compiles for."""
        return "this processor"

    def build(self, source: str, name: str, flags: Sequence[str], folder: Path) -> Path:
        """Compile a source into a shared library.

        The result depends on nothing but the arguments: not on the folder, nor on what another process does.

        Args:
            source: C++17. The macro `TORCHIVP_LIBMVEC` is defined where glibc's vector functions are linked.
            name: the stem of the names of files.
            flags: further flags, which override the usual ones.
            folder: an empty directory for the compiler's files.

        Returns:
            The path of the library, in `folder`.

        Raises:
            CompileError: the compiler refuses the source or the flags, or cannot be run.
            NoCompiler: it cannot build any library.
        """
        if said := self._refusal(source, name, [*self._accepted, *flags], folder):
            raise CompileError(f"{self} does not compile the kernel {name}:\n{said}")
        return folder / f"{name}.so"

    @functools.cached_property
    def _accepted(self) -> list[str]:
        """Those of the wanted flags that it takes."""
        with TemporaryDirectory(prefix="torchivp-", ignore_cleanup_errors=True) as folder:

            def refusal(flags: Iterable[str]) -> str:
                return self._refusal(_PROBE, "probe", flags, Path(folder))

            for likely in (_WANTED, _WANTED[:-1]):  # not every C library comes with the last
                best = [flag for choices in likely for flag in choices[0]]
                if not refusal(best):
                    return best
            if said := refusal(()):
                raise NoCompiler(f"{self} cannot build a library, and fused kernels need a compiler: {_ADVICE}\n{said}")
            accepted: list[str] = []
            for choices in _WANTED:
                accepted += next((flags for flags in choices if not refusal([*accepted, *flags])), ())
            return accepted

    def _refusal(self, source: str, name: str, flags: Iterable[str], folder: Path) -> str:
        """Build `name`.so, and return what the compiler said if it did not; empty if it did."""
        (folder / f"{name}.cpp").write_text(source, encoding="utf-8")
        # The source comes first: a library serves what stands before it.
        code, said = _run([*self.command, f"{name}.cpp", *_ALWAYS, *flags, "-o", f"{name}.so"], folder)
        return "" if code == 0 else said or f"it ended with exit status {code}"

    def __str__(self) -> str:
        return f"the C++ compiler {shlex.join(self.command)}"


@functools.cache
def find_compiler() -> Compiler:
    """The C++ compiler that kernels are compiled with; it is looked for until there is one, and then kept.

    What `TORCHIVP_CXX` or else `CXX` in the environment names, with arguments if need be; otherwise the first that can
    be run of g++, clang++ and c++ on the `PATH` and the one in the package ziglang.

    Raises:
        NoCompiler: there is none, or the environment names one that cannot be run.
    """
    if os.name != "posix":
        raise NoCompiler("fused kernels are compiled on Linux and macOS only: on this system use the eager backend")
    for variable in ("TORCHIVP_CXX", "CXX"):
        if given := os.environ.get(variable, "").strip():
            return _chosen(variable, given)
    silent = []
    for command in _present():
        code, said = _run([*command, "--version"])
        if code == 0:
            return Compiler(command, said)
        silent.append(f"\n{shlex.join(command)} is there, but cannot be run: {said}")
    raise NoCompiler(f"fused kernels need a C++ compiler, and there is none: {_ADVICE}{''.join(silent)}")


def _chosen(variable: str, given: str) -> Compiler:
    """The compiler that the environment names."""
    try:
        program, *arguments = shlex.split(given)
    except ValueError as error:
        raise NoCompiler(f"the environment has {variable}={given!r}, which is no command: {error}") from None
    path = shutil.which(program)
    if path is None:
        raise NoCompiler(f"the environment has {variable}={given!r}, and there is no such program: correct or unset it")
    command = (os.path.abspath(path), *arguments)
    code, said = _run([*command, "--version"])
    if code != 0:
        raise NoCompiler(
            f"the environment has {variable}={given!r}, which does not answer --version, as a C++ compiler does: "
            f"correct or unset it\n{said}"
        )
    return Compiler(command, said)


def _present() -> Iterator[tuple[str, ...]]:
    """The compilers there are, the best first."""
    for program in ("g++", "clang++", "c++"):
        if path := shutil.which(program):
            yield (os.path.abspath(path),)
    if importlib.util.find_spec("ziglang") is not None:
        # Zig's own checks of undefined behaviour need a library that a plain link has not (Zig 0.14.0, at any -O).
        yield (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined")


def _run(command: Sequence[str], folder: Path | None = None) -> tuple[int, str]:
    """Run a command and return its exit status and the first lines of what it wrote."""
    environment = {**os.environ, "LC_ALL": "C"}
    if folder is not None:  # what is written on the way goes with it: Zig would keep it for ever
        environment |= {"TMPDIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        return 127, str(error)
    lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
    return done.returncode, "\n".join(lines[:_LINES])
