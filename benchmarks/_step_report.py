"""Tables, ratios and a figure of the measurements of ``benchmarks.step``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from abkd.plots.style import ACCENT, GREY, INK, MUTED, PAPER, panel, styled
from benchmarks import _pictures, _tables

PAIRS = {
    "demo": "SmolLM2-135M-Instruct → 15 of its 30 layers",
    "qwen": "random weights in the shape of Qwen",
    "tiny": "tiny random models",
}
MIB = 2**20
Record = Mapping[str, Any]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The figures of one contestant on one pair; those that were not measured are None."""

    pair: str
    contestant: str
    seconds: float | None = None
    first_step: float | None = None
    trained_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_mb: float | None = None
    above_mb: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A claim: ``value`` should be at most (or at least) ``target``."""

    pair: str
    what: str
    value: float
    target: float | None
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Whether the target was met, in one word."""
        if self.target is None:
            return "–"
        met = self.value <= self.target if self.at_most else self.value >= self.target
        return "met" if met else "missed"

    @property
    def wanted(self) -> str:
        """The target as text."""
        return "–" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:g}"


def write(records: Sequence[Record], folder: Path, absent: Mapping[str, str], console: Console) -> None:
    """Tables to the console; ``step.md``, ``step.csv`` and a figure for each pair into ``folder``."""
    rows = summarise(records)
    claims = ratios(records, rows)
    tables = ((_COLUMNS, [_cells(row) for row in rows]), (CLAIM_COLUMNS, [claim_cells(each) for each in claims]))
    for columns, lines in tables:
        _tables.show(console, "", columns, lines)
    for pair in dict.fromkeys(row.pair for row in rows):
        _pictures.save(bars([row for row in rows if row.pair == pair]), folder, f"step_{pair}")
    parts = ["# One training step\n"]
    if records:
        facts = records[-1]["facts"]
        parts += [_tables.about(facts, "python -m benchmarks.step"), f"With transformers {facts['transformers']}.\n"]
    parts += [_tables.markdown(columns, lines) for columns, lines in tables]
    parts += [f"Not run: {name}, {why}.\n" for name, why in absent.items()]
    (folder / "step.md").write_text("\n".join(parts), encoding="utf-8")
    names = list(Row.__dataclass_fields__)
    _tables.write_csv(folder / "step.csv", names, [[getattr(row, name) for name in names] for row in rows])


def summarise(records: Sequence[Record]) -> list[Row]:
    """One row for each contestant of each pair, in the order in which they were first requested."""
    keys = dict.fromkeys((each["job"]["pair"], name) for each in records for name in each["job"]["contestants"])
    return [_row(pair, name, [r for r in records if r["job"]["pair"] == pair]) for pair, name in keys]


def _row(pair: str, name: str, records: Sequence[Record]) -> Row:
    values: dict[str, Any] = {}
    timed = [r["result"] for r in records if r["job"]["kind"] == "time" and name in r["result"]["runs"]]
    if timed:
        # the mean over the batches of each one's median over the rounds; the first batch is a warm-up
        batches = zip(*(result["runs"][name]["seconds"][1:] for result in timed), strict=True)
        seconds = fmean(median(batch) for batch in batches)
        tokens = timed[0]["tokens"][1:]
        values["seconds"] = seconds
        values["trained_per_second"] = fmean(batch["trained"] for batch in tokens) / seconds
        values["tokens_per_second"] = fmean(batch["all"] for batch in tokens) / seconds
        values["loss"] = next(iter(timed[0]["runs"][name]["loss"]), None)
    for result in (r["result"] for r in records if r["job"]["kind"] == "memory" and r["job"]["contestants"] == [name]):
        values["first_step"] = result["first_step"]
        values["peak_mb"] = (result["before"] + result["rise"]) / MIB
        values["above_mb"] = (result["rise"] - result["gradients_and_state"]) / MIB
    return Row(pair, name, **values)


