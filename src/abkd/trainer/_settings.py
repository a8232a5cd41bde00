"""Checks of settings that need the trainer: its data, its arguments or its first evaluation."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.training_args import ParallelMode

from abkd.config import DistillConfig
from abkd.divergences import AlphaBeta
from abkd.errors import ConfigError, shown
from abkd.sources import Dataset
from abkd.trainer._hub import check_hub
from abkd.training_arguments import word

logger = logging.getLogger("abkd")

_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # since transformers 5.20, and before
_OF_CHECKPOINTING: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("use_reentrant", "preserve_rng_state", "debug"), (lambda x: isinstance(x, bool), "true or false")),
    "determinism_check": (lambda x: x in ("default", "none"), "default or none"),
    "context_fn": (callable, "a function"),
}
_OF_GENERATION = {
    name: DistillConfig.__dataclass_fields__[name].default
    for name in ("generation_kwargs", "num_generations", "max_completion_length")
}
_NO_GRADIENT = 1e-9
_SAMPLED = 256  # elements per weight
_LARGE_RATE = 10.0  # SGD on images takes up to 1
_LARGE_EXPONENT = 30.0  # on random models, the gradient of AlphaBeta(30, 1) is 1e-5 of forward KL's; (1000, 1): 1e-15
_NOT_CALLED = {
    "data_collator": "abkd collates the rows itself (padding, packing, shifting); pass the rows in another format",
    "compute_metrics": "metrics are computed without storing predictions; evaluate the saved student",
    "preprocess_logits_for_metrics": "no logits are stored",
    "compute_loss_func": "the loss is the objective of DistillConfig; write a custom divergence instead",
    "model_init": "pass the model instead",
}


def check_settings(args: object, eval_dataset: object, callbacks: object, options: Mapping[str, object]) -> None:
    """Reject arguments of transformers' Trainer that have no effect here, before a model is loaded.

    Raises:
        TypeError: an argument that neither trainer has.
        ConfigError: an argument of the wrong type or without effect, or evaluation without rows.
    """
    if not isinstance(args, DistillConfig):
        raise ConfigError(
            "args must be a DistillConfig (TrainingArguments plus the objective), got "
            f"{type(args).__name__}: pass the same settings to abkd.DistillConfig"
        )
    for name, way_out in _NOT_CALLED.items():
        if options.get(name) is not None:
            raise ConfigError(f"{name} has no effect here: {way_out}")
    if unknown := options.keys() - inspect.signature(Trainer).parameters.keys():
        hint = "; pass the tokenizer as processing_class" if "tokenizer" in unknown else ""
        raise TypeError(f"DistillTrainer has no argument {min(unknown)!r}{hint}")
    _check_callbacks(args, callbacks or ())
    check_hub(args)
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError("fsdp shards a model over several processes, got one: use accelerate launch -m abkd …")
    if eval_dataset is None and word(args.eval_strategy) != "no":
        raise ConfigError(
            f"eval_strategy is {word(args.eval_strategy)!r}, but there is no eval_dataset: pass one, or "
            "set eval_strategy: no"
        )


def _check_callbacks(args: DistillConfig, callbacks: object) -> None:
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks must be a list, got {type(callbacks).__name__}")
    for each in callbacks:
        kind = each if isinstance(each, type) else type(each)
        if not issubclass(kind, TrainerCallback):
            raise ConfigError(f"callbacks must be TrainerCallbacks of transformers, got {shown(each)}")
        if issubclass(kind, EarlyStoppingCallback) and word(args.eval_strategy) == "no":
            raise ConfigError(
                "EarlyStoppingCallback needs evaluations, and there are none: pass an eval_dataset, and set "
                "eval_strategy: epoch (or steps, with eval_steps)"
            )


def check_recomputed(model: nn.Module, args: DistillConfig) -> None:
    """Raise ConfigError if the student or torch does not support the gradient checkpointing that is set."""
    if not any(getattr(args, name, False) for name in _CHECKPOINTING):
        return
    enable = next(
        (getattr(model, f"{name}_enable") for name in _CHECKPOINTING if hasattr(model, f"{name}_enable")), None
    )
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"the student ({type(model).__name__}) does not support gradient checkpointing: remove "
            "gradient_checkpointing (activation_checkpointing), and use smaller batches to save memory"
        )
    known = {*inspect.signature(checkpoint).parameters, *inspect.signature(enable).parameters}
    options = [f"{name}_kwargs" for name in _CHECKPOINTING]
    known -= {"function", "args", "kwargs", *options}
    for name in options:
        given = getattr(args, name, None) or {}
        if unknown := set(given) - known:
            raise ConfigError(f"{name} has no option {min(unknown)!r}; its options are {', '.join(sorted(known))}")
        for key, (fits, words) in _OF_CHECKPOINTING.items():
            if key in given and not fits(given[key]):
                raise ConfigError(f"{name}: {key} must be {words}, got {shown(given[key])}")


def check_metric(args: DistillConfig, values: Mapping[str, float]) -> None:
    """Raise ConfigError if the metric that selects the best checkpoint is not computed."""
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in values:
        raise ConfigError(
            f"metric_for_best_model is {name!r}, which this run does not compute; use one of {', '.join(values)}"
        )


def warn_extreme(args: DistillConfig) -> None:
    """Warn about settings without effect, and about values with which a run may learn nothing or diverge."""
    if args.source == Dataset() and not args.eval_samples:
        unused = [name for name, unset in _OF_GENERATION.items() if getattr(args, name) not in (None, unset)]
        if unused:
            logger.warning("abkd: no model generates text in this run, so %s will have no effect", ", ".join(unused))
    if args.learning_rate > _LARGE_RATE:
        logger.warning("abkd: learning_rate is %g; usual values are 1e-5 to 1e-1", args.learning_rate)
    divergences = {term.divergence for term in args.objective().row_terms()}
    for each in (divergence for divergence in divergences if isinstance(divergence, AlphaBeta)):
        if max(abs(each.alpha), abs(each.beta)) > _LARGE_EXPONENT:
            logger.warning(
                "abkd: the exponents of %r are so large that its gradient vanishes or overflows; use values "
                "between 0 and 1",
                each,
            )


class NothingLearned(TrainerCallback):
    """Warns at the first log if the gradient is almost zero, and at the end if no weight has changed."""

    def __init__(self) -> None:
        self.checked = False
        self._before: list[torch.Tensor] = []
        self._step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: object
    ) -> None:
        self._before, self._step = _sample_of(model), state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: object
    ) -> None:
        before, self._before, after = self._before, [], _sample_of(model)
        if state.global_step - self._step < 2 or not after or len(after) != len(before):  # a single step may be warm-up
            return
        if all(map(torch.equal, before, after)) and state.is_world_process_zero:
            logger.warning(
                "abkd: no weight has changed in %d steps, so nothing is learned: the updates are below the precision "
                "of the weights. Check learning_rate (%g), warm-up, max_grad_norm (%g) and the loss weights",
                state.global_step - self._step,
                args.learning_rate,
                args.max_grad_norm,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, float],
        **_: object,
    ) -> None:
        norm = logs.get("grad_norm")
        if norm is None or self.checked:
            return
        self.checked = True
        if norm < _NO_GRADIENT and state.is_world_process_zero:
            logger.warning(
                "abkd: the gradient of step %d is almost zero (its norm is %.1g), so nothing is learned: check the "
                "divergence, kd_temperature and the weights, and whether the student already equals its teacher",
                state.global_step,
                norm,
            )


@torch.no_grad()
def _sample_of(model: nn.Module) -> list[torch.Tensor]:
    """A few hundred elements of every trained weight; if it is sharded, of the local shard."""
    some = []
    for weight in model.parameters():
        own: Any = weight
        own = own.to_local() if hasattr(own, "to_local") else own
        if weight.requires_grad and own.numel():
            some.append(own.flatten()[:: max(1, own.numel() // _SAMPLED)].float().cpu().clone())
    return some
