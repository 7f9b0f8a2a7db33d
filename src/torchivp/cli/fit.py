"""`torchivp fit`: fit a model to a table, print the estimates and write a report."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from torchivp.cli.arguments import (
    AbsoluteTolerance,
    Method,
    RelativeTolerance,
    parse_names,
    parse_numbers,
    parse_pairs,
    parse_values,
)
from torchivp.cli.choice import MODEL_HELP, EquationsFile, choose_model
from torchivp.fitting import FitResult, read_data
from torchivp.fitting import fit as fit_model
from torchivp.fitting.report import format_number, write_report

Noise = Literal[
    "normal", "lognormal", "proportional", "combined", "laplace", "student_t", "poisson", "negative_binomial"
]
SigmaMode = Literal["separate", "shared"]

EXAMPLES = """Examples:

torchivp fit lynx_hare.csv --model lotka-volterra --time year --observe hare,lynx --noise lognormal --out report

torchivp fit flu.csv --model sir --time day --observe ill=infected --fix susceptible=762 --start beta=2 --out flu

torchivp fit doses.csv --model van-der-pol --time hour --trajectory patient --free mu --out doses

torchivp fit lynx_hare.csv --equations predators.txt --time year --observe hare=prey,lynx=predator --out report

torchivp fit growth.csv --model growth.py:Growth --out growth"""


def fit(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="CSV file with a header line; empty cells are missing values.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; made if need be.", show_default=False)],
    model: Annotated[str | None, typer.Option(help=MODEL_HELP, show_default=False)] = None,
    equations: EquationsFile = None,
    time: Annotated[str, typer.Option(help="Column that holds the times.")] = "time",
    observe: Annotated[
        str | None,
        typer.Option(
            help="Observed columns: a,b in the order of the model's states, or column=state,... Default: by name."
        ),
    ] = None,
    trajectory: Annotated[
        str | None, typer.Option(help="Column that tells independent time series apart.", show_default=False)
    ] = None,
    noise: Annotated[Noise, typer.Option(help="Distribution of the noise.")] = "normal",
    sigma: Annotated[
        SigmaMode, typer.Option(help="Size of the noise: one for each column, or one for all.")
    ] = "separate",
    free: Annotated[
        str | None,
        typer.Option(
            help="What to estimate: a,b,... or all. Default: parameters, and initial values of observed states."
        ),
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Hold a parameter or initial value; may be repeated.")
    ] = None,
    start: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Start the search there; may be repeated.")
    ] = None,
    method: Method = "dopri5",
    rtol: RelativeTolerance = 1e-8,
    atol: AbsoluteTolerance = None,
    max_step: Annotated[
        float, typer.Option(help="No step of the solver is longer; at most as long as the shortest input.")
    ] = math.inf,
    jump_times: Annotated[
        str | None,
        typer.Option(help="Times at which the right-hand side jumps: a,b,...; steps end on them.", show_default=False),
    ] = None,
    max_iterations: Annotated[int, typer.Option(help="Give up a search after so many iterations.", min=1)] = 200,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Fit a model to measurements in a CSV file, and write a report."""
    chosen = choose_model(model, equations, option="--model")
    table = read_data(data, list(chosen.states), time=time, observe=_parse_observe(observe), trajectory=trajectory)
    out.mkdir(parents=True, exist_ok=True)  # so that it cannot fail when the work is done
    result = fit_model(
        chosen,
        table,
        noise=noise,
        sigma=sigma,
        free="all" if free == "all" else None if free is None else parse_names("--free", free),
        fixed=parse_values("--fix", fix or []),
        start=parse_values("--start", start) if start else None,
        method=method,
        rtol=rtol,
        atol=atol,
        max_step=max_step,
        jump_times=() if jump_times is None else parse_numbers("--jump-times", jump_times),
        max_iterations=max_iterations,
        progress=not quiet,
    )
    page = write_report(result, out, command=context.obj)
    if not quiet:
        _print_result(result, page)
    if result.converged:
        return 0
    print(f"torchivp: the fit has {result.message}; its report is {page}", file=sys.stderr)
    return 1


def _parse_observe(text: str | None) -> list[str] | dict[str, str] | None:
    """What `--observe` says: columns, or the state that each column observes."""
    if text is None:
        return None
    return parse_pairs("--observe", [text]) if "=" in text else parse_names("--observe", text)


def _print_result(result: FitResult, page: Path) -> None:
    """Print estimates, statistics, the verdict, warnings and where the report is."""
    console = Console(markup=False, highlight=False)
    table = Table("", "estimate", "s.e.", "95 % interval", "unit")
    for column in table.columns[1:4]:
        column.justify, column.no_wrap = "right", True
    for estimate in result.estimates:
        interval = f"{format_number(estimate.lower)} to {format_number(estimate.upper)}" if estimate.free else ""
        error = format_number(estimate.standard_error, 2) if estimate.free else "fixed"
        table.add_row(estimate.name, format_number(estimate.value), error, interval, estimate.unit)
    console.print(table)
    statistics = {"nll": result.nll, "AIC": result.aic, "AICc": result.aicc, "BIC": result.bic}
    console.print(*(f"{name} {format_number(value, 6)}  " for name, value in statistics.items()))
    console.print(result.verdict.sentence, style="green" if result.verdict.good else "yellow", soft_wrap=True)
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    console.print(f"Report: {page}", soft_wrap=True)
