"""Evaluation metrics: from sums over held-out rows to their means, and the coverage of generated text."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from abkd.data import Batch, Example, padding_example, prompt_of, teacher_prompt_of, with_completion
from abkd.data.order import PadToMultiple
from abkd.generation import Sampling
from abkd.metrics import DISTANCES
from abkd.terms import TokenLogProbs
from abkd.trainer._context import RunContext
from abkd.trainer._finite import FiniteRun
from abkd.trainer._sources import write

logger = logging.getLogger("abkd")


def held_out_metrics(run: RunContext, dataloader: Any) -> dict[str, float]:
    """Distances to the teacher and the task's metrics."""
    args, loss, model = run.args, run.loss, run.evaluation_model()
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    devices = [args.device] if args.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # evaluating must not change the training
        for inputs in dataloader:
            batch = inputs["batch"].to(args.device)
            out = model(job=lambda batch=batch: loss.distances(batch, run.progress))
            for name, value in out.items():
                sums[name] = sums.get(name, 0.0) + value
        totals = {name: run.processes.sum(value).item() for name, value in sums.items()}
        values = metrics(totals) | run.task.summarize(totals)
        if args.eval_samples:
            values |= coverage(run, model, dataloader.dataset)
    model.train(training)
    return values


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


def metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Means over the rows, for metrics that all modalities have; their names (with the prefix ``eval_``) are stable."""
    rows = max(totals["rows"], 1.0)
    found = {name: totals[name] / rows for name in ("loss", *DISTANCES) if name in totals}
    if "agreement" in totals:
        found["top1_agreement"] = totals["agreement"] / rows
    return found


def coverage(run: RunContext, model: nn.Module, dataset: Any) -> dict[str, float]:
    """Each model's negative log-likelihood of the other's completions of ``eval_samples`` prompts, in nats per token.

    ``r_llh``: mean −log p of the student's text (would the teacher say it?); ``r_cvg``: mean −log q of the teacher's
    (could the student have said it?). f-DISTILL, arXiv 2307.15190, section 4.
    """
    args, teacher = run.args, run.task.models.teacher
    assert teacher is not None
    held_out = dataset.rows if isinstance(dataset, PadToMultiple) else dataset
    rows = [held_out[i] for i in range(args.process_index, min(args.eval_samples, len(held_out)), args.world_size)]
    prompts = [prompt_of(row) for row in rows]
    teacher_prompts = [teacher_prompt_of(row) for row in rows]
    sums = torch.zeros(2, 2, dtype=torch.float64, device=args.device)
    writers = ((run.model(), prompts), (teacher.models[0], teacher_prompts))
    for k, (writer, queries) in enumerate(writers):
        written = write(run, writer, queries, Sampling(), seed=args.seed)
        texts = [with_completion(row, w.ids, 0, privileged=True) for row, w in zip(rows, written, strict=True) if w.ids]
        for batch in _batches(run, texts, held_out[0]):
            known = model(job=lambda batch=batch: _history(run, batch))
            theirs = known.teacher_log_prob if k == 0 else known.student_log_prob
            sums[k] += torch.stack([-theirs.double().sum(), batch.weight.double().sum()])
    total = run.processes.sum(sums)
    return {name: (total[k, 0] / total[k, 1].clamp(min=1)).item() for k, name in enumerate(("r_llh", "r_cvg"))}


def _batches(run: RunContext, texts: list[Example], template: Example) -> Iterator[Batch]:
    """The same number of batches in every process, padded with copies of ``template``."""
    size = run.args.per_device_eval_batch_size
    for start in range(0, run.processes.max(len(texts)), size):
        yield run.task.collate(texts[start : start + size] or [padding_example(template)])["batch"].to(run.args.device)


def _history(run: RunContext, batch: Batch) -> TokenLogProbs:
    loss = run.loss
    assert loss.teacher is not None
    return loss.history(loss.student(batch.student), loss.teacher(batch.teacher), batch)
