"""Pictures of profile likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.interpolate import PchipInterpolator

from torchivp.plot.style import INK, MUTED, color_of, new_figure, shorten, style_axes

if TYPE_CHECKING:
    from torchivp.fitting import Profile

COLUMNS = 3
WIDE = 20.0
"""A profile on the log scale whose values span this factor has a logarithmic axis."""


def plot_profiles(profiles: Mapping[str, Profile]) -> Figure:
    """Draw profile likelihoods, a panel for each: how far the negative log-likelihood rises away from the estimate.

    The interval lies where the curve is below the dashed line. The dotted curve is the parabola of the Fisher
    information: where the two differ, its interval is not to be relied on.

    Args:
        profiles: what `FitResult.profiles` returned.

    Raises:
        ValueError: there are none.
    """
    if not profiles:
        raise ValueError("there are no profiles to draw: plot_profiles(result.profiles())")
    columns = min(len(profiles), COLUMNS)
    rows = -(-len(profiles) // columns)
    figure = new_figure(max(4.4, 3.4 * columns), 0.7 + 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(profiles) :]:
        axes.set_visible(False)
    for place, (axes, profile) in enumerate(zip(grid.flat, profiles.values(), strict=False)):
        _draw(axes, profile)
        if place % columns == 0:
            axes.set_ylabel("rise of the nll", color=INK, fontsize=11)
    handles = [
        Line2D([], [], color=color_of(0), marker="o", markersize=3.5, label="profile"),
        Line2D([], [], color=MUTED, linestyle=":", label="parabola"),
        Line2D([], [], color=MUTED, linestyle="--", label="end of the interval"),
        Patch(color=color_of(0), alpha=0.13, linewidth=0, label="interval"),
    ]
    count = 4 if columns > 1 else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=count, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def _draw(axes: Axes, profile: Profile) -> None:
    """Draw one profile."""
    rise = profile.nll - profile.nll_min
    style_axes(axes, title=shorten(profile.name, 30))
    if is_wide(profile):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.axvspan(*interval_shown(profile), color=color_of(0), alpha=0.13, linewidth=0)
    axes.axhline(profile.fall, color=MUTED, linewidth=0.9, linestyle="--")
    axes.plot(*parabola(profile), color=MUTED, linewidth=1.4, linestyle=":")
    axes.plot(*smooth(profile), color=color_of(0), linewidth=1.6)
    axes.plot(profile.values, rise, "o", color=color_of(0), markersize=3.5)
    axes.margins(x=0.1)
    axes.plot([profile.estimate], [0.0], "o", color=INK, markersize=6, markeredgecolor="white")
    axes.set_ylim(*rise_limits(profile))


def is_wide(profile: Profile) -> bool:
    """Whether a profile has a logarithmic axis."""
    positive = profile.scale == "log" and profile.values[0] > 0
    return bool(positive and profile.values[-1] > WIDE * profile.values[0])


def interval_shown(profile: Profile) -> tuple[float, float]:
    """The part of the interval that the points of the profile reach."""
    return max(profile.lower, float(profile.values[0])), min(profile.upper, float(profile.values[-1]))


def rise_limits(profile: Profile) -> tuple[float, float]:
    """Limits of the axis of the rise, which show where the interval ends."""
    rise = profile.nll - profile.nll_min
    low, high = min(float(rise.min()), 0.0), min(float(rise.max()), 1.6 * profile.fall)
    return low - 0.04 * profile.fall, max(1.25 * profile.fall, high)


def smooth(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """A curve through the points: through the signed roots of the rise, which are nearly a line."""
    rise = profile.nll - profile.nll_min
    log = profile.scale == "log" and profile.values[0] > 0
    x = np.log(profile.values) if log else profile.values
    if (rise < 0).any() or len(x) < 3 or (np.diff(x) <= 0).any():
        return profile.values, rise
    at = np.log(profile.estimate) if log else profile.estimate
    fine = np.linspace(x[0], x[-1], 400)
    root = PchipInterpolator(x, np.sign(x - at) * np.sqrt(rise))(fine)
    return (np.exp(fine) if log else fine), root**2


def parabola(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """What the Fisher information says, on the scale of estimation; empty for the logit scale."""
    if not np.isfinite(profile.error) or profile.error <= 0 or profile.scale == "logit":
        return np.empty(0), np.empty(0)
    to_scale, back = (np.log, np.exp) if profile.scale == "log" else (np.asarray, np.asarray)
    at = to_scale(profile.estimate)
    x = np.linspace(to_scale(profile.values[0]), to_scale(profile.values[-1]), 400)
    rise = 0.5 * ((x - at) / profile.error) ** 2
    shown = rise <= 2.0 * profile.fall
    return back(x[shown]), rise[shown]
