"""A fit for `benchmarks.fits`, for torchivp and for SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from torchivp.models import Model

Values = dict[str, float]
Solves = dict[str, Any]
Predict = Callable[[Values, Solves], np.ndarray]

TIGHT: Solves = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-11}


@dataclass
class Problem:
    """A fit, for torchivp and for SciPy.

    Attributes:
        name: what the table calls it.
        model: what is fitted.
        data: to what.
        options: further arguments of `fit`.
        start: where both begin, by the names of the estimates.
        predict: SciPy's predictions at values of these, with the options of its solves, [n] in the order of `y`.
        y: the data, [n], on the scale of the noise.
        observable: the number of the observable of each.
        solves: how SciPy solves.
        truth: the values that made the data, where these have no noise.
        linear: the estimates that are not positive, which SciPy moves as they are; it moves the logarithms of others.
        bounds: SciPy's, of what it moves.
        sparsity: which estimates each prediction depends on, [n, n_estimates]; None for all.
        shorter: problems with more and more of the beginning of the data, which SciPy solves first.
    """

    name: str
    model: Model
    data: Any
    options: dict[str, Any]
    start: Values
    predict: Predict
    y: np.ndarray
    observable: np.ndarray
    solves: Solves = field(default_factory=lambda: {"method": "LSODA", "rtol": 1e-8, "atol": 1e-8})
    truth: Values | None = None
    linear: bool = False
    bounds: tuple[Any, Any] = (-np.inf, np.inf)
    sparsity: np.ndarray | None = None
    shorter: Sequence[Problem] = ()


def states_at(func: Any, t: np.ndarray, y0: Any, solves: Solves, args: tuple = ()) -> np.ndarray:
    """SciPy's states at times, the first of which is the start, [n_states, T]."""
    found = solve_ivp(func, (t[0], t[-1]), y0, t_eval=t, args=args, **solves)
    if not found.success:
        return np.full((len(y0), len(t)), 1e6)
    return found.y


def exact(func: Any, t: np.ndarray, y0: Any, args: tuple = ()) -> np.ndarray:
    """The states of a simulation, [n_states, T]."""
    return states_at(func, t, y0, {**TIGHT, "rtol": 1e-13, "atol": 1e-13}, args)


def piecewise(func: Any, borders: np.ndarray, t: np.ndarray, y: np.ndarray, solves: Solves, enter: Any) -> np.ndarray:
    """States at times, by a solve from each border to the next; `enter(i, y)` is the state after what happens at it.

    Returns:
        [n_states, T].
    """
    pieces = []
    for i, (a, b) in enumerate(pairwise(borders)):
        y = np.asarray(enter(i, y), dtype=float)
        inner = t[(t >= a) & ((t < b) | (b == borders[-1]))]
        every = np.unique(np.concatenate([[a], inner, [b]]))
        found = states_at(func, every, y, solves, (i,))
        pieces.append(found[:, np.isin(every, inner)])
        y = found[:, -1]
    return np.concatenate(pieces, 1)
