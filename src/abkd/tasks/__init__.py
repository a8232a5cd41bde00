"""The tasks that can be distilled, one file each; recipes refer to a task by its name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from abkd.errors import ConfigError, shown
from abkd.tasks._objective import open_objective
from abkd.tasks._text_data import prepare_data as prepare_text
from abkd.tasks._writer import teacher_writer, write_completions_for
from abkd.tasks.base import CacheJob, Given, Models, OpenTask, Task
from abkd.tasks.image_classification import ImageClassification
from abkd.tasks.text_classification import TextClassification
from abkd.tasks.text_generation import TextGeneration
from abkd.tasks.zero_shot import ZeroShotImageClassification

__all__ = [
    "TASKS",
    "CacheJob",
    "Given",
    "ImageClassification",
    "Models",
    "OpenTask",
    "Task",
    "TextClassification",
    "TextGeneration",
    "ZeroShotImageClassification",
    "open_objective",
    "prepare_text",
    "task_of",
    "teacher_writer",
    "write_completions_for",
]

_ALL = (
    TextGeneration(),
    ImageClassification(),
    ZeroShotImageClassification(),
    TextClassification(),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})


def task_of(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {shown(name)}")
    return TASKS[name]
