"""What the measurements are shown as: tables on the terminal, a JSON file and a chart."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.cases import Cost, Row, Scaling
from benchmarks.harness import Timing
from benchmarks.rows import RowsLine, as_json
from benchmarks.sde import SDELine

FASTER, SLOWER, TARGET = "#7fb0d2", "#e08a76", "#d98e04"


@dataclass(frozen=True)
class Results:
    """All that a run has measured.

    Attributes:
        rows: the cases.
        batches: batches whose rows step on their own, if they were asked for.
        stochastic: the cases of stochastic differential equations.
        scaling: the memory that gradients take, if it was asked for.
        noise: one call timed against itself.
        scipy: the distance of the Lotka-Volterra reference from SciPy's.
        repeats: the number of pairs of samples.
    """

    rows: Sequence[Row]
    batches: Sequence[RowsLine]
    stochastic: Sequence[SDELine]
    scaling: Scaling | None
    noise: Timing | None
    scipy: float
    repeats: int

    def as_json(self) -> dict[str, Any]:
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("torchivp", "torch", "torchdiffeq", "torchsde")},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": processor(),
            "processors": os.cpu_count(),
            "load": os.getloadavg(),
            "threads": torch.get_num_threads(),
            "repeats": self.repeats,
            "noise": None if self.noise is None else _spread(self.noise),
            "reference_against_scipy": self.scipy,
            "cases": [row.as_json() for row in self.rows],
            "batches": as_json(self.batches),
            "stochastic": [line.as_json() for line in self.stochastic],
            "memory": None if self.scaling is None else asdict(self.scaling),
        }


def write(results: Results, folder: Path) -> None:
    """Write `latest.json` and, if anything was timed, `latest.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    if results.rows:
        chart(results, folder / "latest.png")


def show(results: Results, console: Console) -> None:
    for table in _tables(results):
        console.print(table)
    for sentence in _remarks(results):
        console.print(sentence)


def write_page(results: Results, path: Path, only: str) -> None:
    """Write the same tables as a page of the documentation, with what they were measured by, on and when.

    Args:
        results: what was measured.
        path: the page.
        only: what the names of the cases contain, "" for all of them.
    """
    chosen = f"--only {shlex.quote(only)} " if only else ""
    command = f"python -m benchmarks {chosen}--repeats {results.repeats} --page {path}"
    facts = results.as_json()
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    load, system = facts["load"][1], f"{platform.system()} {platform.machine()}"
    page = [
        "# Benchmarks",
        f"This page was written by `{command}`,\n"
        "and nothing on it by hand. `benchmarks/README.md` says how everything is measured. A time means little\n"
        "without the error beside it.",
        "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| date | {facts['date']} |",
                f"| machine | {facts['processor']}, {facts['processors']} cores; {system} |",
                f"| load of the machine, mean of the last five minutes | {load:.1f} |",
                f"| versions | {versions}, Python {facts['python']} |",
                f"| threads, pairs of samples | {facts['threads']}, {facts['repeats']} |",
            ]
        ),
    ]
    if only:
        page.append("These are some of the cases: without `--only` there are all, and other libraries beside them.")
    if load > facts["processors"]:
        page.append(
            "The machine had more to do than this. Ratios are of calls that took turns, and bear it; single times and\n"
            "small differences do not."
        )
    for table in _tables(results):
        heading, _, meaning = str(table.title).partition("; ")
        page += [f"## {heading}", *([f"{meaning[0].upper()}{meaning[1:]}."] if meaning else []), _markdown(table)]
        page += [f"{table.caption}."] if table.caption else []
    page += _remarks(results)
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _tables(results: Results) -> list[Table]:
    """What was measured, a table for each kind."""
    found = [_times(results.rows), _costs(results.rows)] if results.rows else []
    found += [_batches(results.batches)] if results.batches else []
    found += [_stochastic(results.stochastic)] if results.stochastic else []
    return found + ([_memory(results.scaling)] if results.scaling is not None else [])


def _remarks(results: Results) -> list[str]:
    """How far the numbers are to be trusted."""
    found = []
    if results.noise is not None:
        spread = _spread(results.noise)
        found.append(
            f"Noise: the same call on both sides gives a ratio of {spread['ratio']:.2f}, "
            f"from {spread['min']:.2f} to {spread['max']:.2f}."
        )
    return [*found, f"Reference: differs from SciPy's DOP853 by {results.scipy:.1e} on Lotka-Volterra."]


def _markdown(table: Table) -> str:
    """A table of the terminal as one of Markdown, without what the developers aim at."""
    columns = [column for column in table.columns if column.header != "target"]
    rows = zip(*(column.cells for column in columns), strict=True)
    lines = [[str(column.header) for column in columns], ["---" for _ in columns], *rows]
    return "\n".join("| " + " | ".join(Text.from_markup(str(cell)).plain for cell in line) + " |" for line in lines)


def _times(rows: Sequence[Row]) -> Table:
    table = Table(
        title="Time of a call, median; ratio: theirs / ours, median over the pairs (smallest .. largest)",
        caption="checkpointed: against their odeint_adjoint; radauIIA5: against benchmarks/broyden.py; "
        "every step: against what is named last",
    )
    table.add_column("case", no_wrap=True)
    for heading in ("torchivp", "torchdiffeq", "ratio", "", "target", "µs per step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ratio, ratios, ours, theirs = (
            row.timing.ratio,
            row.timing.ratios,
            row.timing.median_ours,
            row.timing.median_theirs,
        )
        table.add_row(
            row.case.name,
            f"{1e3 * ours:.1f} ms",
            f"{1e3 * theirs:.1f} ms",
            f"[green]{ratio:.2f}[/]" if ratio >= 1 else f"[red]slower {ratio:.2f}[/]",
            f"{min(ratios):.2f} .. {max(ratios):.2f}",
            _target(row),
            f"{_per_step(ours, row.ours)} / {_per_step(theirs, row.theirs)}" if row.ours.steps else "",
        )
    return table


def _batches(lines: Sequence[RowsLine]) -> Table:
    table = Table(
        title="Batches: torchivp's rows, each with its own steps, against other ways to solve them",
        caption="ratio: theirs / that of torchivp's rows; step: of the loop. diffrax is compiled as a whole",
    )
    table.add_column("case", no_wrap=True)
    table.add_column("solved by", no_wrap=True)
    for heading in ("time", "ratio", "evaluations of a row", "error", "µs per step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.case,
            line.way,
            f"{1e3 * line.seconds:.1f} ms",
            "" if line.ratio is None else f"{line.ratio:.2f}",
            "" if line.evaluations is None else f"{line.evaluations:,}",
            f"{line.error:.1e}",
            "" if line.us_per_step is None else f"{line.us_per_step:.0f}",
        )
    return table


def _stochastic(lines: Sequence[SDELine]) -> Table:
    table = Table(
        title="Geometric Brownian motion, diagonal noise, float32; paths x steps; ratio: theirs / ours",
        caption="errors: root mean square at the last time, on a given path, in double precision: ours / theirs",
    )
    table.add_column("case", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for heading in ("torchivp", "theirs", "ratio", "target", "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        timing, (ours, theirs), target = line.timing, line.errors, line.case.target
        table.add_row(
            line.case.name.removeprefix("sde: "),
            "bare loop" if line.case.bare else "torchsde",
            f"{1e3 * timing.median_ours:.1f} ms",
            f"{1e3 * timing.median_theirs:.1f} ms",
            f"[green]{timing.ratio:.2f}[/]" if timing.ratio >= 1 else f"[red]slower {timing.ratio:.2f}[/]",
            "" if target is None else f"{target:g} {_verdict(timing.ratio >= target)}",
            f"{ours:.0e}" if line.case.bare else f"{ours:.0e} / {theirs:.0e}",
        )
    return table


def _verdict(reached: bool) -> str:
    return "[green]reached[/]" if reached else "[red]missed[/]"


def _target(row: Row) -> str:
    if row.reached is None:
        return ""
    return f"{row.case.target:g} {_verdict(row.reached)}"


def _costs(rows: Sequence[Row]) -> Table:
    table = Table(
        title="Evaluations (forward + backward), errors against a tight solve, peak memory of tensors",
        caption="torchivp / torchdiffeq",
    )
    table.add_column("case", no_wrap=True)
    for heading in ("evaluations", "error at the end", "error of gradient", "memory, KiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ours, theirs = row.ours, row.theirs
        table.add_row(
            row.case.name,
            f"{_evaluations(ours)} / {_evaluations(theirs)}",
            f"{ours.error:.1e} / {theirs.error:.1e}",
            "" if ours.gradient_error is None else f"{ours.gradient_error:.1e} / {theirs.gradient_error:.1e}",
            f"{_kib(ours.memory)} / {_kib(theirs.memory)}",
        )
    return table


def _memory(scaling: Scaling) -> Table:
    table = Table(title=f"{scaling.name} of a gradient, KiB")
    table.add_column("gradient")
    for steps in scaling.steps:
        table.add_column(f"{steps} steps", justify="right")
    for name, peaks in scaling.peaks.items():
        table.add_row(name, *map(_kib, peaks))
    return table


def _spread(timing: Timing) -> dict[str, float]:
    return {"ratio": timing.ratio, "min": min(timing.ratios), "max": max(timing.ratios)}


def _per_step(seconds: float, cost: Cost) -> str:
    return "" if cost.steps is None else f"{1e6 * seconds / cost.steps:.0f}"


def _evaluations(cost: Cost) -> str:
    return f"{cost.forward}+{cost.backward}" if cost.gradient_error is not None else str(cost.forward)


def _kib(size: int) -> str:
    return f"{size / 1024:,.0f}"


def chart(results: Results, path: Path) -> None:
    """A bar for each case: how many times as long torchdiffeq takes."""
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    rows = results.rows
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    _bars(axes, rows, places)
    axes.set_yticks(places, [row.case.name for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    lowest = min(min(row.timing.ratios) for row in rows)
    highest = max(max(*row.timing.ratios, row.case.target or 1) for row in rows)
    axes.set_xlim(min(0.8, 0.9 * lowest), 1.35 * max(highest, 1.5))
    left, right = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 0.7, 1, 2, 3, 5, 10, 20, 50) if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.suptitle("Time of torchdiffeq relative to torchivp", x=0.01, ha="left", weight="bold", fontsize=12)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torchivp", "torchdiffeq", "torch"))
    axes.set_xlabel(f"{versions}\none thread; median of {results.repeats} pairs, whiskers: smallest and largest")
    axes.xaxis.label.set(color="#666666", fontsize=8)
    _legend(figure, rows)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, rows: Sequence[Row], places: Sequence[int]) -> None:
    for place, row in zip(places, rows, strict=True):
        ratio, ratios = row.timing.ratio, row.timing.ratios
        axes.barh(place, ratio - 1, left=1, height=0.6, color=FASTER if ratio >= 1 else SLOWER)
        axes.plot([min(ratios), max(ratios)], [place, place], color="#222222", linewidth=1.2)
        if row.case.target is not None:
            axes.plot([row.case.target] * 2, [place - 0.42, place + 0.42], color=TARGET, linewidth=3)
        right = max(*ratios, row.case.target or 0, 1)
        label = f"{ratio:.2f}×" + (" (target missed)" if row.reached is False else "")
        axes.annotate(label, (right, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(1, color="#333333", linewidth=1.2)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    handles: list[Any] = [Patch(color=FASTER, label="torchivp is faster")]
    if any(row.timing.ratio < 1 for row in rows):
        handles.append(Patch(color=SLOWER, label="torchivp is slower"))
    if any(row.case.target is not None for row in rows):
        handles.append(Line2D([], [], color=TARGET, linewidth=3, label="target"))
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=9)
