"""The results of a run: the last and the best value of each evaluation metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from abkd.metrics import higher_is_better
from abkd.plots.records import is_number
from abkd.report.files import Record, RunFiles, is_measured
from abkd.report.table import MEASURES, Measure

BEST = "Best: the evaluation with the best value, selected on the evaluation set itself, so slightly optimistic."
_PREFIX, _TEACHER = "eval_", "eval_teacher_"
_HEADLINES = (
    ("base_accuracy", "new_accuracy", "harmonic_mean"),
    ("new_accuracy",),  # if the evaluation set has no image of a base class
    ("accuracy",),
    ("perplexity", "forward_kl", "forward_kl_top_k"),
    ("forward_kl", "top1_agreement"),
    ("forward_kl_top_k", "top1_agreement"),
)


def result_of(evaluations: Sequence[Record]) -> Record:
    """Last and best value of each evaluation metric with its step and epoch, and the teacher's last value.

    Args:
        evaluations: the log events of a run with evaluation metrics, in order of their step.

    Returns:
        ``{"last": {name: {"value", "step", "epoch"}}, "best": ..., "teacher": {name: value}}`` with names such as
        ``accuracy``. The evaluation before the first step is the best only if there is no other. A last value that is
        not finite is None; best values are always finite.
    """
    last: dict[str, Record] = {}
    best: dict[str, Record] = {}
    teacher: dict[str, float] = {}
    for event in evaluations:
        for key, value in event.items():
            if not is_measured(key) or not (value is None or isinstance(value, int | float)):
                continue
            finite = is_number(value)
            if key.startswith(_TEACHER):
                teacher |= {key.removeprefix(_TEACHER): value} if finite else {}
                continue
            name = key.removeprefix(_PREFIX)
            last[name] = {"value": value if finite else None, "step": event.get("step", 0), "epoch": event.get("epoch")}
            if not finite:
                if best.get(name, last[name])["step"] == 0:
                    best.pop(name, None)
            elif name not in best or _better(name, last[name], best[name]):
                best[name] = last[name]
    return {"last": last, "best": best, "teacher": teacher}


def read_result(run_dir: Path) -> Record:
    """:func:`result_of` the evaluations in ``metrics.jsonl`` of a run.

    Raises:
        DataError: there is no run, or one of its files cannot be read.
    """
    return result_of(RunFiles.read(run_dir).evaluations)


def headlines(results: Iterable[Record]) -> tuple[Measure, ...]:
    """The few metrics that summarise these runs."""
    known = {name for result in results for name in result["last"]}
    chosen = next((group for group in _HEADLINES if group[0] in known), ())
    measures = {measure.key: measure for measure in MEASURES}
    return tuple(measures[name] for name in chosen if name in known)


def sentences(result: Record) -> list[str]:
    """``accuracy: last 93.12 % (epoch 20), best 93.40 % (epoch 17), teacher 95.00 %``: one for each headline."""
    return [sentence(measure, result) for measure in headlines([result])]


def sentence(measure: Measure, result: Record) -> str:
    """The last, best and teacher's value of one metric."""
    parts = [
        f"{which} {with_unit(measure, result[which][measure.key]['value'])} ({_when(result[which][measure.key])})"
        for which in ("last", "best")
        if measure.key in result[which]
    ]
    if is_number(result["teacher"].get(measure.key)):
        parts.append(f"teacher {with_unit(measure, result['teacher'][measure.key])}")
    return f"{measure.label[0].lower()}{measure.label[1:]}: {', '.join(parts)}"


def with_unit(measure: Measure, value: float | None) -> str:
    """A value as text, with its unit if that is % or nats; None means not finite."""
    if value is None:
        return "not finite"
    return measure.write(value) + (f" {measure.unit}" if measure.unit.startswith(("%", "nats")) else "")


def _when(point: Record) -> str:
    return f"epoch {point['epoch']:.4g}" if is_number(point.get("epoch")) else f"step {point['step']}"


def _better(name: str, one: Record, other: Record) -> bool:
    if other["step"] == 0:  # nothing was trained yet
        return True
    return one["value"] > other["value"] if higher_is_better(name) else one["value"] < other["value"]
