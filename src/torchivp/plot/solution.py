"""Pictures of a `Solution`: its states over time, and two of them against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchivp.plot.field import draw_direction_field
from torchivp.plot.style import INK, color_of, line_style_of, new_figure, style_axes
from torchivp.solution import Solution

SMOOTH_POINTS = 1000
ARROW_AT, ARROW_LENGTH = 0.12, 0.04
"""How far along a curve its arrowhead sits, and its length, in widths of the axes."""


def plot_solution(
    solution: Solution, names: Sequence[str] | None = None, *, time_name: str = "t", title: str = ""
) -> Figure:
    """Draw the states of a solution over time, all in one panel.

    Args:
        solution: what `solve_ivp` returned. Where it has dense output, the curves are drawn from that and are
            smooth; otherwise the outputs are joined by straight lines.
        names: what the states are called, in order; default `y0`, `y1`, ...
        time_name: the label of the time axis.
        title: a title.

    Raises:
        ValueError: there are not as many names as states.
        TypeError: the state is not one real tensor.
    """
    t, y = _curve(solution)
    series = y.reshape(len(t), -1)
    names = _names(names, series.shape[1])
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    style_axes(axes, time_name, names[0] if len(names) == 1 else "", title)
    for index, name in enumerate(names):
        axes.plot(t, series[:, index], color=color_of(index), linestyle=line_style_of(index), linewidth=1.8, label=name)
    axes.margins(x=0.01)
    if len(names) > 1:
        figure.legend(loc="outside upper right", ncols=min(len(names), 6), frameon=False, fontsize=10, labelcolor=INK)
    return figure


def plot_phase_plane(
    func: Callable[..., Any],
    solution: Solution,
    *,
    states: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw a solution in the plane of two of its states, over the direction field of `func`.

    With more than two states the field is that of the plane through the start of the solution; where `func`
    depends on time, it is that of the first time.

    Args:
        func: the right-hand side, or a model, called as `func(t, y)` with one state [n].
        solution: what `solve_ivp` returned for states [n], or for many at once, [..., n].
        states: the numbers of the states on the horizontal and the vertical axis.
        names: what all the states are called, in order; default `y0`, `y1`, ...
        title: a title.

    Raises:
        ValueError: there are fewer than two states, or not as many names as states.
        TypeError: the state is not one real tensor.
    """
    t, y = _curve(solution)
    if y.ndim < 2 or y.shape[-1] < 2:
        raise ValueError(f"a phase plane needs at least two states, and this solution has shape {y.shape[1:]}")
    names = _names(names, y.shape[-1])
    figure = new_figure(6, 6)
    axes = figure.add_subplot()
    style_axes(axes, names[states[0]], names[states[1]], title)
    axes.grid(False)
    curves = y.reshape(len(t), -1, y.shape[-1])
    for index in range(curves.shape[1]):
        draw_orbit(axes, curves[:, index, states[0]], curves[:, index, states[1]], color_of(index))
    draw_direction_field(axes, func, float(t[0]), torch.from_numpy(curves[0, 0].copy()), states)
    return figure


def draw_orbit(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Draw one curve in a phase plane, with a dot where it starts and an arrowhead that shows where it goes."""
    axes.plot(x, y, color=color, linewidth=2.0, zorder=3)
    axes.plot(x[0], y[0], marker="o", markersize=7, color=color, markeredgecolor="white", zorder=4)
    axes.autoscale_view()
    steps = np.hypot(np.diff(x) / np.ptp(axes.get_xlim()), np.diff(y) / np.ptp(axes.get_ylim()))
    distance = np.concatenate([[0.0], steps.cumsum()])
    if distance[-1] > ARROW_LENGTH:
        tip = min(ARROW_AT, distance[-1])
        tail, head = np.searchsorted(distance, [tip - ARROW_LENGTH, tip])
        arrow = {"arrowstyle": "-|>", "color": color, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(x[head], y[head]), xytext=(x[tail], y[tail]), arrowprops=arrow, zorder=4)


def _curve(solution: Solution) -> tuple[np.ndarray, np.ndarray]:
    """The times [T] and the states [T, ...] to draw, from the dense output where there is one."""
    if not isinstance(solution.y, torch.Tensor) or solution.y.is_complex():
        raise TypeError("only solutions whose state is one real tensor can be drawn: select the part to draw")
    t, y = solution.t.detach(), solution.y.detach()
    if solution.sol:
        t = torch.linspace(float(t[0]), float(t[-1]), SMOOTH_POINTS, dtype=torch.float64, device=t.device)
        y = solution.sol(t).detach()
    return t.double().cpu().numpy(), y.double().cpu().numpy()


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    """The names given, or `y0`, `y1`, ...

    Raises:
        ValueError: there are not as many names as states.
    """
    if names is None:
        return [f"y{index}" for index in range(count)]
    if len(names) != count:
        raise ValueError(f"{count} states need {count} names, got {len(names)}: {', '.join(names)}")
    return list(names)
