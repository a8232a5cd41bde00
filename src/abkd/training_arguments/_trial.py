"""Checks of the settings of transformers that need this machine and torch, but no model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from abkd.precision import bf16_slowdown
from abkd.training_arguments._intervals import word
from abkd.training_arguments._rules import read_optim_args
from abkd.training_arguments._table import OPTIM_ARGS

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("abkd")

_IN_BACKWARD = ("lomo", "adalomo")
_PROJECTED = ("galore", "apollo")
_CLASSES = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}
_STEPS = 100
_SLOW = 1.5  # a smaller slowdown is not worth a warning


def for_this_machine(values: Mapping[str, object]) -> dict[str, object]:
    """Settings to change without an accelerator or with a single process, and one that some versions rename."""
    found: dict[str, object] = {}
    if not torch.accelerator.is_available():
        if values["bf16"]:
            found["use_cpu"] = True
            _warn_of_slow_bf16()
        if values["fp16"]:
            found["fp16"] = False
            logger.warning("abkd: fp16 needs a GPU, so this run computes in float32; bf16 works on a CPU too")
    if values["ddp_backend"] and "LOCAL_RANK" not in os.environ:
        found["ddp_backend"] = None  # a single process needs none, and transformers would look for others
    if "activation_checkpointing" in values and values["activation_checkpointing"] is None:
        found["activation_checkpointing"], found["gradient_checkpointing"] = values["gradient_checkpointing"], None
    return found


def _warn_of_slow_bf16() -> None:
    slowdown = bf16_slowdown()
    if slowdown > _SLOW:
        logger.warning(
            "abkd: bf16 is slow on this processor: a matrix product takes %.1f times as long as in float32; without "
            "bf16 the run would be faster",
            slowdown,
        )


def step_problems(args: TrainingArguments) -> list[str]:
    """One message if the optimizer or the learning-rate schedule cannot be created from these training arguments.

    transformers creates them after the models are loaded; here they are created once, for a single parameter.
    """
    name = word(args.optim)
    if name in _IN_BACKWARD or name.endswith("layerwise"):
        return [f"optim: {name} updates weights during the backward pass, before gradients are checked: use another"]
    if name.startswith(_PROJECTED) != bool(args.optim_target_modules):
        return ["optim_target_modules applies to optim: galore_… and apollo_…: set both, or neither"]
    try:
        _try_optimizer(args, name)
    except (ValueError, TypeError) as error:
        return [f"optim_args do not fit optim: {name}: {error}"]
    try:
        _try_schedule(args)
    except Exception as error:  # noqa: BLE001  # a schedule may raise anything
        return [f"lr_scheduler_kwargs do not fit lr_scheduler_type: {word(args.lr_scheduler_type)}: {error}"]
    return []


def _try_optimizer(args: TrainingArguments, name: str) -> None:
    if name in OPTIM_ARGS:
        options = read_optim_args(name, args.optim_args) if args.optim_args else {}
        _CLASSES[name]([torch.nn.Parameter(torch.zeros(1))], **{"lr": args.learning_rate, **options})


def _try_schedule(args: Any) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(_STEPS),
        num_training_steps=_STEPS,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )
    metric = {"metrics": 1.0} if word(args.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy") else {}
    optimizer.step()
    for _ in range(_STEPS):
        schedule.step(**metric)