def ratios(records: Sequence[Record], rows: Sequence[Row]) -> list[Ratio]:
    """The claims that the measurements can judge."""
    claims: list[Ratio] = []
    for pair in dict.fromkeys(row.pair for row in rows):
        timed = [each["result"]["runs"] for each in records if each["job"]["pair"] == pair and "runs" in each["result"]]
        named = {row.contestant: row for row in rows if row.pair == pair}
        for what, number, over, under, target, at_most in _CLAIMS:
            value = _of_times(timed, over, under) if number == _SECONDS else _of_memory(named, over, under)
            if value is not None:
                claims.append(Ratio(pair, what, value, target, at_most))
    return claims


def _of_times(rounds: Sequence[Mapping[str, Any]], over: Names, under: Names) -> float | None:
    """The median of the quotients of the same batch in the same round, so that slow rounds cancel out."""
    quotients: list[float] = []
    for runs in rounds:
        if runs.keys() >= {*over, *under}:
            tops, bottoms = (zip(*(runs[name]["seconds"][1:] for name in side), strict=True) for side in (over, under))
            quotients += [sum(top) / sum(bottom) for top, bottom in zip(tops, bottoms, strict=True)]
    return median(quotients) if quotients else None


def _of_memory(named: Mapping[str, Row], over: Names, under: Names) -> float | None:
    (top, *_), (bottom, *_) = over, under
    if top not in named or bottom not in named:
        return None
    mine, theirs = named[top].above_mb, named[bottom].above_mb
    return mine / theirs if mine is not None and theirs is not None and theirs > 0 else None


_AB, _KL, _GKD, _GKD_JS, _STABLE = (
    "abkd α-β",
    "abkd forward KL",
    "trl gkd forward KL",
    "trl gkd default",
    "trl stable loss",
)
_FLOOR = ("sft", "teacher forward")
_SECONDS, _ABOVE = "seconds", "above_mb"
# (claim, quantity, numerator, denominator, target, whether at most); several contestants on a side are summed
_CLAIMS: tuple[tuple[str, str, Names, Names, float | None, bool], ...] = (
    ("abkd α-β / (SFT + teacher forward)", _SECONDS, (_AB,), _FLOOR, 1.05, True),
    ("abkd forward KL / (SFT + teacher forward)", _SECONDS, (_KL,), _FLOOR, 1.05, True),
    ("abkd: α-β / forward KL", _SECONDS, (_AB,), (_KL,), 1.02, True),
    ("paper's loop: α-β / forward KL", _SECONDS, ("paper α-β",), ("paper forward KL",), None, True),
    ("tokens/s, abkd forward KL : TRL GKD forward KL", _SECONDS, (_GKD,), (_KL,), 1.5, False),
    ("tokens/s, abkd α-β : TRL GKD default", _SECONDS, (_GKD_JS,), (_AB,), 1.5, False),
    ("tokens/s, abkd forward KL : TRL's stable loss", _SECONDS, (_STABLE,), (_KL,), None, False),
    ("tokens/s, abkd α-β : the paper's loop α-β", _SECONDS, ("paper α-β",), (_AB,), 2.0, False),
    ("memory above, abkd forward KL : TRL GKD forward KL", _ABOVE, (_KL,), (_GKD,), 0.6, True),
    ("memory above, abkd α-β : TRL GKD default", _ABOVE, (_AB,), (_GKD_JS,), 0.6, True),
    ("memory above, abkd forward KL : TRL's stable loss", _ABOVE, (_KL,), (_STABLE,), None, True),
)


_COLUMNS = ("models", "contestant", "s/step", "first step s", "answer tok/s", "tok/s", "peak MB", "above MB", "loss")
CLAIM_COLUMNS = ("models", "claim", "value", "target", "")


def _cells(row: Row) -> list[str]:
    return [
        row.pair,
        row.contestant,
        _text(row.seconds, ".3f"),
        _text(row.first_step, ".2f"),
        _text(row.trained_per_second, ",.0f"),
        _text(row.tokens_per_second, ",.0f"),
        _text(row.peak_mb, ",.0f"),
        _text(row.above_mb, ",.0f"),
        _text(row.loss, ".5g"),
    ]


def claim_cells(each: Ratio) -> list[str]:
    """A line of the table of claims."""
    return [each.pair, each.what, f"{each.value:.3f}", each.wanted, each.verdict]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


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
