"""`torchivp simulate`: solve a model and write the solution as a table."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from torchivp import Solution, solve_ivp
from torchivp.cli.arguments import AbsoluteTolerance, Method, RelativeTolerance, parse_numbers, parse_values
from torchivp.cli.choice import MODEL_HELP, EquationsFile, choose_model, complete_model
from torchivp.methods import find_method
from torchivp.models import Model

EXAMPLES = """Examples:

torchivp simulate lotka-volterra --t 0,20 --out sim.csv --plot sim.png

torchivp simulate lotka-volterra --t 0,20 --set alpha=1.2 --set beta=0.8 --state 10,5

torchivp simulate lorenz --t 0,40 --points 4001 --method dopri8 --rtol 1e-9 --atol 1e-12 > lorenz.csv

torchivp simulate --equations predators.txt --t 1900,1920 --set alpha=0.6"""


def simulate(
    t: Annotated[str, typer.Option(help="Start and end, such as 0,20.", show_default=False)],
    model: Annotated[
        str | None, typer.Argument(help=MODEL_HELP, show_default=False, autocompletion=complete_model)
    ] = None,
    equations: EquationsFile = None,
    points: Annotated[int, typer.Option(help="Number of times to write, evenly spaced.", min=2)] = 101,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set a parameter; may be repeated.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Initial state, one number per state; default: the model's own.")
    ] = None,
    method: Method = "auto",
    rtol: RelativeTolerance = 1e-6,
    atol: AbsoluteTolerance = None,
    step_size: Annotated[float | None, typer.Option(help="Take fixed steps of this size.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; default: standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = None,
) -> None:
    """Solve a model and write its states over time as CSV."""
    chosen = choose_model(model, equations, option="MODEL")
    name = str(equations or model)
    _set_parameters(chosen, name, parse_values("--set", set_ or []))
    span = parse_numbers("--t", t)
    if len(span) != 2 or not np.isfinite(span).all() or span[0] == span[1]:
        raise ValueError(f"--t must be a start and another end, such as 0,20; got {t!r}")
    initial = list(chosen.default_state) if state is None else parse_numbers("--state", state)
    if len(initial) != len(chosen.states):
        raise ValueError(f"--state must hold one number for each of {', '.join(chosen.states)}; got {state!r}")
    with torch.no_grad():
        solution = solve_ivp(
            chosen,
            span,
            torch.tensor(initial, dtype=torch.float64),
            t_eval=np.linspace(span[0], span[1], points).tolist(),
            method=find_method(method),
            rtol=rtol,
            atol=atol,
            step_size=step_size,
            dense_output=plot is not None,
        )
    if plot is not None:
        from torchivp.plot import plot_solution

        plot_solution(solution, list(chosen.states), title=name).savefig(plot)
    _write_csv(solution, list(chosen.states), out)


def _set_parameters(model: Model, name: str, values: dict[str, float]) -> None:
    """Give some of the parameters of a model these values.

    Raises:
        ValueError: it has no such parameter, or a value is not finite.
    """
    known = dict(model.named_parameters())
    for parameter, value in values.items():
        if parameter not in known:
            raise ValueError(f"{name} has no parameter {parameter!r}: its parameters are {', '.join(known)}")
        if not math.isfinite(value):
            raise ValueError(f"--set {parameter} must be a finite number, got {value}")
        with torch.no_grad():
            known[parameter].fill_(value)


def _write_csv(solution: Solution, states: list[str], out: Path | None) -> None:
    """Write times and states with a header, to a file or to standard output."""
    table = torch.cat([solution.t[:, None], solution.y], dim=1).numpy()
    np.savetxt(
        sys.stdout if out is None else out,
        table,
        fmt="%.10g",
        delimiter=",",
        header=",".join(["t", *states]),
        comments="",
    )
