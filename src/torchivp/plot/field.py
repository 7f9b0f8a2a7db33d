"""The direction field of a differential equation in the plane of two of its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes

ARROWS = 21
"""So many arrows stand along each side."""

COLOR = "#B4B4B4"


class DirectionField(NamedTuple):
    """Places, and arrows of length one in the directions that the eye sees, each [ARROWS, ARROWS]; NaN for none."""

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray


def draw_direction_field(
    axes: Axes,
    func: Callable[..., Any],
    t: float,
    rest: torch.Tensor,
    states: Sequence[int] = (0, 1),
) -> None:
    """Draw arrows of one length that point where `dy/dt = func(t, y)` leads, over the limits of `axes`.

    Args:
        axes: where to draw, made square here, and its limits fixed.
        func: the right-hand side, called with one state [n] at a time.
        t: the time at which to look.
        rest: a state [n] which gives the values of the states that are not shown.
        states: the numbers of the states on the horizontal and the vertical axis.
    """
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # which stops them from adapting to the arrows
    axes.set_box_aspect(1)
    field = direction_field(func, t, rest, axes.get_xlim(), axes.get_ylim(), states)
    axes.quiver(
        *field, angles="uv", pivot="mid", color=COLOR, scale=ARROWS * 1.5, width=0.0022, headwidth=4.5, zorder=1,
    )  # fmt: skip


def direction_field(
    func: Callable[..., Any],
    t: float,
    rest: torch.Tensor,
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    states: Sequence[int] = (0, 1),
) -> DirectionField:
    """Where `dy/dt = func(t, y)` leads from places all over square axes.

    Args:
        func: the right-hand side, called with one state [n] at a time.
        t: the time at which to look.
        rest: a state [n] which gives the values of the states that are not shown.
        x_limits: of the horizontal axis.
        y_limits: of the vertical axis.
        states: the numbers of the states on the horizontal and the vertical axis.
    """
    x, y = _cell_centres(*x_limits), _cell_centres(*y_limits)
    grid_x, grid_y = np.meshgrid(x, y)
    time = torch.tensor(t, dtype=rest.dtype)
    slopes = np.full((2, *grid_x.shape), np.nan)
    with torch.no_grad():
        for place in np.ndindex(grid_x.shape):
            point = rest.detach().clone()
            point[states[0]], point[states[1]] = float(grid_x[place]), float(grid_y[place])
            slope = func(time, point)
            slopes[0][place], slopes[1][place] = float(slope[states[0]]), float(slope[states[1]])
    # On square axes, slopes in widths and heights per unit of time have the direction that the eye sees.
    u, v = slopes[0] / (x[-1] - x[0]), slopes[1] / (y[-1] - y[0])
    length = np.hypot(u, v)
    length[length == 0] = np.nan
    return DirectionField(grid_x, grid_y, u / length, v / length)


def _cell_centres(low: float, high: float) -> np.ndarray:
    """The centres of as many equal cells as there are arrows along a side."""
    edges = np.linspace(low, high, ARROWS + 1)
    return (edges[1:] + edges[:-1]) / 2
