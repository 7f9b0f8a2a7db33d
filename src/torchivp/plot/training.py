"""The video of a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from torchivp.plot.style import INK, MUTED, color_of, line_style_of, style_axes

_DPI = 100
_MARGIN = 0.1


def save_training_video(
    path: Path,
    t: np.ndarray,
    frames: Sequence[tuple[int, float, np.ndarray]],
    observed: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
    fps: int,
) -> None:
    """Write a GIF: time series on the left, and with several states the plane of the first two on the right.

    Args:
        path: the file.
        t: the times of the curves, [K].
        frames: for each frame the epoch, its loss and the states, [K, n].
        observed: times [T] and observed states [T, n], NaN where missing.
        names: the names of the states.
        fps: frames per second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    planar = len(names) > 1
    figure = Figure(figsize=(10 if planar else 6.5, 4.2), dpi=_DPI, facecolor="white")
    # The axes keep their places from frame to frame.
    figure.subplots_adjust(0.065 if planar else 0.1, 0.13, 0.985, 0.87, wspace=0.22)
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if planar else [figure.subplots()]
    title = figure.text(0.065 if planar else 0.1, 0.94, "", color=INK, fontsize=11, fontweight="bold")
    series = _time_series(panels[0], t, observed, names)
    phase = _phase_plane(panels[1], observed[1], names) if planar else None
    writer = PillowWriter(fps=fps)
    with writer.saving(figure, str(path), _DPI):
        for epoch, loss, states in frames:
            title.set_text(f"epoch {epoch}" + (f"   loss {loss:.4g}" if np.isfinite(loss) else ""))
            for k, line in enumerate(series):
                line.set_ydata(states[:, k])
            if phase is not None:
                phase.set_data(states[:, 0], states[:, 1])
            writer.grab_frame()


def _time_series(
    axes: Axes, t: np.ndarray, observed: tuple[np.ndarray, np.ndarray], names: Sequence[str]
) -> list[Line2D]:
    """Draw the data, and a line for each state that the frames move."""
    times, states = observed
    style_axes(axes, "t", names[0] if len(names) == 1 else "")
    lines = []
    for k, name in enumerate(names):
        axes.plot(times, states[:, k], "o", markersize=3.5, color=color_of(k), alpha=0.5)
        (line,) = axes.plot(t, np.full(len(t), np.nan), color=color_of(k), linestyle=line_style_of(k), label=name)
        lines.append(line)
    axes.set_xlim(t[0], t[-1])
    axes.set_ylim(*_limits(states))
    if len(names) > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(len(names), 6), frameon=False, labelcolor=INK
        )
    return lines


def _phase_plane(axes: Axes, states: np.ndarray, names: Sequence[str]) -> Line2D:
    """Draw the data in the plane of the first two states, and a line that the frames move."""
    style_axes(axes, names[0], names[1])
    axes.plot(states[:, 0], states[:, 1], "o", markersize=3.5, color=MUTED, alpha=0.5)
    axes.set_xlim(*_limits(states[:, 0]))
    axes.set_ylim(*_limits(states[:, 1]))
    return axes.plot([], [], color=color_of(0))[0]


def _limits(states: np.ndarray) -> tuple[float, float]:
    """Limits that show the data with some room, whatever the curves do."""
    low, high = np.nanmin(states), np.nanmax(states)
    room = 2 * _MARGIN * (high - low) or 1.0
    return float(low - room), float(high + room)
