"""Which model a command is about: one that comes with torchivp, one of a Python file, or a text of equations."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from torchivp.models import MODELS, Equations, Model, find_model
from torchivp.models.described import check_known

MODEL_HELP = "Name of a model, which torchivp models lists, or file.py:Class for one of your own."
EquationsFile = Annotated[
    Path | None, typer.Option(help="Text file of equations, in place of a model.", show_default=False)
]


def completed_by(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What tells a shell which of the names go on from what was typed."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


complete_model = completed_by(MODELS)


def choose_model(name: str | None, equations: Path | None, option: str) -> Model:
    """The model that a command is about, with its defaults.

    Args:
        name: what the user gave as the model: a name, or `file.py:Class`.
        equations: the file of equations.
        option: how the command calls `name`.

    Raises:
        OSError: the file of equations cannot be read.
        ValueError: both or none are given, or there is no such model; the message says which there are.
    """
    if (name is None) == (equations is None):
        got = "got neither" if name is None else f"got {name} and {equations}"
        raise ValueError(f"give {option} (torchivp models lists them) or --equations, a text file, and not both; {got}")
    if equations is not None:
        return Equations.from_file(equations)
    assert name is not None
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _model_of_file(Path(file), attribute)
    if name.endswith(".py"):
        raise ValueError(f"{name} is a file, which may hold several models: write {name}:Class")
    if name.endswith(".txt"):
        raise ValueError(f"{name} is no model: if it is a file of equations, write --equations {name}")
    return find_model(name)()


def _model_of_file(path: Path, attribute: str) -> Model:
    """The model of that name in a Python file: an instance, or that of a class without arguments."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    module = _import_file(path)
    found = getattr(module, attribute, None)
    if found is None:
        models = [name for name, value in vars(module).items() if _is_own_model(value)]
        check_known(attribute, models, f"{path} has no model {attribute!r}")
    if isinstance(found, Model):
        return found
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ValueError(f"{attribute} of {path} must be a torchivp.models.Model, got {type(found).__name__}")
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{attribute}() of {path} fails, which gives its parameters their defaults: {error}") from None


def _is_own_model(value: object) -> bool:
    """Whether an attribute of a file is a model, and no base class of models."""
    if isinstance(value, type):
        return issubclass(value, Model) and not value.__module__.startswith("torchivp.")
    return isinstance(value, Model)


def _import_file(path: Path) -> ModuleType:
    """The module that a Python file is; what lies beside it can be imported by it."""
    path = path.resolve()
    name = path.stem
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pickle and inspect look for it
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" in line {lines[-1]}" if lines else ""
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}{line}: {error}") from error
    return module
