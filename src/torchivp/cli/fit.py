"""`torchivp fit`: fit a model to a table, print the estimates and write a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table as TextTable

from torchivp.cli import fit_options as options
from torchivp.cli.arguments import (
    number_or_text,
    parse_names,
    parse_normal,
    parse_numbers,
    parse_one_or_pairs,
    parse_pairs,
    parse_ranges,
    parse_values,
)
from torchivp.cli.choice import choose_model
from torchivp.fitting import FitResult
from torchivp.fitting import fit as fit_model
from torchivp.fitting.report import format_number, write_report

T = TypeVar("T")

EXAMPLES = """Examples:

torchivp fit lynx_hare.csv --model lotka-volterra --time year --observe hare,lynx --noise lognormal --out report

torchivp fit flu.csv --model sir --time day --observe ill=infected --fix susceptible=762 --start beta=2 --out flu

torchivp fit doses.csv --model van-der-pol --time hour --trajectory patient --free mu --out doses

torchivp fit lynx_hare.csv --equations predators.txt --time year --observe hare=prey,lynx=predator --out report

torchivp fit growth.csv --model growth.py:Growth --out growth

torchivp fit blood.csv --equations pk.txt --doses doses.csv --trajectory patient --observe conc=amount/volume \
--noise combined --prior ka=1:0.3 --constraint 'ka > ke' --derive 't_half=log(2)/ke' --json"""


def fit(
    context: typer.Context,
    data: options.Table,
    time: options.Time = "time",
    observe: options.Observe = None,
    trajectory: options.Trajectory = None,
    long: options.Long = None,
    time_unit: options.TimeUnit = None,
    conditions: options.Conditions = None,
    doses: options.Doses = None,
    censored: options.Censored = None,
    model: options.ModelName = None,
    equations: options.EquationsFile = None,
    initial: options.Initial = None,
    parameter: options.Parameter = None,
    tie: options.Tie = None,
    by: options.By = None,
    random: options.Random = None,
    jump_times: options.JumpTimes = None,
    noise: options.Noise = None,
    sigma: options.Sigma = None,
    free: options.Free = None,
    fix: options.Fix = None,
    start: options.Start = None,
    starts: options.Starts = None,
    shooting: options.ShootingOption = "auto",
    processes: options.Processes = None,
    optimiser: options.OptimiserOption = "auto",
    scale: options.Scale = None,
    bounds: options.Bounds = None,
    prior: options.PriorOption = None,
    constraint: options.ConstraintOption = None,
    derive: options.Derive = None,
    method: options.Method = "auto",
    rtol: options.Rtol = 1e-8,
    atol: options.Atol = None,
    max_step: options.MaxStep = None,
    max_steps: options.MaxSteps = None,
    max_iterations: options.MaxIterations = 200,
    backend: options.BackendOption = "auto",
    checkpoint: options.Checkpoint = None,
    out: options.Out = None,
    profiles: options.Profiles = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Fit a model to measurements in a table, and write a report."""
    chosen = choose_model(model, equations, option="--model")
    if quiet and out is None and not json:
        raise ValueError("--quiet without --out or --json would say nothing of the result: give --out folder")
    if profiles and out is None:
        raise ValueError("--profiles is for the report: give --out folder")
    given = {
        "time": time,
        "observe": _read(_observe, "--observe", observe),
        "trajectory": trajectory,
        "long": _read(_long, "--long", long),
        "time_unit": time_unit,
        "conditions": conditions,
        "doses": doses,
        "censored": _read(parse_one_or_pairs, "--censored", censored),
        "noise": _read(parse_one_or_pairs, "--noise", noise),
        "sigma": _read(_numbers_or_words, "--sigma", sigma),
        "free": "all" if free == "all" else _read(parse_names, "--free", free),
        "fixed": _read(parse_values, "--fix", fix),
        "start": _read(parse_values, "--start", start),
        "initial": _read(_numbers_or_words, "--initial", initial),
        "parameters": _read(parse_values, "--parameter", parameter),
        "by": _read(parse_pairs, "--by", by),
        "random": _read(parse_pairs, "--random", random),
        "tied": _read(parse_pairs, "--tie", tie),
        "scale": _read(parse_pairs, "--scale", scale),
        "bounds": _read(parse_ranges, "--bounds", bounds),
        "priors": _read(parse_normal, "--prior", prior),
        "constraints": constraint,
        "derived": _read(parse_pairs, "--derive", derive),
        "method": method,
        "rtol": rtol,
        "atol": atol,
        "max_step": max_step,
        "max_steps": max_steps,
        "jump_times": _read(parse_numbers, "--jump-times", jump_times),
        "max_iterations": max_iterations,
        "starts": starts,
        "shooting": shooting,
        "executor": processes,
        "optimiser": optimiser,
        "checkpoint": checkpoint,
        "backend": backend,
        "progress": not quiet,
    }
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # so that it cannot fail when the work is done
    result = fit_model(chosen, data, **{name: value for name, value in given.items() if value is not None})
    page = None
    if folder is not None:
        page = write_report(result, folder, command=context.obj, profiles=profiles, progress=not quiet)
    if json:
        print(result.to_json())
    elif not quiet:
        _print_result(result, page)
    if result.converged:
        return 0
    report = "" if page is None else f"; its report is {page}"
    print(f"torchivp: the fit has {result.message}{report}", file=sys.stderr)
    return 1


def _read(parse: Callable[[str, Any], T], option: str, given: Any) -> T | None:
    """What an option says; None if it was not given."""
    return None if given is None else parse(option, given)


def _observe(option: str, texts: Sequence[str]) -> list[str] | dict[str, str]:
    """What `--observe` says: columns, or what each column observes."""
    if any("=" in text for text in texts):
        return parse_pairs(option, texts)
    return [name for text in texts for name in parse_names(option, text)]


def _long(option: str, text: str) -> tuple[str, str]:
    names = parse_names(option, text)
    if len(names) != 2:
        raise ValueError(f"{option} must be two columns, of names and of values, such as what,value; got {text!r}")
    return names[0], names[1]


def _numbers_or_words(option: str, texts: Sequence[str]) -> float | str | dict[str, float | str]:
    """One number or word for all, or one for each name."""
    said = parse_one_or_pairs(option, texts)
    if isinstance(said, Mapping):
        return {name: number_or_text(text) for name, text in said.items()}
    return number_or_text(said)


def _print_result(result: FitResult, page: Path | None) -> None:
    """Print estimates, statistics, the verdict, warnings and where the report is."""
    console = Console(markup=False, highlight=False)
    table = TextTable("", "estimate", "s.e.", "95 % interval", "unit")
    for column in table.columns[1:4]:
        column.justify, column.no_wrap = "right", True
    for estimate in result.estimates:
        known = not estimate.free and estimate.kind != "derived"
        interval = "" if known else f"{format_number(estimate.lower)} to {format_number(estimate.upper)}"
        error = "fixed" if known else format_number(estimate.standard_error, 2)
        table.add_row(estimate.name, format_number(estimate.value), error, interval, estimate.unit)
    console.print(table)
    statistics = {"nll": result.nll, "AIC": result.aic, "AICc": result.aicc, "BIC": result.bic}
    console.print(*(f"{name} {format_number(value, 6)}  " for name, value in statistics.items()))
    console.print(result.verdict.sentence, style="green" if result.verdict.good else "yellow", soft_wrap=True)
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if page is not None:
        console.print(f"Report: {page}", soft_wrap=True)
