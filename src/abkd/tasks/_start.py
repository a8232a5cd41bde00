"""Warnings before training: conditions under which a text run is likely to fail or to waste time."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, cast

import torch

from abkd.data import Batch
from abkd.divergences import AlphaBeta
from abkd.models.rows import ModelRows
from abkd.ops import Rows, plan_chunks
from abkd.tasks.base import OpenTask
from abkd.teachers import TeacherReader
from abkd.terms import Term

logger = logging.getLogger("abkd")

# Measured on a 135 M model shrunk to 1/2 and 1/3: 0.14 trained well under (0.2, 0.7); 0.01 and 0.05 belong to students
# with a KL of 12 to 13 nats, where the gradient of (0.2, 0.7) has nearly vanished.
ENOUGH_MASS = 0.1
_MUCH_PADDING, _BATCHES = 0.15, 100
_ROWS = 3  # a few hundred tokens are enough to distinguish 0.1 from 0.01, and the user is waiting


def check_padding(task: OpenTask) -> None:
    """Recommend group_by_length if much of a batch would be padding."""
    args, dataset = task.args, task.train
    size = args.per_device_train_batch_size
    if dataset is None or args.group_by_length or args.packing or size == 1:
        return
    share = padding(dataset.lengths, size)
    if share > _MUCH_PADDING:
        logger.info(
            "abkd: about %.0f %% of the positions in a batch are padding; group_by_length: true saves most of that",
            100 * share,
        )


def padding(lengths: Sequence[int], size: int) -> float:
    """The fraction of padding in random batches of ``size`` rows."""
    if len(lengths) <= size:
        return 0.0
    draw = random.Random(0)
    batches = [draw.sample(lengths, size) for _ in range(_BATCHES)]
    return 1.0 - sum(map(sum, batches)) / sum(size * max(batch) for batch in batches)


def check_mass(task: OpenTask) -> None:
    """Warn if the student has almost no mass where the teacher has most, and the divergence would not correct that.

    The gradient of D_AB has a factor q^β (ABKD, arXiv 2505.04560, Prop. 4.2), so it vanishes with q.
    """
    args, teacher, objective = task.args, task.models.teacher, task.args.objective()
    first = objective.at(0.0)[0]
    divergence = first.divergence if isinstance(first, Term) else None
    if not isinstance(divergence, AlphaBeta) or divergence.beta <= 0 or task.train is None:
        return
    compared = args.teacher.needs == (1, 1) and objective.needs_teacher(0.0)  # not a mean, nor made of the student
    trained = any(task.train[0]["trained"])  # prompts without completions have no rows
    if teacher is None or not teacher.models or not compared or not trained:
        return
    mass = _first_mass(task, teacher)
    if mass < ENOUGH_MASS:
        logger.warning(
            "abkd: the student gives only %.1f %% of its probability to the teacher's top 10 tokens. The gradient of "
            "%r has a factor q^%g and nearly vanishes there: training may collapse. Fine-tune the student first, or "
            "start with forward KL: divergence: stages((0.5, ForwardKL()), (0.5, %r))",
            100 * mass,
            divergence,
            divergence.beta,
            divergence,
        )


def _first_mass(task: OpenTask, teacher: TeacherReader) -> float:
    dataset: Any = task.train
    batch = task.collate([dataset[i] for i in dataset.spread(_ROWS)])["batch"].to(task.args.device)
    model = task.models.student.model
    training = model.training
    model.eval()
    mass = covered_mass(task.models.student, teacher, batch)
    model.train(training)
    return mass


@torch.no_grad()
def covered_mass(student: ModelRows, teacher: TeacherReader, batch: Batch, k: int = 10) -> float:
    """The student's mean probability mass on the teacher's top-k classes, over the rows of a batch."""
    mine, theirs = student(batch.student), cast(Rows, teacher(batch.teacher))
    step, total = plan_chunks(len(mine), mine.classes, mine.device).rows_per_chunk, 0.0
    for start in range(0, len(mine), step):
        rows = slice(start, start + step)
        top = theirs.logits(rows).topk(min(k, mine.classes), -1).indices
        total += torch.softmax(mine.logits(rows).float(), -1).gather(-1, top).sum().item()
    return total / max(len(mine), 1)
