"""From sums over held-out rows to the metrics, and what they say about the teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd.data import Batch, Example, padding_example, prompt_of, teacher_prompt_of, with_completion
from abkd.data.order import PadToMultiple
from abkd.generation import Sampling
from abkd.metrics import DISTANCES
from abkd.objective import TokenLogProbs
from abkd.trainer._sources import write

if TYPE_CHECKING:
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")


def held_out_metrics(trainer: DistillTrainer, dataloader: Any) -> dict[str, float]:
    """Distances to the teacher, and what the task measures."""
    args, task, model = trainer.distill_args, trainer.loss, _wrapped(trainer)
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    devices = [args.device] if args.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # however often this is done, the training is the same
        for inputs in dataloader:
            batch = inputs["batch"].to(args.device)
            out = model(job=lambda batch=batch: task.distances(batch, trainer.progress))
            for name, value in out.items():
                sums[name] = sums.get(name, 0.0) + value
        totals = {name: trainer.sum_over_processes(value).item() for name, value in sums.items()}
        values = metrics(totals) | trainer.task.summarize(totals)
        if args.eval_samples:
            values |= coverage(trainer, model, dataloader.dataset)
    model.train(training)
    return values


def say_not_finite(trainer: DistillTrainer, values: Mapping[str, float], said: set[str]) -> None:
    """Say which held-out numbers are not finite, once each (``said``); stop where the weights are the reason.

    Raises:
        NonFiniteError: weights are NaN or infinite.
    """
    sick = sorted(name for name, value in values.items() if not math.isfinite(value))
    if sick:
        trainer.finite.check_weights(
            "the evaluation stopped the run, and nothing of it was saved; lower the learning rate"
        )
    if trainer.is_world_process_zero() and not said.issuperset(sick):
        logger.warning(
            "abkd: the evaluation after step %d is not finite: %s (recorded as null). The weights are finite; look for "
            "NaN or infinite logits of the teacher, and for tokens that one of the models rules out",
            trainer.state.global_step,
            ", ".join(sick),
        )
    said.update(sick)


def _wrapped(trainer: DistillTrainer) -> nn.Module:
    """The student as wrappers for several processes and precisions have it."""
    student: Any = trainer.model
    model = trainer._wrap_model(student, training=False)
    if not trainer.accelerator._models and model is trainer.model:
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        prepare = trainer.accelerator.prepare if sharded else None
        model = prepare(model) if prepare else trainer.accelerator.prepare_model(model, evaluation_mode=True)
        trainer.model_wrapped = model
    return model


def metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Means over the rows that all modalities have; the names are a contract (``eval_`` goes before them)."""
    rows = max(totals["rows"], 1.0)
    found = {name: totals[name] / rows for name in ("loss", *DISTANCES) if name in totals}
    if "agreement" in totals:
        found["top1_agreement"] = totals["agreement"] / rows
    return found


def coverage(trainer: DistillTrainer, model: nn.Module, dataset: Any) -> dict[str, float]:
    """What each model thinks of what the other writes to the first ``eval_samples`` held-out prompts, in nats a token.

    ``r_llh``: mean −log p of the student's text (would the teacher say it?); ``r_cvg``: mean −log q of the teacher's
    (could the student have said it?). f-DISTILL, arXiv 2307.15190, section 4.
    """
    args, teacher = trainer.distill_args, trainer.models.teacher
    assert teacher is not None
    held_out = dataset.rows if isinstance(dataset, PadToMultiple) else dataset
    rows = [held_out[i] for i in range(args.process_index, min(args.eval_samples, len(held_out)), args.world_size)]
    prompts = [prompt_of(row) for row in rows]
    teacher_prompts = [teacher_prompt_of(row) for row in rows]
    sums = torch.zeros(2, 2, dtype=torch.float64, device=args.device)
    writers = ((trainer.model, prompts), (teacher.models[0], teacher_prompts))
    for k, (writer, asked) in enumerate(writers):
        written = write(trainer, writer, asked, Sampling(), seed=args.seed)
        texts = [with_completion(row, w.ids, 0, privileged=True) for row, w in zip(rows, written, strict=True) if w.ids]
        for batch in _batches(trainer, texts, held_out[0]):
            known = model(job=lambda batch=batch: _history(trainer, batch))
            theirs = known.teacher_log_prob if k == 0 else known.student_log_prob
            sums[k] += torch.stack([-theirs.double().sum(), batch.weight.double().sum()])
    total = trainer.sum_over_processes(sums)
    return {name: (total[k, 0] / total[k, 1].clamp(min=1)).item() for k, name in enumerate(("r_llh", "r_cvg"))}


def _batches(trainer: DistillTrainer, texts: list[Example], some: Example) -> Iterator[Batch]:
    """As many batches in every process."""
    size = trainer.args.per_device_eval_batch_size
    for start in range(0, trainer.max_over_processes(len(texts)), size):
        yield trainer.collator(texts[start : start + size] or [padding_example(some)])["batch"].to(trainer.args.device)


def _history(trainer: DistillTrainer, batch: Batch) -> TokenLogProbs:
    task = trainer.loss
    assert task.teacher is not None
    return task.history(task.student(batch.student), task.teacher(batch.teacher), batch)
