"""Pictures of samples a posteriori: the marginal of each quantity, and the samples of each two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchivp.plot.style import INK, MUTED, color_of, label_with_unit, new_figure, style_axes

if TYPE_CHECKING:
    from torchivp.fitting import Posterior

MAX_QUANTITIES = 8
BINS = 40
MAX_POINTS = 4000


def plot_posterior(posterior: Posterior, names: Sequence[str] | None = None) -> Figure:
    """Draw the marginals of quantities on the diagonal, and the samples of each two below it.

    The line of a marginal is the mean, the shaded band holds 95 % of the samples. At most 4000 samples are drawn as
    dots, evenly spaced among all.

    Args:
        posterior: what `FitResult.sample` returned.
        names: of the quantities to draw. Default: all, or the first eight.

    Raises:
        KeyError: nothing was sampled that is called so; the message lists the names.
    """
    chosen = list(posterior.samples)[:MAX_QUANTITIES] if names is None else list(names)
    marginals = [posterior[name] for name in chosen]
    flat = [posterior.samples[name].ravel() for name in chosen]
    step = -(-len(flat[0]) // MAX_POINTS)
    count, side = len(chosen), 1.8 if len(chosen) > 1 else 4.0
    figure = new_figure(side * count + 0.6, side * count + 0.6)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        if column > row:
            axes.set_visible(False)
            continue
        if column == row:
            _draw_marginal(axes, flat[row], marginals[row].mean, (marginals[row].lower, marginals[row].upper))
        else:
            axes.plot(flat[column][::step], flat[row][::step], ".", color=color_of(0), markersize=2, alpha=0.25)
        x, y = (label_with_unit(chosen[k], marginals[k].unit) for k in (column, row))
        style_axes(axes, x if row == count - 1 else "", y if column == 0 and row > 0 else "")
        _few_ticks(axes, labels_left=column == 0 and row > 0)
    if names is None and len(posterior.samples) > MAX_QUANTITIES:
        text = f"the first {MAX_QUANTITIES} of {len(posterior.samples)} quantities"
        figure.supxlabel(text, color=MUTED, fontsize=10)
    return figure


def _draw_marginal(axes: Axes, values: np.ndarray, mean: float, interval: tuple[float, float]) -> None:
    axes.axvspan(*interval, color=color_of(0), alpha=0.13, linewidth=0)
    axes.hist(values, bins=BINS, density=True, histtype="step", color=color_of(0))
    axes.axvline(mean, color=INK, linewidth=1)


def _few_ticks(axes: Axes, labels_left: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.tick_params(labelsize=8, labelleft=labels_left)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
