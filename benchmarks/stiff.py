"""Stiff problems: torchivp's methods beside SciPy's, diffrax, CVODE (scikit-sundae) and diffsol (pydiffsol).

Three tables: single solves of Robertson's problem and of van der Pol's; batches in which every row has a rate constant
of its own; a diffusion equation, with dense and with sparse Jacobians. A figure shows errors against evaluations and
against time. Peers that are not installed are left out: the `bench` extra brings all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.integrate
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torchivp

Solve = Callable[[], "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a solve led to, and what it took.

    Attributes:
        y: the state at the end, of one row or of the first.
        evaluations: of the right-hand side; None where nobody counts.
        jacobians: matrices of derivatives.
    """

    y: np.ndarray
    evaluations: int | None = None
    jacobians: int | None = None


@dataclass(frozen=True)
class Stiff:
    """A problem with one parameter.

    Attributes:
        name: what the tables call it.
        func: called with the time, states [..., size] and the parameter, [...].
        numbers: the same on NumPy's arrays of one state.
        diffsl: the same in diffsol's language.
        y0: the initial state.
        end: the end of the span, which starts at 0.
        parameter: the parameter.
        reference: the state at the end, known otherwise.
        rtol: relative tolerance,
        atol: and absolute one, of the tables.
    """

    name: str
    func: Callable[[Tensor, Tensor, Tensor], Tensor]
    numbers: Callable[[Any, Any, Any, Any], Any]
    diffsl: str
    y0: tuple[float, ...]
    end: float
    parameter: float
    reference: tuple[float, ...]
    rtol: float
    atol: float


def robertson(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Robertson's three reactions; `k` is the rate constant of the first."""
    a, b, c = y.unbind(-1)
    slow, fast, back = k * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack((back - slow, slow - back - fast, fast), -1)


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """Van der Pol's oscillator."""
    x, v = y.unbind(-1)
    return torch.stack((v, mu * (1 - x * x) * v - x), -1)


ROBER = Stiff(
    "Robertson",
    robertson,
    lambda stack, t, y, k: stack(
        [1e4 * y[1] * y[2] - k * y[0], k * y[0] - 1e4 * y[1] * y[2] - 3e7 * y[1] * y[1], 3e7 * y[1] * y[1]]
    ),
    "in_i { k = 0.04 }\nu_i { x = 1, y = 0, z = 0 }\nF_i { 1e4*y*z - k*x, k*x - 1e4*y*z - 3e7*y*y, 3e7*y*y }",
    (1.0, 0.0, 0.0),
    1e5,
    0.04,
    (0.0178659211422, 7.2747514685e-8, 0.982134006109),
    1e-6,
    1e-9,
)
VDP = Stiff(
    "van der Pol, mu = 1000",
    van_der_pol,
    lambda stack, t, y, mu: stack([y[1], mu * (1 - y[0] * y[0]) * y[1] - y[0]]),
    "in_i { mu = 1000 }\nu_i { x = 2, v = 0 }\nF_i { v, mu*(1 - x*x)*v - x }",
    (2.0, 0.0),
    2000.0,
    1000.0,
    (1.7061677321727, -0.00089280970102),
    1e-6,
    1e-9,
)
OURS = ("auto", "radau5", "bdf", "rodas5p", "rosenbrock23", "kvaerno5")


def by_torchivp(problem: Stiff, method: Any, rtol: float, atol: float, parameters: Tensor | None = None) -> Solve:
    """A solve by torchivp, of one row or of one for each parameter."""
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    rows = 0 if parameters is None else len(parameters)
    k = torch.tensor(problem.parameter, dtype=torch.float64) if parameters is None else parameters
    start = y0.expand(rows, -1).contiguous() if rows else y0

    def solve() -> Outcome:
        solution: Any = torchivp.solve_ivp(
            problem.func,
            (0.0, problem.end),
            start,
            t_eval=torch.full((rows, 1), problem.end, dtype=torch.float64) if rows else [problem.end],
            args=(k,),
            method=method,
            rtol=rtol,
            atol=atol,
            batch_dims=1 if rows else 0,
        )
        stats = solution.stats[0] if rows else solution.stats
        y = solution.final[0] if rows else solution.final
        return Outcome(y.numpy(), stats.evaluations, stats.jacobians)

    return solve


def by_scipy(problem: Stiff, method: str, rtol: float, atol: float, parameters: Tensor | None = None) -> Solve:
    """The same by SciPy, one row after the other."""
    every = [problem.parameter] if parameters is None else parameters.tolist()

    def solve() -> Outcome:
        found = [
            scipy.integrate.solve_ivp(
                lambda t, y, k=k: problem.numbers(np.array, t, y, k),
                (0.0, problem.end),
                problem.y0,
                method=method,
                rtol=rtol,
                atol=atol,
            )
            for k in every
        ]
        return Outcome(found[0].y[:, -1], found[0].nfev, found[0].njev)

    return solve


def by_diffrax(problem: Stiff, rtol: float, atol: float, parameters: Tensor | None = None) -> Solve | None:
    """The same by diffrax's Kvaerno5, compiled; with vmap over the rows. None without diffrax."""
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    term = diffrax.ODETerm(lambda t, y, k: problem.numbers(jnp.stack, t, y, k))
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def one(k: Any) -> Any:
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Kvaerno5(),
            0.0,
            problem.end,
            None,
            jnp.array(problem.y0),
            args=k,
            stepsize_controller=controller,
            saveat=diffrax.SaveAt(t1=True),
            max_steps=None,
        )
        return solution.ys[-1]

    many = jax.jit(jax.vmap(one))
    k = jnp.array([problem.parameter] if parameters is None else parameters.numpy())
    return lambda: Outcome(np.asarray(many(k).block_until_ready())[0])


