"""Fits of published models and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas
import torch

from benchmarks.fit_problem import Problem, Solves, Values, exact, states_at
from torchivp.data import SimulatedTrajectories
from torchivp.models import Equations, FitzHughNagumo, Lorenz, LotkaVolterra, Model

DATA = Path(__file__).parents[1] / "examples" / "data"

BOEHM_OBSERVED = {
    "pSTAT5A_rel": "(100*pAB + 200*pAA*specC17) / (pAB + A*specC17 + 2*pAA*specC17)",
    "pSTAT5B_rel": "-(100*pAB - 200*pBB*(specC17 - 1)) / (B*(specC17 - 1) - pAB + 2*pBB*(specC17 - 1))",
    "rSTAT5A_rel": "(100*pAB + 100*A*specC17 + 200*pAA*specC17)"
    " / (2*pAB + A*specC17 + 2*pAA*specC17 - B*(specC17 - 1) - 2*pBB*(specC17 - 1))",
}


def boehm(factor: float) -> Problem:
    """STAT5, from its published optimum, or from where each rate is so many times as large or as small."""
    model = Equations.from_file(DATA / "boehm_stat5.txt")
    table = pandas.read_csv(DATA / "boehm_stat5.csv")
    start = {
        name: float(np.clip(value * factor ** (-1) ** i, 1e-5, 1e5))
        for i, (name, value) in enumerate(model.values().items())
    }
    t, c, q = table["time"].to_numpy(), 0.107, 0.45 / 1.4

    def func(t: float, y: np.ndarray, p: Values) -> list[float]:
        a, b, ab, aa, bb, naa, nab, nbb = y
        e = 1.25e-7 * np.exp(-p["Epo_degradation_BaF3"] * t) * p["k_phos"]
        v1, v2, v3 = e * a * a, e * a * b, e * b * b
        v4, v5, v6 = p["k_imp_homo"] * aa, p["k_imp_hetero"] * ab, p["k_imp_homo"] * bb
        v7, v8, v9 = p["k_exp_homo"] * naa, p["k_exp_hetero"] * nab, p["k_exp_homo"] * nbb
        da, db = -2 * v1 - v2 + 2 * q * v7 + q * v8, -v2 - 2 * v3 + q * v8 + 2 * q * v9
        return [da, db, v2 - v5, v1 - v4, v3 - v6, v4 / q - v7, v5 / q - v8, v6 / q - v9]

    def predict(p: Values, solves: Solves) -> np.ndarray:
        y0 = [207.6 * 0.693, 207.6 * (1 - 0.693), 0, 0, 0, 0, 0, 0]
        a, b, ab, aa, bb, *_ = states_at(func, t, y0, solves, (p,))
        first = (100 * ab + 200 * aa * c) / (ab + a * c + 2 * aa * c)
        second = -(100 * ab - 200 * bb * (c - 1)) / (b * (c - 1) - ab + 2 * bb * (c - 1))
        third = (100 * ab + 100 * a * c + 200 * aa * c) / (2 * ab + a * c + 2 * aa * c - b * (c - 1) - 2 * bb * (c - 1))
        return np.concatenate([first, second, third])

    options: dict[str, Any] = {
        "observe": BOEHM_OBSERVED,
        "parameters": {"ratio": 0.693, "specC17": 0.107},
        "fixed": {"ratio": 0.693, "specC17": 0.107},
        "initial": {
            **dict.fromkeys(("pAB", "pAA", "pBB", "nAA", "nAB", "nBB"), 0.0),
            "A": "207.6 * ratio",
            "B": "207.6 * (1 - ratio)",
        },
        "bounds": dict.fromkeys(start, (1e-5, 1e5)),
        "method": "rodas5p",
    }
    name = "STAT5 (Boehm)" + ("" if factor == 1 else f", start {factor:g} times off")
    y = table[list(BOEHM_OBSERVED)].to_numpy().T.ravel()
    return Problem(
        name, model, table, options, start, predict, y, np.repeat(range(3), len(t)), bounds=(np.log(1e-5), np.log(1e5))
    )


HORIZONS = (0.25, 0.5, 1, 2, 4, 8, 15, 22, 30)


def noiseless(name: str, truth: Model, begin: Model, y0: Sequence[float], func: Any) -> Problem:
    """A problem of SciML's set: 3001 points without noise on [0, 30], the initial state known."""
    *shorter, whole = (until(horizon, name, truth, begin, y0, func) for horizon in HORIZONS)
    whole.shorter = shorter
    return whole


