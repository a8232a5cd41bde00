"""Several settings, each trained from several seeds: every run a point, the mean a bar."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abkd.plots.records import Record
from abkd.plots.style import FAINT, INK, colour_of, number, panel, styled

_LETTERS = 24  # of a name in a line


@styled
def seeds_figure(rows: Sequence[Record], title: str, *, teacher: float | None = None) -> Figure | None:
    """One number of several runs: a row for each setting, a point for each seed, a bar at their mean.

    Args:
        rows: ``{"name": str, "values": list[float]}``; rows without values are left out.
        title: what the number is, with its unit.
        teacher: the teacher's, as a dashed line.
    """
    rows = [row for row in rows if row["values"]]
    if not rows:
        return None
    names = [textwrap.fill(str(row["name"]), _LETTERS) for row in rows]
    lines = sum(1 + name.count("\n") for name in names)
    figure, axes = panel(title, height=0.95 + 0.2 * (len(rows) + lines), left=0.36, right=0.86)
    axes.grid(axis="y", visible=False)
    for place, row in enumerate(rows):
        _points(axes, place, row)
    if teacher is not None:
        axes.axvline(teacher, color=INK, linestyle=(0, (4, 3)), linewidth=1.1, label="teacher")
        axes.annotate("teacher", (teacher, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), fontsize=8.5,
                      textcoords="offset points", ha="center", va="bottom", color=INK)  # fmt: skip
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK, pad=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.1)
    return figure


def _points(axes: Axes, place: int, row: Record) -> None:
    values, colour = [float(value) for value in row["values"]], colour_of(str(row["name"]))
    mean = sum(values) / len(values)
    axes.axhline(place, color=FAINT, linewidth=0.7, zorder=0)
    axes.plot(values, [place] * len(values), "o", color=colour, markersize=5, alpha=0.55, label=row["name"])
    axes.plot([mean, mean], [place - 0.28, place + 0.28], color=colour, linewidth=2.4, label="mean")
    axes.annotate(number(mean), (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5,
                  color=INK)  # fmt: skip
