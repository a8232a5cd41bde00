"""The keys of a recipe and their types, and error messages for unknown keys and values of the wrong type."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache, reduce
from operator import or_
from typing import Any, TypeGuard, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from abkd import notation
from abkd.errors import KINDS, ConfigError, shown
from abkd.imports import CodeName
from abkd.outside import Unloaded, spelled
from abkd.recipe._text import FlagText, read_yaml
from abkd.schedules import Schedule
from abkd.settings import Settings, default_of, field_types

_T = TypeVar("_T")

_WORDS = {**KINDS, types.NoneType: "null"}

# Names from other libraries, and their equivalents here.
SPELLINGS = {
    **dict.fromkeys(
        ("alpha", "ab_alpha", "beta", "ab_beta"),
        "part of the divergence, 'divergence: AlphaBeta(alpha=0.2, beta=0.7)' "
        "(the mix with the labels is kd_ratio, LoRA's scale lora_alpha)",
    ),
    **dict.fromkeys(
        ("kl", "kl_type", "loss", "loss_type", "loss_fn", "kd_loss", "forward_kl", "reverse_kl", "jsd_beta"),
        "a divergence with its direction, 'divergence: ForwardKL()' or 'divergence: ReverseKL()'",
    ),
    **dict.fromkeys(
        ("temperature", "distill_temperature", "distillation_temperature", "kd_temp"),
        "kd_temperature (the softmax temperature of the loss)",
    ),
    **dict.fromkeys(("kd_t2_scaling", "t2_scaling"), "scale_by_temperature_squared"),
    **dict.fromkeys(("kd_alpha", "distillation_alpha", "kd_lambda"), "kd_ratio, or ce_weight and kd_weight"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_len", "seq_length", "cutoff_len"), "max_length"),
    **dict.fromkeys(
        ("teacher", "teacher_model", "teacher_name", "teacher_model_name", "teacher_path"), "teacher_model_name_or_path"
    ),
    **dict.fromkeys(
        (
            "student",
            "student_model",
            "student_name",
            "student_path",
            "student_model_name_or_path",
            "model",
            "model_name",
        ),
        "model_name_or_path",
    ),
    **dict.fromkeys(
        ("data", "dataset", "data_path", "train_data", "dataset_path"), "train_file (a file) or dataset_name"
    ),
    **dict.fromkeys(("validation_file", "valid_file", "test_file", "eval_data"), "eval_file"),
    **dict.fromkeys(("text_file", "pretrain_data", "lm_file"), "pretrain_file"),
    **dict.fromkeys(("val_size", "validation_split", "test_size"), "eval_fraction"),
    **dict.fromkeys(("lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), "num_train_epochs"),
    **dict.fromkeys(("batch_size", "train_batch_size", "micro_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("grad_accum", "accumulation_steps", "grad_accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("lora", "peft", "use_lora"), "use_peft"),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_generated_length"), "max_completion_length"),
    **dict.fromkeys(
        ("top_p", "top_k", "num_beams", "sampling_temperature"),
        "part of the source, 'source: StudentSamples(temperature=0.9, top_p=1.0)', or of generation_kwargs",
    ),
    **dict.fromkeys(("lambda", "on_policy", "student_data_fraction"), "lmbda, or source"),
    **dict.fromkeys(("loss_top_k", "logprob_compressor"), "part of the teacher, 'teacher: TopKCache(k=64)'"),
    "teacher_model_server": "teacher_model_server_url",
    "lora_rank": "lora_r",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    **dict.fromkeys(
        ("dtype", "torch_dtype"), "bf16 for training; the teacher's is 'teacher_model_init_kwargs: {dtype: bfloat16}'"
    ),
    "resume": "the flag --resume, which is not a key of a recipe",
}


@cache
def config_fields() -> Mapping[str, object]:
    """Type of every field of ``DistillConfig`` (including those of ``TrainingArguments``), by name."""
    from transformers import TrainingArguments  # takes seconds to import

    from abkd.config import DistillConfig

    # Where Settings only changes a default, the type of transformers is the more exact one (an enum, not a str);
    # except that warmup_steps is an integer there before transformers 5, and may be a fraction of the run here.
    hints = {**field_types(DistillConfig), **typing.get_type_hints(TrainingArguments), "warmup_steps": float}
    return types.MappingProxyType({f.name: hints[f.name] for f in dataclasses.fields(DistillConfig) if f.init})


@cache
def config_defaults() -> Mapping[str, object]:
    """Default of each field of :class:`abkd.settings.Settings`, by name."""
    return types.MappingProxyType({f.name: default_of(f) for f in dataclasses.fields(Settings)})


def unknown(name: str, known: Mapping[str, object], *, flag: bool = False) -> str:
    """The message for an unknown key of a recipe, or an unknown flag."""
    if name in SPELLINGS:
        return f"{_called(name, flag)} is not an option of abkd; use {SPELLINGS[name]}"
    what = f"unknown option --{_short(name)}" if flag else f"unknown key {_short(name)!r}"
    if name.replace("-", "_") in known:
        return f"{what}; did you mean {_called(name.replace('-', '_'), flag)}?"
    hint = notation.nearest(name[:80], known)
    if hint == ".":
        return f"{what}; 'abkd distill --help' lists the main ones"
    return what + (hint.replace("mean ", "mean --") if flag else hint)


def _called(name: str, flag: bool) -> str:
    return f"--{name}" if flag else name


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def coerce(name: str, hint: object, value: object, *, load_code: bool = True) -> object:
    """Convert ``value`` to the type of the field ``name``: strings may be parsed as numbers or components.

    Args:
        load_code: if False, a component that names code of other packages becomes an ``Unloaded``.

    Raises:
        ConfigError: the value does not fit; the message has the key, the expected type and the value.
    """
    if isinstance(value, FlagText):
        return _coerce_flag(name, hint, value, load_code)
    if _names_components(hint):
        value = _components(name, value, notation.parse if load_code else notation.read)
        if code := _unloaded(value):
            return Unloaded(notation.render(value), code)
    elif isinstance(value, str) and list[str] in _arms(hint) and str not in _arms(hint):
        value = [value]
    numeric = _arms(hint) & {int, float} and bool not in _arms(hint)
    try:
        if isinstance(value, bool) and numeric:
            raise ConfigError
        found = _adapter(hint).validate_python(value)
    except (ValidationError, ConfigError) as error:
        raise ConfigError(f"{name} must be {_expected(hint)}, got {_got(value)}") from error
    if isinstance(found, Schedule):
        _check_schedule(name, hint, found)
    return found.value if isinstance(found, enum.Enum) else found


def _check_schedule(name: str, hint: object, schedule: Schedule) -> None:
    """Raise ConfigError if a value of the schedule has the wrong type for the field."""
    for value in schedule.values():
        if not _adapter_accepts(hint, value):
            raise ConfigError(f"{name} must be {_expected(hint)}, got {schedule!r}, which has the value {value!r}")


def _adapter_accepts(hint: object, value: object) -> bool:
    try:
        _adapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def _coerce_flag(name: str, hint: object, text: FlagText, load_code: bool) -> object:
    plain = str(text)
    unset = plain == "null" and any((typing.get_origin(arm) or arm) is dict for arm in _arms(hint))
    if is_text(hint) and not plain.startswith(("[", "{")):
        return None if unset else coerce(name, hint, plain)
    try:
        value = read_yaml(plain, f"--{name}")
        if value != plain:
            return coerce(name, hint, value, load_code=load_code)
    except ConfigError as error:
        try:
            return coerce(name, hint, plain, load_code=load_code)
        except ConfigError as as_text:
            raise (error if plain.startswith(("[", "{")) else as_text) from error
    return coerce(name, hint, plain, load_code=load_code)


def is_text(hint: object) -> bool:
    """Whether a field takes strings as they are, such as paths; ``list`` and ``dict`` may be alternatives."""
    plain = {typing.get_origin(arm) or arm for arm in _arms(hint)}
    return str in plain and plain <= {str, list, dict, types.NoneType}


def _components(name: str, value: object, parse: Callable[[str], object]) -> object:
    """Parse a string, or each string of a list, as a component."""
    if isinstance(value, list):
        return [_components(name, part, parse) for part in value]
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _unloaded(value: object) -> tuple[CodeName, ...]:
    """The code in the parts of a value that are not loaded."""
    if isinstance(value, list):
        return tuple(code for part in value for code in _unloaded(part))
    return value.code if isinstance(value, Unloaded) else ()


@cache
def _arms(hint: object) -> frozenset[Any]:
    """The alternatives of a union (or the one type itself), without the ``str`` next to an enum or a component.

    Such a string is not arbitrary: it is the notation of a member or a component.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    arms = frozenset(typing.get_args(hint) if union else (hint,))
    return arms - {str} if any(_is(arm, enum.Enum) or _is_ours(arm) for arm in arms) else arms


