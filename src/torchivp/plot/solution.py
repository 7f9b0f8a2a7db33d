"""Pictures of a `Solution` or a `BatchSolution`: its states over time, and two of them against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchivp.plot.field import draw_direction_field
from torchivp.plot.style import INK, color_of, line_style_of, new_figure, style_axes
from torchivp.solution import BatchSolution, Solution

SMOOTH_POINTS = 1000
ARROW_AT, ARROW_LENGTH = 0.12, 0.04
"""How far along a curve its arrowhead sits, and its length, in widths of the axes."""


def plot_solution(
    solution: Solution | BatchSolution, names: Sequence[str] | None = None, *, time_name: str = "t", title: str = ""
) -> Figure:
    """Draw the states of a solution over time, all in one panel.

    Of a batch every row is drawn, as far as it got: a curve for each row and state, in the colour of the state.

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
    curves = [(t, y.reshape(len(t), -1)) for t, y in _curves(solution)]
    names = _names(names, curves[0][1].shape[1])
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    style_axes(axes, time_name, names[0] if len(names) == 1 else "", title)
    look: dict[str, Any] = {"linewidth": 1.8} if len(curves) == 1 else {"linewidth": 1.2, "alpha": 0.8}
    for number, (t, series) in enumerate(curves):
        for index, name in enumerate(names):
            label = name if number == 0 else None
            style = {"color": color_of(index), "linestyle": line_style_of(index), "label": label}
            axes.plot(t, series[:, index], **style, **look)
    axes.margins(x=0.01)
    if len(names) > 1:
        figure.legend(loc="outside upper right", ncols=min(len(names), 6), frameon=False, fontsize=10, labelcolor=INK)
    return figure


def plot_phase_plane(
    func: Callable[..., Any],
    solution: Solution | BatchSolution,
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
        solution: what `solve_ivp` returned for states [n], or for many at once, [..., n], or for a batch of either.
        states: the numbers of the states on the horizontal and the vertical axis.
        names: what all the states are called, in order; default `y0`, `y1`, ...
        title: a title.

    Raises:
        ValueError: there are fewer than two states, or not as many names as states.
        TypeError: the state is not one real tensor.
    """
    rows = _curves(solution)
    t, y = rows[0]
    if y.ndim < 2 or y.shape[-1] < 2:
        raise ValueError(f"a phase plane needs at least two states, and this solution has shape {y.shape[1:]}")
    names = _names(names, y.shape[-1])
    figure = new_figure(6, 6)
    axes = figure.add_subplot()
    style_axes(axes, names[states[0]], names[states[1]], title)
    axes.grid(False)
    curves = [curve for _, y in rows for curve in y.reshape(len(y), -1, y.shape[-1]).swapaxes(0, 1)]
    for index, curve in enumerate(curves):
        draw_orbit(axes, curve[:, states[0]], curve[:, states[1]], color_of(index))
    draw_direction_field(axes, func, float(t[0]), torch.from_numpy(curves[0][0].copy()), states)
    return figure


def draw_orbit(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Draw one curve in a phase plane, with a dot where it starts and an arrowhead that shows where it goes."""
    axes.plot(x, y, color=color, linewidth=2.0, zorder=3)
    axes.plot(x[0], y[0], marker="o", markersize=7, color=color, markeredgecolor="white", zorder=4)
    axes.autoscale_view()
    place = place_of_arrow(x, y, np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim()))
    if place is not None:
        tail, head = place
        arrow = {"arrowstyle": "-|>", "color": color, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(x[head], y[head]), xytext=(x[tail], y[tail]), arrowprops=arrow, zorder=4)


def place_of_arrow(x: np.ndarray, y: np.ndarray, width: float, height: float) -> tuple[int, int] | None:
    """Between which points of a curve, on axes of this width and height, its arrowhead sits; None if it is short."""
    distance = np.concatenate([[0.0], np.hypot(np.diff(x) / width, np.diff(y) / height).cumsum()])
    if distance[-1] <= ARROW_LENGTH:
        return None
    tip = min(ARROW_AT, distance[-1])
    tail, head = np.searchsorted(distance, [tip - ARROW_LENGTH, tip])
    return int(tail), int(head)


def _curves(solution: Solution | BatchSolution) -> list[tuple[np.ndarray, np.ndarray]]:
    """The times [T] and the states [T, ...] to draw, those of each row, from the dense output where there is one."""
    if not isinstance(solution.y, torch.Tensor) or solution.y.is_complex():
        raise TypeError("only solutions whose state is one real tensor can be drawn: select the part to draw")
    lead = solution.batch_shape if isinstance(solution, BatchSolution) else ()
    if 0 in lead:
        raise ValueError("there is nothing to draw: the batch has no rows")
    t, y = solution.t.detach(), solution.y.detach()
    if solution.sol:
        ends = solution.t_final.detach()
        part = torch.linspace(0.0, 1.0, SMOOTH_POINTS, dtype=ends.dtype, device=ends.device)
        start = t[..., 0] if t.shape[-1] else ends
        t = torch.lerp(start[..., None].expand(*lead, SMOOTH_POINTS), ends[..., None], part)
        y = solution.sol(t).detach()
    shape = y.shape[len(lead) + 1 :]
    count = t.shape[-1]
    rows = zip(t.reshape(-1, count), y.reshape(-1, count, *shape), strict=True)
    curves = [(t.double().cpu().numpy(), y.double().cpu().numpy()) for t, y in rows]
    return [(t[~np.isnan(t)], y[~np.isnan(t)]) for t, y in curves] if lead else curves


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
