"""Multi-step learning rate and weight decay on all parameters, as is usual for image classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from abkd.config import DistillConfig
from abkd.errors import ConfigError
from abkd.training_arguments import OPTIM_ARGS, precision_kept, read_optim_args, steps_per_epoch, word


class OptimizerMixin(Trainer):
    """transformers' Trainer with ``lr_milestones``, ``decay_all_parameters`` and, in old versions, ``optim_args``."""

    args: Any  # a DistillConfig

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, in this run's mixed precision, which version 4 takes from the environment."""
        with precision_kept(self.args.mixed_precision):
            super().create_accelerator_and_postprocess()

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """As in transformers, which before version 5 ignores ``optim_args`` for torch's optimizers."""
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return optimizer, options | optim_options(args)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers (no biases, no normalisation), or all with ``decay_all_parameters``."""
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As in transformers, or a multi-step schedule with ``lr_milestones`` in epochs."""
        if self.lr_scheduler is None and self.args.lr_milestones:
            rows: Any = self.train_dataset
            stepped: Any = optimizer or self.optimizer
            factor = multi_step(self.args, len(rows), self._train_batch_size)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(stepped, factor)
        return super().create_scheduler(num_training_steps, optimizer)


def multi_step(args: DistillConfig, rows: int, batch_size: int) -> Callable[[int], float]:
    """Step -> factor of the learning rate: ``lr_decay`` for each milestone passed, after a linear warm-up.

    ``rows``: rows per epoch. ``batch_size``: the current one per process (auto_find_batch_size may have reduced it).
    """
    per_epoch = steps_per_epoch(args, rows, batch_size)
    milestones = args.lr_milestones or []
    after = [round(epoch * per_epoch) for epoch in milestones]
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    warmup = args.get_warmup_steps(total)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1)) * args.lr_decay ** sum(step >= each for each in after)

    return factor


def optim_options(args: TrainingArguments) -> dict[str, Any]:
    """``optim_args`` as keyword arguments of a torch optimizer; empty for any other optimizer."""
    name = word(args.optim)
    return dict(read_optim_args(name, args.optim_args)) if name in OPTIM_ARGS and args.optim_args else {}


def check_batches(args: TrainingArguments, train: Any) -> None:
    """Raise ConfigError if there are no rows to train on, or too few for one batch with dataloader_drop_last."""
    if train is None:
        raise ConfigError("there is nothing to train on: pass rows as train_dataset")
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(train) < size:
        raise ConfigError(
            f"a batch needs {size} rows, got {len(train)}: dataloader_drop_last leaves nothing to train on; use "
            "smaller batches, or set it to false"
        )
