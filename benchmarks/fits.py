"""Fits beside SciPy's `least_squares` with its `solve_ivp` and a Jacobian of finite differences.

Both get the same data and the same start. torchivp estimates the sizes of the noise too, which SciPy is given. Times
are processor time, on one thread: the first call, in which a kernel is compiled, that of the compiler included, and
the next. In the long series without noise torchivp's start is that of its model, which may look elsewhere too, and
SciPy fits longer and longer parts of the data, within the bounds of the published set. An error is the largest
relative one of a parameter where the data have no noise; elsewhere it is by how much half the weighted sum of squares,
by solves of SciPy's at a tight tolerance, lies above the smaller one of the two.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

from benchmarks import fit_published, fit_simulated
from benchmarks.fit_problem import Problem, Values
from torchivp import fit
from torchivp.fitting import FitResult, read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.kernels import ModelKernel
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import LotkaVolterra

_FAILED = 1e6


@dataclass(frozen=True)
class Timed:
    """What a call returned, and what it took of the processor, in seconds."""

    found: Any
    seconds: float


def timed(call: Callable[[], Any]) -> Timed:
    before = os.times()
    found = call()
    return Timed(found, sum(os.times()[:4]) - sum(before[:4]))


def by_torchivp(problem: Problem) -> FitResult:
    return fit(problem.model, problem.data, backend="fused", **{"start": problem.start, **problem.options})


def by_scipy(problem: Problem, sigma: np.ndarray) -> Values:
    """The estimates of `least_squares`, with noise of these sizes, [n_observed]."""
    names, at = list(problem.start), np.array(list(problem.start.values()))
    u = at if problem.linear else np.log(at)
    if np.isfinite(problem.bounds[0]).all():
        u = np.clip(u, *(end + gap for end, gap in zip(problem.bounds, (1e-6, -1e-6), strict=True)))
    for part in (*problem.shorter, problem):
        weights = 1 / sigma[part.observable]

        def residuals(u: np.ndarray) -> np.ndarray:
            values = dict(zip(names, u if problem.linear else np.exp(u), strict=True))
            found = part.predict(values, part.solves)
            return np.nan_to_num((found - part.y) * weights, nan=_FAILED, posinf=_FAILED, neginf=-_FAILED)

        u = least_squares(residuals, u, bounds=problem.bounds, jac_sparsity=problem.sparsity).x
    return dict(zip(names, (u if problem.linear else np.exp(u)).tolist(), strict=True))


def cost(problem: Problem, values: Values, sigma: np.ndarray) -> float:
    """Half the weighted sum of squares, by accurate solves."""
    found = problem.predict(values, {**problem.solves, "rtol": 1e-11, "atol": 1e-11})
    return 0.5 * float(np.sum(((found - problem.y) / sigma[problem.observable]) ** 2))


def errors(problem: Problem, each: list[Values], sigma: np.ndarray) -> list[float]:
    if problem.truth is not None:
        return [max(abs(one[name] / value - 1) for name, value in problem.truth.items()) for one in each]
    costs = [cost(problem, one, sigma) for one in each]
    return [one - min(costs) for one in costs]


def row(problem: Problem, scipy: bool) -> list[str]:
    """A row of the table."""
    cold, warm = timed(lambda: by_torchivp(problem)), timed(lambda: by_torchivp(problem))
    result = warm.found
    values = {name: result[name].value for name in problem.start}
    sigma = result.sigma if problem.truth is None else np.ones(len(result.sigma))
    cells = [problem.name, f"{cold.seconds:.2f}", f"{warm.seconds:.2f}", str(result.solves)]
    converged = "" if result.converged else " (not converged)"
    if not scipy:
        (error,) = errors(problem, [values], sigma)
        return [*cells, f"{error:.1e}{converged}", "", ""]
    theirs = timed(lambda: by_scipy(problem, sigma))
    error, their_error = errors(problem, [values, theirs.found], sigma)
    return [*cells, f"{error:.1e}{converged}", f"{theirs.seconds:.2f}", f"{their_error:.1e}"]


def problems() -> Iterator[Callable[[], Problem]]:
    published, simulated = fit_published, fit_simulated
    yield from (lambda: published.boehm(1.0), lambda: published.boehm(3.0))
    yield from (published.lorenz, published.lotka_volterra, published.fitzhugh_nagumo, published.hares)
    yield from (lambda: published.theophylline(True), lambda: published.theophylline(False))
    yield from (simulated.enzymes, simulated.growth, simulated.chain, simulated.forced_growth, simulated.doses)
    yield from (lambda i=i: published.article()[i] for i in range(3))


def parameter_sets(count: int = 10_000) -> float:
    """Seconds for so many solves of Lotka-Volterra with 101 outputs and their derivatives by the four rates."""
    model, t = LotkaVolterra().double(), np.linspace(0, 20, 101)
    data = read_data({"time": t, "prey": np.ones(101), "predator": np.ones(101)}, list(model.states))
    quantities = list_quantities(model, data, Choices(fixed={"prey": 1.0, "predator": 1.0}))
    misfit = Misfit(model, data, quantities, Accuracy("dopri5", 1e-6, 1e-7, 10_000))
    misfit.use(ModelKernel(model, "dopri5"))
    thetas = quantities.theta() + np.random.default_rng(0).uniform(-0.2, 0.2, (count, 4))
    misfit.predictions_at(thetas[:10], derivatives=True)
    return timed(lambda: misfit.predictions_at(thetas, derivatives=True)).seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fits", description=__doc__)
    parser.add_argument("--only", default="", help="the fits whose name contains this")
    parser.add_argument("--ours", action="store_true", help="without SciPy")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # of SciPy's solves on their way to infinity
    table = Table("", "first, s", "next, s", "solves", "error", "SciPy, s", "error", title="Fits")
    for column in table.columns[1:]:
        column.justify = "right"
    console = Console(width=140)
    for make in problems():
        problem = make()
        if chosen.only.lower() in problem.name.lower():
            cells = row(problem, not chosen.ours)
            console.log(*cells)
            table.add_row(*cells)
    console.print(table)
    if not chosen.only:
        console.print(f"10 000 parameter sets of Lotka-Volterra with sensitivities: {parameter_sets():.2f} s")


if __name__ == "__main__":
    main()
