"""Fits of simulated data."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas
import torch

from benchmarks.fit_problem import TIGHT, Problem, Solves, Values, piecewise, states_at
from torchivp.models import Equations, Model


def enzymes() -> Problem:
    """24 progress curves of which the product is measured, 20 points each."""
    model = Equations("""
        substrate' = -rate
        product' = rate
        rate = Vmax*substrate/(Km + substrate)
        Vmax = 1
        Km = 1
        """)
    t, first = np.linspace(0, 10, 20), np.geomspace(0.2, 20, 24)

    def func(t: float, s: np.ndarray, vmax: float, km: float) -> np.ndarray:
        return -vmax * s / (km + s)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        return (first[:, None] - states_at(func, t, first, solves, (p["Vmax"], p["Km"]))).ravel()

    y = predict({"Vmax": 1.7, "Km": 2.5}, TIGHT)
    y = y + 0.05 * np.random.default_rng(1).standard_normal(len(y))
    curves = np.repeat(np.arange(len(first)), len(t)).astype(str)
    table = pandas.DataFrame({"curve": curves, "time": np.tile(t, len(first)), "P": y})
    known = pandas.DataFrame({"curve": np.arange(len(first)).astype(str), "substrate": first, "product": 0.0})
    options = {"trajectory": "curve", "observe": {"P": "product"}, "conditions": known}
    return Problem(
        "24 enzyme progress curves", model, table, options, model.values(), predict, y, np.zeros(len(y), dtype=int)
    )


def growth() -> Problem:
    """40 series of logistic growth, each with an initial size of its own."""
    model = Equations("size' = r*size*(1 - size/K)\nr = 1\nK = 50\npositive: size")
    t, rng = np.linspace(0, 10, 15), np.random.default_rng(2)
    first = rng.uniform(1, 20, 40)
    names = [f"size(0)[{i}]" for i in range(len(first))]

    def func(t: float, n: np.ndarray, r: float, k: float) -> np.ndarray:
        return r * n * (1 - n / k)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        return states_at(func, t, [p[name] for name in names], solves, (p["r"], p["K"])).ravel()

    made = {"r": 0.7, "K": 80.0, **dict(zip(names, first, strict=True))}
    y = predict(made, TIGHT)
    y = y + 1.0 * rng.standard_normal(len(y))
    series = np.repeat(np.arange(len(first)), len(t)).astype(str)
    table = pandas.DataFrame({"series": series, "time": np.tile(t, len(first)), "size": y})
    start = {**model.values(), **dict.fromkeys(names, 10.0)}
    return Problem(
        "40 series of logistic growth",
        model,
        table,
        {"trajectory": "series"},
        start,
        predict,
        y,
        np.zeros(len(y), dtype=int),
        sparsity=np.repeat(np.hstack([np.ones((40, 2)), np.eye(40)]), len(t), 0),
    )


def chain() -> Problem:
    """A chain of four reactions, all five species of which are measured."""
    model = Equations("""
        A' = -k1*A
        B' = k1*A - k2*B
        C' = k2*B - k3*C
        D' = k3*C - k4*D
        E' = k4*D
        k1 = 1
        k2 = 1
        k3 = 1
        k4 = 1
        """)
    t, y0 = np.linspace(0, 20, 25), [1.0, 0.0, 0.0, 0.0, 0.0]

    def func(t: float, y: np.ndarray, p: Values) -> list[float]:
        v1, v2, v3, v4 = p["k1"] * y[0], p["k2"] * y[1], p["k3"] * y[2], p["k4"] * y[3]
        return [-v1, v1 - v2, v2 - v3, v3 - v4, v4]

    def predict(p: Values, solves: Solves) -> np.ndarray:
        return states_at(func, t, y0, solves, (p,)).ravel()

    y = predict({"k1": 2.0, "k2": 0.5, "k3": 0.8, "k4": 0.2}, TIGHT)
    y = y + 0.02 * np.random.default_rng(3).standard_normal(len(y))
    table = pandas.DataFrame({"time": t, **dict(zip("ABCDE", y.reshape(5, -1), strict=True))})
    options = {"fixed": dict(zip("ABCDE", y0, strict=True))}
    return Problem("five-species chain", model, table, options, model.values(), predict, y, np.repeat(range(5), len(t)))


DAYS = 120


class ForcedGrowth(Model):
    """Logistic growth at a rate that is proportional to what is known of each day."""

    states: ClassVar = {"size": "of the population"}
    default_state = (1.0,)
    positive = ("r", "K", "size")

    def __init__(self, r: float, K: float, warmth: np.ndarray):
        super().__init__(r=r, K=K)
        self.register_buffer("warmth", torch.from_numpy(warmth))

    def forward(self, t, y):
        today = self.warmth[t.floor().long().clamp(0, DAYS - 1)]
        return self.r * today.unsqueeze(-1) * y * (1 - y / self.K)


def forced_growth() -> Problem:
    """120 days, on each of which growth goes at another rate."""
    rng = np.random.default_rng(4)
    warmth, t, borders = rng.uniform(0.0, 1.0, DAYS), np.linspace(0, DAYS, 61), np.arange(DAYS + 1.0)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        def func(t: float, n: np.ndarray, day: int) -> np.ndarray:
            return p["r"] * warmth[day] * n * (1 - n / p["K"])

        return piecewise(func, borders, t, np.array([p["size(0)"]]), solves, lambda i, y: y).ravel()

    y = predict({"r": 0.1, "K": 100.0, "size(0)": 3.0}, TIGHT)
    y = y + rng.standard_normal(len(y))
    model = ForcedGrowth(0.2, 50.0, warmth)
    start = {**model.values(), "size(0)": 5.0}
    table = pandas.DataFrame({"time": t, "size": y})
    options: dict[str, Any] = {"jump_times": borders[1:-1].tolist()}
    return Problem(
        "a rate that jumps daily, 120 days", model, table, options, start, predict, y, np.zeros(len(y), dtype=int)
    )


def doses() -> Problem:
    """120 daily doses."""
    model = Equations("""
        gut' = -ka*gut
        blood' = ka*gut/V - ke*blood
        ka = 1
        ke = 0.3
        V = 1
        gut(0) = 0
        blood(0) = 0
        """)
    rng = np.random.default_rng(5)
    amounts, t, borders = rng.uniform(0.5, 1.5, DAYS), np.sort(rng.uniform(0, DAYS, 80)), np.arange(DAYS + 1.0)

    def predict(p: Values, solves: Solves) -> np.ndarray:
        def func(t: float, y: np.ndarray, day: int) -> list[float]:
            return [-p["ka"] * y[0], p["ka"] * y[0] / p["V"] - p["ke"] * y[1]]

        def enter(i: int, y: np.ndarray) -> np.ndarray:
            return y + np.array([amounts[i], 0.0])

        return piecewise(func, borders, t, np.zeros(2), solves, enter)[1]

    y = predict({"ka": 2.0, "ke": 0.2, "V": 2.0}, TIGHT)
    y = y + 0.05 * rng.standard_normal(len(y))
    table = pandas.DataFrame({"time": np.append(t, 0.0), "blood": np.append(y, np.nan)})
    options = {
        "doses": pandas.DataFrame({"time": borders[:-1], "amount": amounts, "state": "gut"}),
        "fixed": {"gut": 0.0, "blood": 0.0},
    }
    return Problem("120 daily doses", model, table, options, model.values(), predict, y, np.zeros(len(y), dtype=int))
