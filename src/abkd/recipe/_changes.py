"""Check that a resumed run has the recipe it started with: which settings may change and which may not."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from abkd.errors import ConfigError, OutputDirError
from abkd.recipe._recipe import Recipe
from abkd.recipe._text import read_file, read_mapping

logger = logging.getLogger("abkd")

Changes = dict[str, list[object]]
"""``{name: [then, now]}``"""

_ONLY_SEEN = ("logging_", "log_", "eval_", "save_", "hub_", "push_to_hub", "dataloader_", "include_", "ddp_", "report_")
_FREE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "disable_tqdm", "project"),
    *("per_device_eval_batch_size", "memory_budget_mb", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "merge_adapter", "skip_memory_metrics"),
    *("torch_empty_cache_steps", "dataset_test_split", "allow_code"),
}
_JUDGED_BY_FINGERPRINT = {
    "train_file",
    "train_dir",
    "split_file",
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
}
_NOT_FREE = {"dataloader_drop_last"}
_MODELS = ("model_name_or_path", "teacher_model_name_or_path", "pretrain_file")


def check_same_run(recipe: Recipe, directory: Path, begun_in: str | None = None) -> Changes:
    """Compare a recipe with that of the run in ``directory``; return the changes, all of settings that may change.

    Args:
        begun_in: the working directory that the run was started in, which its paths are relative to.

    Raises:
        OutputDirError: a setting that the weights depend on has changed.
    """
    file = directory / "recipe.yaml"
    then = recorded(file)
    if then is None:
        if os.path.lexists(file):
            logger.warning("abkd: %s cannot be read, so changed settings cannot be detected", file)
        return {}
    changes = _changes(then, read_mapping(recipe.to_yaml(resolved=True), "recipe"), begun_in)
    follows = _follows_evaluations(then)
    other = {name: values for name, values in changes.items() if not _may_change(name) or (follows and _judges(name))}
    if other:
        listed = "; ".join(f"{name} was {written(then)}, now {written(now)}" for name, (then, now) in other.items())
        raise OutputDirError(
            f"the run in {directory} was started with another recipe ({listed}): use the same settings, or start a new "
            "run in another --output_dir"
        )
    return changes


def recorded(file: Path) -> dict[str, object] | None:
    """The settings in the recorded recipe of a run; None if it is missing or cannot be read."""
    try:
        return read_mapping(read_file(file), str(file)) if file.is_file() else None  # reading a pipe would block
    except ConfigError:
        return None


def written(value: object) -> str:
    """A value as messages and the names of runs show it."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _changes(then: Mapping[str, object], now: Mapping[str, object], begun_in: str | None) -> Changes:
    names = [name for name in dict.fromkeys([*then, *now]) if then.get(name) != now.get(name)]
    found = {name: [then.get(name), now.get(name)] for name in names if name not in ("output_dir", *_UNRECORDED)}
    return {
        name: values
        for name, values in found.items()
        if name not in _MODELS or _places(values[0], begun_in) != _places(values[1], None)
    }


_UNRECORDED = ("overwrite_output_dir", "resume_from_checkpoint")


def _may_change(name: str) -> bool:
    return name in _FREE | _JUDGED_BY_FINGERPRINT or (name.startswith(_ONLY_SEEN) and name not in _NOT_FREE)


def _follows_evaluations(recipe: Mapping[str, object]) -> bool:
    """Whether the learning rate or the source depends on the results of evaluations."""
    plateau = recipe.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    return plateau or "Adaptive" in str(recipe.get("source"))


def _judges(name: str) -> bool:
    return name in ("metric_for_best_model", "greater_is_better") or name.startswith("eval_")


def _places(value: object, begun_in: str | None) -> list[object]:
    """Names of models, with folders as absolute paths."""
    texts = value if isinstance(value, list) else [value]
    folders = [os.path.realpath(os.path.join(begun_in or os.getcwd(), str(text))) for text in texts]
    return [folder if os.path.exists(folder) else text for folder, text in zip(folders, texts, strict=True)]
