"""`torchivp versions`: what a report of a bug should say of the machine. It needs nothing but torchivp itself."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import torchivp
from torchivp.fused.compiler import NoCompiler, find_compiler

_PACKAGES = ("numpy", "scipy", "pandas", "narwhals", "matplotlib", "typer", "emcee", "arviz")


def versions() -> None:
    """Print the versions of torchivp and of all that it uses, for reports of bugs."""
    try:
        compiler = find_compiler()
        compiled = f"{compiler.version.partition(chr(10))[0]} ({' '.join(compiler.command)})"
    except NoCompiler:
        compiled = "none"
    found = {
        "torchivp": torchivp.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": f"{torch.version.cuda}, {'' if torch.cuda.is_available() else 'not '}available",
        **{name: _version(name) for name in _PACKAGES},
        "c++ compiler": compiled,
    }
    for name, value in found.items():
        print(f"{name + ':':13} {value}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
