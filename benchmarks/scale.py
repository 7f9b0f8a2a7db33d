"""How many rows of an ensemble are solved in a second, by this process and by others.

Times are wall time, the shortest of a few calls; workers have been started, and have solved a block, before.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from torchivp import BatchSolution, ensemble, solve_ivp
from torchivp.ensembles import Rows

TIMES = torch.linspace(0.0, 5.0, 51, dtype=torch.float64)


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    """Lorenz's system."""
    a, b, c = y.unbind(-1)
    return torch.stack((10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c), -1)


def eager(rows: Rows) -> BatchSolution:
    """A block, by the step loop."""
    y0 = rows.draw(lambda rng: rng.normal([1.0, 1.0, 25.0], 1.0))
    return solve_ivp(lorenz, (0.0, 5.0), y0, t_eval=TIMES, batch_dims=1, method="dopri5")


def fused(rows: Rows) -> BatchSolution:
    """A block, by a compiled kernel."""
    y0 = rows.draw(lambda rng: rng.normal([1.0, 1.0, 25.0], 1.0))
    return solve_ivp(lorenz, (0.0, 5.0), y0, t_eval=TIMES, batch_dims=1, method="dopri5", backend="fused")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Rows of an ensemble a second.")
    parser.add_argument("--rows", type=int, default=8192, metavar="N", help="how many rows (8192)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="calls, of which the shortest counts (3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("solved by", "block", "workers", "rows a second")
    for solve in (eager, fused):
        for block in (256, 1024):
            for workers in (0, 1, 2):
                pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) if workers else None
                seconds = []
                for count in [2 * block] + [options.rows] * options.repeats:
                    begun = time.perf_counter()
                    ensemble(solve, count, block=block, executor=pool)
                    seconds.append(time.perf_counter() - begun)
                if pool is not None:
                    pool.shutdown()
                name = str(workers) if workers else "this process"
                table.add_row(solve.__name__, str(block), name, f"{options.rows / min(seconds[1:]):,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
