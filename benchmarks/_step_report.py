"""The tables and the figure of ``benchmarks.step``: columns, claims and targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from abkd.plots.style import ACCENT, GREY, INK, MUTED, PAPER, panel, styled
from benchmarks import _pictures
from benchmarks._training_report import Report, Row, Wanted

PAIRS = {
    "demo": "SmolLM2-135M-Instruct → 15 of its 30 layers",
    "qwen": "random weights in the shape of Qwen",
    "tiny": "tiny random models",
}
_AB, _KL, _STABLE, _PAPER = ("abkd α-β",), ("abkd forward KL",), ("trl stable loss",), ("paper α-β",)
_GKD, _GKD_JS = ("trl gkd forward KL",), ("trl gkd default",)
_FLOOR = ("sft", "teacher forward")
_CLAIMS = (
    Wanted("abkd α-β / (SFT + teacher forward)", _AB, _FLOOR, 1.05),
    Wanted("abkd forward KL / (SFT + teacher forward)", _KL, _FLOOR, 1.05),
    Wanted("abkd: α-β / forward KL", _AB, _KL, 1.02),
    Wanted("paper's loop: α-β / forward KL", _PAPER, ("paper forward KL",)),
    Wanted("tokens/s, abkd forward KL : TRL GKD forward KL", _GKD, _KL, 1.5, at_most=False),
    Wanted("tokens/s, abkd α-β : TRL GKD default", _GKD_JS, _AB, 1.5, at_most=False),
    Wanted("tokens/s, abkd forward KL : TRL's stable loss", _STABLE, _KL, at_most=False),
    Wanted("tokens/s, abkd α-β : the paper's loop α-β", _PAPER, _AB, 2.0, at_most=False),
    Wanted("memory above, abkd forward KL : TRL GKD forward KL", _KL, _GKD, 0.6, memory=True),
    Wanted("memory above, abkd α-β : TRL GKD default", _AB, _GKD_JS, 0.6, memory=True),
    Wanted("memory above, abkd forward KL : TRL's stable loss", _KL, _STABLE, memory=True),
)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Save the bars of a pair."""
    _pictures.save(bars(rows), folder, f"step_{rows[0].pair}")


@styled
def bars(rows: Sequence[Row]) -> Figure | None:
    """Seconds per step of each contestant; the floor, fine-tuning plus the teacher's forward, as a dashed line."""
    timed = [row for row in rows if row.seconds is not None]
    if not timed:
        return None
    title = f"Seconds per training step: {PAIRS[timed[0].pair]}"
    figure, axes = panel(title, width=6.2, height=0.85 + 0.3 * len(timed), left=0.24, right=0.9)
    axes.grid(axis="y", visible=False)
    longest = max(row.seconds or 0.0 for row in timed)
    for place, row in enumerate(timed):
        ours = row.contestant.startswith("abkd")
        axes.barh(place, row.seconds or 0.0, height=0.62, color=ACCENT if ours else GREY)
        axes.annotate(f"{row.seconds:.2f} s", (row.seconds or 0.0, place), (5, 0), textcoords="offset points",
                      va="center", fontsize=9, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.2})  # fmt: skip
    known = {row.contestant: row.seconds for row in timed}
    floor = sum(known[name] or 0.0 for name in _FLOOR) if known.keys() >= set(_FLOOR) else None
    if floor is not None:
        axes.axvline(floor, color=INK, linestyle=(0, (1, 3)), linewidth=1.0, zorder=0)
        axes.annotate("sft + teacher forward", (floor, 1), (5, 0), textcoords="offset points", va="center",
                      fontsize=8.5, color=MUTED)  # fmt: skip
    axes.set_yticks(range(len(timed)), [row.contestant for row in timed])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(timed) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.02)
    return figure


REPORT = Report("One training step", PAIRS, {"trained": "answer tok/s", "all": "tok/s"}, _CLAIMS, draw)
