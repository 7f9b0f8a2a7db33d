"""C++ compilers for tests: the one of this machine, and programs that stand in its place."""

import shlex
from pathlib import Path

import pytest

from torchivp.fused.compiler import Compiler, NoCompiler, find_compiler


def compiler_here() -> Compiler | None:
    """The compiler that this machine has."""
    try:
        return find_compiler()
    except NoCompiler:
        return None


HERE = compiler_here()
needs_compiler = pytest.mark.skipif(HERE is None, reason="needs a C++ compiler")


def make_program(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def hand_on() -> str:
    """The line of a script that gives its arguments to the compiler of this machine."""
    assert HERE is not None
    return f'exec {shlex.join(HERE.command)} "$@"'
