"""Tables and claims of the measurements of ``benchmarks.vision``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console

from benchmarks import _tables

PAIRS = {
    "resnet": "ResNet-56 → ResNet-20, 32×32, 100 classes, 64 images per step",
    "digits": "convolutions 64, 128 → 8, 16, 8×8, 10 classes, 64 images per step",
    "tiny": "a few filters",
}
LONG_STEP = 0.2
"""Steps of at least this many seconds have a target ratio; shorter ones only report milliseconds."""
MIB = 2**20
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """The figures of one contestant on one pair; those that were not measured are None."""

    pair: str
    contestant: str
    ms: float | None = None
    images_per_second: float | None = None
    peak_mb: float | None = None
    above_mb: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Claim:
    """One contestant against another: the ratio with its target, and the difference in milliseconds."""

    pair: str
    what: str
    ratio: float
    ms: float
    target: float | None

    @property
    def verdict(self) -> str:
        """Whether the target was met, in one word."""
        return "–" if self.target is None else "met" if self.ratio <= self.target else "missed"


_CLAIMS = (
    ("abkd ABKD", "abkd KD", 1.03), ("abkd KD", "bare KD", 1.03), ("abkd ABKD", "bare KD", 1.03),
    ("abkd ABKD", "bare α-β", None), ("abkd labels", "bare labels", None), ("abkd ABDKD", "bare KD", None),
    ("abkd ABLSD", "bare KD", None), ("abkd ABTTM", "bare KD", None), ("abkd DIST", "bare KD", None),
    ("abkd KD", "timm KD", None), ("abkd ABKD", "timm KD", None),
    ("abkd KD", "torchdistill KD", None), ("abkd ABKD", "torchdistill KD", None),
)  # fmt: skip
_COLUMNS = ("models", "contestant", "ms/step", "images/s", "peak MB", "above MB", "loss")
_CLAIM_COLUMNS = ("models", "claim", "ratio", "ms more", "at most", "")


def write(records: Sequence[Record], folder: Path, absent: Mapping[str, str], console: Console) -> None:
    """Tables to the console; ``vision.md`` and ``vision.csv`` into ``folder``."""
    rows, made = summarise(records), claims(records)
    tables = ((_COLUMNS, [_cells(row) for row in rows]), (_CLAIM_COLUMNS, [_claim_cells(each) for each in made]))
    parts = ["# One training step of a classifier\n"]
    if records:
        parts.append(_tables.about(records[-1]["facts"], "python -m benchmarks.vision"))
    parts += [f"{name}: {PAIRS[name]}.\n" for name in dict.fromkeys(row.pair for row in rows)]
    for columns, lines in tables:
        _tables.show(console, "", columns, lines)
        parts.append(_tables.markdown(columns, lines))
    parts += [f"Not run: {name}, {why}.\n" for name, why in absent.items()]
    (folder / "vision.md").write_text("\n".join(parts), encoding="utf-8")
    names = list(Row.__dataclass_fields__)
    _tables.write_csv(folder / "vision.csv", names, [[getattr(row, name) for name in names] for row in rows])


def summarise(records: Sequence[Record]) -> list[Row]:
    """One row for each contestant of each pair, in the order in which they were first requested."""
    keys = dict.fromkeys((each["job"]["pair"], name) for each in records for name in each["job"]["contestants"])
    return [_row(pair, name, [r for r in records if r["job"]["pair"] == pair]) for pair, name in keys]


def _row(pair: str, name: str, records: Sequence[Record]) -> Row:
    values: dict[str, Any] = {}
    seconds = steps_of(records, name)
    if seconds:
        first = next(r["result"] for r in records if r["job"]["kind"] == "time")
        typical = fmean(median(each) for each in zip(*seconds, strict=True))
        values = {"ms": 1e3 * typical, "images_per_second": first["images"] / typical}
        losses = first["runs"].get(name, {}).get("loss") or [None]
        values["loss"] = losses[0]
    for record in records:
        if record["job"]["kind"] == "memory" and record["job"]["contestants"] == [name]:
            result = record["result"]
            values["peak_mb"] = (result["before"] + result["rise"]) / MIB
            values["above_mb"] = (result["rise"] - result["gradients_and_state"]) / MIB
    return Row(pair, name, **values)


def steps_of(records: Sequence[Record], name: str) -> list[list[float]]:
    """Seconds of each step after the first, for each round."""
    timed = [r["result"]["runs"] for r in records if r["job"]["kind"] == "time"]
    return [runs[name]["seconds"][1:] for runs in timed if name in runs]


def claims(records: Sequence[Record]) -> list[Claim]:
    """Each pair of contestants: the median over all steps and rounds of the quotient, and of the difference."""
    made = []
    for pair in dict.fromkeys(each["job"]["pair"] for each in records):
        known = [each for each in records if each["job"]["pair"] == pair]
        for ours, other, target in _CLAIMS:
            sides = [[s for each in steps_of(known, name) for s in each] for name in (ours, other)]
            both = list(zip(*sides, strict=False))
            if both:
                ratio, ms = median(a / b for a, b in both), 1e3 * median(a - b for a, b in both)
                promised = target if median(b for _, b in both) >= LONG_STEP else None
                made.append(Claim(pair, f"{ours} / {other}", ratio, ms, promised))
    return made


def _cells(row: Row) -> list[str]:
    figures = ((row.ms, ".2f"), (row.images_per_second, ",.0f"), (row.peak_mb, ",.0f"), (row.above_mb, ",.0f"))
    return [row.pair, row.contestant, *(_text(*each) for each in figures), _text(row.loss, ".5g")]


def _claim_cells(each: Claim) -> list[str]:
    return [each.pair, each.what, f"{each.ratio:.3f}", f"{each.ms:+.2f}", _text(each.target, "g"), each.verdict]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
