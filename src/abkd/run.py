"""One distillation from a recipe: check, load, train, evaluate, save, report. What ``abkd distill`` does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from transformers.trainer_utils import IntervalStrategy

from abkd.config import DistillConfig
from abkd.data import Rows, load_rows, pretraining_chunks, split_held_out, stream_rows
from abkd.data.formats import has_completions
from abkd.data.progress import progress
from abkd.errors import ConfigError, DataError, OutputDirError
from abkd.image_data import load_image_data
from abkd.models.adapters import check_peft, has_adapters
from abkd.models.loading import load_student, load_tokenizer
from abkd.models.saving import stored_dtype
from abkd.output_dir import OF_CHECKPOINT, check_overwrite, claimed
from abkd.recipe import Recipe, check_same_run, written
from abkd.setting_rules import TEXT
from abkd.storage import read_checksummed
from abkd.trainer import DistillTrainer
from abkd.trainer._checkpoints import checkpoints, newest_whole
from abkd.trainer._hub import check_hub
from abkd.trainer._modality import read_record
from abkd.trainer._record import RECIPE_FILE, RESULT_FILE, describe
from abkd.training_arguments import word

__all__ = ["RECIPE_FILE", "RESULT_FILE", "build_trainer", "distill", "load_data", "load_image_data"]

logger = logging.getLogger("abkd")


@overload
def distill(recipe: Recipe, *, prepare: Callable[[], object] | None = None) -> DistillTrainer: ...
@overload
def distill(recipe: Recipe, resume: bool, *, prepare: Callable[[], object] | None = None) -> DistillTrainer | None: ...
def distill(
    recipe: Recipe, resume: bool = False, *, prepare: Callable[[], object] | None = None
) -> DistillTrainer | None:
    """Run ``recipe`` to the end: its ``output_dir`` then holds the student, the metrics and the report.

    Args:
        resume: go on from the newest whole checkpoint of ``output_dir``; from the first step where a run ended before
            it had one. The recipe must be the one that the run began with, but for what leaves its weights as they are.
        prepare: called when everything is loaded and checked, before the first file is written or removed.

    Returns:
        The trainer; None where the run was finished before, and nothing was done.

    Raises:
        AbkdError: as the trainer and the recipe do, each with its exit code.
    """
    recipe.check_ready(resume=resume, output=_first_process())
    with claimed(Path(recipe.output_dir)) if _first_process() else nullcontext():
        if _first_process():  # another run may have come first
            recipe.check_ready(resume=resume, models=False)
        return _distill(recipe, resume, prepare)


def _distill(recipe: Recipe, resume: bool, prepare: Callable[[], object] | None) -> DistillTrainer | None:
    directory = Path(recipe.output_dir)
    start = _start_of(recipe, directory, resume)
    changed = _compare(recipe, directory) if start else {}
    if resume and is_finished(directory):
        logger.info("abkd: the run in %s is finished; nothing is left to do", directory)
        return None
    config = recipe.distill_config()
    check_hub(config)
    config.overwrite_output_dir = not start  # the trainer empties the folder, and takes up nothing recorded there
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
    """The checkpoint to go on from, True for the newest whole one, None for the first step."""
    if not resume:
        return recipe.config.get("resume_from_checkpoint") or None
    if _has_checkpoint(directory) or is_finished(directory):
        return True
    check_overwrite(directory)
    logger.info("abkd: the run in %s ended before its first checkpoint; it begins again at step 0", directory)
    return None


def is_finished(directory: Path) -> bool:
    """Whether the run in a folder has come to its end, and not because its loss was not finite."""
    result = read_checksummed(directory / RESULT_FILE)
    return result is not None and "failed" not in result


def _has_checkpoint(directory: Path) -> bool:
    """Whether there is a whole checkpoint.

    Raises:
        OutputDirError: there are only damaged ones.
    """
    found = checkpoints(directory)
    if not any((checkpoint / OF_CHECKPOINT).exists() for checkpoint in found):  # those that were never finished
        return False
    newest_whole(directory)
    return True


def _compare(recipe: Recipe, directory: Path) -> dict[str, list[Any]]:
    """Check that a run goes on as it began; say and return what is otherwise."""
    changed = check_same_run(recipe, directory, read_record(directory).get("working_directory"))
    if changed:
        told = "; ".join(f"{name} was {written(then)}, now {written(now)}" for name, (then, now) in changed.items())
        logger.info("abkd: the run goes on with other settings, none of which changes its weights: %s", told)
    return changed


def _check_data(trainer: DistillTrainer, directory: Path) -> None:
    """Raise OutputDirError where a resumed run would read other rows than it began with, or have another teacher."""
    known, now = read_record(directory), describe(trainer)
    for key, what in (("data_fingerprint", "training"), ("held_out_fingerprint", "held-out")):
        if known.get(key) and now[key] and known[key] != now[key]:
            raise OutputDirError(
                f"{directory} was begun with other {what} data (fingerprint {known[key]}, now {now[key]}): put the "
                "data back, or start anew in another output_dir"
            )
    key = "teacher_fingerprint"
    if known.get(key) and now[key] and known[key] != now[key]:
        raise OutputDirError(
            f"{directory} was begun with another teacher (the weights of {now['teacher']} have changed since): put "
            "those back, or start anew in another output_dir"
        )


def _to_record(recipe: Recipe) -> str:
    """The recipe that repeats the run, without settings about this start alone."""
    about_start = ("overwrite_output_dir", "resume_from_checkpoint")
    kept = {name: value for name, value in recipe.config.items() if name not in about_start}
    return replace(recipe, config=kept).to_yaml(resolved=True)


def load_data(recipe: Recipe) -> tuple[Any, Any]:
    """The training rows and the held-out rows of a recipe (or None); held out from the former where none are named.

    Which are held out depends on ``data_seed``, not on ``seed``: runs of several seeds are measured on the same rows.

    Raises:
        DataError: a file that cannot be used.
    """
    if recipe.settings().task != TEXT:
        return load_image_data(recipe)
    source = recipe.train_file or recipe.dataset_name
    assert source is not None  # a recipe without either is refused when it is read
    read: Any = stream_rows if recipe.streaming else load_rows
    train = read(source, config=recipe.dataset_config, split=recipe.dataset_train_split)
    if recipe.eval_file:
        return train, load_rows(recipe.eval_file)
    if recipe.dataset_test_split:
        return train, load_rows(source, config=recipe.dataset_config, split=recipe.dataset_test_split)
    if recipe.streaming or recipe.share_held_out == 0 or len(train) < 2:
        return train, None
    return split_held_out(train, recipe.share_held_out, seed=recipe.config.get("data_seed") or 0)


def build_trainer(recipe: Recipe, config: DistillConfig, train: Any, held_out: Any) -> DistillTrainer:
    """The trainer of a recipe, with its models loaded.

    Raises:
        ConfigError, DataError, VocabularyError: what does not fit.
    """
    if config.task == TEXT and held_out is not None and _only_prompts(held_out):
        logger.info("abkd: the held-out rows have no completions, so nothing is evaluated on them")
        held_out = None
    if held_out is not None and "eval_strategy" not in recipe.config and word(config.eval_strategy) == "no":
        config.eval_strategy = IntervalStrategy("steps" if recipe.streaming else "epoch")
        config.eval_steps = config.save_steps if recipe.streaming else config.eval_steps
    elif held_out is None and word(config.eval_strategy) != "no":
        raise ConfigError(
            "eval_strategy and load_best_model_at_end need held-out rows, and there are none: set eval_file or "
            "eval_fraction"
        )
    if recipe.teacher_model_revision:
        config.teacher_model_init_kwargs = {
            **(config.teacher_model_init_kwargs or {}),
            "revision": recipe.teacher_model_revision,
        }
    if config.task == TEXT:
        student, own = _language_model(recipe, config)
    else:
        student, own = recipe.model_name_or_path, {}
        if recipe.model_revision:
            config.model_init_kwargs = {**(config.model_init_kwargs or {}), "revision": recipe.model_revision}
    return DistillTrainer(
        student,
        recipe.teacher_model_name_or_path,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=None if has_adapters(student) else _adapters(recipe, config.task),
        **own,
    )


def _language_model(recipe: Recipe, config: DistillConfig) -> tuple[Any, dict[str, Any]]:
    """The student, and what belongs to it: its tokenizer, plain text."""
    tokenizer = load_tokenizer(recipe.model_name_or_path, what="model_name_or_path", revision=recipe.model_revision)
    chunks = _plain_text(recipe, config, tokenizer)
    options = config.model_init_kwargs or {}
    student = load_student(
        recipe.model_name_or_path,
        use_peft=recipe.use_peft,
        revision=recipe.model_revision,
        # master weights are float32; bf16: true trains under autocast
        **{"dtype": "float32", **options},
    )
    if config.save_dtype is None and (config.merge_adapter or not recipe.use_peft):
        config.save_dtype = stored_dtype(recipe.model_name_or_path, **_revision(recipe))  # type: ignore[assignment]
    return student, {
        "processing_class": tokenizer,
        "pretrain_chunks": chunks,
    }


def _revision(recipe: Recipe) -> dict[str, str]:
    return {"revision": recipe.model_revision} if recipe.model_revision else {}


def _only_prompts(rows: Rows) -> bool:
    return not any(has_completions(row) for row in rows[:1])


def finish(trainer: DistillTrainer) -> None:
    """Save the student in the form it came in, write the report, and last of all what came out of the run."""
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _plain_text(recipe: Recipe, config: DistillConfig, tokenizer: Any) -> list[Sequence[int]] | None:
    if not recipe.pretrain_file:
        return None
    rows = load_rows(recipe.pretrain_file)
    if "text" not in rows[0]:
        raise ConfigError(f"pretrain_file {recipe.pretrain_file} needs a column 'text', but has {', '.join(rows[0])}")
    texts = _texts(rows, f"pretrain_file {recipe.pretrain_file}")
    return pretraining_chunks(progress(texts, len(rows), "tokenising the plain text"), tokenizer, config.max_length)


def _texts(rows: Rows, name: str) -> Iterator[str]:
    for number, row in zip(rows.numbers, rows, strict=True):
        text = row.get("text")
        if not isinstance(text, str):
            shown = "none" if text is None else f"a {type(text).__name__}"
            raise DataError(f"{name}, {rows.place(int(number))}: expected a text, got {shown}")
        yield text


def _adapters(recipe: Recipe, task: str) -> Any:
    if not recipe.use_peft:
        return None
    check_peft("use_peft")
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        task_type="CAUSAL_LM" if task == TEXT else None,
    )
