"""The results of a run: the last and the best value of each evaluation metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from abkd.metrics import Metric, in_sentence
from abkd.plots.records import is_number
from abkd.registry import find_metric
from abkd.report.files import Record, RunFiles, held_out_values
from abkd.report.table import by_rank, known_metrics

BEST = "Best: the evaluation with the best value, selected on the evaluation set itself, so slightly optimistic."


def result_of(evaluations: Sequence[Record]) -> Record:
    """Last and best value of each evaluation metric with its step and epoch, and the teacher's last value.

    Args:
        evaluations: the log events of a run with evaluation metrics, in order of their step.

    Returns:
        ``{"last": {name: {"value", "step", "epoch"}}, "best": ..., "teacher": {name: value}}`` with names such as
        ``accuracy``. The evaluation before the first step is the best only if there is no other. A last value that is
        not finite is None; best values are always finite. A metric that has no better direction has no best value.
    """
    last: dict[str, Record] = {}
    best: dict[str, Record] = {}
    teacher: dict[str, float] = {}
    for event in evaluations:
        numbers, of_teacher = held_out_values(event)
        teacher |= {name: value for name, value in of_teacher.items() if is_number(value)}
        for name, value in numbers.items():
            if not (value is None or isinstance(value, int | float)):
                continue
            finite = is_number(value)
            last[name] = {"value": value if finite else None, "step": event.get("step", 0), "epoch": event.get("epoch")}
            if not finite:
                if best.get(name, last[name])["step"] == 0:
                    best.pop(name, None)
            elif (metric := find_metric(name)) and metric.better and _better(metric, last[name], best.get(name)):
                best[name] = last[name]
    return {"last": last, "best": best, "teacher": teacher}


def read_result(run_dir: Path) -> Record:
    """:func:`result_of` the evaluations in ``metrics.jsonl`` of a run.

    Raises:
        DataError: there is no run, or one of its files cannot be read.
    """
    return result_of(RunFiles.read(run_dir).evaluations)


def headlines(results: Iterable[Record]) -> tuple[Metric, ...]:
    """The few metrics that summarise these runs: those of the first rank that they have, with their companions."""
    known = known_metrics(name for result in results for name in result["last"])
    first = next((metric.rank for metric in by_rank(known)), None)
    if first is None:
        return ()
    leading = [metric for metric in known if metric.rank == first]
    shown = {name for metric in leading for name in (metric.name, *metric.companions)}
    return tuple(metric for metric in known if metric.name in shown)


def sentences(result: Record) -> list[str]:
    """``accuracy: last 93.12 % (epoch 20), best 93.40 % (epoch 17), teacher 95.00 %``: one for each headline."""
    return [sentence(metric, result) for metric in headlines([result])]


def sentence(metric: Metric, result: Record) -> str:
    """The last, best and teacher's value of one metric."""
    parts = [
        f"{which} {with_unit(metric, result[which][metric.name]['value'])} ({_when(result[which][metric.name])})"
        for which in ("last", "best")
        if metric.name in result[which]
    ]
    if is_number(result["teacher"].get(metric.name)):
        parts.append(f"teacher {with_unit(metric, result['teacher'][metric.name])}")
    return f"{in_sentence(metric.label)}: {', '.join(parts)}"


def with_unit(metric: Metric, value: float | None) -> str:
    """A value as text, with its unit; None means not finite."""
    if value is None:
        return "not finite"
    return metric.text(value) + (f" {metric.heading}" if metric.unit else "")


def _when(point: Record) -> str:
    return f"epoch {point['epoch']:.4g}" if is_number(point.get("epoch")) else f"step {point['step']}"


def _better(metric: Metric, one: Record, other: Record | None) -> bool:
    """Whether ``one`` is the better evaluation; the one before the first step is better than none only."""
    return other is None or other["step"] == 0 or metric.improves(one["value"], other["value"])
