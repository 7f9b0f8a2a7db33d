"""`torchivp models`: what there is to simulate and to fit."""

from __future__ import annotations

import inspect
import textwrap

from rich.console import Console
from rich.table import Table

from torchivp.models import MODELS, Model

EXAMPLES = """Examples:

torchivp models

torchivp simulate pendulum --t 0,10"""


def models() -> None:
    """List the models: their equations, states and parameters."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for name, model in MODELS.items():
        table.add_row(name, _describe(model))
    Console(markup=False, highlight=False).print(table)


def _describe(model: type[Model]) -> str:
    """What a model is, its equations, its states with their initial values, its parameters with theirs."""
    # The docstring of a model begins with a summary and an indented paragraph of equations.
    summary, equations, *_ = (inspect.getdoc(model) or "").split("\n\n")
    states = zip(model.states, model.default_state, strict=True)
    initial = ", ".join(f"{state} = {value:g}" for state, value in states)
    parameters = {f"{name} = {value:g}": model.meanings.get(name, "") for name, value in model().values().items()}
    width = max(map(len, parameters))
    lines = [summary, textwrap.dedent(equations), f"initial state: {initial}"]
    lines += [f"{value:{width}}  {meaning}" for value, meaning in parameters.items()]
    return "\n".join(lines) + "\n"
