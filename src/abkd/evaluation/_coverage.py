"""How well student and teacher know each other's text."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from abkd.data import Batch, Example, padding_example, prompt_of, teacher_prompt_of, with_completion
from abkd.data.prepared import ExampleDataset
from abkd.evaluation._context import EvaluationContext
from abkd.ops import row_metrics


def coverage(context: EvaluationContext, dataset: ExampleDataset) -> dict[str, float]:
    """Each model's negative log-likelihood of the other's completions of ``eval_samples`` prompts, in nats per token.

    ``r_llh``: mean −log p of the student's text (would the teacher say it?); ``r_cvg``: mean −log q of the teacher's
    (could the student have said it?). f-DISTILL, arXiv 2307.15190, section 4.
    """
    args, processes, teacher = context.task.args, context.processes, context.task.models.teacher
    assert teacher is not None
    rows = [dataset[i] for i in range(processes.index, min(args.eval_samples, len(dataset)), processes.count)]
    sums = torch.zeros(2, 2, dtype=torch.float64, device=args.device)
    writers = (
        (context.writer, [prompt_of(row) for row in rows], "teacher_cross_entropy"),
        (teacher.models[0], [teacher_prompt_of(row) for row in rows], "cross_entropy"),
    )
    for k, (writer, prompts, other) in enumerate(writers):
        written = context.generate(writer, prompts)
        texts = [with_completion(row, w.ids, 0, privileged=True) for row, w in zip(rows, written, strict=True) if w.ids]
        for batch in _batches(context, texts, dataset[0]):
            likelihood = context.forward(lambda batch=batch: _cross_entropies(context, batch))[other]
            sums[k] += torch.stack([likelihood.double().sum(), batch.weight.double().sum()])
    total = processes.sum(sums)
    return {name: (total[k, 0] / total[k, 1].clamp(min=1)).item() for k, name in enumerate(("r_llh", "r_cvg"))}


def _batches(context: EvaluationContext, texts: list[Example], template: Example) -> Iterator[Batch]:
    """The same number of batches in every process, padded with copies of ``template``."""
    args, collate = context.task.args, context.task.collate
    size = args.per_device_eval_batch_size
    for start in range(0, context.processes.max(len(texts)), size):
        yield collate(texts[start : start + size] or [padding_example(template)])["batch"].to(args.device)


def _cross_entropies(context: EvaluationContext, batch: Batch) -> dict[str, Tensor]:
    """``[N]`` each: −log q and −log p of the token in the text."""
    student, teacher = context.task.models.student, context.task.models.teacher
    assert teacher is not None
    return row_metrics(student(batch.student), teacher(batch.teacher), {}, batch.targets, plan=context.plan)
