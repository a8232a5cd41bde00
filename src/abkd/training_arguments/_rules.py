"""Which settings of transformers would be ignored, are out of range, or contradict each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from abkd import registry
from abkd.errors import ConfigError, shown
from abkd.setting_rules import Ranges, out_of_range
from abkd.training_arguments._intervals import best_model_problems, interval_problems, word
from abkd.training_arguments._table import BELONGS, HARMLESS, OPTIM_ARGS, REFUSED, WORKS

_AT_LEAST_ONE: tuple[Callable[[float], bool], str] = (lambda x: x >= 1, "1 or more")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < math.inf, "0 or more")
_INTERVAL: tuple[Callable[[float], bool], str] = (
    lambda x: 0 < x < math.inf and (x < 1 or x == int(x)),
    "an integer >= 1 (steps), or a fraction of the run between 0 and 1",
)
_MOMENT: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < 1, "from 0 to below 1")
_SEED: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < 2**32, "from 0 to 4294967295")
RANGES: Ranges = {
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "max_steps": (lambda x: x >= 1 or x == -1, "1 or more, or -1 (num_train_epochs decides)"),
    "num_train_epochs": (lambda x: 0 <= x < math.inf, "0 (evaluate only) or more"),
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _MOMENT,
    "adam_beta2": _MOMENT,
    "adam_epsilon": _NOT_NEGATIVE,
    "max_grad_norm": (lambda x: 0 <= x < math.inf, "0 (no clipping) or more"),
    "warmup_steps": (lambda x: 0 <= x < math.inf, "0 or more; a number below 1 is a fraction of all steps"),
    "neftune_noise_alpha": (lambda x: 0 <= x <= 1e6, "from 0 to 1000000"),
    "torch_empty_cache_steps": _AT_LEAST_ONE,
    "logging_steps": _INTERVAL,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "eval_delay": _NOT_NEGATIVE,
    "save_total_limit": (lambda x: x >= 0, "1 or more, or 0 (keep all)"),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _AT_LEAST_ONE,
    "ddp_timeout": (lambda x: 1 <= x <= 1e9, "from 1 to 1000000000 seconds"),
    "ddp_bucket_cap_mb": _AT_LEAST_ONE,
}
_RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing": "activation_checkpointing",
}
_EMPTY = (None, False, 0, "no", "", [], {})
_OF_WORKERS = ("dataloader_prefetch_factor", "dataloader_multiprocessing_context")


def problems(values: Mapping[str, object]) -> list[str]:
    """One message for each setting that would be ignored, is out of range, or contradicts another.

    ``values``: settings by name; a missing one has its default.
    """
    return [
        *_refused(values),
        *_without_owner(values),
        *out_of_range(values, RANGES),
        *interval_problems(values),
        *best_model_problems(values),
        *_others(values),
    ]


def trackers(values: Mapping[str, Any]) -> set[str]:
    """The names in ``report_to``."""
    given = values.get("report_to")
    names = [given] if isinstance(given, str) else list(given or [])
    return {str(name) for name in names} - {"none"}


@cache
def defaults() -> Mapping[str, object]:
    """Defaults of every field of the installed ``TrainingArguments``, with those that abkd changes."""
    from transformers import TrainingArguments

    theirs = {field.name: default(field) for field in dataclasses.fields(TrainingArguments)}
    return theirs | {"remove_unused_columns": False, "report_to": "none"}


def default(field: dataclasses.Field[object]) -> object:
    """The default of a field of a dataclass."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _changed(name: str, values: Mapping[str, object]) -> bool:
    """Whether a setting differs from its default; ``False``, None and 0 count as equal."""
    if name not in values or name not in defaults():
        return False
    value, unset = word(values[name]), word(defaults()[name])
    return value != unset and not (_is_empty(value) and _is_empty(unset))


def _is_empty(value: object) -> bool:
    """Whether a value is empty: ``False``, 0, None, or a mapping to such values (old versions fill one in)."""
    return value in _EMPTY or (isinstance(value, dict) and all(each in _EMPTY for each in value.values()))


def _refused(values: Mapping[str, object]) -> list[str]:
    found = [f"{name} has no effect here: {way_out}" for name, way_out in REFUSED.items() if _changed(name, values)]
    known = WORKS | HARMLESS.keys() | REFUSED.keys() | BELONGS.keys()
    found += [
        f"{name} is new in this version of transformers and unknown to abkd, so it might have no effect: remove it"
        for name in defaults().keys() - known
        if _changed(name, values)
    ]
    return found


def _without_owner(values: Mapping[str, object]) -> list[str]:
    return [
        f"{name} needs {owner}, which is not set"
        for name, owner in BELONGS.items()
        if _changed(name, values) and not _is_set(owner, values)
    ]


def _is_set(setting: str, values: Mapping[str, object]) -> bool:
    """Whether a setting such as ``push_to_hub: true`` is active."""
    name, _, _ = setting.partition(":")
    if name == "report_to":
        return bool({"trackio", "all"} & trackers(values))
    both = (name, _RENAMED.get(name, name))
    return any(values.get(each) for each in both)


