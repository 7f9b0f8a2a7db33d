"""A batch whose rows step on their own, against batches that share their steps and against other libraries' rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn

import torchivp
from benchmarks.harness import Timing, compare
from benchmarks.problems import REFERENCE

_CHECKED = 256
"""The errors are those of so many rows."""


@dataclass(frozen=True)
class Ensemble:
    """The same equation with a parameter of its own in every row.

    Attributes:
        name: what the table calls it.
        func: called with the time, the states [rows, 2] and the parameters.
        parameters: the parameters, [rows, ...].
        y0: the initial states, [rows, 2].
        t: the times of the outputs.
        rtol, atol: the tolerances, the same for all.
        compiled: whether diffrax and torchode solve it too.
    """

    name: str
    func: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameters: Tensor
    y0: Tensor
    t: Tensor
    rtol: float
    atol: float
    compiled: bool = True


@dataclass(frozen=True)
class RowsLine:
    """One way to solve the ensemble, beside torchivp's rows.

    Attributes:
        case: the ensemble.
        way: how it was solved.
        ratio: its time, in times of that of torchivp's rows; None for these.
        seconds: the time of a call, the median.
        evaluations: how often the right-hand side of a row was evaluated, over all rows.
        error: the largest error of a row at the last time, relative to the largest state.
        us_per_step: microseconds for each step of the loop.
    """

    case: str
    way: str
    ratio: float | None
    seconds: float
    evaluations: int | None
    error: float
    us_per_step: float | None


class VanDerPol(nn.Module):
    """From harmonic to stiff, as the parameter grows."""

    def forward(self, t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        position, velocity = y.unbind(-1)
        return torch.stack((velocity, mu * (1 - position * position) * velocity - position), -1)


class LotkaVolterra(nn.Module):
    """Hunters and prey, with four parameters of its own in every row."""

    def forward(self, t: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
        prey, hunters = y.unbind(-1)
        a, b, c, d = parameters.unbind(-1)
        return torch.stack((a * prey - b * prey * hunters, d * prey * hunters - c * hunters), -1)


class Decay(nn.Module):
    """The cheapest right-hand side there is."""

    def forward(self, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return -y


def ensembles() -> list[Ensemble]:
    rows = 256
    mu = torch.logspace(-1, math.log10(50), rows, dtype=torch.float64)
    start = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(rows, 1)
    t = torch.tensor([0.0, 5.0, 10.0], dtype=torch.float64)
    random = 1 + torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [
        Ensemble("van der Pol, 256 rows", VanDerPol(), mu, start, t, 1e-6, 1e-8),
        # So accurate that there are hundreds of steps: their time is the solver's.
        Ensemble("decay, 256 rows", Decay(), torch.ones(rows, dtype=torch.float64), random, t, 1e-10, 1e-12),
        *(_hunters_and_prey(rows) for rows in (1_000, 10_000, 100_000)),
    ]


def _hunters_and_prey(rows: int) -> Ensemble:
    """Many outputs of many rows."""
    generator = torch.Generator().manual_seed(0)
    parameters, y0 = (1 + torch.rand(rows, n, dtype=torch.float64, generator=generator) for n in (4, 2))
    t = torch.linspace(0, 10, 101, dtype=torch.float64)
    name = f"Lotka-Volterra, {rows} rows, 101 outputs"
    return Ensemble(name, LotkaVolterra(), parameters, y0, t, 1e-6, 1e-8, compiled=False)


@dataclass(frozen=True)
class Solved:
    """The states at the last time, [rows, 2], and what they cost."""

    y: Tensor
    evaluations: int | None
    steps: int | None


def rows_of_torchivp(case: Ensemble) -> Solved:
    solution = torchivp.solve_ivp(
        case.func, (0.0, float(case.t[-1])), case.y0, t_eval=case.t, args=(case.parameters,), batch_dims=1,
        method="dopri5", rtol=case.rtol, atol=case.atol,
    )  # fmt: skip
    stats = solution.stats
    return Solved(
        solution.y[:, -1], sum(row.evaluations for row in stats), max(row.accepted + row.rejected for row in stats)
    )


def joint_by_torchivp(case: Ensemble) -> Solved:
    solution = torchivp.solve_ivp(
        case.func,
        (0.0, float(case.t[-1])),
        case.y0,
        t_eval=case.t,
        args=(case.parameters,),
        method="dopri5",
        rtol=case.rtol,
        atol=case.atol,
    )
    stats = solution.stats
    return Solved(solution.y[-1], stats.evaluations * len(case.y0), stats.accepted + stats.rejected)


def joint_by_torchdiffeq(case: Ensemble) -> Solved:
    count = 0

    def func(t: Tensor, y: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return case.func(t, y, case.parameters)

    y = torchdiffeq.odeint(func, case.y0, case.t, rtol=case.rtol, atol=case.atol, method="dopri5")
    return Solved(y[-1], count * len(case.y0), None)  # pyright: ignore[reportIndexIssue]


def rows_of_torchode(case: Ensemble) -> Solved:
    import torchode

    term = torchode.ODETerm(lambda t, y: case.func(t, y, case.parameters))
    controller = torchode.IntegralController(atol=case.atol, rtol=case.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    times = case.t.expand(len(case.y0), -1)
    solution = solver.solve(torchode.InitialValueProblem(y0=case.y0, t_eval=times))
    stats = solution.stats
    evaluations = int(stats["n_f_evals"].sum())
    return Solved(solution.ys[:, -1], evaluations, int(stats["n_steps"].max()))


def rows_of_diffrax(case: Ensemble) -> Callable[[], Solved]:
    """Compiled once; what is returned solves again."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def func(t: Any, y: Any, mu: Any) -> Any:
        if isinstance(case.func, Decay):
            return -y
        return jnp.stack((y[1], mu * (1 - y[0] * y[0]) * y[1] - y[0]))

    @jax.jit
    @jax.vmap
    def solve(y0: Any, mu: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(func),
            diffrax.Dopri5(),
            0.0,
            float(case.t[-1]),
            None,
            y0,
            mu,
            saveat=diffrax.SaveAt(ts=jnp.array(case.t.numpy())),
            stepsize_controller=diffrax.PIDController(rtol=case.rtol, atol=case.atol),
            max_steps=100_000,
        )
        return solution.ys[-1], solution.stats["num_steps"]

    y0, mu = jnp.array(case.y0.numpy()), jnp.array(case.parameters.numpy())

    def run() -> Solved:
        y, steps = jax.block_until_ready(solve(y0, mu))
        # Every row of a vmap is evaluated as long as one is under way.
        most = int(np.max(steps))
        return Solved(torch.from_numpy(np.array(y)), 6 * most * len(case.y0), most)

    return run


