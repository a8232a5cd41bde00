"""Load a student and its teachers, and check that adapters, tokenizers, heads and positions match."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abkd.config import DistillConfig
from abkd.data import check_packing, check_same_tokenizer, choose_template, shared_vocabulary_size
from abkd.errors import ConfigError
from abkd.models.adapters import check_adapters, has_adapters, with_adapters
from abkd.models.generation_settings import mend_generation_config
from abkd.models.language import CausalRows
from abkd.models.loading import load_causal_lm, load_student, load_tokenizer, teacher_options
from abkd.models.positions import learned_positions
from abkd.models.saving import check_trainable, stored_dtype
from abkd.tasks._checks import check_full_distribution, check_separate, given_teachers
from abkd.tasks.base import Given, Models
from abkd.teachers import TeacherContext, TeacherReader, identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")


def load_models(given: Given, args: DistillConfig) -> Models:
    """Load models that are given by name, add adapters, and restrict both heads to the classes they share.

    Raises:
        ConfigError, VocabularyError: the models cannot be loaded, or do not fit each other.
    """
    tokenizer = own_tokenizer(given.student, args) if given.tokenizer is None else given.tokenizer
    teachers, names, tokenizers = _load_teachers(given.teacher, args, tokenizer)
    spec = args.teacher
    model = _load_student(given.student, args, given.peft_config)
    check_adapters(model, "the student", trained=True)
    for each in teachers:
        check_adapters(each, "the teacher", trained=False)
        check_separate(model, each)
    student = CausalRows(model)
    check_trainable(model, f"the {type(model).__name__}")
    reader = None
    if teachers or (names and spec.cached) or spec.needs[0] == 0:
        reader = _open_teacher(student, teachers, names, args, tokenizer)
    classes = _shared_classes(student, reader, tokenizer)
    student.classes = classes
    student.check()
    _say_router_loss(student)
    if reader is not None:
        reader.classes = classes
        reader.check()
    if args.packing:
        for each in (model, *teachers):
            check_packing(each, args.max_length, learned_positions(each))
    check_full_distribution(reader, args)
    if args.eval_samples and (reader is None or len(reader.models) != 1):
        raise ConfigError(
            f"eval_samples needs a single teacher model that generates text, got {args.teacher!r}; set eval_samples: 0"
        )
    return Models(student, reader, tokenizer, classes, names, _teacher_options(args).get("revision"), tokenizers)


def _load_student(model: Any, args: DistillConfig, peft_config: object) -> nn.Module:
    """The student with its trainable parameters: all weights, new adapters, or the adapters that it has."""
    if isinstance(model, str):
        use_peft = peft_config is not None
        # master weights are float32; bf16: true trains under autocast
        options = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
        name, model = model, load_student(model, use_peft=use_peft, **options)
        if args.save_dtype is None and (args.merge_adapter or not use_peft):
            args.save_dtype = stored_dtype(name, **_revision(args))  # type: ignore[assignment]
        peft_config = None if has_adapters(model) else peft_config
    mend_generation_config(model, getattr(model, "name_or_path", "") or type(model).__name__)
    if peft_config is not None:
        model = with_adapters(model, peft_config)
    if args.merge_adapter and not hasattr(model, "merge_and_unload"):
        raise ConfigError(
            "merge_adapter applies only to PEFT adapters, and the student has none: set use_peft: true (in Python, "
            "pass peft_config), or remove it"
        )
    return model


def _say_router_loss(student: CausalRows) -> None:
    if student.router_loss_weight:
        logger.info(
            "abkd: the student's load-balancing loss is added, as set in its config (output_router_logits; "
            "router_aux_loss_coef %g)",
            student.router_loss_weight,
        )


def _revision(args: DistillConfig) -> dict[str, str]:
    return {name: value for name, value in (args.model_init_kwargs or {}).items() if name == "revision"}


def own_tokenizer(model: object, args: DistillConfig) -> PreTrainedTokenizerBase:
    """The tokenizer stored with a student."""
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    if not name:
        raise ConfigError(
            "a model without a name needs its tokenizer: pass processing_class (or, for an image classifier, "
            "task='image-classification')"
        )
    what = "model_name_or_path" if isinstance(model, str) else "processing_class"
    return load_tokenizer(name, what=what, **_revision(args))


def _load_teachers(
    teacher: object, args: DistillConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[nn.Module], list[str], dict[str, PreTrainedTokenizerBase]]:
    """The teacher's models, loaded unless they are cached, and their names and tokenizers, if known.

    Raises:
        ConfigError, VocabularyError: the tokenizers do not fit the student's, or a model cannot be loaded.
    """
    given = given_teachers(teacher, args)
    spec = args.teacher
    names = [each for each in given if isinstance(each, str)]
    if args.teacher_model_server_url and not args.objective().ever_needs_teacher():
        return [], names, {}
    what, options = "teacher_model_name_or_path", _teacher_options(args)
    theirs = {name: load_tokenizer(name, what=what, revision=options.get("revision")) for name in names}
    for each in theirs.values():
        check_same_tokenizer(tokenizer, each)
    choose_template(args.apply_chat_template, tokenizer, theirs)
    if spec.cached:
        return [], names, theirs
    models = [load_causal_lm(each, what=what, **options) if isinstance(each, str) else each for each in given]
    return models, names, theirs


def _open_teacher(
    student: CausalRows,
    teachers: list[nn.Module],
    names: list[str],
    args: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> TeacherReader:
    spec = args.teacher
    known = None
    if spec.cached:
        if not names:
            raise ConfigError(f"{spec!r} needs the name of the cached teacher: set teacher_model_name_or_path")
        known = identity(names[0], _teacher_options(args).get("revision"), tokenizer)
    return spec.open(
        TeacherContext(
            student=student, models=teachers, identity=known, temperature=args.kd_temperature, device=args.device
        )
    )


def _shared_classes(student: CausalRows, teacher: TeacherReader | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of classes that both heads have: their rows, or the tokenizer's tokens if the paddings differ."""
    theirs = student.head_rows if teacher is None else teacher.head_rows
    tokens = shared_vocabulary_size(tokenizer, student.head_rows, theirs)
    if student.head_rows == theirs:
        return student.head_rows
    logger.warning(
        "abkd: the heads have %d (student) and %d (teacher) rows; both are restricted to the tokenizer's %d tokens",
        student.head_rows,
        theirs,
        tokens,
    )
    return tokens


def _teacher_options(args: DistillConfig) -> dict[str, Any]:
    return teacher_options(args.teacher_model_init_kwargs, args.device)
