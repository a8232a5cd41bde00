"""Checks of a recipe whose values all have the right type: ranges, combinations, missing files and models."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from abkd import training_arguments
from abkd.errors import ConfigError
from abkd.run_inputs import DataSettings
from abkd.sequence_rules import check_streaming
from abkd.setting_rules import OF_TERM, Ranges, fields_of_others, is_unloaded, out_of_range, teacher_problem
from abkd.settings import Settings, settings_of
from abkd.sources import Dataset
from abkd.tasks import TASKS, Task, task_of

LORA = {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "merge_adapter"}
DATASET = {"dataset_config", "dataset_train_split", "dataset_test_split"}
HELD_OUT = ("eval_file", "eval_dir", "dataset_test_split", "split_file")
FILES = ("train_file", "eval_file", "split_file", "pretrain_file")
DIRECTORIES = ("train_dir", "eval_dir")
MODELS = ("model_name_or_path", "teacher_model_name_or_path")
_OF_WRITING = {"max_completion_length", "num_generations", "teacher_model_server_url", "eval_samples"}
_STREAM_SAVES = 500
_RANGES: Ranges = {
    "eval_fraction": (lambda x: 0 <= x < 1, ">= 0 (nothing is held out) and < 1"),
    "lora_r": (lambda x: x >= 1, ">= 1"),
    "lora_alpha": (lambda x: x >= 1, ">= 1"),
    "lora_dropout": (lambda x: 0 <= x < 1, ">= 0 and < 1"),
}


def problems(values: Mapping[str, object]) -> list[str]:
    """One sentence for each value out of range and each invalid combination of a recipe."""
    settings = settings_of(values)
    if settings.task not in TASKS:
        return settings.problems()
    found = [
        *settings.problems({name for name, value in values.items() if value is not False}),
        *out_of_range(values, _RANGES),
    ]
    whole = not is_unloaded(settings)
    found += [*(_models(values, settings) if whole and not found else ()), *_data(values), *_lora(values)]
    found += training_arguments.problems(values)
    return found or [*_of_task(values), *(_streaming(values, settings) if whole else ())]


def expand_short_forms(values: Mapping[str, object]) -> dict[str, object]:
    """The values that short forms stand for."""
    when = training_arguments.intervals({**values, **saves_of_stream(values)})
    if when["eval_strategy"] == "no" and values.get("eval_strategy") is None:
        del when["eval_strategy"]  # with held-out rows the command evaluates after every epoch
    return {**when, **_source(values)}


def saves_of_stream(values: Mapping[str, object]) -> dict[str, int]:
    """Default interval of checkpoints for streamed rows, which are one epoch of any length."""
    unsaid = values.get("save_strategy") is None and values.get("save_steps") is None
    return {"save_steps": _STREAM_SAVES} if values.get("streaming") and unsaid else {}


def _source(values: Mapping[str, object]) -> dict[str, object]:
    source = settings_of(values).short_source()
    return {} if source is None else {"source": source, "lmbda": None, "seq_kd": None}


def _task(values: Mapping[str, Any]) -> Task:
    return task_of(values.get("task", "text-generation"))


def may_find_held_out(values: Mapping[str, object]) -> bool:
    """Whether the held-out set is known only when the data is read."""
    return _task(values).finds_held_out and not values.get("dataset_name")


def unused_fields(values: Mapping[str, object]) -> set[str]:
    """The names of settings that have no effect in this run."""
    names = set(OF_TERM) if values.get("terms") is not None else set()
    names |= fields_of_others(_task(values).name)
    names |= set() if values.get("lr_milestones") else {"lr_decay"}
    names = names if values.get("seq_kd") else {*names, "seq_kd"}
    writes = values["source"] != Dataset() or values.get("eval_samples")
    return names if writes else names | _OF_WRITING


def missing_data(values: Mapping[str, Any]) -> list[str]:
    """One sentence for each data file or directory that does not exist."""
    problems = []
    for name in FILES:
        found = [no_file(path) for path in names(values.get(name))]
        problems += [f"{name}: {why}" for why in found if why]
    for name in DIRECTORIES:
        path = values.get(name)
        if path is not None and not Path(path).is_dir():
            problems.append(f"{name}: there is no directory {path!r}" + _seen_from(path))
    return problems


def missing_models(values: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose name or folder shows that it is unusable, and for each missing package."""
    task, allowed = _task(values), names(values.get("allow_code"))
    given = [(name, path) for name in MODELS for path in names(values.get(name))]
    found = [task.model_problem(path, name, allowed) for name, path in given]
    problems = [problem for problem in found if problem]
    problems += training_arguments.needed_by_models(given)
    if values.get("use_peft") and not training_arguments.PEFT.installed:
        problems.append(training_arguments.PEFT.sentence("use_peft"))
    return problems


