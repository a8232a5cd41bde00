"""Several settings, each trained with several seeds: a point for every run, a bar for the mean."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abkd.metrics import number
from abkd.plots.records import Record
from abkd.plots.style import FAINT, INK, colour_of, panel, styled

_LETTERS = 64  # per line of a name
_ROW, _LINE = 0.3, 0.16  # inches of a row, and of each line of its name above it


@styled
def seeds_figure(rows: Sequence[Record], title: str, *, teacher: float | None = None) -> Figure | None:
    """One metric of several runs: a row for each setting, a point for each seed, a bar at their mean.

    Args:
        rows: ``{"name": str, "values": list[float]}``; rows without values are left out.
        title: the name of the metric, with its unit.
        teacher: the value of the teacher, dashed in every row.
    """
    rows = [row for row in rows if row["values"]]
    if not rows:
        return None
    names = [textwrap.fill(str(row["name"]), _LETTERS) for row in rows]
    heights = [_ROW + _LINE * (1 + name.count("\n")) for name in names]
    figure, axes = panel(title, height=1.1 + sum(heights), left=0.04, right=0.86)
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.set_ylim(sum(heights) + 0.18, 0)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = sum(heights[:index])
        axes.annotate(name, (0, top), (0, -4), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="top", fontsize=8.5, color=INK, parse_math=False)  # fmt: skip
        place = top + heights[index] - _ROW / 2
        _points(axes, place, row)
        if teacher is not None:
            ends = [place - _ROW / 2, place + _ROW / 2]
            axes.plot([teacher] * 2, ends, color=INK, linestyle=(0, (3, 2)), linewidth=1.1, label="teacher")
    if teacher is not None:
        axes.annotate(f"teacher {number(teacher)}", (teacher, 0), (4, 3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=8.5, color=INK)  # fmt: skip
    axes.margins(x=0.1)
    return figure


def _points(axes: Axes, place: float, row: Record) -> None:
    values, colour = [float(value) for value in row["values"]], colour_of(str(row["name"]))
    mean = sum(values) / len(values)
    axes.axhline(place, color=FAINT, linewidth=0.7, zorder=0)
    axes.plot(values, [place] * len(values), "o", color=colour, markersize=5, alpha=0.55, label=row["name"])
    axes.plot([mean, mean], [place - _ROW / 3, place + _ROW / 3], color=colour, linewidth=2.4, label="mean")
    axes.annotate(number(mean), (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5,
                  color=INK)  # fmt: skip
