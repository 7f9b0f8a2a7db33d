"""Pictures of a fit: data and curves, residuals, phase plane, correlation of the estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from torchivp.plot.contents import (
    Curves,
    Limits,
    curves_of,
    has_band,
    is_logarithmic,
    normal_quantiles,
    observable_label,
    observable_title,
    phase_plane,
    sides_in,
    sides_of,
    value_limits,
    within_reach,
)
from torchivp.plot.field import draw_direction_field
from torchivp.plot.solution import draw_orbit
from torchivp.plot.style import GRID, INK, MUTED, color_of, literal, new_figure, shorten, style_axes

if TYPE_CHECKING:
    from torchivp.fitting import FitResult, Trajectory

MAX_TRAJECTORIES = 24
COLUMNS = 3
SIDE_BY_SIDE = 4
"""More trajectories than this, of two observables each, stand two in a row."""

MAX_WIDTH = 12
MANY_DOTS = 60
CURVE_ALPHA, PREDICTION_ALPHA = 0.35, 0.13


class Panel(NamedTuple):
    """What one panel shows: an observable of a trajectory, by their numbers."""

    trajectory: int
    observable: int


def plot_fit(result: FitResult) -> Figure:
    """Draw data and fitted curves with their 95 % bands.

    One panel per observable, one above the other; with several trajectories one panel for each, at most 24 of
    them. The darker band holds the true curve, the lighter one a new measurement, each with 95 % confidence at
    any one time. The axis of the values is logarithmic where the noise is lognormal and the data span two orders
    of magnitude.

    Args:
        result: what `fit` returned.
    """
    layout = _panel_layout(len(result.data.trajectories), len(result.data.observables))
    rows, columns = layout.shape
    width = 8 if columns == 1 else min(4 * columns, MAX_WIDTH)
    figure = new_figure(width, 0.7 + (2.9 if columns == 1 else 2.4) * rows)
    one_kind = len(result.data.observables) == 1
    grid = figure.subplots(
        rows, columns, sharex=True, sharey="all" if one_kind and columns > 1 else "none", squeeze=False
    )
    if columns > 1 and not one_kind:
        _share_by_observable(grid, layout)
    curves = [curves_of(result, number) for number in range(min(len(result.data.trajectories), MAX_TRAJECTORIES))]
    logs = [is_logarithmic(result, k) for k in range(len(result.data.observables))]
    limits = [value_limits(result, curves, k, log) for k, log in enumerate(logs)]
    for (row, column), axes, panel in zip(np.ndindex(rows, columns), grid.flat, layout.flat, strict=True):
        if panel is None:
            axes.set_visible(False)
            continue
        k = panel.observable
        _draw_fit_panel(axes, result, panel, curves[panel.trajectory], limits[k], logs[k])
        last = row == rows - 1 or layout[row + 1, column] is None
        axes.set_xlabel(axes.get_xlabel() if last else "")
        axes.tick_params(labelbottom=last)
        if one_kind and column > 0:
            axes.set_ylabel("")
    _add_band_legend(figure, result, curves)
    return figure


def plot_residuals(result: FitResult) -> Figure:
    """Draw the standardised residuals of every observable, over time and against the normal distribution.

    Left, the dashed lines hold 95 % of the residuals of a good fit, which scatter about zero without a pattern.
    Right, they follow the straight line; at each place the shaded band holds 95 % of the residuals that a normal
    distribution would give.

    Args:
        result: what `fit` returned.
    """
    data = result.data
    count = len(data.observables)
    figure = new_figure(8, 0.4 + 2.7 * count)
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=(1.7, 1), sharey="row", sharex="col")
    for row, name in enumerate(data.observables):
        series = [result.residuals(index)[:, row] for index in range(len(data.trajectories))]
        _draw_residuals_over_time(grid[row, 0], [trajectory.t for trajectory in data.trajectories], series, row)
        _draw_normal_quantiles(grid[row, 1], np.concatenate(series), row)
        last = row == count - 1
        style_axes(grid[row, 0], data.time_name if last else "", "standardised residual", shorten(name))
        style_axes(grid[row, 1], "normal quantile" if last else "")
    return figure


def plot_phase(result: FitResult, trajectory: int = 0) -> Figure:
    """Draw a fitted curve in the plane of the first two states, with the direction field and the data.

    Args:
        result: what `fit` returned.
        trajectory: the number of the trajectory; its first time and state give the field the time, and the values
            of the states that are not shown.

    Raises:
        ValueError: the model has one state only.
    """
    plane = phase_plane(result, trajectory)
    curve = plane.curve
    figure = new_figure(6.4, 6.4)
    axes = figure.add_subplot()
    style_axes(axes, *plane.labels)
    axes.grid(False)
    if plane.data is not None:
        _, x, y = plane.data
        axes.plot(x, y, color=MUTED, linewidth=0.7, linestyle=":", zorder=2)
        axes.plot(x, y, "o", color=INK, markersize=5, markeredgecolor="white", zorder=3, label="data")
    draw_orbit(axes, curve[:, 0], curve[:, 1], color_of(0))
    draw_direction_field(axes, result.model, float(plane.t[0]), torch.from_numpy(curve[0].copy()))
    axes.plot([], [], color=color_of(0), linewidth=2, label="fitted curve")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def plot_correlation(result: FitResult) -> Figure:
    """Draw the correlation matrix of the estimates, as colours and numbers.

    A value near 1 or -1 says that the data tell only a combination of the two apart, not each of them.

    Args:
        result: what `fit` returned.
    """
    names, correlation = result.free_names, np.asarray(result.correlation)
    shown = np.ma.masked_where(np.triu(np.ones(correlation.shape, dtype=bool)), correlation)[1:, :-1]
    size = 1.6 + 0.62 * len(names)
    figure = new_figure(size + 0.9, size)
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap="PuOr_r", vmin=-1, vmax=1)
    for row, column in zip(*np.nonzero(~np.ma.getmaskarray(shown)), strict=True):
        value = shown[row, column]
        ink = "white" if abs(value) > 0.65 else INK
        axes.text(column, row, f"{value:.2f}".replace("-", "−"), ha="center", va="center", color=ink, fontsize=9)
    names = [literal(shorten(name, 24)) for name in names]
    axes.set_xticks(range(len(names) - 1), names[:-1], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names) - 1), names[1:])
    axes.tick_params(length=0, labelcolor=INK, labelsize=10)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[-1, -0.5, 0, 0.5, 1], label="correlation")
    bar.outline.set_visible(False)
    return figure


def _panel_layout(trajectories: int, observables: int) -> np.ndarray:
    """Which `Panel` goes where, [rows, columns], with None for a place that stays empty."""
    trajectories = min(trajectories, MAX_TRAJECTORIES)
    panels = [Panel(trajectory, observable) for trajectory in range(trajectories) for observable in range(observables)]
    one_column = trajectories == 1 and observables > 1
    columns = 1 if one_column else min(trajectories, COLUMNS) if observables == 1 else observables
    if trajectories > SIDE_BY_SIDE and observables == 2:
        columns = 2 * observables
    rows = -(-len(panels) // columns)
    layout = np.empty(rows * columns, dtype=object)
    for place, panel in enumerate(panels):
        layout[place] = panel
    return layout.reshape(rows, columns)


def _share_by_observable(grid: np.ndarray, layout: np.ndarray) -> None:
    """Give the panels of each observable the same axis of values."""
    first: dict[int, Axes] = {}
    for axes, panel in zip(grid.flat, layout.flat, strict=True):
        if panel is not None and first.setdefault(panel.observable, axes) is not axes:
            axes.sharey(first[panel.observable])


def _draw_fit_panel(
    axes: Axes, result: FitResult, panel: Panel, curves: Curves, limits: Limits, logarithmic: bool
) -> None:
    """Draw one observable of one trajectory: bands, curve and data."""
    data = result.data.trajectories[panel.trajectory]
    column = panel.observable
    color = color_of(column)
    title = (
        shorten(data.name, 30) if len(result.data.trajectories) > 1 else shorten(observable_title(result, column), 80)
    )
    style_axes(axes, shorten(result.data.time_name), observable_label(result, column), title)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(*limits)
    for edges, alpha in ((curves.prediction, PREDICTION_ALPHA), (curves.band, CURVE_ALPHA)):
        lower, upper = within_reach(edges, column, limits, logarithmic)
        if len(curves.t) > 1:
            axes.fill_between(curves.t, lower, upper, color=color, alpha=alpha, linewidth=0)
        else:
            axes.vlines(curves.t, lower, upper, color=color, alpha=alpha, linewidth=8)
    point = {} if len(curves.t) > 1 else {"marker": "_", "markersize": 14, "markeredgewidth": 1.8}
    axes.plot(curves.t, curves.values[:, column], color=color, linewidth=1.8, **point)
    _draw_values(axes, data, column)
    axes.margins(x=0.015)


def _draw_values(axes: Axes, data: Trajectory, column: int) -> None:
    """Draw the data of a column: dots, and triangles that point to where a censored value lies."""
    censored = sides_of(data, column)
    for side, marker, size in ((0, "o", 5), (-1, "v", 7), (1, "^", 7)):
        of = censored == side
        if of.any():
            values = data.values[of, column]
            style = {"color": INK, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.8}
            axes.plot(data.t[of], values, marker, **style)


def _add_band_legend(figure: Figure, result: FitResult, curves: list[Curves]) -> None:
    """Explain dots, curve and bands above the panels, and say what is not shown."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", linestyle="", color=INK, markersize=5, label="data"),
        Line2D([], [], color=MUTED, linewidth=1.8, label="fitted curve"),
    ]
    if any(has_band(each.band) for each in curves):
        handles.append(Patch(color=MUTED, alpha=0.55, linewidth=0, label="95 % band of the curve"))
    if any(has_band(each.prediction) for each in curves):
        handles.append(Patch(color=MUTED, alpha=0.2, linewidth=0, label="95 % prediction band"))
    sides = sides_in(result)
    for side, marker, words in ((-1, "v", "value below this"), (1, "^", "value above this")):
        if side in sides:
            handles.append(Line2D([], [], marker=marker, linestyle="", color=INK, markersize=6, label=words))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles) if figure.get_figwidth() > 9 else 4,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    count = len(result.data.trajectories)
    if count > MAX_TRAJECTORIES:
        figure.supxlabel(f"the first {MAX_TRAJECTORIES} of {count} trajectories", color=MUTED, fontsize=10)