def no_file(path: str) -> str:
    """Why this path or pattern cannot be read; "" if it can."""
    if os.path.isfile(path) or (glob.has_magic(path) and glob.glob(path, recursive=True)):
        return ""
    if os.path.isdir(path):
        return f"{path!r} is a directory; name the files in it, for example '{path}/*.jsonl', or set dataset_name"
    if os.path.exists(path):
        return f"{path!r} is a pipe or a device; write it into a file first"
    what = "no file matches" if glob.has_magic(path) else "there is no file"
    return f"{what} {path!r}" + _seen_from(path)


def _models(values: Mapping[str, Any], settings: Settings) -> list[str]:
    found = []
    if not values.get("model_name_or_path"):
        found.append("model_name_or_path is missing: the student, a directory or a hub name")
    teacher = teacher_problem(settings, len(names(values.get("teacher_model_name_or_path"))))
    return found if teacher is None else [*found, teacher]


def _of_task(values: Mapping[str, Any]) -> list[str]:
    names = {field.name for field in fields(DataSettings)}
    data = DataSettings(**{name: value for name, value in values.items() if name in names})
    return _task(values).data_problems(data)


def _streaming(values: Mapping[str, Any], settings: Settings) -> list[str]:
    """The reason why rows cannot be streamed in this run, if any."""
    if not values.get("streaming"):
        return []
    settings.expand_short_forms()
    steps, (packing, group) = values.get("max_steps", -1), (settings.packing, settings.group_by_length)
    try:
        check_streaming(settings.source, settings.teacher, max_steps=steps, packing=packing, group_by_length=group)
    except ConfigError as error:
        return [str(error)]
    return []


def names(value: str | list[str] | None) -> list[str]:
    """One name, several or none as a list."""
    return [] if not value else [value] if isinstance(value, str) else list(value)


def _data(values: Mapping[str, object]) -> list[str]:
    given = [name for name in ("train_file", "train_dir", "dataset_name") if values.get(name)]
    problems = []
    if len(given) > 1:
        named = " and ".join(f"{name} ({values[name]!r})" for name in given)
        problems.append(f"{named} are both set; keep one (unset the other with null in a recipe, or an empty flag)")
    if not given:
        problems.append(_task(values).data_hint)
    if "dataset_name" not in given:
        problems += [f"{name} needs dataset_name, which is not set" for name in sorted(DATASET & values.keys())]
    if values.get("streaming") and (values.get("eval_fraction") or values.get("dataset_test_split")):
        problems.append("no rows can be held out of streamed data: set eval_file")
    held_out = [name for name in (*HELD_OUT, "eval_fraction") if name in values]
    if len(held_out) > 1:
        problems.append(f"{' and '.join(held_out)} both define the held-out set; keep one")
    lm_coef = values.get("lm_coef", 0)
    if lm_coef and "pretrain_file" not in values:
        problems.append(f"lm_coef is {lm_coef!r}, which needs plain text; set pretrain_file")
    if "pretrain_file" in values and not lm_coef:
        problems.append("pretrain_file is used only by the language-modelling term; set lm_coef > 0 (the paper: 1.0)")
    return problems


def _lora(values: Mapping[str, object]) -> list[str]:
    given = sorted(LORA & values.keys())
    if given and not values.get("use_peft"):
        return [f"{', '.join(given)} {'applies' if len(given) == 1 else 'apply'} only to LoRA; set use_peft: true"]
    return []


def _seen_from(path: str) -> str:
    return "" if os.path.isabs(path) else f" (in the working directory {os.getcwd()})"
