"""What is said before the first step: conditions under which a run is likely to fail."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abkd.divergences import AlphaBeta
from abkd.trainer._task import covered_mass

if TYPE_CHECKING:
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")

# Measured on halves and thirds of a 135 M model: 0.14 trained well under (0.2, 0.7); 0.01 and 0.05 belong to students
# with a KL of 12 to 13 nats, where the gradient of (0.2, 0.7) has all but vanished.
ENOUGH_MASS = 0.1
_MUCH_PADDING, _BATCHES = 0.15, 100
_ROWS = 3  # some hundred tokens tell 0.1 from 0.01, and the user is waiting


def check_start(trainer: DistillTrainer) -> None:
    """What is worth knowing before hours are spent: a student out of reach of its divergence, work for nothing."""
    _check_mass(trainer)
    _check_padding(trainer)


def _check_padding(trainer: DistillTrainer) -> None:
    args, dataset = trainer.distill_args, trainer.train_dataset
    size = args.per_device_train_batch_size
    if dataset is None or args.group_by_length or args.packing or size == 1 or trainer.sampler is not None:
        return
    share = padding(getattr(dataset, "lengths", []), size)
    if share > _MUCH_PADDING:
        logger.info(
            "abkd: about %.0f %% of the positions in a batch are padding; group_by_length: true saves most of that",
            100 * share,
        )


def padding(lengths: Sequence[int], size: int) -> float:
    """The share of padding in random batches of ``size`` rows."""
    if len(lengths) <= size:
        return 0.0
    draw = random.Random(0)
    batches = [draw.sample(lengths, size) for _ in range(_BATCHES)]
    return 1.0 - sum(map(sum, batches)) / sum(size * max(batch) for batch in batches)


def _check_mass(trainer: DistillTrainer) -> None:
    """Warn when the student has almost no mass where the teacher has most, and the divergence would not mend that.

    The gradient of D_AB carries q^β (ABKD, arXiv 2505.04560, Prop. 4.2): where q vanishes it does too.
    """
    divergence = trainer.task.objective.at(0.0)[0].divergence
    if not isinstance(divergence, AlphaBeta) or divergence.beta <= 0 or trainer.train_dataset is None:
        return
    teacher = trainer.models.teacher
    spec = trainer.distill_args.teacher
    asked = spec.needs == (1, 1) and trainer.task.objective.needs_teacher(0.0)  # else it is a mean, or the student
    known = any(trainer.train_dataset[0]["trained"])  # prompts alone have no rows to look at
    if teacher is None or not teacher.models or not asked or not known:
        return
    mass = _first_mass(trainer)
    if mass is not None and mass < ENOUGH_MASS:
        logger.warning(
            "abkd: the student gives only %.1f %% of its probability to the teacher's 10 likeliest tokens. The "
            "gradient of %r carries q^%g and nearly vanishes there: training may collapse. Fine-tune the student "
            "first, or begin with forward KL: divergence: stages((0.5, ForwardKL()), (0.5, %r))",
            100 * mass,
            divergence,
            divergence.beta,
            divergence,
        )


def _first_mass(trainer: DistillTrainer) -> float | None:
    if (
        trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    ):  # parameters may be sharded: no forward outside the wrapper
        return None
    dataset: Any = trainer.train_dataset
    batch = trainer.collator([dataset[i] for i in dataset.spread(_ROWS)])["batch"].to(trainer.args.device)
    model = trainer.models.student.model
    training = model.training
    model.eval()
    mass = covered_mass(trainer.task, batch)
    model.train(training)
    return mass
