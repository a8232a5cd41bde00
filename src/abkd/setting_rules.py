"""Which settings of ours are out of their range or mean nothing to the task: one list for recipes and for Python."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

from abkd.errors import shown
from abkd.schedules import values_of

KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "None",
}
"""What each kind of value is called in messages."""

WRITING = {"max_completion_length", "num_generations", "teacher_model_server_url", "eval_samples"}
OF_IMAGES = {"augmentation", "image_size", "allow_code"}
OF_CLIP = {"prompt_template", "visual_prompt_length", "visual_prompt_depth", "unlabelled_classes", "split_file"}
OF_TEXT = {*WRITING, "max_length", "packing", "group_by_length", "lm_coef", "pretrain_file", "apply_chat_template"}
OF_TEXT |= {"streaming", "source", "lmbda", "seq_kd", "generation_kwargs", "save_dtype", "merge_adapter"}
_TEXT, _IMAGES, _CLIP = "text-generation", "image-classification", "zero-shot-image-classification"
_OF_OTHERS = {
    _TEXT: {*OF_IMAGES, *OF_CLIP, "train_dir", "eval_dir"},
    _IMAGES: OF_TEXT | OF_CLIP,
    _CLIP: OF_TEXT | {"use_peft"},
}

_ABOVE_ZERO: tuple[Callable[[float], bool], str] = (lambda x: x > 0, "above 0")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, "0 or more")
_WEIGHT: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x <= 1e30, "0 or more, and at most 1e30")
_AT_LEAST_ONE: tuple[Callable[[float], bool], str] = (lambda x: x >= 1, "1 or more")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "kd_ratio": (lambda x: 0 <= x <= 1, "between 0 and 1 (the loss is (1 - kd_ratio)·CE + kd_ratio·D)"),
    "kd_temperature": (lambda x: 1e-4 <= x <= 1e6, "above 0, from 0.0001 to 1000000"),
    "ce_weight": _WEIGHT,
    "kd_weight": _WEIGHT,
    "lm_coef": _WEIGHT,
    "max_length": (lambda x: x >= 2, "2 or more (a row predicts a token from the ones before it)"),
    "memory_budget_mb": _ABOVE_ZERO,
    "eval_fraction": (lambda x: 0 <= x < 1, "from 0 (hold nothing out) to below 1"),
    "lora_r": _AT_LEAST_ONE,
    "lora_alpha": _AT_LEAST_ONE,
    "lora_dropout": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "image_size": _AT_LEAST_ONE,
    "lr_decay": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "visual_prompt_length": _NOT_NEGATIVE,
    "visual_prompt_depth": _NOT_NEGATIVE,
    "lmbda": (lambda x: 0 <= x <= 1, "between 0 (no batch is the student's) and 1 (every batch is)"),
    "max_completion_length": _AT_LEAST_ONE,
    "num_generations": _AT_LEAST_ONE,
    "eval_samples": _NOT_NEGATIVE,
}


def out_of_range(values: Mapping[str, Any]) -> list[str]:
    """One sentence for each value beyond what its setting can mean, also where a schedule comes to it."""
    return [
        f"{name} must be {words}, but is {shown(values[name])}"
        for name, (fits, words) in _RANGES.items()
        if not all(fits(value) for value in values_of(values.get(name)) if isinstance(value, int | float))
    ]


def of_other_tasks(given: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting among those that somebody made which means nothing to the task."""
    task = given.get("task", _TEXT)
    names = sorted(name for name in _OF_OTHERS[task] & given.keys() if given[name] not in (False, 0))
    return [f"{name} means nothing to the task {task}; leave it out, or set another task" for name in names]
