"""Held-out metrics: sums over the rows of all batches, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from abkd.data import Batch
from abkd.data.prepared import ExampleDataset
from abkd.divergences import ForwardKL, ReverseKL
from abkd.errors import DataError
from abkd.evaluation._context import EvaluationContext
from abkd.evaluation._coverage import coverage
from abkd.metrics import METRICS, TOP_K
from abkd.objective import Objective
from abkd.ops import RowLossSpec, row_metrics
from abkd.tasks import OpenTask
from abkd.teachers import TeacherReader

_DISTANCES = {"forward_kl": RowLossSpec(ForwardKL()), "reverse_kl": RowLossSpec(ReverseKL())}
_OF_EVERY_TASK = tuple(metric for metric in METRICS.values() if metric.of_every_task)


def evaluate(task: OpenTask, data: object = None, *, progress: float = 1.0) -> dict[str, float]:
    """The held-out metrics of a student, without a trainer: the same numbers as ``DistillTrainer.evaluate``.

    Models and data come from the task's ``open``, by name or as objects::

        from abkd.tasks import Given, task_of

        config = DistillConfig(output_dir="unused", task="text-generation")
        opened = task_of(config.task).open(Given("student", "teacher", held_out="held_out.jsonl"), config)
        print(evaluate(opened)["perplexity"])

    Args:
        task: the open models and data; they are moved to the device of its settings.
        data: other held-out rows, in any format that the task reads; by default the task's own.
        progress: the progress in [0, 1] at which a scheduled objective is evaluated for the metric ``loss``.

    Returns:
        The metrics by name, as in the log but without the prefix ``eval_``: of :data:`abkd.metrics.METRICS` or the
        task's own, and the teacher's with the prefix ``teacher_``.

    Raises:
        DataError: there are no held-out rows, or some that cannot be used.
    """
    held_out = task.held_out if data is None else task.prepare(data)
    if held_out is None:
        raise DataError("expected held-out rows to evaluate on, got none: pass data, or open the task with held_out")
    return held_out_metrics(EvaluationContext.alone(task, progress=progress), _batches(task, held_out), held_out)


def held_out_metrics(context: EvaluationContext, batches: Iterable[Batch], dataset: ExampleDataset) -> dict[str, float]:
    """The metrics of every task, and those of the context's task.

    The batches are drawn and evaluated without changing the global random numbers.

    Args:
        batches: those of this process; all processes have the same number.
        dataset: the examples of all processes, for the metrics of generated text.
    """
    args, task, module = context.task.args, context.task, context.module
    training = module.training
    module.eval()
    sums: dict[str, Tensor] = {}
    devices = [args.device] if args.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for batch in batches:
            out = context.forward(partial(row_sums, context, batch.to(args.device)))
            for name, value in out.items():
                sums[name] = sums.get(name, 0.0) + value
        totals = {name: context.processes.sum(value).item() for name, value in sums.items()}
        values = means(totals) | task.summarize(totals)
        if args.eval_samples:
            values |= coverage(context, dataset)
    module.train(training)
    return values


def row_sums(context: EvaluationContext, batch: Batch) -> dict[str, Tensor]:
    """Sums over the rows of a batch: distances, cross-entropies, the objective's value, the task's own columns.

    Every term is evaluated on every row, whatever its origin: the value measures how far the models differ here.
    Numbers of rows that depend on a whole step are 1, and temperatures of rows at their base.
    """
    objective, plan, models = context.objective, context.plan, context.task.models
    needs = objective.needs(context.progress)
    student = models.student.read(batch.student, needs.student_features)
    known = None if models.teacher is None else models.teacher.read(batch.teacher, needs.teacher_features)
    teacher = None if known is None else known.rows
    terms = objective.evaluation_specs(student, known, batch, context.progress)
    specs = {f"term {k}": spec for k, (_, _, spec) in enumerate(terms) if spec is not None}
    wanted = {**_distances(models.teacher, objective.spec), **specs}
    columns = row_metrics(student.rows, teacher, wanted, batch.targets, plan=plan)
    hard = columns.get("cross_entropy", torch.zeros((), device=batch.weight.device))  # not used without labels
    values = [
        active.term.values(inputs, columns.pop(f"term {k}", None), hard) for k, (active, inputs, _) in enumerate(terms)
    ]
    columns["loss"] = torch.stack(values).sum(0)
    columns |= context.task.row_metrics(student.rows, teacher, batch)
    counted = batch.weight != 0  # padding images are not rows
    sums = {name: column.double()[counted].sum() for name, column in columns.items()}
    return {**sums, "rows": batch.weight.count_nonzero().double()}


def means(totals: Mapping[str, float]) -> dict[str, float]:
    """Means over the rows, for the metrics that all tasks have."""
    rows = max(totals["rows"], 1.0)
    columns = {metric.name: metric.column or metric.name for metric in _OF_EVERY_TASK}
    return {name: totals[column] / rows for name, column in columns.items() if column in totals}


def _distances(teacher: TeacherReader | None, objective: Objective) -> dict[str, RowLossSpec]:
    """The distances at temperature 1 or, for a top-k cache, under other names and at the objective's temperature.

    A top-k cache has k classes and one bucket for the rest: its distances are smaller than those of all classes.
    """
    if teacher is None:
        return {}
    if teacher.exact:
        return dict(_DISTANCES)
    return {f"{name}{TOP_K}": replace(spec, temperature=objective.temperature) for name, spec in _DISTANCES.items()}


def _batches(task: OpenTask, dataset: ExampleDataset) -> Iterator[Batch]:
    """The examples in order."""
    size, collate = task.args.per_device_eval_batch_size, task.collate
    for start in range(0, len(dataset), size):
        yield collate([dataset[i] for i in range(start, min(start + size, len(dataset)))])["batch"]