def by_cvode(problem: Stiff, rtol: float, atol: float) -> Solve | None:
    """The same by CVODE with a Python function. None without scikit-sundae."""
    try:
        from sksundae.cvode import CVODE  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def func(t: float, y: np.ndarray, slope: np.ndarray) -> None:
        slope[:] = problem.numbers(np.array, t, y, problem.parameter)

    def solve() -> Outcome:
        solution = CVODE(func, rtol=rtol, atol=atol, max_num_steps=100_000).solve([0.0, problem.end], problem.y0)
        return Outcome(solution.y[-1], solution.nfev, solution.njev)

    return solve


def by_diffsol(problem: Stiff, rtol: float, atol: float) -> Solve | None:
    """The same by diffsol's BDF, compiled from its own language. None without pydiffsol."""
    try:
        import pydiffsol  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    ode = pydiffsol.Ode(
        code=problem.diffsl, matrix_type=pydiffsol.nalgebra_dense, scalar_type=pydiffsol.f64, ode_solver=pydiffsol.bdf
    )
    ode.rtol, ode.atol = rtol, atol
    return lambda: Outcome(ode.solve(np.array([problem.parameter]), problem.end).ys[:, -1])


def seconds(solve: Solve, repeats: int) -> tuple[float, Outcome]:
    """The shortest of some calls, after one that does not count."""
    outcome, best = solve(), float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        outcome = solve()
        best = min(best, time.perf_counter() - begin)
    return best, outcome


def error_of(problem: Stiff, y: np.ndarray, rtol: float, atol: float) -> float:
    """The largest error at the end, in units of the tolerance."""
    reference = np.array(problem.reference)
    return float(np.max(np.abs(y - reference) / (atol + rtol * np.abs(reference))))


def singles(problem: Stiff, rtol: float, atol: float) -> Iterator[tuple[str, Solve]]:
    """All ways to solve one row."""
    for method in OURS:
        if method in torchivp.ODE_METHODS:
            yield f"torchivp {method}", by_torchivp(problem, method, rtol, atol)
    for method in ("Radau", "BDF", "LSODA"):
        yield f"SciPy {method}", by_scipy(problem, method, rtol, atol)
    others = {
        "diffrax Kvaerno5, jit": by_diffrax(problem, rtol, atol),
        "CVODE, Python func": by_cvode(problem, rtol, atol),
        "diffsol BDF, compiled": by_diffsol(problem, rtol, atol),
    }
    yield from ((name, solve) for name, solve in others.items() if solve is not None)