def until(horizon: float, name: str, truth: Model, begin: Model, y0: Sequence[float], func: Any) -> Problem:
    """The part of it up to a time."""
    t = np.linspace(0, horizon, round(100 * horizon) + 1)
    y = exact(func, t, y0, tuple(truth.values().values()))
    table = pandas.DataFrame({"time": t, **dict(zip(truth.states, y, strict=True))})
    options = {"fixed": dict(zip(truth.states, y0, strict=True)), "method": "dopri8", "start": None}

    def predict(p: Values, solves: Solves) -> np.ndarray:
        return states_at(func, t, y0, solves, tuple(p.values())).ravel()

    return Problem(
        name,
        begin,
        table,
        options,
        begin.values(),
        predict,
        y.ravel(),
        np.repeat(range(len(y)), len(t)),
        {"method": "LSODA", "rtol": 1e-10, "atol": 1e-10},
        truth.values(),
        type(truth) is Lorenz,
        (np.zeros(3), np.array([22.0, 60.0, 6.0])) if type(truth) is Lorenz else (-np.inf, np.inf),
    )


def lorenz_slopes(t: float, y: np.ndarray, s: float, r: float, b: float) -> list[float]:
    return [s * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]]


def lorenz() -> Problem:

    class RealLorenz(Lorenz):
        positive = ()

    return noiseless("Lorenz (SciML)", Lorenz(10, 28, 2.66), RealLorenz(0, 0.5, 0.1), (1.0, 0.0, 0.0), lorenz_slopes)


def predators(t: float, y: np.ndarray, a: float, b: float, c: float, d: float) -> list[float]:
    return [a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]]


def lotka_volterra() -> Problem:
    return noiseless(
        "Lotka-Volterra (SciML)", LotkaVolterra(1.5, 1, 3, 1), LotkaVolterra(5, 5, 5, 5), (1.0, 1.0), predators
    )


def fitzhugh_nagumo() -> Problem:
    def func(t: float, y: np.ndarray, a: float, b: float, e: float, i: float) -> list[float]:
        return [y[0] - y[0] ** 3 / 3 - y[1] + i, e * (y[0] + a - b * y[1])]

    truth = FitzHughNagumo(0.7, 0.8, 0.08, 0.5)
    begin = FitzHughNagumo(*(2.5 * value for value in truth.values().values()))
    return noiseless("FitzHugh-Nagumo (SciML)", truth, begin, (1.0, 1.0), func)


def hares() -> Problem:
    """Hares and lynxes, of whom only the hares are observed."""
    table, beta = pandas.read_csv(DATA / "lynx_hare.csv"), 0.027
    t = table["year"].to_numpy(dtype=float)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        alpha, gamma, delta, *y0 = p.values()
        found = states_at(predators, t, y0, solves, (alpha, beta, gamma, delta))[0]
        return np.log(np.maximum(found, 1e-300))

    start = {"alpha": 0.5, "gamma": 0.8, "delta": 0.02, "prey(1900)": 30.0, "predator(1900)": 4.0}
    options = {
        "time": "year",
        "observe": {"hare": "prey"},
        "noise": "lognormal",
        "free": list(start),
        "fixed": {"beta": beta},
    }
    y = np.log(table["hare"].to_numpy())
    return Problem("hares alone", LotkaVolterra(), table, options, start, predict, y, np.zeros(len(t), dtype=int))


