"""The look that every picture shares: colours that colour-blind readers can tell apart, quiet axes, sizes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""The colours of Okabe and Ito, without their yellow, which is too pale for a line on white."""

INK = "#222222"
MUTED = "#666666"
GRID = "#E4E4E4"
PAGE = "#FFFFFF"
DPI = 160

NIGHT = {
    **dict(zip(PALETTE, ("#3D9BE0", "#FF8A3D", "#2FC79B", "#E39CC6", "#7CCBF5", "#F2B63D", "#E6E8EB"), strict=True)),
    INK: "#E6E8EB",
    MUTED: "#A0A8B3",
    GRID: "#343A43",
    PAGE: "#16191D",
    "#B4B4B4": "#5B636E",
}
"""What stands for each colour on a dark page; the last is that of direction fields."""


def color_of(index: int) -> str:
    """The colour of the series number `index`; they come round again after the last."""
    return PALETTE[index % len(PALETTE)]


def line_style_of(index: int) -> str:
    """The line style of the series number `index`: another one each time the colours come round."""
    return ("-", "--", ":", "-.")[index // len(PALETTE) % 4]


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of `width` by `height` inches that keeps its parts from overlapping."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def style_axes(axes: Axes, x_label: str = "", y_label: str = "", title: str = "") -> None:
    """Give axes the shared look, and their names."""
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # no years such as 1902.5
    axes.set_xlabel(literal(x_label), color=INK, fontsize=11)
    axes.set_ylabel(literal(y_label), color=INK, fontsize=11)
    if title:
        axes.set_title(literal(title), loc="left", color=INK, fontsize=11, fontweight="bold")


def label_with_unit(name: str, unit: str | None) -> str:
    """`name (unit)`, or the name alone where there is no unit."""
    return f"{name} ({unit})" if unit and unit != "1" else name


def shorten(text: str, length: int = 40) -> str:
    """A text of at most so many characters, its middle left out if need be: names differ at their ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def literal(text: str) -> str:
    """A text for matplotlib in which dollar signs are dollar signs, not the ends of formulas."""
    return text.replace("$", r"\$")
