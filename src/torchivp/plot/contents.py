"""What pictures of a fit show, as numbers: prepared here once, whether matplotlib draws them or plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from torchivp.plot.style import label_with_unit, shorten

if TYPE_CHECKING:
    from torchivp.fitting import FitResult, Trajectory

Floats = NDArray[np.float64]
Edges = tuple[Floats, Floats]
Limits = tuple[float, float]

CURVE_POINTS = 400
SMALL_CURVE_POINTS = 120
_LABEL = 24  # so many characters of a name fit beside a small panel
_MARGIN, _BEYOND, _FAR = 0.04, 0.75, 10.0
"""Of the height of what is shown: room around it, how much of a band may stand out, where infinity is drawn."""


class Curves(NamedTuple):
    """The fitted observables of a trajectory at times [T], with the edges of their bands, each [T, n_observed]."""

    t: Floats
    values: Floats
    band: Edges
    prediction: Edges


class NormalQuantiles(NamedTuple):
    """Residuals in order against the quantiles of a normal distribution, each [n].

    Attributes:
        middle: the medians of n normal variates in order.
        lower: the lower edges of 95 % bands around them.
        upper: the upper edges.
        ordered: the residuals.
        origin: which of those given each was.
    """

    middle: Floats
    lower: Floats
    upper: Floats
    ordered: Floats
    origin: NDArray[np.intp]


class PhasePlane(NamedTuple):
    """A trajectory in the plane of the first two states.

    Attributes:
        labels: of the two axes.
        t: the times of the curve, [T].
        curve: all states, [T, n_states].
        data: the times of the data and their values of both states, [n_times] each; None if one is not observed.
    """

    labels: tuple[str, str]
    t: Floats
    curve: Floats
    data: tuple[Floats, Floats, Floats] | None


class StartEnds(NamedTuple):
    """Where starts ended that did not fail, the best first, each [n].

    Attributes:
        rise: the negative log-likelihood above the best.
        converged: whether there is an optimum.
        failed: how many others failed.
    """

    rise: Floats
    converged: NDArray[np.bool_]
    failed: int


def curves_of(result: FitResult, trajectory: int) -> Curves:
    """The fitted observables of a trajectory and their bands."""
    points = CURVE_POINTS if len(result.data.trajectories) == 1 else SMALL_CURVE_POINTS
    t = fine_times(result.data.trajectories[trajectory].t, points)
    values = result.observe(t, trajectory)
    return Curves(t, values, result.observable_band(t, trajectory), result.prediction_band(t, trajectory))


def has_band(edges: Edges, column: int | None = None) -> bool:
    """Whether a band is known anywhere, of an observable or of any."""
    of = slice(None) if column is None else column
    return any(bool((~np.isnan(edge[:, of])).any()) for edge in edges)


def value_limits(result: FitResult, curves: Sequence[Curves], column: int, log: bool) -> Limits:
    """Limits of an axis that hold data and curves of an observable, and of prediction bands what leaves them legible.

    Args:
        result: the fit.
        curves: those of the first trajectories.
        column: the number of the observable.
        log: whether the axis is logarithmic.
    """
    each = [
        _limits_of_one(np.concatenate([series.values[:, column], curve.values[:, column]]), curve, column, log)
        for series, curve in zip(result.data.trajectories, curves, strict=False)
    ]
    bottom, top = min(low for low, _ in each), max(high for _, high in each)
    return _from_axis(bottom, log), _from_axis(top, log)


def _limits_of_one(shown: Floats, curves: Curves, column: int, log: bool) -> Limits:
    on_axis = _to_axis(shown, log)
    on_axis = on_axis[np.isfinite(on_axis)]
    low, high = (float(on_axis.min()), float(on_axis.max())) if len(on_axis) else (0.0, 0.0)
    size = (high - low) or abs(high) or 1.0
    lower, upper = (_to_axis(edge[:, column], log) for edge in curves.prediction)
    bottom = float(np.nanmin([low, *np.maximum(lower, low - _BEYOND * size)]))
    top = float(np.nanmax([high, *np.minimum(upper, high + _BEYOND * size)]))
    margin = _MARGIN * (top - bottom) or _MARGIN * size
    return bottom - margin, top + margin


def within_reach(edges: Edges, column: int, limits: Limits, log: bool) -> Edges:
    """The edges of a band of an observable, infinity brought to where it is out of sight but can be drawn, [T] each."""
    low, high = (float(_to_axis(np.asarray(end), log)) for end in limits)
    far = _FAR * (high - low)
    lower, upper = (np.clip(edge[:, column], *_far_ends(low - far, high + far, log)) for edge in edges)
    return lower, upper


def _far_ends(low: float, high: float, log: bool) -> Limits:
    return _from_axis(low, log), _from_axis(high, log)


def _to_axis(values: Floats, log: bool) -> Floats:
    """Where values stand on an axis; minus infinity for what a logarithmic one has no place for."""
    if not log:
        return np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(values) <= 0, -np.inf, np.log10(values))


def _from_axis(place: float, log: bool) -> float:
    if not log:
        return place
    return float(10.0 ** np.clip(place, -300.0, 300.0))


def is_logarithmic(result: FitResult, column: int) -> bool:
    """Whether the values of an observable have a logarithmic axis."""
    values = np.concatenate([series.values[:, column] for series in result.data.trajectories])
    low, high = np.nanmin(values), np.nanmax(values)
    return result.levels.noises[column].log and bool(low > 0 and high > 100 * low)


def sides_of(series: Trajectory, column: int) -> NDArray[np.int8]:
    """Which values of an observable are limits: -1 the value lies below, 1 above, 0 it is known, [T]."""
    return np.zeros(len(series.t), dtype=np.int8) if series.censored is None else series.censored[:, column]


def sides_in(result: FitResult) -> set[int]:
    """The sides on which there are limits: some of -1 and 1."""
    each = [series.censored for series in result.data.trajectories if series.censored is not None]
    return {side for side in (-1, 1) if any((limits == side).any() for limits in each)}


def normal_quantiles(residuals: Floats) -> NormalQuantiles:
    """Residuals [n], NaN where there are none, in order against those of a normal distribution."""
    order = np.argsort(residuals, kind="stable")[: np.isfinite(residuals).sum()]
    rank = np.arange(1, len(order) + 1)
    # The i-th smallest of n uniform variates has the distribution Beta(i, n + 1 - i).
    middle, lower, upper = (
        stats.norm.ppf(stats.beta.ppf(level, rank, len(order) + 1 - rank)) for level in (0.5, 0.025, 0.975)
    )
    return NormalQuantiles(middle, lower, upper, residuals[order], order)


def phase_plane(result: FitResult, trajectory: int) -> PhasePlane:
    """A trajectory in the plane of the first two states.

    Raises:
        ValueError: the model has one state only.
    """
    states = list(result.model.states)
    if len(states) < 2:
        raise ValueError(f"a phase plane needs at least two states, and the model has one: {states[0]}")
    series = result.data.trajectories[trajectory]
    t = fine_times(series.t, CURVE_POINTS)
    data = None
    if {*states[:2]} <= {*result.observed_states}:
        x, y = (series.values[:, result.observed_states.index(state)] for state in states[:2])
        data = (series.t, x, y)
    labels = state_label(result, states[0]), state_label(result, states[1])
    return PhasePlane(labels, t, result.predict(t, trajectory), data)


def start_ends(result: FitResult) -> StartEnds:
    """Where the starts of a fit ended.

    Raises:
        ValueError: the fit was not one from many starts.
    """
    if not result.attempts:
        raise ValueError("the fit has no list of starts: fit(..., starts=100) keeps one")
    nll = np.array([attempt.nll for attempt in result.attempts])
    converged = np.array([attempt.converged for attempt in result.attempts])
    ended = np.isfinite(nll)
    rise = nll[ended] - nll[ended].min(initial=np.inf)
    return StartEnds(rise, converged[ended], int((~ended).sum()))


def fine_times(t: Floats, points: int) -> Floats:
    """Times at which to draw a curve through data at times `t`; one alone where the data have no other."""
    return np.linspace(float(t[0]), float(t[-1]), points if t[-1] > t[0] else 1)


def observable_title(result: FitResult, column: int) -> str:
    """The name of an observable, and what it is."""
    name, state = result.data.observables[column], result.observed_states[column]
    if state is not None:
        return f"{name}: {result.model.states[state]}"
    observed = result.data.observe[name]
    return f"{name}: {observed}" if isinstance(observed, str) else name


def observable_label(result: FitResult, column: int) -> str:
    """The name of an observable with the unit of its state."""
    state = result.observed_states[column]
    unit = None if state is None else result.model.units.get(state)
    return label_with_unit(shorten(result.data.observables[column], _LABEL), unit)


def state_label(result: FitResult, state: str) -> str:
    """The name of a state, or of what was observed of it, with its unit."""
    if state in result.observed_states:
        return observable_label(result, result.observed_states.index(state))
    return label_with_unit(shorten(state, _LABEL), result.model.units.get(state))
