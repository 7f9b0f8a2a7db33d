"""Integral matching: estimates of the parameters from smoothed data, without solving the model.

Where every state is observed, its curve can be smoothed from the data, and the parameters be chosen so that the model's
right-hand side, integrated along the smoothed curves, gives their increments. Source: J. O. Ramsay and G. Hooker,
"Dynamic Data Analysis", 2017, chapter 8; I. Dattner and C. A. J. Klaassen, "Optimal rate of direct estimators in
systems of ordinary differential equations linear in functions of the parameters", Electronic Journal of Statistics 9
(2015).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.optimize import least_squares
from torch import Tensor
from torch.func import vmap

from torchivp.fitting.data import Trajectory
from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.searching.smoothing import Smoothing
from torchivp.fitting.solving.right_hand_side import REFUSALS, call_rows

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# The three-point Gauss-Legendre rule on [0, 1].
_NODES = 0.5 + np.array([-0.5, 0.0, 0.5]) * np.sqrt(0.6)
_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18.0

_LONGEST = 500  # a series with more times than this is thinned out
_CALLS = 100_000  # how many calls of a model that torch.vmap cannot follow may go into the choice of the starts


@dataclass(frozen=True)
class SmoothedStates:
    """The states along curves drawn through the data, at the nodes of a quadrature between the data times.

    Attributes:
        t: the nodes, [N, 3].
        widths: the lengths of the intervals between data times, [N].
        y: the states at the nodes, [N, 3, n_states].
        increments: what each state (or its logarithm) gains over each interval, [N, n_states].
        log: for which states the logarithm is meant, [n_states].
        initial: the states at the first data time of each trajectory, [n_trajectories, n_states].
        trajectory: the number of the trajectory of each interval, [N].
    """

    t: Tensor
    widths: Tensor
    y: Tensor
    increments: Tensor
    log: Tensor
    initial: NDArray[np.float64]
    trajectory: NDArray[np.intp]


def smooth(misfit: Misfit, levels: Levels, smoothing: bool) -> SmoothedStates | None:
    """Draw curves through the data.

    Args:
        misfit: model and data; every state is observed.
        levels: the noise.
        smoothing: whether the curves smooth the data as far as generalised cross-validation sees fit, or pass
            through them.

    Returns:
        The curves at the nodes; None if a trajectory has too few values of a state.
    """
    data, model = misfit.data, misfit.model
    states = list(model.states)
    of_states = {state: k for k, state in enumerate(data.states)}
    log = [model.is_positive(state) or levels.noises[of_states[state]].log for state in states]
    t, widths, y, increments, initial, numbers = [], [], [], [], [], []
    how = Smoothing() if smoothing else None
    for number, trajectory in enumerate(data.trajectories):
        ends, values = _thinned(*_distinct(trajectory.t, trajectory.values))
        if len(ends) < 3:
            return None
        nodes = ends[:-1, None] + np.diff(ends)[:, None] * _NODES
        at_ends, at_nodes = [], []
        for state, is_log in zip(states, log, strict=True):
            curve = _curve(ends, values[:, data.states.index(state)], is_log, how)
            if curve is None:
                return None
            at_ends.append(curve(ends))
            at_nodes.append(np.exp(curve(nodes)) if is_log else curve(nodes))
        t.append(nodes)
        widths.append(np.diff(ends))
        numbers.append(np.full(len(ends) - 1, number))
        y.append(np.stack(at_nodes, axis=-1))
        increments.append(np.diff(np.stack(at_ends, axis=-1), axis=0))
        first = np.array([curve[0] for curve in at_ends])
        initial.append(np.where(log, np.exp(np.where(log, first, 0.0)), first))
    return SmoothedStates(
        *(torch.tensor(np.concatenate(parts)) for parts in (t, widths, y, increments)),
        log=torch.tensor(log),
        initial=np.stack(initial),
        trajectory=np.concatenate(numbers),
    )


def curve_of_state(trajectory: Trajectory, column: int, log: bool) -> Curve | None:
    """A curve through the data of the state that a column observes, constant before the first and after the last one.

    Args:
        trajectory: the data.
        column: the number of the column.
        log: whether the state is positive, so that the curve is one of its logarithm.

    Returns:
        None if there are too few values.
    """
    ends, values = _thinned(*_distinct(trajectory.t, trajectory.values))
    curve = _curve(ends, values[:, column], log)
    if curve is None:
        return None
    known = ends[np.isfinite(values[:, column])]

    def at(t: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = curve(np.clip(t, known[0], known[-1]))
        return np.exp(inside) if log else inside

    return at


def _distinct(t: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The different times of a series, and the means of the values at each; NaN where there is none."""
    distinct, place = np.unique(t, return_inverse=True)
    if len(distinct) == len(t):
        return t, values
    known = np.isfinite(values)
    sums, counts = np.zeros((len(distinct), values.shape[1])), np.zeros((len(distinct), values.shape[1]))
    np.add.at(sums, place, np.where(known, values, 0.0))
    np.add.at(counts, place, known)
    return distinct, np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _thinned(t: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A long series as means of consecutive values, of which there are few enough to draw a curve in a moment."""
    size = -(-len(t) // _LONGEST)
    if size == 1:
        return t, values
    starts = np.arange(0, len(t), size)
    known = np.isfinite(values)
    counts = np.add.reduceat(known, starts, axis=0, dtype=float)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.add.reduceat(t, starts) / np.add.reduceat(np.ones(len(t)), starts), means


def _curve(
    t: NDArray[np.float64], values: NDArray[np.float64], log: bool, smoothing: Smoothing | None = None
) -> Curve | None:
    """A curve through the values of a state that are not missing, of its logarithm where `log`."""
    known = np.isfinite(values)
    if known.sum() < 3:
        return None
    v = values[known]
    if log:
        v = np.log(np.maximum(v, 1e-3 * np.abs(v).mean()))
    scale = (t[-1] - t[0]) / len(t)
    s = (t[known] - t[0]) / scale
    if smoothing is not None and len(s) >= 5:
        spline = smoothing.curve(s, v)
    else:
        spline = make_interp_spline(s, v, k=min(3, len(s) - 1))
    return lambda times: spline((times - t[0]) / scale)


class Matching:
    """The regression of the curves' increments on the parameters.

    Args:
        misfit: model, data and what is free.
        curves: the smoothed data.
    """

    def __init__(self, misfit: Misfit, curves: SmoothedStates):
        self._model = misfit.model
        self._quantities = misfit.quantities
        self._curves = curves
        free = self._quantities.free
        numbers = [i for i, quantity in enumerate(free) if quantity.kind == "parameter"]
        self._index = torch.tensor(numbers, dtype=torch.long)
        self._theta = torch.tensor(self._quantities.theta())
        self._trajectory = torch.tensor(curves.trajectory)
        self._widths = misfit.quantities.magnitudes[self._index.numpy()]
        self._mapped = True
        self._scale = curves.increments.square().mean(0).sqrt().clamp_min(1e-12)

    @property
    def empty(self) -> bool:
        """Whether no parameter is free, so that there is nothing to estimate."""
        return len(self._index) == 0

    def residuals(self, p: Tensor) -> Tensor:
        """The increments that the free parameters `p` (entries of theta) do not explain, over their size, [n]."""
        curves = self._curves
        own = self._quantities.locals(self._theta.index_copy(0, self._index, p))[self._trajectory]
        t, y = curves.t.flatten(), curves.y.flatten(0, 1)
        layout = self._quantities.layout
        of_rows = layout.named(own[:, : layout.count].repeat_interleave(curves.t.shape[1], 0))
        slopes = call_rows(self._model, of_rows, t, y, "mapped" if self._mapped else "singly").reshape(curves.y.shape)
        slopes = torch.where(curves.log, slopes / curves.y, slopes)
        gained = torch.einsum("nqs,q,n->ns", slopes, torch.tensor(_WEIGHTS), curves.widths)
        return ((curves.increments - gained) / self._scale).flatten()

    def estimates(self, starts: NDArray[np.float64], keep: int) -> list[NDArray[np.float64]]:
        """The best fits from several starts, as vectors theta, the best first.

        Args:
            starts: values of theta, [n_starts, n_free].
            keep: how many of the starts, those with the smallest residuals, to refine.
        """
        p = torch.tensor(starts)[:, self._index]
        costs = self._costs(p).nan_to_num(torch.inf, torch.inf)
        best = [i for i in costs.argsort()[:keep].tolist() if torch.isfinite(costs[i])]
        found = [self._refine(p[i].numpy()) for i in best]
        found.sort(key=lambda pair: pair[0])
        return [self._with_initial_states(estimate) for _, estimate in found]

    def _costs(self, p: Tensor) -> Tensor:
        """The sum of squared residuals at each of the `p` [n_starts, n]; infinite where there was no time to look."""
        if self._mapped:
            try:
                return vmap(lambda one: self.residuals(one).square().sum())(p)
            except REFUSALS:
                self._mapped = False  # the model looks at the value of the time or of a state, for example
        looked_at = max(1, _CALLS // self._curves.t.numel())
        costs = [self.residuals(one).square().sum() for one in p[:looked_at]]
        return torch.stack([*costs, *[torch.tensor(torch.inf)] * (len(p) - len(costs))])

    def _refine(self, p: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        widths = self._widths
        ridge = 1e-3 * np.eye(len(p))  # keeps parameters in place that the curves say nothing about

        def residuals(u: NDArray[np.float64]) -> NDArray[np.float64]:
            at = self.residuals(torch.tensor(p + widths * u)).nan_to_num(1e6, 1e6, -1e6)
            return np.concatenate([at.clamp(-1e6, 1e6).numpy(), ridge @ u])

        fit = least_squares(residuals, np.zeros(len(p)), ftol=1e-4, xtol=1e-4, max_nfev=50)
        return fit.cost, p + widths * fit.x

    def _with_initial_states(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        states = list(self._model.states)
        initial = {
            quantity.name: float(
                self._curves.initial[
                    slice(None) if quantity.trajectories is None else list(quantity.trajectories),
                    states.index(quantity.key),
                ].mean()
            )
            for quantity in self._quantities.free
            if quantity.kind == "initial state"
        }
        theta = self._quantities.theta(initial)
        theta[self._index.numpy()] = p
        return theta
