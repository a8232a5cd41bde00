"""Registry of the names that a recipe may use; the code behind a name is imported when it is needed.

This is the only place where a lower layer of the package refers to a higher one, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from abkd.metrics import METRICS, Metric


class TaskFacts(Protocol):
    """Attributes of a task that settings and metrics use; see :class:`abkd.tasks.Task`."""

    fields: frozenset[str]
    metrics: tuple[Metric, ...]
    embeds_tokens: bool


def tasks() -> Mapping[str, TaskFacts]:
    """The tasks by name."""
    return importlib.import_module("abkd.tasks").TASKS


def held_out_metrics(task: str) -> dict[str, Metric]:
    """The metrics that an evaluation of this task may report, by name (in the log with the prefix ``eval_``)."""
    common = [metric for metric in METRICS.values() if metric.of_every_task]
    return {metric.name: metric for metric in (*common, *tasks()[task].metrics)}


def find_metric(name: str) -> Metric | None:
    """The metric of this name in the table, or else among those that a task defines itself; None if there is none."""
    if name in METRICS:
        return METRICS[name]
    return next((metric for task in tasks().values() for metric in task.metrics if metric.name == name), None)
