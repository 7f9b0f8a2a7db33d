"""How a fit is repeated: its call, as Python."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torchivp.fitting.data import Dataset
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
    said = {"time": data.time_name, "observe": dict(zip(data.observables, data.states, strict=True))}
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
            _import_line(type(model)),
            "",
            "result = fit(",
            f"    {_constructor(model)},",
            f"    {str(source)!r}," if path else f"    data,  # {data.source}",
            *(f"    {name}={_plain(value)!r}," for name, value in said.items()),
            ")",
        ]
    )


def _import_line(model: type[Model]) -> str:
    """Where the class of the model comes from: an import, or else a comment."""
    module, (first, *inner) = model.__module__, model.__qualname__.split(".")
    if module.startswith("torchivp.models."):
        module = "torchivp.models"
    if module == "__main__":
        program = getattr(sys.modules["__main__"], "__file__", None)
        if program is None:
            return f"# {model.__qualname__} is a class of the session in which the fit was made"
        module = Path(program).stem
    if "<locals>" in inner:
        return f"# {model.__name__} is a class within {first} of {module}"
    return f"from {module} import {first}"


def _constructor(model: Model) -> str:
    """The model as it was before the fit, with the parameters that are not at their defaults."""
    accepted = inspect.signature(type(model)).parameters
    given = [
        f"{name}={value!r}"
        for name, value in model.values().items()
        if name in accepted and accepted[name].default != value
    ]
    of_function = "<locals>" in type(model).__qualname__
    name = type(model).__name__ if of_function else type(model).__qualname__
    return f"{name}({', '.join(given)})"


def _plain(value: Any) -> Any:
    """A value whose `repr` is Python that gives it: no arrays, no numbers of NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
