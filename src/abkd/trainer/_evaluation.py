"""Evaluation during a run: of the wrapped student, in all processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from abkd.data import Batch
from abkd.data.order import PadToMultiple
from abkd.evaluation import EvaluationContext, held_out_metrics
from abkd.generation import Sampling
from abkd.models.rows import ModelRows
from abkd.trainer._context import RunContext
from abkd.trainer._finite import FiniteRun
from abkd.trainer._sources import write

logger = logging.getLogger("abkd")


def evaluate_run(run: RunContext, dataloader: Any, student: ModelRows | None = None) -> dict[str, float]:
    """The held-out metrics of the student that is trained at the run's current progress, or of another form of it."""
    module = run.evaluation_model()
    context = EvaluationContext(
        run.task.with_student(run.loss.student if student is None else student),
        run.loss.objective,
        run.progress,
        run.loss.plan,
        module=module,
        forward=lambda job: module(job=job),
        generate=lambda model, prompts: write(run, model, prompts, Sampling(), seed=run.args.seed),
        writer=run.model(),
        processes=run.processes,
    )
    dataset = dataloader.dataset
    held_out = dataset.rows if isinstance(dataset, PadToMultiple) else dataset
    return held_out_metrics(context, _batches(dataloader), held_out)


def _batches(dataloader: Iterable[Mapping[str, Batch]]) -> Iterator[Batch]:
    """The batches; the loader is opened at the first, as that may draw a random number."""
    for inputs in dataloader:
        yield inputs["batch"]


def warn_not_finite(run: RunContext, finite: FiniteRun, values: Mapping[str, float], warned: set[str]) -> None:
    """Warn once per metric (``warned``) about held-out values that are not finite; raise if the weights are the cause.

    Raises:
        NonFiniteError: weights are NaN or infinite.
    """
    not_finite = sorted(name for name, value in values.items() if not math.isfinite(value))
    if not_finite:
        finite.check_weights("the evaluation stopped the run, and nothing was saved; lower the learning rate")
    if run.processes.is_main and not warned.issuperset(not_finite):
        logger.warning(
            "abkd: the evaluation after step %d is not finite: %s (recorded as null). The weights are finite; check "
            "for NaN or infinite teacher logits, and for tokens to which one of the models gives probability 0",
            run.step,
            ", ".join(not_finite),
        )
    warned.update(not_finite)
