"""Interactive pictures of a fit for web pages and notebooks: values under the pointer, zoom, curves on and off.

plotly draws them, from the numbers that matplotlib's pictures show too (`contents.py`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

try:
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots
except ImportError as error:
    raise ImportError(
        "interactive pictures are drawn by plotly, which is missing: pip install 'torchivp[fit]'"
    ) from error

from torchivp.plot.contents import (
    Curves,
    NormalQuantiles,
    curves_of,
    has_band,
    is_logarithmic,
    normal_quantiles,
    observable_label,
    observable_title,
    phase_plane,
    sides_of,
    start_ends,
    value_limits,
    within_reach,
)
from torchivp.plot.field import ARROWS, COLOR, DirectionField, direction_field
from torchivp.plot.profile import interval_shown, is_wide, parabola, rise_limits, smooth
from torchivp.plot.solution import place_of_arrow
from torchivp.plot.style import GRID, INK, MUTED, PAGE, PALETTE, color_of, shorten

if TYPE_CHECKING:
    from torchivp.fitting import FitResult, Profile

MAX_TRAJECTORIES = 60
FEW_BANDS = 2
"""With more trajectories than this the bands are hidden at first, and a button shows them."""

_CURVE_ALPHA, _PREDICTION_ALPHA = "59", "21"
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = {0: "circle", -1: "triangle-down", 1: "triangle-up"}
_MEASURED = {0: "measured", -1: "known to lie below", 1: "known to lie above"}
_PANEL, _BETWEEN, _TOP, _BOTTOM, _LEGEND = 250, 62, 48, 50, 74
"""Heights in pixels: of a panel, between two, above and below them, and of a legend at most."""

_ESTIMATES_SHOWN = 8


def interactive_fit(result: FitResult) -> Figure:
    """Draw data, fitted curves and bands, a panel for each observable with all trajectories in it, at most 60.

    With one trajectory the legend switches data, curve and bands on and off, with several the trajectories: a click
    switches one, a double click shows it alone. Bands of more than two trajectories are hidden until asked for.

    Args:
        result: what `fit` returned.
    """
    shown = result.data.trajectories[:MAX_TRAJECTORIES]
    curves = [curves_of(result, number) for number in range(len(shown))]
    titles = [observable_title(result, k) for k in range(len(result.data.observables))]
    figure = _panels(titles, result.data.time_name, legend=True)
    filled = []
    for k in range(len(result.data.observables)):
        log = is_logarithmic(result, k)
        limits = value_limits(result, curves, k, log)
        axis: dict[str, Any] = {"type": "log", "tickformat": "~g", "range": list(np.log10(limits))} if log else {}
        axis = {"title_text": _plain(observable_label(result, k)), "range": list(limits), **axis}
        figure.update_yaxes(**axis, row=k + 1, col=1)
        for number, curve in enumerate(curves):
            look = _Look(result, number, k)
            filled += _add_bands(figure, curve, k, look, within=(limits, log))
            _add_curve(figure, result, curve, k, look)
            _add_data(figure, result, number, k, look)
    if len(shown) > FEW_BANDS and filled:
        for number in filled:
            _drawn(figure)[number].fill = "none"
        figure.update_layout(updatemenus=[_switch("bands", filled, figure)])
    if len(result.data.trajectories) > len(shown):
        _note(figure, f"the first {len(shown)} of {len(result.data.trajectories)} trajectories")
    return figure


def interactive_residuals(result: FitResult) -> list[Figure]:
    """Draw the standardised residuals, first over time, then against the normal distribution; see `plot_residuals`.

    Args:
        result: what `fit` returned.
    """
    data = result.data
    several = len(data.trajectories) > 1
    over_time = _panels(data.observables, data.time_name, legend=several, height=190)
    quantiles = _panels(data.observables, "normal quantile", legend=False, height=190)
    for k in range(len(data.observables)):
        series = [result.residuals(number)[:, k] for number in range(len(data.trajectories))]
        ordered = normal_quantiles(np.concatenate(series))
        shown = np.concatenate([ordered.ordered, ordered.lower, ordered.upper])
        highest = max(2.2, 1.08 * float(np.abs(shown).max(initial=0.0)))
        for figure in (over_time, quantiles):
            figure.update_yaxes(title_text="standardised residual", range=[-highest, highest], row=k + 1, col=1)
        for level, dash in ((0.0, "solid"), (-1.96, "dash"), (1.96, "dash")):
            line = {"color": MUTED, "width": 1, "dash": dash}
            place: dict[str, Any] = {"row": k + 1, "col": 1, "exclude_empty_subplots": False}
            over_time.add_hline(level, line=line, layer="below", **place)
        words: list[str] = []
        for number, (trajectory, residuals) in enumerate(zip(data.trajectories, series, strict=True)):
            look = _Look(result, number, k)
            said = [f"{look.title}{_named(data.time_name)} {t:.6g}" for t in trajectory.t]
            words += said
            if number >= MAX_TRAJECTORIES:
                continue
            present = np.isfinite(residuals)
            over_time.add_scatter(
                x=trajectory.t[present], y=residuals[present], mode="lines+markers", line={"width": 0.7},
                marker={"color": look.color, "size": 6}, line_color=look.color, name=look.name or "residuals",
                legendgroup=look.name, showlegend=look.several and k == 0,
                text=[word for word, there in zip(said, present, strict=True) if there],
                hovertemplate="%{text}<br>residual %{y:.3f}<extra></extra>", row=k + 1, col=1,
            )  # fmt: skip
        _add_quantiles(quantiles, ordered, words, k)
    return [over_time, quantiles]


def interactive_phase(result: FitResult, trajectory: int = 0) -> Figure:
    """Draw a fitted curve in the plane of the first two states, with arrows and data; see `plot_phase`.

    Args:
        result: what `fit` returned.
        trajectory: the number of the trajectory.

    Raises:
        ValueError: the model has one state only.
    """
    plane = phase_plane(result, trajectory)
    x, y = plane.curve[:, 0], plane.curve[:, 1]
    seen = plane.data or (np.empty(0), np.empty(0), np.empty(0))
    x_limits, y_limits = (_with_room(np.concatenate(both)) for both in ((x, seen[1]), (y, seen[2])))
    figure = Figure(layout=_layout(title_x=_plain(plane.labels[0]), title_y=_plain(plane.labels[1])))
    figure.update_layout(margin_t=34)
    figure.update_xaxes(range=x_limits, showgrid=False)
    figure.update_yaxes(range=y_limits, showgrid=False)
    rest = torch.from_numpy(plane.curve[0].copy())
    field = direction_field(result.model, float(plane.t[0]), rest, x_limits, y_limits)
    arrows = _arrows(field)
    figure.add_scatter(
        x=arrows[0], y=arrows[1], mode="lines", line={"color": COLOR, "width": 1}, name="direction field",
        hoverinfo="skip",
    )  # fmt: skip
    axes = [f"{_named(label)} %{{{letter}:.5~g}}" for label, letter in zip(plane.labels, "xy", strict=True)]
    place = "<br>".join([f"{_named(result.data.time_name)} %{{customdata:.6~g}}", *axes])
    line = {"color": color_of(0), "width": 2}
    figure.add_scatter(
        x=x, y=y, customdata=plane.t, mode="lines" if len(x) > 1 else "markers", line=line, name="fitted curve",
        hovertemplate=f"fitted<br>{place}<extra></extra>",
    )  # fmt: skip
    if plane.data is not None:
        marker = {"color": INK, "size": 7, "line": {"color": PAGE, "width": 1}}
        figure.add_scatter(
            x=seen[1], y=seen[2], customdata=seen[0], mode="markers", marker=marker, name="data",
            hovertemplate=f"measured<br>{place}<extra></extra>",
        )  # fmt: skip
    start = {"color": color_of(0), "size": 9, "line": {"color": PAGE, "width": 1}}
    figure.add_scatter(x=x[:1], y=y[:1], marker=start, mode="markers", showlegend=False, hoverinfo="skip")
    ends = place_of_arrow(x, y, x_limits[1] - x_limits[0], y_limits[1] - y_limits[0])
    if ends is not None:
        tail, head = ends
        figure.add_annotation(
            x=x[head], y=y[head], ax=x[tail], ay=y[tail], axref="x", ayref="y", text="", arrowhead=2, arrowsize=1.4,
            arrowwidth=2, arrowcolor=color_of(0),
        )  # fmt: skip
    return figure


def interactive_starts(result: FitResult) -> Figure:
    """Draw where many starts led, the best first, with the values that each ended at; see `plot_starts`.

    Args:
        result: what `fit(..., starts=n)` returned.

    Raises:
        ValueError: the fit was not one from many starts.
    """
    ends = start_ends(result)
    figure = Figure(layout=_layout(title_x="start, the best first", title_y="nll above the best", height=360))
    words = [_values_at(result, attempt.theta) for attempt in result.attempts if np.isfinite(attempt.nll)]
    place, height = np.arange(1, len(ends.rise) + 1), _linear_then_log(ends.rise)
    figure.add_scatter(
        x=place, y=height, mode="lines", line={"color": MUTED, "width": 0.7}, showlegend=False, hoverinfo="skip"
    )
    for which, face, name in ((ends.converged, color_of(0), "optimum"), (~ends.converged, PAGE, "not settled")):
        chosen = np.flatnonzero(which)
        if len(chosen):
            figure.add_scatter(
                x=place[chosen], y=height[chosen], mode="markers", name=name,
                marker={"color": face, "size": 8, "line": {"color": color_of(0), "width": 1.5}},
                customdata=ends.rise[chosen], text=[words[number] for number in chosen],
                hovertemplate=f"number %{{x}}, {name}<br>nll above the best %{{customdata:.4~g}}<br>%{{text}}"
                "<extra></extra>",
            )  # fmt: skip
    highest = float(ends.rise.max(initial=0.0))
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if highest <= 1 else [0.0, 0.5, *_powers(highest)]
    figure.update_yaxes(
        tickvals=_linear_then_log(np.array(ticks)), ticktext=[f"{tick:g}" for tick in ticks], rangemode="tozero"
    )
    figure.update_xaxes(range=[0.5, max(len(ends.rise), 1) + 0.5], tickformat="d")
    if ends.failed:
        _note(figure, f"{ends.failed} of {ends.failed + len(ends.rise)} starts failed")
    return figure


def interactive_profile(profile: Profile) -> Figure:
    """Draw a profile likelihood; see `plot_profiles`.

    Args:
        profile: one of what `FitResult.profiles` returned.
    """
    figure = Figure(layout=_layout(title_x=_plain(shorten(profile.name)), title_y="rise of the nll", height=260))
    figure.update_layout(margin_t=32, showlegend=False)
    if is_wide(profile):
        figure.update_xaxes(type="log")
    figure.update_yaxes(range=list(rise_limits(profile)))
    low, high = interval_shown(profile)
    figure.add_vrect(low, high, fillcolor=color_of(0) + _PREDICTION_ALPHA, line_width=0, layer="below")
    figure.add_hline(profile.fall, line={"color": MUTED, "width": 1, "dash": "dash"})
    name = _named(profile.name)
    said = "<br>".join([f"{name} %{{x:.5~g}}", "nll risen by %{y:.4~g}<extra></extra>"])
    x, y = parabola(profile)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": MUTED, "width": 1.5, "dash": "dot"}, hovertemplate=f"parabola<br>{said}"
    )
    x, y = smooth(profile)
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": color_of(0), "width": 1.7}, hoverinfo="skip")
    figure.add_scatter(
        x=profile.values, y=profile.nll - profile.nll_min, mode="markers", marker={"color": color_of(0), "size": 5},
        hovertemplate=said,
    )  # fmt: skip
    marker = {"color": INK, "size": 9, "line": {"color": PAGE, "width": 1}}
    figure.add_scatter(
        x=[profile.estimate], y=[0.0], mode="markers", marker=marker, hovertemplate=f"estimate<br>{said}"
    )
    return figure


def interactive_pictures(result: FitResult, profiles: Mapping[str, Profile]) -> dict[str, list[Figure]]:
    """All that can be drawn of a fit, by what the pictures of matplotlib are called in a report.

    Args:
        result: what `fit` returned.
        profiles: what its `profiles` returned; may be empty.
    """
    figures = {"fit": [interactive_fit(result)], "residuals": interactive_residuals(result)}
    if len(result.model.states) > 1:
        figures["phase"] = [interactive_phase(result)]
    if result.attempts:
        figures["starts"] = [interactive_starts(result)]
    if profiles:
        figures["profiles"] = [interactive_profile(profile) for profile in profiles.values()]
    return figures


class _Look:
    """How an observable of a trajectory is drawn and called."""

    def __init__(self, result: FitResult, number: int, column: int):
        self.several = len(result.data.trajectories) > 1
        index = number if self.several else column
        self.color, self.dash = color_of(index), _DASHES[index // len(PALETTE) % len(_DASHES)]
        name = result.data.trajectories[number].name
        self.name = _plain(shorten(name)) if self.several else ""
        self.title = f"<b>{_named(name)}</b><br>" if name else ""
        self.first = column == 0


def _panels(titles: Sequence[str], x_title: str, *, legend: bool, height: int = _PANEL) -> Figure:
    """A column of panels with a common horizontal axis, and room for a legend."""
    rows = len(titles)
    inside = height * rows + _BETWEEN * (rows - 1)
    figure = make_subplots(
        rows, 1, shared_xaxes=True, vertical_spacing=_BETWEEN / inside if rows > 1 else 0.0,
        subplot_titles=[f"<b>{_plain(shorten(title, 36))}</b>" for title in titles],
    )  # fmt: skip
    figure.layout.template = {}
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_layout(_layout(height=inside + _TOP + _BOTTOM + (_LEGEND if legend else 0)))
    figure.update_layout(margin_b=_BOTTOM + (_LEGEND if legend else 0), legend_y=-_BOTTOM / inside, showlegend=legend)
    figure.update_xaxes(_axis())
    figure.update_xaxes(title_text=_plain(shorten(x_title)), row=rows, col=1)
    figure.update_yaxes(_axis())
    return figure


def _layout(title_x: str = "", title_y: str = "", height: int | None = None) -> dict[str, Any]:
    """The look that every picture shares."""
    axes = {"xaxis": {**_axis(), "title_text": title_x}, "yaxis": {**_axis(), "title_text": title_y}}
    return {
        **(axes if title_x else {}),
        "template": {},
        "height": height,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": _TOP, "b": _BOTTOM},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.15,
            "yanchor": "top",
            "maxheight": _LEGEND,
            "tracegroupgap": 0,
        },
        "hoverlabel": {"bgcolor": PAGE, "font": {"color": INK}, "align": "left", "namelength": -1},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        "uirevision": "kept",
    }


def _axis() -> dict[str, Any]:
    """The look of an axis."""
    return {
        "automargin": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": MUTED,
        "showline": True,
        "ticks": "outside",
        "tickcolor": MUTED,
        "exponentformat": "power",
    }


def _add_bands(figure: Figure, curves: Curves, k: int, look: _Look, within: tuple[Any, bool]) -> list[int]:
    """Draw the bands of an observable that are known; the numbers of what is filled."""
    filled = []
    kinds = (
        (curves.prediction, _PREDICTION_ALPHA, "95 % prediction band"),
        (curves.band, _CURVE_ALPHA, "95 % band of the curve"),
    )
    for edges, alpha, kind in kinds:
        if not has_band(edges, k) or len(curves.t) == 1:
            continue
        lower, upper = within_reach(edges, k, *within)
        common: dict[str, Any] = {
            "x": curves.t, "mode": "lines", "line": {"width": 0, "color": look.color}, "hoverinfo": "skip",
            "legendgroup": look.name or kind, "row": k + 1, "col": 1,
        }  # fmt: skip
        figure.add_scatter(y=_small(lower), showlegend=False, **common)
        figure.add_scatter(
            y=_small(upper), fill="tonexty", fillcolor=look.color + alpha, name=kind,
            showlegend=look.first and not look.several, **common,
        )  # fmt: skip
        filled.append(len(_drawn(figure)) - 1)
    return filled


def _add_curve(figure: Figure, result: FitResult, curves: Curves, k: int, look: _Look) -> None:
    """Draw the fitted curve of an observable; where it is a point, with its bands as bars."""
    said = [f"{look.title}fitted", f"{_named(result.data.time_name)} %{{x:.6~g}}", _value(result, k)]
    numbers = []
    for edges, words in ((curves.band, "95 % band"), (curves.prediction, "a new value")):
        if has_band(edges, k):
            place = len(numbers)
            said.append(f"{words} %{{customdata[{place}]:.4~g}} to %{{customdata[{place + 1}]:.4~g}}")
            numbers += [_small(edges[0][:, k]), _small(edges[1][:, k])]
    alone = len(curves.t) == 1
    more: dict[str, Any] = {"mode": "lines", "line": {"color": look.color, "width": 2, "dash": look.dash}}
    if alone:
        more = {"mode": "markers", "marker": {"color": look.color, "size": 12, "symbol": "line-ew-open"}}
        edges = curves.prediction if has_band(curves.prediction, k) else curves.band
        if has_band(edges, k):
            value = curves.values[:, k]
            arms = {"array": edges[1][:, k] - value, "arrayminus": value - edges[0][:, k]}
            more["error_y"] = {**arms, "symmetric": False, "color": look.color, "width": 0, "thickness": 1.5}
    figure.add_scatter(
        x=curves.t, y=_small(curves.values[:, k]), name=look.name or "fitted curve",
        customdata=np.stack(numbers, axis=-1) if numbers else None, legendgroup=look.name or "fitted curve",
        showlegend=look.first, hovertemplate="<br>".join(said) + "<extra></extra>", row=k + 1, col=1, **more,
    )  # fmt: skip


def _add_data(figure: Figure, result: FitResult, number: int, k: int, look: _Look) -> None:
    """Draw the data of an observable: dots, and triangles that point to where a censored value lies."""
    series = result.data.trajectories[number]
    values, sides = series.values[:, k], sides_of(series, k)
    for side, symbol in _SYMBOLS.items():
        which = np.flatnonzero((sides == side) & np.isfinite(values))
        if not len(which):
            continue
        place = [f"{_named(result.data.time_name)} %{{x:.6~g}}", _value(result, k), "%{text}"]
        said = [f"{look.title}{_MEASURED[side]}", *place]
        color = look.color if look.several else INK
        name = {0: "data", -1: "value below this", 1: "value above this"}[side]
        figure.add_scatter(
            x=series.t[which], y=values[which], mode="markers", name=name, legendgroup=look.name or name,
            marker={"color": color, "size": 9 if side else 7, "symbol": symbol, "line": {"color": PAGE, "width": 1}},
            showlegend=not look.several and not any(trace.name == name for trace in _drawn(figure)),
            text=[_plain(series.rows[number]) for number in which],
            hovertemplate="<br>".join(said) + "<extra></extra>", row=k + 1, col=1,
        )  # fmt: skip


def _add_quantiles(figure: Figure, found: NormalQuantiles, words: Sequence[str], k: int) -> None:
    """Draw residuals in order against the quantiles of a normal distribution."""
    look: dict[str, Any] = {"mode": "lines", "showlegend": False, "hoverinfo": "skip", "row": k + 1, "col": 1}
    figure.add_scatter(x=found.middle, y=found.lower, line={"width": 0, "color": GRID}, **look)
    figure.add_scatter(
        x=found.middle, y=found.upper, fill="tonexty", fillcolor=GRID, line={"width": 0, "color": GRID}, **look
    )
    figure.add_scatter(x=found.middle, y=found.middle, line={"width": 1, "color": MUTED}, **look)
    figure.add_scatter(
        x=found.middle, y=found.ordered, mode="markers", marker={"color": color_of(k), "size": 6}, showlegend=False,
        text=[words[place] for place in found.origin],
        hovertemplate="%{text}<br>residual %{y:.3f}<br>normal quantile %{x:.3f}<extra></extra>", row=k + 1, col=1,
    )  # fmt: skip


def _drawn(figure: Figure) -> list[Any]:
    """What has been drawn so far."""
    return list(figure.data)


def _arrows(field: DirectionField) -> tuple[np.ndarray, np.ndarray]:
    """The arrows of a direction field as one broken line: shaft and head of each, then a gap."""
    width, height = (np.ptp(places) or 1.0 for places in (field.x, field.y))
    x, y, u, v = (part.ravel() for part in (field.x / width, field.y / height, field.u, field.v))
    x, y, u, v = (part[np.isfinite(u)] for part in (x, y, u, v))
    shaft, barb = 0.33 / ARROWS, 0.25 / ARROWS
    tip_x, tip_y = x + shaft * u, y + shaft * v
    gap = np.full(len(x), np.nan)
    turn = [(math.cos(angle), math.sin(angle)) for angle in (math.radians(150), math.radians(-150))]
    barbs_x = [tip_x + barb * (u * c - v * s) for c, s in turn]
    barbs_y = [tip_y + barb * (u * s + v * c) for c, s in turn]
    path_x = np.stack([x - shaft * u, tip_x, gap, barbs_x[0], tip_x, barbs_x[1], gap], axis=-1).ravel() * width
    path_y = np.stack([y - shaft * v, tip_y, gap, barbs_y[0], tip_y, barbs_y[1], gap], axis=-1).ravel() * height
    return path_x, path_y


def _values_at(result: FitResult, theta: np.ndarray) -> str:
    """The free quantities in words, a line for each of the first."""
    values = result.misfit.quantities.single_values(theta)
    lines = [f"{_named(name)} {value:.4g}" for name, value in values.items()]
    return "<br>".join(lines[:_ESTIMATES_SHOWN] + (["…"] if len(lines) > _ESTIMATES_SHOWN else []))


def _linear_then_log(rise: np.ndarray) -> np.ndarray:
    """Heights on an axis that is linear up to 1 and logarithmic above."""
    return np.where(rise > 1, 1 + np.log10(np.maximum(rise, 1)), rise)


def _powers(highest: float) -> list[float]:
    """Powers of ten from one up to a number or the first beyond it, not more than a dozen."""
    last = math.ceil(math.log10(highest))
    return [10.0**power for power in range(0, last + 1, last // 12 + 1)]


def _with_room(values: np.ndarray) -> tuple[float, float]:
    """Limits that hold values with some room."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _switch(label: str, numbers: list[int], figure: Figure) -> dict[str, Any]:
    """A button below the panels that fills and empties what has these numbers."""
    filled, empty = ([{"fill": fill}, numbers] for fill in ("tonexty", "none"))
    button = {"label": label, "method": "restyle", "args": filled, "args2": empty}
    inside = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    return {
        "type": "buttons", "buttons": [button], "active": -1, "x": 1, "xanchor": "right", "y": -22 / inside,
        "yanchor": "top", "bgcolor": PAGE, "bordercolor": MUTED, "font": {"color": INK}, "showactive": False,
    }  # fmt: skip


def _note(figure: Figure, text: str) -> None:
    """Say something above the panels."""
    figure.add_annotation(
        text=text, x=1, xref="paper", xanchor="right", y=1, yref="paper", yanchor="bottom", showarrow=False,
        font={"color": MUTED, "size": 11},
    )  # fmt: skip


def _value(result: FitResult, k: int) -> str:
    return f"{_named(result.data.observables[k])} %{{y:.5~g}}"


def _small(values: np.ndarray) -> np.ndarray:
    """Values in single precision, which is enough to look at, unless some are too small or too large for it."""
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    fits = not size.size or (size.min() > 1e-30 and size.max() < 1e30)
    return values.astype(np.float32) if fits else values


def _named(text: str) -> str:
    """A name in the words under the pointer."""
    return _plain(shorten(text, 48))


def _plain(text: str) -> str:
    """A text that plotly shows as it is: without tags, entities and placeholders of its own."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")