def batches(problem: Stiff, rows: int) -> Iterator[tuple[str, Solve, float]]:
    """All ways to solve many rows, and by what to multiply the time of each."""
    parameters = problem.parameter * torch.linspace(0.5, 2.0, rows, dtype=torch.float64)
    for method in OURS:
        if method in torchivp.ODE_METHODS:
            yield f"torchivp {method}", by_torchivp(problem, method, problem.rtol, problem.atol, parameters), 1.0
    some = parameters[:: max(rows // 20, 1)]
    yield "SciPy Radau, a loop", by_scipy(problem, "Radau", problem.rtol, problem.atol, some), rows / len(some)
    by_jax = by_diffrax(problem, problem.rtol, problem.atol, parameters)
    if by_jax is not None:
        yield "diffrax Kvaerno5, vmap and jit", by_jax, 1.0


def diffusion(size: int) -> Iterator[tuple[str, Solve]]:
    """A linear diffusion equation on a line, by the method of lines."""
    spacing = 1.0 / (size + 1)
    x = torch.arange(1, size + 1, dtype=torch.float64) * spacing
    y0 = torch.sin(torch.pi * x) + 0.5 * torch.sin(7 * torch.pi * x)

    def heat(t: Tensor, y: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(y, (1, 1))
        return (padded[2:] - 2 * y + padded[:-2]) / spacing**2

    for name, options, linear_solver in (
        ("dense", {}, "dense"),
        ("jac_sparsity=(1, 1)", {"jac_sparsity": (1, 1)}, "auto"),
        ("krylov", {}, "krylov"),
    ):
        for method in ("bdf", "kvaerno5"):
            chosen = torchivp.ODE_METHODS[method].with_options(linear_solver=linear_solver)

            def solve(chosen: Any = chosen, options: dict[str, Any] = options) -> Outcome:
                solution = torchivp.solve_ivp(
                    heat, (0.0, 0.05), y0, t_eval=[0.05], method=chosen, rtol=1e-5, atol=1e-8, **options
                )
                return Outcome(solution.final.numpy(), solution.stats.evaluations, solution.stats.jacobians)

            yield f"torchivp {method}, {name}", solve


def figure(path: Path, tolerances: tuple[float, ...]) -> None:
    """Errors against evaluations and against time, on logarithmic axes."""
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    for row, problem in zip(axes, (ROBER, VDP), strict=True):
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for rtol in tolerances:
            atol = rtol * problem.atol / problem.rtol
            for name, solve in singles(problem, rtol, atol):
                took, outcome = seconds(solve, 2)
                error = float(np.max(np.abs(outcome.y / np.array(problem.reference) - 1)))
                count = np.nan if outcome.evaluations is None else outcome.evaluations
                lines.setdefault(name, []).append((error, count, took))
        for name, points in lines.items():
            error, count, took = np.array(points).T
            style = "o-" if name.startswith("torchivp") else "x--"
            row[0].loglog(error, count, style, label=name)
            row[1].loglog(error, took, style, label=name)
        for axis, what in zip(row, ("evaluations", "seconds"), strict=True):
            axis.set(title=problem.name, xlabel="largest relative error at the end", ylabel=what)
            axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=7)
    drawing.savefig(path, dpi=150)


def main() -> None:
    """Print the tables, and draw the figure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="single, batch or diffusion")
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args()
    console = Console()
    if options.only in ("", "single"):
        for problem in (ROBER, VDP):
            table = Table("", "ms", "evaluations", "Jacobians", "error / tolerance", title=problem.name)
            for name, solve in singles(problem, problem.rtol, problem.atol):
                took, outcome = seconds(solve, options.repeats)
                error = error_of(problem, outcome.y, problem.rtol, problem.atol)
                table.add_row(
                    name,
                    f"{took * 1e3:.2f}",
                    str(outcome.evaluations or ""),
                    str(outcome.jacobians or ""),
                    f"{error:.2g}",
                )
            console.print(table)
    if options.only in ("", "batch"):
        for problem in (ROBER, VDP):
            table = Table("", "s", title=f"{problem.name}: {options.rows} rows, parameters from half to twice")
            for name, solve, factor in batches(problem, options.rows):
                took, _ = seconds(solve, 1)
                table.add_row(name, f"{took * factor:.2f}")
            console.print(table)
    if options.only in ("", "diffusion"):
        table = Table("", "s", "evaluations", "Jacobians", title=f"diffusion, {options.size} unknowns")
        for name, solve in diffusion(options.size):
            took, outcome = seconds(solve, 1)
            table.add_row(name, f"{took:.2f}", str(outcome.evaluations), str(outcome.jacobians))
        console.print(table)
    if options.figure is not None:
        figure(options.figure, (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8))


if __name__ == "__main__":
    main()
