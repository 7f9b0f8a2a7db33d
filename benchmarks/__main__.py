"""The command: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.cases import Scaling, all_cases, measure, measure_scaling, noise
from benchmarks.harness import prepare
from benchmarks.problems import reference_against_scipy
from benchmarks.report import Results, show, write, write_page
from benchmarks.rows import measure_rows
from benchmarks.sde import CASES as SDE_CASES
from benchmarks.sde import measure_sde

WIDTH = 120
"""Columns of the tables where the output is not a terminal."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time torchivp against its peers.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="pairs of samples for each case (15)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the tables as a page, docs/benchmarks.md")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    every = all_cases()
    cases = [case for case in every if options.only.lower() in case.name.lower()]
    wants_scaling = options.only.lower() in Scaling.name.lower()
    wants_batches = options.only.lower() in "batches of rows"
    stochastic = [case for case in SDE_CASES if options.only.lower() in case.name.lower()]
    if not (cases or wants_scaling or wants_batches or stochastic):
        names = ", ".join(case.name for case in [*every, *SDE_CASES])
        parser.error(f"no case is called {options.only!r}; there are: {names}")
    prepare()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    rows = []
    with console.status("measuring") as status:
        for case in cases:
            status.update(case.name)
            rows.append(measure(case, options.repeats))
        lines = []
        for case in stochastic:
            status.update(case.name)
            lines.append(measure_sde(case, options.repeats))
        status.update("batches of rows")
        batches = measure_rows(options.repeats) if wants_batches else []
        status.update("memory and noise")
        results = Results(
            rows,
            batches=batches,
            stochastic=lines,
            scaling=measure_scaling() if wants_scaling else None,
            noise=noise(cases[0], options.repeats) if cases else None,
            scipy=reference_against_scipy(every[0].problem),
            repeats=options.repeats,
        )
    show(results, console)
    write(results, options.out)
    if options.page is not None:
        write_page(results, options.page, options.only)
    console.print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
