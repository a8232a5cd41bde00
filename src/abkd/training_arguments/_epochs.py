"""Epochs and steps of a run, as transformers counts them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments


def epochs(args: TrainingArguments, rows: int) -> int:
    """How many epochs of ``rows`` rows a run starts."""
    if args.max_steps > 0:
        return math.ceil(args.max_steps / steps_per_epoch(args, rows, args.train_batch_size))
    return math.ceil(args.num_train_epochs)


def steps_per_epoch(args: TrainingArguments, rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch of ``rows`` rows, in batches of ``batch_size`` per process."""
    size = batch_size * args.world_size
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
