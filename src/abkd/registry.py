"""Names that a recipe uses, and the code that they stand for, loaded when it is named.

The only place where a lower room reaches a higher one: what a text may name is known by whoever brings it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol


class TaskFacts(Protocol):
    """What settings and metrics need to know of a task; see :class:`abkd.tasks.Task`."""

    name: str
    row_noun: str
    fields: frozenset[str]
    metrics: tuple[str, ...]
    data_hint: str


def tasks() -> Mapping[str, TaskFacts]:
    """The tasks by name."""
    return importlib.import_module("abkd.tasks").TASKS
