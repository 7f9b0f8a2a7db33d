"""The picture of many starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchivp.plot.contents import start_ends
from torchivp.plot.style import MUTED, color_of, new_figure, style_axes

if TYPE_CHECKING:
    from torchivp.fitting import FitResult


def plot_starts(result: FitResult) -> Figure:
    """Draw where many starts led: the negative log-likelihood that each ended at, above the best, in order.

    A first step with many starts says that the best optimum is found again and again; steps further up are others. The
    axis is linear up to 1 and logarithmic above. Starts that failed are counted.

    Args:
        result: what `fit(..., starts=n)` returned.

    Raises:
        ValueError: the fit was not one from many starts.
    """
    rise, converged, failed = start_ends(result)
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    style_axes(axes, "start, the best first", "negative log-likelihood above the best")
    place = np.arange(1, len(rise) + 1)
    for which, face, label in ((converged, color_of(0), "optimum"), (~converged, "white", "not settled")):
        if which.any():
            axes.plot(place[which], rise[which], "o", color=color_of(0), markerfacecolor=face, label=label)
    axes.plot(place, rise, color=MUTED, linewidth=0.7, zorder=1)
    highest = rise.max(initial=0.0)
    if highest > 1.0:
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(-0.1, max(1.0, 1.5 * highest))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if failed:
        axes.set_title(f"{failed} of {failed + len(rise)} starts failed", color=MUTED, fontsize=10, loc="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    return figure
