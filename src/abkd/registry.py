"""Registry of the names that a recipe may use; the code behind a name is imported when it is needed.

This is the only place where a lower layer of the package refers to a higher one, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol


class TaskFacts(Protocol):
    """Attributes of a task that settings and metrics use; see :class:`abkd.tasks.Task`."""

    fields: frozenset[str]
    metrics: tuple[str, ...]
    embeds_tokens: bool


def tasks() -> Mapping[str, TaskFacts]:
    """The tasks by name."""
    return importlib.import_module("abkd.tasks").TASKS
