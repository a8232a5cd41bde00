"""Models, tokenizer, data and plan of a run: checked against each other before anything is trained."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abkd.config import DistillConfig
from abkd.data import (
    TokenizedDataset,
    check_packing,
    check_same_tokenizer,
    pack,
    prepare_dataset,
    shared_vocabulary_size,
)
from abkd.errors import ConfigError
from abkd.models.language import CausalRows, load_causal_lm, load_tokenizer, teacher_options
from abkd.ops import Plan, plan_for
from abkd.sources import is_privileged, needs_completions, privileged_context
from abkd.storage import write_whole
from abkd.teachers import Reader, Setting, identity

logger = logging.getLogger("abkd")

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Models:
    """The student, and where p comes from, as rows over the same classes; and the tokenizer they share.

    ``teacher`` is None where only the labels teach.
    """

    student: CausalRows
    teacher: Reader | None
    tokenizer: Any
    classes: int
    teacher_names: Sequence[str] = ()
    teacher_revision: str | None = None

    @property
    def padding(self) -> int:
        """What stands in padding: it is masked and never trained."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))


def resolve_models(model: Any, teacher: Any, args: DistillConfig, tokenizer: Any, peft_config: Any) -> Models:
    """Load what is given by name, add adapters, cut both heads to the classes they share.

    Raises:
        ConfigError, VocabularyError: the models cannot be loaded, or do not fit each other.
    """
    if tokenizer is None:
        name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
        tokenizer = load_tokenizer(name, what="processing_class")
    teachers, names = _load_teachers(teacher, args, tokenizer)
    spec: Any = args.teacher
    if isinstance(model, str):
        model = load_causal_lm(model, what="model_name_or_path", dtype=torch.float32)
    if peft_config is not None:
        model = _with_adapters(model, peft_config)
    for each in teachers:
        _check_apart(model, each)
    student = CausalRows(model)
    reader = None
    if teachers or (names and spec.cached) or spec.needs[0] == 0:
        reader = _open_teacher(student, teachers, names, args, tokenizer)
    classes = _shared_classes(student, reader, tokenizer)
    student.classes = classes
    student.check()
    if reader is not None:
        reader.classes = classes
        reader.check()
    if args.packing:
        for each in (model, *teachers):
            check_packing(each, args.max_length)
    _check_known(reader, args)
    if args.eval_samples and (reader is None or len(reader.models) != 1):
        raise ConfigError(
            f"eval_samples needs one teacher model that writes, which {args.teacher!r} is not: set it to 0"
        )
    return Models(student, reader, tokenizer, classes, names, _teacher_options(args).get("revision"))


def _load_teachers(teacher: Any, args: DistillConfig, tokenizer: Any) -> tuple[list[nn.Module], list[str]]:
    """The teacher's models, loaded where the kind of teacher runs them; and their names, where they have some."""
    given = [] if teacher is None else list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    spec: Any = args.teacher
    least, most = spec.needs
    labels_alone = not args.objective().asks_teacher_ever()
    if labels_alone and (args.teacher_model_server_url or (least and not given)):
        return [], [each for each in given if isinstance(each, str)]  # at most what its server calls it
    if len(given) < least or (most is not None and len(given) > most):
        wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise ConfigError(f"{spec!r} needs {wanted} in teacher_model_name_or_path, but {len(given)} came")
    what, options = "teacher_model_name_or_path", _teacher_options(args)
    names = [each for each in given if isinstance(each, str)]
    for name in names:
        check_same_tokenizer(tokenizer, load_tokenizer(name, what=what, revision=options.get("revision")))
    if spec.cached:
        return [], names
    return [load_causal_lm(each, what=what, **options) if isinstance(each, str) else each for each in given], names


def _open_teacher(
    student: CausalRows, teachers: list[nn.Module], names: list[str], args: DistillConfig, tokenizer: Any
) -> Reader:
    spec: Any = args.teacher
    known = None
    if spec.cached:
        if not names:
            raise ConfigError(f"{spec!r} is the cache of a named teacher: set teacher_model_name_or_path")
        known = identity(names[0], _teacher_options(args).get("revision"), tokenizer)
    return spec.open(
        Setting(student=student, models=teachers, identity=known, temperature=args.kd_temperature, device=args.device)
    )


