"""The picture of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from torchivp.ensembles.summary import EnsembleSummary
from torchivp.plot.style import INK, MUTED, color_of, new_figure, style_axes


def plot_ensemble(
    summary: EnsembleSummary,
    names: Sequence[str] | None = None,
    *,
    t: Any = None,
    time_name: str = "t",
    title: str = "",
) -> Figure:
    """Draw an ensemble over time: the mean of each state, and bands between its quantiles, a panel for each state.

    The bands lie between the smallest and the largest quantile, between the next ones, and so on. The median, if it is
    among the quantiles, is dashed. Without quantiles the band is the mean plus and minus the standard deviation.

    Args:
        summary: of states [T, ...], as `torchivp.ensembles.summarise` makes it.
        names: what the states are called, in order; default `y0`, `y1`, ...
        t: the times, [T]; default those of the summary.
        time_name: the label of the time axis.
        title: a title.

    Raises:
        ValueError: the times are not known, or there are not as many names as states.
        TypeError: the state is not one tensor.
    """
    if not isinstance(summary.mean, torch.Tensor):
        raise TypeError("only ensembles whose state is one tensor can be drawn: summarise the part to draw")
    if summary.t is None and t is None:
        raise ValueError("a summary of tensors has no times: give t, those of their second dimension")
    times = np.asarray(summary.t if t is None else t, dtype=float)
    if summary.mean.ndim == 0 or len(times) != len(summary.mean):
        raise ValueError(
            f"there are {len(times)} times, and the summary has the shape {tuple(summary.mean.shape)}: its first "
            "dimension must be that of time"
        )

    def columns(values: torch.Tensor) -> np.ndarray:
        return values.reshape(len(times), -1).numpy()

    mean = columns(summary.mean)
    names = [f"y{k}" for k in range(mean.shape[1])] if names is None else list(names)
    if len(names) != mean.shape[1]:
        raise ValueError(f"{mean.shape[1]} states need {mean.shape[1]} names, got {len(names)}: {', '.join(names)}")
    bands, median = _bands(summary)
    figure = new_figure(8, 1.2 + 2.4 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
        style_axes(axes, time_name if k == len(names) - 1 else "", name)
        for depth, (low, high, label) in enumerate(bands):
            axes.fill_between(
                times,
                columns(low)[:, k],
                columns(high)[:, k],
                color=color_of(k),
                alpha=0.18 + 0.12 * depth,
                linewidth=0,
                label=label if k == 0 else None,
            )
        if median is not None:
            label = "median" if k == 0 else None
            axes.plot(times, columns(median)[:, k], color=INK, linestyle="--", linewidth=1.2, label=label)
        axes.plot(times, mean[:, k], color=color_of(k), linewidth=1.8, label="mean" if k == 0 else None)
        axes.margins(x=0.01)
    said = [title] if title else []
    if summary.failed:
        said.append(f"{summary.failed} of {summary.rows} rows failed, and are left out")
    if said:
        panels[0].set_title("; ".join(said), loc="left", fontsize=11, color=MUTED if summary.failed else INK)
    figure.legend(loc="outside upper right", ncols=4, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def _bands(
    summary: EnsembleSummary,
) -> tuple[list[tuple[torch.Tensor, torch.Tensor, str]], torch.Tensor | None]:
    """The bands, the widest first, with what they are called, and the median."""
    shares = sorted(summary.quantiles)
    if not shares:
        return [(summary.mean - summary.std, summary.mean + summary.std, "mean ± standard deviation")], None
    pairs = list(zip(shares, reversed(shares), strict=True))[: len(shares) // 2]
    bands = [
        (summary.quantiles[low], summary.quantiles[high], f"{100 * low:g} % to {100 * high:g} %") for low, high in pairs
    ]
    return bands, summary.quantiles.get(0.5)