WAYS: dict[str, Callable[[Ensemble], Callable[[], Solved]]] = {
    "torchivp, one step for all": lambda case: lambda: joint_by_torchivp(case),
    "torchdiffeq, one step for all": lambda case: lambda: joint_by_torchdiffeq(case),
    "torchode, rows": lambda case: lambda: rows_of_torchode(case),
    "diffrax, vmap (compiled)": rows_of_diffrax,
}

COMPILED = ("torchode, rows", "diffrax, vmap (compiled)")


def measure_rows(repeats: int) -> list[RowsLine]:
    """Every ensemble, solved in every way that is installed."""
    lines = []
    for case in ensembles():
        exact = torchivp.solve_ivp(
            case.func, (0.0, float(case.t[-1])), case.y0[:_CHECKED], t_eval=case.t, args=(case.parameters[:_CHECKED],),
            batch_dims=1, **REFERENCE,
        ).y[:, -1]  # fmt: skip

        def ours(case: Ensemble = case) -> Solved:
            return rows_of_torchivp(case)

        first = None
        with torch.no_grad():
            for way, prepare in WAYS.items():
                if way in COMPILED and not case.compiled:
                    continue
                try:
                    theirs = prepare(case)
                    theirs()
                except ImportError:
                    continue
                timing = compare(ours, theirs, repeats if len(case.y0) < 50_000 else min(repeats, 3))
                if first is None:
                    first = _line(case, "torchivp, rows", ours(), exact, timing, ours=True)
                    lines.append(first)
                lines.append(_line(case, way, theirs(), exact, timing, ours=False))
    return lines


def _line(case: Ensemble, way: str, solved: Solved, exact: Tensor, timing: Timing, ours: bool) -> RowsLine:
    seconds = timing.median_ours if ours else timing.median_theirs
    return RowsLine(
        case.name,
        way,
        None if ours else timing.ratio,
        seconds,
        solved.evaluations,
        float((solved.y[:_CHECKED] - exact).abs().max() / exact.abs().max()),
        None if solved.steps is None else seconds / solved.steps * 1e6,
    )


def as_json(lines: list[RowsLine]) -> list[dict[str, Any]]:
    return [asdict(line) for line in lines]
