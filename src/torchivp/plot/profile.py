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

from torchivp.plot.style import INK, MUTED, color_of, new_figure, style_axes

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
    style_axes(axes, title=profile.name)
    positive = profile.scale == "log" and profile.values[0] > 0
    if positive and profile.values[-1] > WIDE * profile.values[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    low, high = profile.values[0], profile.values[-1]
    axes.axvspan(max(profile.lower, low), min(profile.upper, high), color=color_of(0), alpha=0.13, linewidth=0)
    axes.axhline(profile.fall, color=MUTED, linewidth=0.9, linestyle="--")
    _draw_parabola(axes, profile)
    axes.plot(*_smooth(profile, rise), color=color_of(0), linewidth=1.6)
    axes.plot(profile.values, rise, "o", color=color_of(0), markersize=3.5)
    axes.margins(x=0.1)
    axes.plot([profile.estimate], [0.0], "o", color=INK, markersize=6, markeredgecolor="white")
    margin = 0.04 * profile.fall
    axes.set_ylim(min(rise.min(), 0.0) - margin, max(1.25 * profile.fall, min(rise.max(), 1.6 * profile.fall)))


def _smooth(profile: Profile, rise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve through the points: through the signed roots of the rise, which are nearly a line."""
    log = profile.scale == "log" and profile.values[0] > 0
    x = np.log(profile.values) if log else profile.values
    if (rise < 0).any() or len(x) < 3 or (np.diff(x) <= 0).any():
        return profile.values, rise
    at = np.log(profile.estimate) if log else profile.estimate
    fine = np.linspace(x[0], x[-1], 400)
    root = PchipInterpolator(x, np.sign(x - at) * np.sqrt(rise))(fine)
    return (np.exp(fine) if log else fine), root**2


def _draw_parabola(axes: Axes, profile: Profile) -> None:
    """Draw what the Fisher information says, on the scale of estimation; not for the logit scale."""
    if not np.isfinite(profile.error) or profile.error <= 0 or profile.scale == "logit":
        return
    to_scale, back = (np.log, np.exp) if profile.scale == "log" else (np.asarray, np.asarray)
    at = to_scale(profile.estimate)
    x = np.linspace(to_scale(profile.values[0]), to_scale(profile.values[-1]), 400)
    rise = 0.5 * ((x - at) / profile.error) ** 2
    shown = rise <= 2.0 * profile.fall
    axes.plot(back(x[shown]), rise[shown], color=MUTED, linewidth=1.4, linestyle=":")
