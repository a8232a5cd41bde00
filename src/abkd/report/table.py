"""The result table and the headline numbers above it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from abkd.metrics import METRICS, Metric
from abkd.plots.records import having, is_number
from abkd.registry import find_metric
from abkd.report.files import Record


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

    columns: list[Metric]
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
    columns = [metric for metric in _shown_in(rows) if len(having(rows, metric.name)) >= metric.shown_from]
    if not columns:
        return None
    best = {metric.name: _best(rows, metric) for metric in columns}
    return Table(columns, [
        Row(str(row["name"]), [_cell(row, metric, best[metric.name]) for metric in columns], row["name"] == highlight)
        for row in rows
    ])  # fmt: skip


def cards_of(rows: Sequence[Record], highlight: str) -> list[Card]:
    """At most four numbers that the highlighted student changed, the most important first."""
    before = next((row for row in rows if row["name"].startswith("student") and row["name"] != highlight), {})
    after = next((row for row in rows if row["name"] == highlight), {})
    teacher = next((row for row in rows if row["name"] == "teacher"), {})
    both = [
        metric
        for metric in by_rank(_shown_in(rows))
        if metric.rank is not None
        and not metric.part_of
        and is_number(before.get(metric.name))
        and is_number(after.get(metric.name))
    ]
    return [_card(metric, before, after, teacher) for metric in both[:4]]


def by_rank(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics in the order of their importance; those without a rank come last."""
    return sorted(metrics, key=lambda metric: math.inf if metric.rank is None else metric.rank)


def known_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, in the order of the table; metrics that a task defines itself come last."""
    names = dict.fromkeys(names)
    found = [metric for name, metric in METRICS.items() if name in names]
    return found + [metric for name in names if name not in METRICS and (metric := find_metric(name)) is not None]


def _shown_in(rows: Sequence[Record]) -> list[Metric]:
    """The metrics of some models that can be columns."""
    names = (key for row in rows for key in row if key != "name" and not key.endswith("_std"))
    return [metric for metric in known_metrics(names) if metric.shown_from]


def _best(rows: Sequence[Record], metric: Metric) -> float | None:
    values = [row[metric.name] for row in having(rows, metric.name) if row["name"] != "teacher"]
    return best_of(metric, values) if len(values) > 1 else None


def best_of(metric: Metric, values: Iterable[float]) -> float | None:
    """The best of some values of a metric; None if no direction is better."""
    return {"higher": max, "lower": min}[metric.better](values) if metric.better else None


def _cell(row: Record, metric: Metric, best: float | None) -> Cell:
    value, spread = row.get(metric.name), row.get(f"{metric.name}_std")
    if not is_number(value):
        return Cell("–")
    text = f"± {metric.text(spread)}" if is_number(spread) else ""
    return Cell(metric.text(value), text, best=value == best and row["name"] != "teacher")


def _card(
    metric: Metric, before: Mapping[str, float], after: Mapping[str, float], teacher: Mapping[str, float]
) -> Card:
    own, old, new = teacher.get(metric.name), before[metric.name], after[metric.name]
    goal = own if metric.ideal is None else metric.ideal
    shown = metric.text(own) if is_number(own) and metric.ideal is None else ""
    closed = _closed(metric, old, new, goal) if is_number(goal) else None
    return Card(metric.label, metric.heading, metric.text(old), metric.text(new), shown, closed)


def _closed(metric: Metric, before: float, after: float, goal: float) -> float | None:
    """The fraction of the gap from ``before`` to ``goal`` that was closed; for perplexities, of their logarithms."""
    if metric.logarithmic:
        if min(before, after, goal) <= 0:
            return None
        before, after, goal = math.log(before), math.log(after), math.log(goal)
    way = goal - before
    if way == 0 or (way < 0) != (metric.better == "lower"):
        return None  # the student was not behind: there is no gap
    return min(1.0, max(0.0, (after - before) / way))