def theophylline(pooled: bool) -> Problem:
    """One compartment that a drug enters from the gut: twelve subjects, as one or each with rates of its own."""
    model = Equations("""
        gut' = -ka*gut
        concentration' = ka*gut/V - ke*concentration
        ka = 1
        ke = 0.1
        V = 0.5
        gut(0) = 0
        concentration(0) = 0
        """)
    table = pandas.read_csv(DATA / "theophylline.csv", dtype={"subject": str})
    doses = table.groupby("subject", sort=False)["dose"].first().rename("amount").reset_index()
    names = list(model.values())
    subjects = list(doses["subject"])
    start = {
        key: value
        for name, value in model.values().items()
        for key in ([name] if pooled else [f"{name}[{each}]" for each in subjects])
    }

    def func(t: float, y: np.ndarray, ka: float, ke: float, v: float) -> list[float]:
        return [-ka * y[0], ka * y[0] / v - ke * y[1]]

    def predict(p: Values, solves: Solves) -> np.ndarray:
        found = []
        for each, amount in zip(subjects, doses["amount"], strict=True):
            own = tuple(p[name if pooled else f"{name}[{each}]"] for name in names)
            t = table["time"][table["subject"] == each].to_numpy()
            found.append(states_at(func, t, [amount, 0.0], solves, own)[1])
        return np.concatenate(found)

    owner = table["subject"].to_numpy()
    options: dict[str, Any] = {
        "trajectory": "subject",
        "observe": ["concentration"],
        "free": names,
        "doses": doses.assign(time=0.0, state="gut"),
        "fixed": {"gut": 0.0, "concentration": 0.0},
    }
    if not pooled:
        options["by"] = dict.fromkeys(names, "subject")
    return Problem(
        "theophylline, " + ("pooled" if pooled else "by subject"),
        model,
        table,
        options,
        start,
        predict,
        table["concentration"].to_numpy(),
        np.zeros(len(table), dtype=int),
        sparsity=None if pooled else np.array([[f"[{each}]" in key for key in start] for each in owner], dtype=int),
    )


class Lienard(Model):
    """The oscillator of van der Pol as the article has it."""

    states: ClassVar = {"x": "position", "y": "Liénard's variable"}
    default_state = (0.0, 0.1)

    def __init__(self, mu: float = 1.0):
        super().__init__(mu=mu)

    def forward(self, t, state):
        x, y = state.unbind(-1)
        return torch.stack((self.mu * (x - x**3 / 3 - y), x / self.mu), dim=-1)


def of_article(name: str, truth: Model, begin: Model, data: Any, func: Any, **options: Any) -> Problem:
    """A fit of a set of series, whose first states are known."""
    series = [data[i] for i in range(len(data))]
    states = list(truth.states)
    tables, fixed = [], {}
    for i, (t, y, y0) in enumerate(series):
        table = pandas.DataFrame(y.numpy(), columns=states).assign(time=t.numpy(), series=str(i))
        table.loc[0, states] = np.nan
        fixed |= {f"{state}(0)[{i}]": float(value) for state, value in zip(states, y0, strict=True)}
        tables.append(table)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        found = [states_at(func, t.numpy(), y0.numpy(), solves, tuple(p.values()))[:, 1:] for t, _, y0 in series]
        return np.concatenate([one.ravel() for one in found])

    y = np.concatenate([one.numpy()[1:].T.ravel() for _, one, _ in series])
    every = {
        "trajectory": "series",
        "free": list(begin.values()),
        "fixed": fixed,
        "sigma": "shared",
        "method": "dopri8",
    }
    return Problem(
        f"{name} (article)",
        begin,
        pandas.concat(tables),
        {**every, **options},
        begin.values(),
        predict,
        y,
        np.zeros(len(y), dtype=int),
    )


def article() -> list[Problem]:
    """The three fits of the article, as `examples/article` makes them."""

    def lienard(t: float, y: np.ndarray, mu: float) -> list[float]:
        return [mu * (y[0] - y[0] ** 3 / 3 - y[1]), y[0] / mu]

    def simulated(model: Model, t: torch.Tensor, y0: list[float], n: int, noise: float, **solver: Any) -> Any:
        start, names = torch.tensor(y0, dtype=torch.float64), list(model.states)
        return SimulatedTrajectories(
            model, t, start, n=n, spread=0.1, noise=noise, seed=0, names=names, method="dopri8", **solver
        )

    oscillator, chaos = Lienard(0.3), Lorenz(10, 28, 8 / 3)
    preys = LotkaVolterra(1.5, 1, 3, 1)
    ten, fine, long = torch.linspace(0, 10, 10), torch.arange(0, 10, 0.1), torch.arange(0, 10, 0.05)
    first = simulated(oscillator, ten.double(), [0.0, 0.0], 10, 0.01, rtol=1e-10)
    second = simulated(preys, fine.double(), [2.5, 2.5], 10, 0.1, rtol=1e-10)
    third = simulated(chaos, long.double(), [1.0, 0.0, 0.0], 30, 0.01, rtol=1e-12, atol=1e-12)
    return [
        of_article("van der Pol", oscillator, Lienard(0.1), first, lienard, rtol=1e-6),
        of_article("Lotka-Volterra", preys, LotkaVolterra(1.6, 1.1, 2.7, 1.2), second, predators, rtol=1e-6),
        of_article("Lorenz", chaos, Lorenz(10.2, 28.2, 3.0), third, lorenz_slopes),
    ]