def _others(values: Mapping[str, Any]) -> list[str]:
    found = []
    if not values.get("dataloader_num_workers"):
        found += [f"{name} needs dataloader_num_workers above 0" for name in _OF_WORKERS if _changed(name, values)]
    found += [
        f"{name} must be one of {', '.join(known)}, got {shown(values[name])}"
        for name, known in _CHOICES.items()
        if values.get(name) is not None and values[name] not in known
    ]
    if values.get("bf16") and values.get("fp16"):
        found.append("bf16 and fp16 cannot be used together: set only one of them")
    task = values.get("task", "text-generation")
    if values.get("neftune_noise_alpha") and not registry.tasks()[task].embeds_tokens:
        found.append(f"neftune_noise_alpha adds noise to token embeddings, which {task} does not have: remove it")
    if values.get("lr_milestones") and word(values.get("lr_scheduler_type", "cosine")) != "cosine":
        found.append("lr_milestones and lr_scheduler_type both set the learning-rate schedule: keep one of them")
    if values.get("lr_milestones") and values.get("lr_scheduler_kwargs"):
        found.append("lr_scheduler_kwargs apply to lr_scheduler_type, which lr_milestones replace: remove them")
    if values.get("warmup_ratio") and values.get("warmup_steps"):
        found.append("warmup_ratio is the same as warmup_steps below 1 (a fraction of all steps): keep warmup_steps")
    return [*found, *_loader(values), *_optim_args(values), *_of_others(values)]


def _of_others(values: Mapping[str, object]) -> list[str]:
    """One message for each option of a schedule or optimizer that is not the selected one."""
    schedule, optimizer = (word(values.get(*each)) for each in (("lr_scheduler_type", "cosine"), ("optim", "")))
    found = []
    if schedule in _NO_WARMUP and values.get("warmup_steps") not in (None, 0, _WARMUP):
        found.append(
            f"warmup_steps has no effect with lr_scheduler_type: {schedule}; use constant_with_warmup for a warm-up"
        )
    if schedule.startswith("constant") and values.get("lr_scheduler_kwargs"):
        found.append(f"lr_scheduler_kwargs have no effect with lr_scheduler_type: {schedule}: remove them")
    if optimizer in (*OPTIM_ARGS, "adafactor"):
        adam = [name for name in ("adam_beta1", "adam_beta2", "adam_epsilon") if _changed(name, values)]
        way_out = f"set optim_args ({OPTIM_ARGS[optimizer]})" if optimizer in OPTIM_ARGS else "remove it"
        found += [f"{name} has no effect with optim: {optimizer}: {way_out}" for name in adam]
    if values.get("lr_decay", _LR_DECAY) != _LR_DECAY and not values.get("lr_milestones"):
        found.append("lr_decay applies only to lr_milestones, which are not set")
    return found


def _loader(values: Mapping[str, object]) -> list[str]:
    """One message for each setting of accelerate about batching, which abkd does itself (splitting, dispatching)."""
    given = values.get("accelerator_config")
    config = (
        given if isinstance(given, Mapping) else vars(given) if given is not None and not isinstance(given, str) else {}
    )
    accumulation = config.get("gradient_accumulation_kwargs") or {}
    return [
        *(
            ["accelerator_config: set gradient_accumulation_steps, not num_steps"]
            if "num_steps" in accumulation
            else []
        ),
        *(
            f"accelerator_config: gradient_accumulation_kwargs takes {', '.join(_ACCUMULATION)}, got {name!r}"
            for name in accumulation
            if name not in (*_ACCUMULATION, "num_steps")
        ),
        *(
            f"accelerator_config: {name}: {config[name]!r} has no effect here, because batches are distributed by the "
            "order of the rows: remove it"
            for name, unset in _OF_LOADER.items()
            if name in config and config[name] not in unset
        ),
    ]


def _optim_args(values: Mapping[str, Any]) -> list[str]:
    name, given = word(values.get("optim", "adamw_torch_fused")), values.get("optim_args")
    if not given or (name not in OPTIM_ARGS and not name.startswith(_OF_TORCH)):
        return []
    if name not in OPTIM_ARGS:
        return [f"optim_args has no effect with optim: {name}; it applies to {', '.join(OPTIM_ARGS)}"]
    try:
        read_optim_args(name, given)
    except ConfigError as error:
        return [str(error)]
    return []


def read_optim_args(name: str, text: str) -> dict[str, float | bool]:
    """Parse ``momentum=0.9, nesterov=true`` into the arguments of a torch optimizer.

    Raises:
        ConfigError: another form, or an argument that this optimizer does not take.
    """
    found: dict[str, float | bool] = {}
    for part in str(text).replace(" ", "").split(","):
        key, _, value = part.partition("=")
        if key == "weight_decay":
            raise ConfigError("optim_args: the setting weight_decay would override it: set weight_decay instead")
        if key not in OPTIM_ARGS[name].split():
            taken = ", ".join(OPTIM_ARGS[name].split())
            raise ConfigError(f"optim_args of {name} are {taken}, as {taken.split(',')[0]}=0.9, got {part!r}")
        found[key] = _boolean(key, value) if key in ("nesterov", "centered") else _number(key, value)
    return found


def _boolean(key: str, text: str) -> bool:
    if text.lower() not in ("true", "yes", "false", "no"):
        raise ConfigError(f"optim_args: {key} must be true or false, got {text!r}")
    return text.lower() in ("true", "yes")


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"optim_args: {key} must be a number, got {text!r}")
    return value


_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_WARMUP, _LR_DECAY = 0.03, 0.1  # defaults of DistillConfig
_OF_TORCH = ("adamw_torch", "adafactor")
_ACCUMULATION = ("adjust_scheduler", "sync_with_dataloader", "sync_each_batch")
_OF_LOADER = {
    "split_batches": (False, None),
    "dispatch_batches": (False, None),
    "even_batches": (True, None),
    "use_seedable_sampler": (True, None),
}
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_CHOICES = {
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "dataloader_multiprocessing_context": ("fork", "forkserver", "spawn"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ucc", "xccl", "ccl", "hccl", "cncl", "mccl", "tccl", "smddp"),
}
