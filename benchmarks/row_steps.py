"""What a step costs more where rows step on their own, and where an event is looked for.

Every line sets two solves by torchivp against each other: the other against a plain one without events, in which all
rows share a step. It is the time for a step that is compared, since rows of their own take other steps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import compare, prepare
from torchivp import BatchSolution, Solution, solve_ivp

Solve = Callable[[], Solution | BatchSolution]
ROWS = (1, 10, 1_000, 10_000)


@dataclass(frozen=True)
class Pair:
    """Two solves whose steps are compared."""

    name: str
    plain: Solve
    other: Solve


def hunters_and_prey(t: Tensor, y: Tensor) -> Tensor:
    """Lotka and Volterra's equations, of one pair of numbers or of many."""
    prey, hunters = y.unbind(-1)
    return torch.stack((prey - prey * hunters, prey * hunters - hunters), -1)


DOPRI5: dict[str, Any] = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-10}


def never(t: Tensor, y: Tensor) -> Tensor:
    """An event that does not happen: both numbers stay positive."""
    return y[..., 0] + 1.0


def pairs() -> Iterator[Pair]:
    one = torch.tensor([1.5, 1.0], dtype=torch.float64)
    for outputs in (1, 200):
        t = torch.linspace(0.0, 20.0, outputs + 1, dtype=torch.float64)[1:]

        def single(events: object = None, t: Tensor = t) -> Solution:
            return solve_ivp(hunters_and_prey, (0.0, 20.0), one, t_eval=t, events=events, **DOPRI5)

        for events in (1, 5):
            name = f"events that never fire: {events}, outputs: {outputs}"
            yield Pair(name, single, lambda s=single, events=events: s([never] * events))
    generator = torch.Generator().manual_seed(0)
    for rows in ROWS:
        y0 = 1.0 + torch.rand(rows, 2, dtype=torch.float64, generator=generator)
        for outputs in (1, 100):
            t = torch.linspace(0.0, 10.0, outputs + 1, dtype=torch.float64)[1:]

            def batch(dims: int, y0: Tensor = y0, t: Tensor = t) -> Solution | BatchSolution:
                return solve_ivp(hunters_and_prey, (0.0, 10.0), y0, t_eval=t, batch_dims=dims, **DOPRI5)

            yield Pair(f"rows of their own: {rows}, outputs: {outputs}", lambda s=batch: s(0), lambda s=batch: s(1))


def steps(solution: Solution | BatchSolution) -> int:
    """How often the loop went round: the most attempts of a row."""
    stats = [solution.stats] if isinstance(solution, Solution) else solution.stats
    return max(each.accepted + each.rejected for each in stats)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.row_steps", description="Time steps of rows, and of events."
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the pairs whose name contains this")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="pairs of samples for each line (7)")
    options = parser.parse_args()
    prepare()
    table = Table(title="Time for a step: the solve on the left, in times of a plain one")
    for column in ("", "plain, us", "this, us", "ratio", "smallest", "largest"):
        table.add_column(column, justify="right" if column else "left")
    with torch.no_grad():
        for pair in pairs():
            if options.only not in pair.name:
                continue
            plain, other = steps(pair.plain()), steps(pair.other())
            timing = compare(pair.plain, pair.other, options.repeats)
            ratios = [ratio * plain / other for ratio in timing.ratios]
            times = (timing.median_ours / plain * 1e6, timing.median_theirs / other * 1e6)
            numbers = (f"{times[0]:.0f}", f"{times[1]:.0f}", *(f"{x:.2f}" for x in _summary(ratios)))
            table.add_row(pair.name, *numbers)
    Console().print(table)


def _summary(ratios: list[float]) -> tuple[float, float, float]:
    return statistics.median(ratios), min(ratios), max(ratios)


if __name__ == "__main__":
    main()
