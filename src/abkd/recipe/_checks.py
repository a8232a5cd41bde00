"""What cannot be meant although every single value could: ranges, combinations, files, the output directory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkd.errors import OutputDirError
from abkd.recipe._fields import samples

if TYPE_CHECKING:
    from abkd.recipe._recipe import Recipe

LORA = {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
DATASET = {"dataset_config", "dataset_train_split", "dataset_test_split"}
_WEIGHTS = ("ce_weight", "kd_weight")

_ABOVE_ZERO: tuple[Callable[[float], bool], str] = (lambda x: x > 0, "above 0")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, "0 or more")
_AT_LEAST_ONE: tuple[Callable[[float], bool], str] = (lambda x: x >= 1, "1 or more")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "kd_ratio": (lambda x: 0 <= x <= 1, "between 0 and 1 (the loss is (1 - kd_ratio)·CE + kd_ratio·D)"),
    "kd_temperature": _ABOVE_ZERO,
    "ce_weight": _NOT_NEGATIVE,
    "kd_weight": _NOT_NEGATIVE,
    "lm_coef": _NOT_NEGATIVE,
    "max_length": (lambda x: x >= 2, "2 or more (a row predicts a token from the ones before it)"),
    "memory_budget_mb": _ABOVE_ZERO,
    "eval_fraction": (lambda x: 0 <= x < 1, "from 0 (hold nothing out) to below 1"),
    "lora_r": _AT_LEAST_ONE,
    "lora_alpha": _AT_LEAST_ONE,
    "lora_dropout": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "learning_rate": _NOT_NEGATIVE,
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
}


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """One sentence for each value out of its range and each combination that cannot be meant."""
    return [*_out_of_range(values), *_models(values), *_data(values), *_weights(values), *_lora(values)]


def missing_files(recipe: Recipe) -> list[str]:
    """One sentence for each data file or local model directory that is not there."""
    problems = []
    for name in ("train_file", "eval_file", "pretrain_file"):
        path = getattr(recipe, name)
        if path is not None and not Path(path).is_file():
            problems.append(f"{name}: there is no file {path!r}" + _seen_from(path))
    for name in ("model_name_or_path", "teacher_model_name_or_path"):
        path = getattr(recipe, name)
        if _is_local(path) and not Path(path).is_dir():
            problems.append(f"{name}: there is no model directory {path!r}" + _seen_from(path))
    return problems


def output_dir(path: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a directory in use, and a resume from nothing.

    Raises:
        OutputDirError: with the three ways out.
    """
    if path.exists() and not path.is_dir():
        raise OutputDirError(f"output_dir: {str(path)!r} is a file; name a directory")
    if resume and overwrite:
        raise OutputDirError("--resume goes on in output_dir, --overwrite_output_dir begins anew; choose one")
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if resume:
        if not any(re.fullmatch(r"checkpoint-\d+", name) for name in names):
            raise OutputDirError(
                f"--resume wants a checkpoint in {str(path)!r}, which has none; begin without --resume"
            )
    elif names and not overwrite:
        raise OutputDirError(
            f"output_dir: {str(path)!r} is in use (it holds {names[0]}{', …' * (len(names) > 1)}); name another "
            "--output_dir, or continue with --resume, or replace it with --overwrite_output_dir"
        )


def _out_of_range(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} must be {words}, but is {values[name]!r}"
        for name, (fits, words) in _RANGES.items()
        if not all(fits(value) for value in samples(values.get(name)) if isinstance(value, int | float))
    ]


def _models(values: Mapping[str, Any]) -> list[str]:
    roles = {"model_name_or_path": "the student", "teacher_model_name_or_path": "the teacher"}
    return [
        f"{name} is missing: {role}, a directory or a hub name" for name, role in roles.items() if not values.get(name)
    ]


def _data(values: Mapping[str, Any]) -> list[str]:
    file, dataset = values.get("train_file"), values.get("dataset_name")
    problems = []
    if file and dataset:
        problems.append(f"train_file ({file!r}) and dataset_name ({dataset!r}) are both set; keep one (null unsets)")
    if not file and not dataset:
        problems.append("no data: set train_file (JSONL, CSV or parquet) or dataset_name (a hub name)")
    if not dataset:
        problems += [f"{name} belongs to dataset_name, which is not set" for name in sorted(DATASET & values.keys())]
    held_out = [name for name in ("eval_file", "dataset_test_split", "eval_fraction") if name in values]
    if len(held_out) > 1:
        problems.append(f"{' and '.join(held_out)} both say which rows are held out; keep one")
    lm_coef = values.get("lm_coef", 0)
    if lm_coef and "pretrain_file" not in values:
        problems.append(f"lm_coef is {lm_coef!r}, but there is no plain text for it; set pretrain_file")
    if "pretrain_file" in values and not lm_coef:
        problems.append(
            "pretrain_file is read only for the language-modelling term; set lm_coef above 0 (the paper: 1.0)"
        )
    return problems


def _weights(values: Mapping[str, Any]) -> list[str]:
    given = [name for name in _WEIGHTS if name in values]
    if "kd_ratio" in values and given:
        return [f"kd_ratio is the short form of ce_weight and kd_weight; keep it, or {' and '.join(given)}, not both"]
    if values.get("kd_weight", 1) == 0 and values.get("ce_weight", 0) == 0 and not values.get("lm_coef"):
        return ["ce_weight and kd_weight are both 0, so there is nothing to learn; set one of them"]
    return []


def _lora(values: Mapping[str, Any]) -> list[str]:
    given = sorted(LORA & values.keys())
    if given and not values.get("use_peft"):
        return [f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} for LoRA; add use_peft: true"]
    return []


def _is_local(path: str) -> bool:
    """Hub names are ``name`` or ``owner/name``; whatever else is a path."""
    return path.startswith((".", "/", "~")) or os.path.isabs(path) or path.count("/") > 1 or "\\" in path


def _seen_from(path: str) -> str:
    return "" if os.path.isabs(path) else f" (looking from {os.getcwd()})"
