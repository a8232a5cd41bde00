"""Run a recipe, as ``abkd distill`` does: check, load, train, evaluate, save, report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from transformers.trainer_utils import IntervalStrategy

from abkd.config import DistillConfig
from abkd.data import load_rows
from abkd.errors import ConfigError, OutputDirError
from abkd.models.adapters import check_peft
from abkd.output_dir import OF_CHECKPOINT, check_overwrite, claimed
from abkd.recipe import Recipe, check_same_run, written
from abkd.storage import read_checksummed
from abkd.tasks import task_of
from abkd.trainer import (
    RECIPE_FILE,
    RESULT_FILE,
    DistillTrainer,
    check_hub,
    checkpoints,
    describe,
    newest_whole,
    read_record,
)
from abkd.training_arguments import word

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["RECIPE_FILE", "RESULT_FILE", "build_trainer", "distill", "load_data"]

logger = logging.getLogger("abkd")


@overload
def distill(recipe: Recipe, *, prepare: Callable[[], object] | None = None) -> DistillTrainer: ...
@overload
def distill(recipe: Recipe, resume: bool, *, prepare: Callable[[], object] | None = None) -> DistillTrainer | None: ...
def distill(
    recipe: Recipe, resume: bool = False, *, prepare: Callable[[], object] | None = None
) -> DistillTrainer | None:
    """Run ``recipe`` to the end; its ``output_dir`` then has the student, the metrics and the report.

    Args:
        resume: continue from the newest complete checkpoint in ``output_dir``, or from the first step if the run ended
            before it had one. Only settings that do not affect the weights may differ from the run's recipe.
        prepare: called when everything is loaded and checked, before the first file is written or removed.

    Returns:
        The trainer, or None if the run was already finished.

    Raises:
        AbkdError: see :class:`abkd.recipe.Recipe` and :class:`abkd.trainer.DistillTrainer`.
    """
    recipe.check_ready(resume=resume, output=_first_process())
    with claimed(Path(recipe.output_dir)) if _first_process() else nullcontext():
        if _first_process():  # another run may have claimed the directory first
            recipe.check_ready(resume=resume, models=False)
        return _distill(recipe, resume, prepare)


def _distill(recipe: Recipe, resume: bool, prepare: Callable[[], object] | None) -> DistillTrainer | None:
    directory = Path(recipe.output_dir)
    start = _start_of(recipe, directory, resume)
    changed = _compare(recipe, directory) if start else {}
    if resume and is_finished(directory):
        logger.info("abkd: the run in %s is already finished; nothing to do", directory)
        return None
    config = recipe.distill_config()
    check_hub(config)
    config.overwrite_output_dir = not start  # the trainer empties the folder and ignores its records
    trainer = build_trainer(recipe, config, *load_data(recipe))
    if start:
        _check_data(trainer, directory)
    if prepare is not None:
        prepare()
    trainer.record.recipe, trainer.record.changed = _to_record(recipe), changed
    trainer.train(resume_from_checkpoint=start)
    finish(trainer)
    return trainer


def _start_of(recipe: Recipe, directory: Path, resume: bool) -> bool | str | None:
    """The checkpoint to continue from, True for the newest complete one, None for the first step."""
    if not resume:
        return recipe.config.get("resume_from_checkpoint") or None
    if _has_checkpoint(directory) or is_finished(directory):
        return True
    check_overwrite(directory)
    logger.info("abkd: the run in %s ended before its first checkpoint; starting over at step 0", directory)
    return None


def is_finished(directory: Path) -> bool:
    """Whether the run in a folder is finished, other than by a non-finite loss."""
    result = read_checksummed(directory / RESULT_FILE)
    return result is not None and "failed" not in result


def _has_checkpoint(directory: Path) -> bool:
    """Whether there is a complete checkpoint.

    Raises:
        OutputDirError: all checkpoints are damaged.
    """
    found = checkpoints(directory)
    if not any((checkpoint / OF_CHECKPOINT).exists() for checkpoint in found):  # none was written completely
        return False
    newest_whole(directory)
    return True


def _compare(recipe: Recipe, directory: Path) -> dict[str, list[object]]:
    """Check that a run is resumed with its recipe; log and return the settings that may change and have."""
    changed = check_same_run(recipe, directory, read_record(directory).get("working_directory"))
    if changed:
        listed = "; ".join(f"{name} was {written(then)}, now {written(now)}" for name, (then, now) in changed.items())
        logger.info("abkd: resuming with changed settings, none of which affects the weights: %s", listed)
    return changed


def _check_data(trainer: DistillTrainer, directory: Path) -> None:
    """Raise OutputDirError if the data or the teacher of a resumed run has changed."""
    known, now = read_record(directory), describe(trainer.run)
    for key, what in (("data_fingerprint", "training"), ("held_out_fingerprint", "held-out")):
        if known.get(key) and now[key] and known[key] != now[key]:
            raise OutputDirError(
                f"the run in {directory} was started with other {what} data (fingerprint {known[key]}, now "
                f"{now[key]}): restore the data, or start a new run in another output_dir"
            )
    key = "teacher_fingerprint"
    if known.get(key) and now[key] and known[key] != now[key]:
        raise OutputDirError(
            f"the run in {directory} was started with another teacher (the weights of {now['teacher']} have changed "
            "since): restore them, or start a new run in another output_dir"
        )


def _to_record(recipe: Recipe) -> str:
    """The recipe that reproduces the run, without settings that concern only this start."""
    about_start = ("overwrite_output_dir", "resume_from_checkpoint")
    kept = {name: value for name, value in recipe.config.items() if name not in about_start}
    return replace(recipe, config=kept).to_yaml(resolved=True)


def load_data(recipe: Recipe) -> tuple[Any, Any]:
    """The training rows and the held-out rows (or None) of a recipe; the latter are split off if none are named.

    The split depends on ``data_seed``, not on ``seed``: runs with several seeds are evaluated on the same rows.

    Raises:
        DataError: a file that cannot be used.
    """
    settings = recipe.settings()
    return task_of(settings.task).read(recipe, settings, seed=recipe.config.get("data_seed") or 0)


def build_trainer(recipe: Recipe, config: DistillConfig, train: object, held_out: object) -> DistillTrainer:
    """The trainer of a recipe, with its models loaded.

    Raises:
        ConfigError, DataError, VocabularyError: models, data and settings do not fit each other.
    """
    if held_out is not None and "eval_strategy" not in recipe.config and word(config.eval_strategy) == "no":
        config.eval_strategy = IntervalStrategy("steps" if recipe.streaming else "epoch")
        config.eval_steps = config.save_steps if recipe.streaming else config.eval_steps
    elif held_out is None and word(config.eval_strategy) != "no":
        raise ConfigError(
            "eval_strategy and load_best_model_at_end need held-out rows, got none; set eval_file or eval_fraction"
        )
    config.model_init_kwargs = with_revision(config.model_init_kwargs, recipe.model_revision)
    config.teacher_model_init_kwargs = with_revision(config.teacher_model_init_kwargs, recipe.teacher_model_revision)
    return DistillTrainer(
        recipe.model_name_or_path,
        recipe.teacher_model_name_or_path,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        pretrain_chunks=load_rows(recipe.pretrain_file) if recipe.pretrain_file else None,
        peft_config=_adapters(recipe),
    )


def with_revision(options: dict[str, object] | None, revision: str | None) -> dict[str, object] | None:
    """Options for loading a model, with its revision on the hub if given."""
    return {**(options or {}), "revision": revision} if revision else options


def finish(trainer: DistillTrainer) -> None:
    """Save the student in its original form, write the report, and finally the results of the run."""
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _adapters(recipe: Recipe) -> LoraConfig | None:
    if not recipe.use_peft:
        return None
    check_peft("use_peft")
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        task_type=task_of(recipe.settings().task).peft_task_type,
    )