def _check_known(reader: Reader | None, args: DistillConfig) -> None:
    """A row weight looks at whole distributions, and a cache may have a part of them only."""
    terms = [term for progress in (0.0, 0.5, 1.0) for term in args.objective().at(progress)]
    weighed = [term.row_weight for term in terms if term.row_weight is not None]
    if reader is not None and not reader.exact and weighed:
        raise ConfigError(
            f"{weighed[0]!r} looks at whole distributions, and {args.teacher!r} knows the likeliest classes only: take "
            "teacher: HiddenCache(), which knows all, or Live()"
        )


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    mine = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in mine for parameter in teacher.parameters()):
        raise ConfigError(
            "student and teacher share weights, so training the one would change the other: load the model twice, or "
            "give copy.deepcopy(teacher) as the student"
        )


def _shared_classes(student: CausalRows, teacher: Reader | None, tokenizer: Any) -> int:
    """The classes both heads have: their rows, or the tokenizer's tokens where they are padded differently."""
    theirs = student.head_rows if teacher is None else teacher.head_rows
    tokens = shared_vocabulary_size(tokenizer, student.head_rows, theirs)
    if student.head_rows == theirs:
        return student.head_rows
    logger.warning(
        "abkd: the heads have %d (student) and %d (teacher) rows; both are cut to the tokenizer's %d tokens",
        student.head_rows,
        theirs,
        tokens,
    )
    return tokens


def _teacher_options(args: DistillConfig) -> dict[str, Any]:
    return teacher_options(args.teacher_model_init_kwargs, args.device)


def _with_adapters(model: Any, peft_config: Any) -> nn.Module:
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ConfigError("use_peft needs the package peft: pip install 'abkd[lora]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what PEFT calls in transformers is not the user's business
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it as GPT-2's layers need it, and says so
        return get_peft_model(model, peft_config)


def prepare_data(
    dataset: Any, tokenizer: Any, args: DistillConfig, name: str, pretrain_chunks: Sequence[list[int]] | None = None
) -> TokenizedDataset | None:
    """Tokenised rows, packed if asked for, each with a chunk of plain text where ``lm_coef`` wants it.

    Raises:
        DataError, ConfigError: rows that cannot be used, or no plain text.
    """
    if dataset is None:
        return None
    source: Any = args.source
    tokenized = prepare_dataset(
        dataset,
        tokenizer,
        max_length=args.max_length,
        apply_chat_template=args.apply_chat_template,
        on_bad_row=args.on_bad_row,
        name=name,
        completions=name == "train" and needs_completions(source),
        context=privileged_context(source),
        privileged=is_privileged(source),
    )
    if args.packing:
        tokenized = pack(tokenized, args.max_length)
    if name == "train" and args.lm_coef:
        if not pretrain_chunks:
            raise ConfigError("lm_coef is above 0 but there is no plain text: give pretrain_file, or set lm_coef: 0")
        tokenized = tokenized.with_pretraining(pretrain_chunks)
    return tokenized


def resolve_plan(args: DistillConfig, models: Models) -> Plan:
    """The op's chunk size and implementation: those recorded in this output directory, else chosen now."""
    record = Path(str(args.output_dir)) / RUN_FILE
    if record.is_file():
        known = json.loads(record.read_text()).get("plan")
        if known:
            return Plan(**known)
    rows = args.per_device_train_batch_size * args.max_length
    return plan_for(rows, models.classes, args.device, memory_budget_mb=args.memory_budget_mb)


def record_plan(directory: Path, plan: Plan) -> None:
    """Keep the plan that a run has come to (smaller where memory did not suffice), for its resumption."""
    record = directory / RUN_FILE
    known = json.loads(record.read_text()) if record.is_file() else None
    if known is None or known.get("plan") == asdict(plan):
        return
    write_whole(record, json.dumps(known | {"plan": asdict(plan)}, indent=1).encode())
