"""Several students and their teacher compared in one metric."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abkd.metrics import number
from abkd.plots.records import Record, having
from abkd.plots.style import ACCENT, FAINT, INK, colour_of, panel, plain_ticks, styled


@styled
def comparison_figure(rows: Sequence[Record], key: str, title: str, *, log: bool = False) -> Figure | None:
    """One metric of several students, one row each, with the teacher as a dashed line.

    Args:
        rows: table rows of ``demo.json``: ``{"name": str, key: float | None, key + "_std": float | None}``.
        key: the metric; rows without it are left out.
        title: the name of the metric, with its unit and whether higher or lower is better.
        log: use a logarithmic axis (for perplexities that differ by large factors).
    """
    rows = sorted(having(rows, key), key=lambda row: row["name"] == "teacher")
    if sum(row["name"] != "teacher" for row in rows) < 2:
        return None
    figure, axes = panel(title, height=0.85 + 0.3 * len(rows), left=0.29, right=0.88)
    axes.grid(axis="y", visible=False)
    if log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    for place, row in enumerate(rows):
        _dot(axes, place, row, key)
    axes.set_yticks(range(len(rows)), [str(row["name"]) for row in rows], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK, pad=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if not log:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if min(row[key] for row in rows) < 0 else 0)
    return figure


def _dot(axes: Axes, place: int, row: Record, key: str) -> None:
    name, value, spread = str(row["name"]), float(row[key]), row.get(f"{key}_std")
    color = colour_of(name)
    axes.axhline(place, color=FAINT, linewidth=0.7, zorder=0)
    if name == "teacher":
        axes.axvline(value, color=INK, linestyle=(0, (1, 3)), linewidth=1.0, zorder=0.5)
    if spread:
        axes.plot([value - spread, value + spread], [place, place], color=color, linewidth=4, alpha=0.35)
    axes.plot([value], [place], "D" if name == "teacher" else "o", color=color, markersize=6, label=name, clip_on=False)
    axes.annotate(number(value), (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5,
                  color=color if color == ACCENT else INK)  # fmt: skip
