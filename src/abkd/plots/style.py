"""The common style of all figures: colours, fonts, an empty panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

End = tuple[float, float, str, str]  # where a line ends (x, y in data units), its name there, its colour

# One accent for α-β; the rest is grey, or from the colour-blind safe palette of Okabe and Ito.
INK, MUTED, FAINT, PAPER = "#1f2328", "#6a737d", "#d5d9de", "#fffffe"
ACCENT, BLUE, GREEN, GREY = "#c8501e", "#1f6fb0", "#0f8a6a", "#8b949e"
DARK = {
    INK: "#e6e8eb",
    MUTED: "#9aa4af",
    FAINT: "#3a4048",
    PAPER: "#14171b",
    ACCENT: "#ff8a55",
    BLUE: "#6cb2f0",
    GREEN: "#4fc7a3",
    GREY: "#7f8a96",
}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "none",
}


styled = matplotlib.rc_context(STYLE)  # decorates every function that draws


@styled
def panel(
    title: str, *, width: float = 4.7, height: float = 2.75, left: float = 0.1, right: float = 0.77
) -> tuple[Figure, Axes]:
    """An empty figure with one panel in the common style: width and height in inches, sides as shares of the width."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(left=left, right=right, top=1 - 0.42 / height, bottom=0.5 / height)
    axes.set_title(title, x=(0.02 - left) / (right - left))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure, axes


def plain_ticks(axis: Axis) -> None:
    """Round numbers, written out, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, ends: Sequence[End], gap: float = 12.0) -> None:
    """Write each line's name to the right of its last point; names closer than ``gap`` points are pushed apart."""
    scale = 72 / axes.figure.dpi
    heights = [axes.transData.transform((x, y))[1] * scale for x, y, _, _ in ends]
    places: dict[int, float] = {}
    floor = -math.inf
    for index in sorted(range(len(ends)), key=heights.__getitem__):
        floor = places[index] = max(heights[index], floor + gap)
    for index, (x, y, text, colour) in enumerate(ends):
        axes.annotate(text, (x, y), (7, places[index] - heights[index]), textcoords="offset points",
                      va="center", fontsize=9, color=colour, annotation_clip=False)  # fmt: skip


def colour_of(name: str) -> str:
    """The colour of a student on a whole page: the accent for α-β, blue and green for the pure KLs, otherwise grey."""
    low = name.lower()
    if low == "teacher":
        return INK
    if any(mark in low for mark in ("α", "alpha", "after", "anneal", "→")):
        return ACCENT
    if "forward" in low:
        return BLUE
    return GREEN if "reverse" in low else GREY