def _adapter(hint: object) -> TypeAdapter[object]:
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return TypeAdapter(reduce(or_, _arms(hint)), config=config)


def _names_components(hint: object) -> bool:
    return any(_is_ours(part) for arm in _arms(hint) for part in (arm, *typing.get_args(arm)))


def _expected(hint: object) -> str:
    arms = sorted((arm for arm in _arms(hint) if arm is not types.NoneType), key=str)
    return " or ".join(dict.fromkeys(_words(arm) for arm in arms)) or "null"


def _words(arm: object) -> str:
    if typing.get_origin(arm) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(arm)))}"
    if _is(arm, enum.Enum):
        return f"one of {', '.join(repr(member.value) for member in arm)}"
    if _is_ours(arm):
        return _with_article(arm.__name__)
    plain = typing.get_origin(arm) or arm
    return _WORDS.get(plain, getattr(plain, "__name__", str(plain)))


def _got(value: object) -> str:
    kinds: dict[type, Callable[[object], str]] = {bool: lambda v: str(v).lower(), types.NoneType: lambda _: "null"}
    text = kinds.get(type(value), lambda v: shown(spelled(v)))(value)
    return f"{text} ({_WORDS.get(type(value), type(value).__name__)})" if isinstance(value, str | list | dict) else text


def _with_article(class_name: str) -> str:
    """``Divergence`` becomes "a divergence", ``RowWeights`` "row weights"."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", class_name).lower()
    return words if words.endswith("s") else f"a {words}"


def _is_ours(arm: object) -> TypeGuard[type]:
    return isinstance(arm, type) and arm.__module__.startswith("abkd.")


def _is(arm: object, base: type[_T]) -> TypeGuard[type[_T]]:
    return isinstance(arm, type) and issubclass(arm, base)
