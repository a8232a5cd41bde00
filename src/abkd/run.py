"""One distillation from a recipe: check, load, train, evaluate, save, report. What ``abkd distill`` does."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abkd.config import TEXT, DistillConfig
from abkd.data import Rows, load_rows, pretraining_chunks, split_held_out
from abkd.errors import ConfigError, OutputDirError
from abkd.image_data import load_image_data
from abkd.models.adapters import check_peft, has_adapters
from abkd.models.loading import load_student, load_tokenizer
from abkd.models.saving import stored_dtype
from abkd.recipe import Recipe
from abkd.storage import write_sealed, write_whole
from abkd.trainer import RUN_FILE, DistillTrainer
from abkd.training_arguments import word

logger = logging.getLogger("abkd")

RECIPE_FILE = "recipe.yaml"
RESULT_FILE = "result.json"
"""What came out, sealed, and the last file that is written: where it is whole, the run is finished."""


def distill(recipe: Recipe, resume: bool = False) -> DistillTrainer:
    """Run ``recipe`` to the end: its ``output_dir`` then holds the student, the metrics and the report.

    Args:
        resume: go on from the newest whole checkpoint of ``output_dir``.

    Raises:
        AbkdError: as the trainer and the recipe do, each with its exit code.
    """
    recipe.check_ready(resume=resume, output=_first_process())
    config = recipe.distill_config()
    train, held_out = load_data(recipe, config)
    trainer = build_trainer(recipe, config, train, held_out, resume=resume)
    _record(trainer, recipe, resume=resume)
    trainer.train(resume_from_checkpoint=resume or config.resume_from_checkpoint or None)
    if trainer.eval_dataset is not None and word(config.eval_strategy) == "no":
        trainer.evaluate()  # or the last number would be that of the untrained student
    finish(trainer)
    return trainer


def load_data(recipe: Recipe, config: DistillConfig) -> tuple[Any, Any]:
    """The training rows and the held-out rows of a recipe (or None); held out from the former where none are named.

    Which are held out depends on ``data_seed``, not on ``seed``: runs of several seeds are measured on the same rows.

    Raises:
        DataError: a file that cannot be used.
    """
    if config.task != TEXT:
        return load_image_data(recipe, config)
    source = recipe.train_file or recipe.dataset_name
    assert source is not None  # a recipe without either is refused when it is read
    train = load_rows(source, config=recipe.dataset_config, split=recipe.dataset_train_split)
    if recipe.eval_file:
        return train, load_rows(recipe.eval_file)
    if recipe.dataset_test_split:
        return train, load_rows(source, config=recipe.dataset_config, split=recipe.dataset_test_split)
    if recipe.eval_fraction == 0 or len(train) < 2:
        return train, None
    return split_held_out(train, recipe.eval_fraction, seed=config.data_seed or 0)


def build_trainer(
    recipe: Recipe, config: DistillConfig, train: Any, held_out: Any, *, resume: bool = False
) -> DistillTrainer:
    """The trainer of a recipe, with its models loaded.

    Raises:
        ConfigError, DataError, VocabularyError: what does not fit.
    """
    if config.task == TEXT and held_out is not None and _only_prompts(held_out):
        logger.info("abkd: the held-out rows have no completions, so nothing is evaluated on them")
        held_out = None
    if held_out is not None and "eval_strategy" not in recipe.config and word(config.eval_strategy) == "no":
        config.eval_strategy = type(config.eval_strategy)("epoch")
    elif held_out is None and word(config.eval_strategy) != "no":
        raise ConfigError(
            "eval_strategy and load_best_model_at_end need held-out rows, and there are none: set eval_file or "
            "eval_fraction"
        )
    config.eval_on_start = held_out is not None and not resume
    _prepare_output(recipe, config, resume=resume)
    if recipe.teacher_model_revision:
        config.teacher_model_init_kwargs = {
            **(config.teacher_model_init_kwargs or {}),  # type: ignore[dict-item]
            "revision": recipe.teacher_model_revision,
        }
    if config.task == TEXT:
        student, own = _language_model(recipe, config)
    else:
        student, own = recipe.model_name_or_path, {}
        if recipe.model_revision:
            config.model_init_kwargs = {**(config.model_init_kwargs or {}), "revision": recipe.model_revision}  # type: ignore[dict-item]
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
    options: Any = config.model_init_kwargs or {}
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
        "pretrain_chunks": _plain_text(recipe, config, tokenizer),
    }


def _revision(recipe: Recipe) -> dict[str, str]:
    return {"revision": recipe.model_revision} if recipe.model_revision else {}


def _only_prompts(rows: Rows) -> bool:
    return not any({"completion", "messages", "text"} & row.keys() for row in rows[:1])


def finish(trainer: DistillTrainer) -> None:
    """Save the student in the form it came in, write the report, and last of all what came out of the run."""
    trainer.save_model()
    if trainer.is_world_process_zero():
        from abkd.report import write_report
        from abkd.report.results import read_result, sentences

        directory = Path(str(trainer.args.output_dir))
        report, result = write_report(directory), read_result(directory)
        logger.info("abkd: the student is in %s, the report is %s", directory, report)
        for sentence in sentences(result):
            logger.info("abkd: held out, %s", sentence)
        write_sealed(directory / RESULT_FILE, result)
    trainer.accelerator.wait_for_everyone()


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _plain_text(recipe: Recipe, config: DistillConfig, tokenizer: Any) -> list[list[int]] | None:
    if not recipe.pretrain_file:
        return None
    rows = load_rows(recipe.pretrain_file)
    if "text" not in rows[0]:
        raise ConfigError(f"pretrain_file {recipe.pretrain_file} needs a column 'text', but has {', '.join(rows[0])}")
    return pretraining_chunks([row["text"] for row in rows], tokenizer, config.max_length)


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


def _prepare_output(recipe: Recipe, config: DistillConfig, *, resume: bool) -> None:
    if _first_process():
        directory = Path(recipe.output_dir)
        if config.overwrite_output_dir and directory.exists() and not resume:
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
    if config.world_size > 1:  # the others look into it next
        import torch

        torch.distributed.barrier()


def _record(trainer: DistillTrainer, recipe: Recipe, *, resume: bool) -> None:
    """Write what is needed to repeat the run; on resume check that the data is still the same.

    Raises:
        OutputDirError: the data differs from what the run began with.
    """
    directory = Path(recipe.output_dir)
    train: Any = trainer.train_dataset
    known = json.loads((directory / RUN_FILE).read_text()) if resume and (directory / RUN_FILE).is_file() else {}
    if known and known["data_fingerprint"] != train.fingerprint:
        raise OutputDirError(
            f"{directory} was begun with other training data (fingerprint {known['data_fingerprint']}, now "
            f"{train.fingerprint}): put the data back, or start anew in another output_dir"
        )
    if trainer.is_world_process_zero():
        (directory / RESULT_FILE).unlink(missing_ok=True)  # from now on the run is not finished
        write_whole(directory / RECIPE_FILE, recipe.to_yaml(resolved=True).encode())
        write_whole(directory / RUN_FILE, json.dumps(describe(trainer), indent=1).encode())
    trainer.accelerator.wait_for_everyone()


def describe(trainer: DistillTrainer) -> dict[str, Any]:
    """Versions, seeds, data, plan and objective of a run."""
    import torch
    import transformers

    import abkd

    train: Any = trainer.train_dataset
    held_out: Any = trainer.eval_dataset
    models = trainer.models
    return {
        "task": trainer.distill_args.task,
        "objective": trainer.task.objective.formula(trainer.modality.rows_are),
        "student": _name(models.student.model),
        "student_parameters": _size(models.student.model),
        "source": repr(trainer.distill_args.source),
        "teacher": _teacher_name(trainer),
        "teacher_parameters": sum(map(_size, models.teacher.models if models.teacher is not None else ())) or None,
        "data_fingerprint": train.fingerprint,
        "train_rows": len(train),
        "dropped": train.dropped,
        "truncated": train.truncated,
        **trainer.modality.describe(models, train),
        "held_out_fingerprint": held_out.fingerprint if held_out is not None else None,
        "held_out_rows": len(held_out) if held_out is not None else 0,
        "seed": trainer.args.seed,
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "plan": asdict(trainer.plan),
        "versions": {
            "abkd": abkd.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _teacher_name(trainer: DistillTrainer) -> str:
    """The teacher's model, and what is made of it where it is not simply run."""
    kind, reader = repr(trainer.distill_args.teacher), trainer.models.teacher
    names = ", ".join(map(_name, reader.models)) if reader is not None else ""
    return names if kind == "Live()" else f"{kind} {names}".strip()


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
