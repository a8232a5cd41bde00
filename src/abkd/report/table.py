"""The result table and the headline numbers above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkd.metrics import DISTANCES
from abkd.plots.records import having, is_number
from abkd.plots.style import number
from abkd.report.files import Record


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of a model: its key, its label, its format, and whether lower or higher is better."""

    key: str
    label: str
    unit: str = ""
    better: str = ""  # "lower", "higher" or neither
    write: Callable[[float], str] = number
    rows: int = 1  # how many models must have it to be worth a column
    spread: Callable[[float], str] = lambda value: f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _hundredths(value: float) -> str:
    return f"{100 * value:.2f}"


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f}"


MEASURES = (
    Measure("base_accuracy", "Base accuracy", "%", "higher", _hundredths, spread=_hundredths),
    Measure("new_accuracy", "New accuracy", "%", "higher", _hundredths, spread=_hundredths),
    Measure("harmonic_mean", "Harmonic mean", "%", "higher", _hundredths, spread=_hundredths),
    Measure("accuracy", "Accuracy", "%", "higher", _hundredths, spread=_hundredths),
    Measure("cross_entropy", "Cross-entropy", "nats", "lower"),
    Measure("perplexity", "Perplexity", "held out", "lower"),
    Measure("forward_kl", "Forward KL", "nats", "lower"),
    Measure("reverse_kl", "Reverse KL", "nats", "lower"),
    Measure("forward_kl_top_k", "Forward KL", "nats, k+1 buckets", "lower"),
    Measure("reverse_kl_top_k", "Reverse KL", "nats, k+1 buckets", "lower"),
    Measure("top1_agreement", "Top-1 agreement", "%", "higher", _percent),
    Measure("rouge_l_greedy", "ROUGE-L", "greedy", "higher"),
    Measure("rouge_l_sampled", "ROUGE-L", "sampled, T=1", "higher"),
    Measure("parameters", "Parameters", "M", "", _millions),
    Measure("tokens_per_second", "Speed", "tokens/s", "", lambda value: f"{value:,.0f}"),
    Measure("train_seconds", "Training", "s", "", lambda value: f"{value:,.0f}", rows=2),
)
CARDS = (
    "harmonic_mean", "accuracy", "rouge_l_sampled", "perplexity", "forward_kl", "forward_kl_top_k", "top1_agreement",
    "reverse_kl", "reverse_kl_top_k",
)  # fmt: skip
IDEAL = {**dict.fromkeys(DISTANCES, 0.0), "top1_agreement": 1.0}  # of a perfect copy, regardless of the teacher


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text, its spread, and whether it is the best among the students."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a model in the table."""

    name: str
    cells: list[Cell]
    highlight: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Columns for which at least one model has a number, and the rows of the models."""

    columns: list[Measure]
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Card:
    """A headline metric: before, after, the teacher's value, and the fraction of the gap that was closed (0..1)."""

    label: str
    unit: str
    before: str
    after: str
    teacher: str
    closed: float | None


def table_of(rows: Sequence[Record], highlight: str) -> Table | None:
    """The result table, or None without rows. The best student of a column is marked where there are two or more."""
    columns = [measure for measure in MEASURES if len(having(rows, measure.key)) >= measure.rows]
    if not columns:
        return None
    best = {measure.key: _best(rows, measure) for measure in columns}
    return Table(columns, [
        Row(str(row["name"]), [_cell(row, measure, best[measure.key]) for measure in columns], row["name"] == highlight)
        for row in rows
    ])  # fmt: skip


def cards_of(rows: Sequence[Record], highlight: str) -> list[Card]:
    """At most four numbers that the highlighted student changed, in the order of :data:`CARDS`."""
    before = next((row for row in rows if row["name"].startswith("student") and row["name"] != highlight), {})
    after = next((row for row in rows if row["name"] == highlight), {})
    teacher = next((row for row in rows if row["name"] == "teacher"), {})
    measures = {measure.key: measure for measure in MEASURES}
    both = [measures[key] for key in CARDS if is_number(before.get(key)) and is_number(after.get(key))]
    return [_card(measure, before, after, teacher) for measure in both[:4]]


def _best(rows: Sequence[Record], measure: Measure) -> float | None:
    values = [row[measure.key] for row in having(rows, measure.key) if row["name"] != "teacher"]
    if len(values) < 2 or not measure.better:
        return None
    return min(values) if measure.better == "lower" else max(values)


def _cell(row: Record, measure: Measure, best: float | None) -> Cell:
    value, spread = row.get(measure.key), row.get(f"{measure.key}_std")
    if not is_number(value):
        return Cell("–")
    text = f"± {measure.spread(spread)}" if is_number(spread) else ""
    return Cell(measure.write(value), text, best=value == best and row["name"] != "teacher")


def _card(measure: Measure, before: Record, after: Record, teacher: Record) -> Card:
    goal = IDEAL.get(measure.key, teacher.get(measure.key))
    shown = measure.write(goal) if is_number(goal) and measure.key not in IDEAL else ""
    closed = _closed(measure, before[measure.key], after[measure.key], goal) if is_number(goal) else None
    return Card(
        measure.label,
        measure.unit,
        measure.write(before[measure.key]),
        measure.write(after[measure.key]),
        shown,
        closed,
    )


def _closed(measure: Measure, before: float, after: float, goal: float) -> float | None:
    """The fraction of the gap from ``before`` to ``goal`` that was closed; for perplexities, of their logarithms."""
    if measure.key == "perplexity":
        if min(before, after, goal) <= 0:
            return None
        before, after, goal = math.log(before), math.log(after), math.log(goal)
    way = goal - before
    if way == 0 or (way < 0) != (measure.better == "lower"):
        return None  # the student was not behind: there is no gap
    return min(1.0, max(0.0, (after - before) / way))
