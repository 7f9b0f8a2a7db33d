"""How a fit is repeated: its call, as Python."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchivp.fitting.data import Dataset
from torchivp.models.equations import Equations
from torchivp.models.function_model import FunctionModel
from torchivp.models.model import Model


def python_call(function: Callable[..., Any], arguments: Mapping[str, Any], data: Dataset) -> str:
    """The call of `fit` as Python: the columns by name, and every other argument that is not at its default.

    Args:
        function: `fit`.
        arguments: its arguments, by name.
        data: what it read.
    """
    model, source = arguments["model"], arguments["data"]
    path = isinstance(source, str | Path)
    said = {"time": data.time_name, "observe": dict(data.observe)}
    if data.trajectory_name is not None:
        said["trajectory"] = data.trajectory_name
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        at_default = value is parameter.default or (isinstance(value, str | int | float) and value == parameter.default)
        if name not in ("model", "data", "time", "observe", "trajectory", "progress") and not at_default:
            said[name] = value
    return "\n".join(
        [
            "from torchivp import fit",
            *_import_lines(model),
            *_optimiser_lines(arguments.get("optimiser")),
            "",
            "result = fit(",
            f"    {_constructor(model)},",
            f"    {str(source)!r}," if path else f"    data,  # {data.source}",
            *(f"    {name}={_plain(value)!r}," for name, value in said.items()),
            ")",
        ]
    )


def _import_lines(model: Model) -> list[str]:
    """Where the class of the model comes from, and the function in it."""
    lines = [_import_line(type(model), "class")]
    if type(model) is FunctionModel:
        lines.append(_import_line(model.func, "function"))
    return lines


def _optimiser_lines(optimiser: Any) -> list[str]:
    """What an optimiser of torch, or the partial call that makes one, needs to be imported."""
    first = ["import functools"] if isinstance(optimiser, partial) else []
    made = optimiser.func if isinstance(optimiser, partial) else optimiser
    return [*first, f"import {made.__module__.partition('.')[0]}"] if isinstance(made, type) else first


@dataclass(frozen=True)
class _Written:
    """Something whose `repr` is this text."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _import_line(source: Any, kind: str) -> str:
    """Where a class or function comes from: an import, or else a comment."""
    module, qualified = getattr(source, "__module__", None), getattr(source, "__qualname__", None)
    if module is None or qualified is None:
        return f"# func is a {type(source).__name__}"
    first, *inner = qualified.split(".")
    if module.startswith("torchivp.models."):
        module = "torchivp.models"
    if module == "__main__":
        program = getattr(sys.modules["__main__"], "__file__", None)
        if program is None:
            return f"# {qualified} is a {kind} of the session in which the fit was made"
        module = Path(program).stem
    if "<locals>" in inner:
        return f"# {_written_name(source)} is a {kind} within {first} of {module}"
    if first == "<lambda>":
        return f"# func is a lambda of {module}"
    return f"from {module} import {first}"


def _written_name(source: Any) -> str:
    """How a class or function is called where it is known."""
    qualified = getattr(source, "__qualname__", "<lambda>")
    name = source.__name__ if "<locals>" in qualified else qualified
    return "func" if name == "<lambda>" else name


def _constructor(model: Model) -> str:
    """The model as it was before the fit, with what is not at its default."""
    if type(model) is Equations:
        arguments = [_text_literal(model.text), *_changes(model, Equations(model.text))]
    elif type(model) is FunctionModel:
        arguments = _of_function(model)
    else:
        accepted = inspect.signature(type(model)).parameters
        arguments = [
            f"{name}={value!r}"
            for name, value in model.values().items()
            if name in accepted and accepted[name].default != value
        ]
    return f"{_written_name(type(model))}({', '.join(arguments)})"


def _changes(model: Equations, plain: Equations) -> list[str]:
    """What was said of equations beside their text, whose model is `plain`."""
    before = plain.values()
    given = {name: value for name, value in model.values().items() if value != before[name]}
    positive = Equations(model.text, positive=None, **given).positive
    changed = [f"{name}={value!r}" for name, value in given.items()]
    return changed if model.positive == positive else [f"positive={list(model.positive or ())!r}", *changed]


def _of_function(model: FunctionModel) -> list[str]:
    """The arguments that make a model of a function."""
    states = dict(zip(model.states, model.default_state, strict=True))
    meanings = {**{name: text for name, text in model.states.items() if text != name}, **model.meanings}
    given = {"states": states, "parameters": model.values(), "units": model.units, "meanings": meanings}
    arguments = [_written_name(model.func), *(f"{name}={value!r}" for name, value in given.items() if value)]
    return arguments if model.positive is None else [*arguments, f"positive={list(model.positive)!r}"]


def _text_literal(text: str) -> str:
    """A text as Python, on lines of its own if it can be."""
    if any(each in text for each in ("\\", '"""', "\r")):
        return repr(text)
    return f'"""\n{text.strip()}\n"""'


def _plain(value: Any) -> Any:
    """A value whose `repr` is Python that gives it: no arrays, no numbers of NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, type):
        return _Written(f"{value.__module__}.{value.__qualname__}")
    if isinstance(value, partial):
        given = [_plain(value.func), *map(_plain, value.args)]
        named = [f"{key}={_plain(item)!r}" for key, item in value.keywords.items()]
        return _Written(f"functools.partial({', '.join([*map(repr, given), *named])})")
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