def _draw_residuals_over_time(axes: Axes, times: list[np.ndarray], series: list[np.ndarray], color: int) -> None:
    """Draw the residuals of one observable over time, those of one trajectory joined by a line."""
    axes.axhline(0, color=MUTED, linewidth=1)
    for edge in (-1.96, 1.96):
        axes.axhline(edge, color=MUTED, linewidth=0.9, linestyle="--")
    for t, residuals in zip(times, series, strict=True):
        present = np.isfinite(residuals)
        axes.plot(t[present], residuals[present], color=color_of(color), linewidth=0.7, alpha=0.5)
        axes.plot(t, residuals, "o", color=color_of(color), **_dots(sum(map(len, series))))


def _draw_normal_quantiles(axes: Axes, residuals: np.ndarray, color: int) -> None:
    """Draw residuals in order against the quantiles of a normal distribution, with a 95 % band for each."""
    middle, lower, upper, ordered, _ = normal_quantiles(residuals)
    axes.fill_between(middle, lower, upper, color=GRID, linewidth=0, zorder=0.5)
    axes.plot(middle, middle, color=MUTED, linewidth=1)
    axes.plot(middle, ordered, "o", color=color_of(color), **_dots(len(ordered)))


def _dots(count: int) -> dict[str, Any]:
    """What so many dots look like: with a white edge, where they are few enough not to hide each other by it."""
    if count <= MANY_DOTS:
        return {"markersize": 5, "markeredgecolor": "white"}
    return {"markersize": 3.5, "markeredgewidth": 0}
