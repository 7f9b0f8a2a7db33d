"""`torchivp models`: what there is to simulate and to fit."""

from __future__ import annotations

import inspect
import textwrap

from rich.console import Console
from rich.table import Table

from torchivp.cli.choice import EquationsFile
from torchivp.models import MODELS, Equations, Model

EXAMPLES = """Examples:

torchivp models

torchivp models --equations predators.txt

torchivp simulate pendulum --t 0,10"""


def models(equations: EquationsFile = None) -> None:
    """List the models: their equations, states and parameters; or say what is understood of a file of equations."""
    console = Console(markup=False, highlight=False)
    if equations is not None:
        _print_equations(Equations.from_file(equations), console)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for name, model in MODELS.items():
        table.add_row(name, _describe(model))
    console.print(table)


def _print_equations(model: Equations, console: Console) -> None:
    """Print the equations of a model, and tables of what is in them."""
    for name, formula in {f"{state}'": each for state, each in model.equations.items()}.items():
        console.print(f"{name} = {formula.text}", soft_wrap=True)
    for name, formula in model.definitions.items():
        console.print(f"{name} = {formula.text}", soft_wrap=True)
    starts = dict(zip(model.states, model.default_state, strict=True))
    for title, values in {"state": starts, "parameter": model.values()}.items():
        if values:
            console.print(_table(title, values, model))


def _table(title: str, values: dict[str, float], model: Equations) -> Table:
    """The states with their initial values, or the parameters with their values."""
    table = Table(title, "initial value" if title == "state" else "value", "unit", "estimated as", "meaning")
    for name, value in values.items():
        kind = "positive" if model.is_positive(name) else "real"
        meaning = model.states.get(name) or model.meanings.get(name, "")
        table.add_row(name, f"{value:g}", model.units.get(name, ""), kind, meaning if meaning != name else "")
    return table


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
