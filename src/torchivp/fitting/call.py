"""How a fit is repeated: its call, as Python."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from torchivp.fitting.data import Dataset
from torchivp.fitting.priors import in_words
from torchivp.models.equations import Equations
from torchivp.models.function_model import FunctionModel
from torchivp.models.model import Model

_LONG = 80  # characters of what a comment says


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
        if name not in ("model", "data", "time", "observe", "trajectory", "progress", "executor") and not at_default:
            said[name] = value
    return "\n".join(
        [
            "from torchivp import fit",
            *_import_lines(model),
            *_optimiser_lines(arguments.get("optimiser")),
            "",
            "result = fit(",
            _model_line(model),
            f"    {str(source)!r}," if path else f"    data,  # {data.source}",
            *(_argument(name, value) for name, value in said.items()),
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


def _model_line(model: Model) -> str:
    """The model as an argument."""
    if any(parameter.ndim for parameter in model.parameters()):  # which no text can hold
        return f"    model,  # {_written_name(type(model))} with the tensors that it began with"
    return f"    {_constructor(model)},"


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


def _argument(name: str, value: Any) -> str:
    """A line of the call; a comment says what Python has no words for, in whose place there is an ellipsis."""
    unwritten: list[str] = []
    line = f"    {name}={_written(value, unwritten)},"
    return f"{line}  # {'; '.join(unwritten)}" if unwritten else line


def _written(value: Any, unwritten: list[str]) -> str:
    """A value as Python without imports, which `unwritten` gains what it cannot hold."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{str(key)!r}: {_written(item, unwritten)}" for key, item in value.items()) + "}"
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return _written(value.tolist(), unwritten)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if value is None or isinstance(value, str | int):
        return repr(value)
    if isinstance(value, Sequence | Set):
        return "[" + ", ".join(_written(item, unwritten) for item in value) + "]"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, partial):
        arguments = [_written(each, unwritten) for each in (value.func, *value.args)]
        arguments += [f"{key}={_written(each, unwritten)}" for key, each in value.keywords.items()]
        return f"functools.partial({', '.join(arguments)})"
    unwritten.append(_in_words(value))
    return "..."


def _in_words(value: Any) -> str:
    """What an object is, on one line."""
    if callable(value) and hasattr(value, "__qualname__"):
        name = value.__qualname__
        return f"a lambda of {value.__module__}" if "<lambda>" in name else f"{name} of {value.__module__}"
    text = in_words(value) if isinstance(value, Distribution) else repr(value)
    short = "\n" not in text and len(text) <= _LONG and " at 0x" not in text
    return text if short else f"the {type(value).__name__}"
