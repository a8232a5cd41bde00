"""The figures: time against peak memory of every contestant, and the base case as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abkd.metrics import number
from abkd.plots.style import ACCENT, BLUE, FAINT, GREEN, GREY, INK, MUTED, STYLE, panel, plain_ticks, styled
from abkd.plots.svg import to_svg
from benchmarks._cases import FLOOR, Contestant
from benchmarks._outcomes import Outcome, fastest, of_kind

Line = list[tuple[float, float]]  # points: size, figure
_COLOURS = {"abkd": ACCENT, "trl": BLUE, "liger": GREEN, "textbook": GREY, "floor": INK}


def line_name(one: Contestant) -> str:
    """The name of the curve for a contestant's settings."""
    return one.kind if one.compiled else f"{one.kind} eager"


@styled
def curve_figure(rows: Sequence[Outcome]) -> Figure | None:
    """Time against peak memory for one case: a curve per contestant, the floor as a dashed line; lower left is best."""
    points = [row for row in rows if row.ranked and row.peak_mb]
    if not points:
        return None
    figure, axes = panel(f"{points[0].case.name}: time in ms against peak memory in MB", width=6.4, height=3.6)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    floor = next((row.ms for row in rows if row.contestant == FLOOR), None)
    if floor is not None:
        axes.axhline(floor, color=INK, linestyle=(0, (4, 3)), linewidth=1.0)
        axes.annotate("floor", (1.01, floor), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
    for name in dict.fromkeys(line_name(row.contestant) for row in points):
        _curve(axes, name, [row for row in points if line_name(row.contestant) == name])
    axes.set_ylim(0, 1.12 * max(row.ms or 0.0 for row in points))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=9, labelcolor=MUTED)
    return figure


def _curve(axes: Axes, name: str, rows: Sequence[Outcome]) -> None:
    rows = sorted(rows, key=lambda row: row.peak_mb or 0.0)
    dashed = name.endswith("eager")
    axes.plot(
        [row.peak_mb or 0.0 for row in rows], [row.ms or 0.0 for row in rows], marker="o", markersize=4, label=name,
        color=_COLOURS[rows[0].contestant.kind], linestyle="--" if dashed else "-", linewidth=1.2 if dashed else 1.9,
    )  # fmt: skip
    for row in rows:
        if not row.contestant.setting:
            axes.plot([row.peak_mb or 0.0], [row.ms or 0.0], "o", markersize=8, mfc="none",
                      color=_COLOURS[row.contestant.kind])  # fmt: skip


@styled
def bar_figure(rows: Sequence[Outcome]) -> Figure | None:
    """Time of each contestant of one case relative to the floor, at its defaults; Liger also at its best setting."""
    best = fastest(of_kind(rows, "liger"))
    bars = [row for row in rows if row.ranked and row.times_floor and (not row.contestant.setting or row is best)]
    bars = [row for row in bars if row.contestant != FLOOR]
    if not bars:
        return None
    bars.sort(key=lambda row: row.times_floor or 0.0)
    title = f"{bars[0].case.name}: time / the four matrix products alone"
    figure, axes = panel(title, width=6.0, height=0.85 + 0.26 * len(bars), left=0.26, right=0.92)
    axes.grid(axis="y", visible=False)
    for place, row in enumerate(bars):
        value = row.times_floor or 0.0
        ours = row.contestant.kind == "abkd"
        axes.barh(place, value, height=0.62, color=_COLOURS[row.contestant.kind], alpha=1.0 if ours else 0.6)
        axes.annotate(number(value), (value, place), (5, 0), textcoords="offset points", va="center", fontsize=9,
                      color=ACCENT if ours else INK)  # fmt: skip
    axes.axvline(1.0, color=INK, linestyle=(0, (4, 3)), linewidth=1.0)
    axes.axvline(0.0, color=FAINT, linewidth=0.7)
    axes.set_yticks(range(len(bars)), [row.contestant.name for row in bars])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    return figure


@styled
def series_figure(title: str, lines: dict[str, Line], *, log: bool = True) -> Figure:
    """Measured points over a size on a logarithmic axis, one line per name; ours in the accent colour."""
    figure, axes = panel(title, width=4.9, height=2.9)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    if log:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    for name, points in lines.items():
        colour = _COLOURS.get(name.split(":")[0], MUTED)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name.split(":")[-1])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, labelcolor=MUTED)
    return figure


def save(figure: Figure | None, folder: Path, name: str) -> None:
    """Save a figure as SVG (light and dark) and PNG; None is skipped."""
    if figure is None:
        return
    (folder / f"{name}.svg").write_text(to_svg(figure, name, standalone=True))
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=200)
