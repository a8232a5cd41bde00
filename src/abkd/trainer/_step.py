"""Work at the start of an optimizer step: its divisors, and the numbers of rows that depend on the whole step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd.data import Batch
from abkd.objective import Columns, StepScores
from abkd.terms import Scores
from abkd.trainer._accumulation import AccumulationBatch
from abkd.trainer._context import RunContext
from abkd.trainer._distillation import Totals


def begin_step(run: RunContext, model: nn.Module, step: AccumulationBatch) -> None:
    """Set the totals of the step over all processes and, if some row function looks ahead, its columns."""
    objective, batches = run.loss.objective, step.ready
    totals = Totals.of(batches, objective, run.progress)
    step.totals = Totals(*(run.processes.sum(total.to(run.args.device)) for total in totals))
    if objective.looks_ahead(run.progress):
        columns, divisors = _look_ahead(run, model, batches)
        step.columns = dict(zip(map(id, batches), columns, strict=True))
        for index, divisor in divisors.items():
            step.totals.rows[index] = divisor


def batch_of_step(run: RunContext, batch: Batch, step: object) -> tuple[Batch, Totals, Columns]:
    """A batch on the device of the run, its divisors and its columns; outside of a step, its own divisors."""
    on_device = batch.to(run.args.device)
    if isinstance(step, AccumulationBatch) and step.totals is not None:
        return on_device, step.totals, step.columns_of(batch)
    return on_device, Totals.of([on_device], run.loss.objective, run.progress), {}


def _look_ahead(run: RunContext, model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Columns], dict[int, Tensor]]:
    """The numbers of the rows of each batch, from the scores of all rows of the step in all processes.

    Models are read in eval mode and without gradient, so that a score depends on the row and the weights alone.
    """
    args, loss = run.args, run.loss
    training = model.training
    model.eval()
    devices = [args.device] if args.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        found: list[StepScores] = [
            model(job=lambda batch=batch: loss.scores(batch.to(args.device), run.progress)) for batch in batches
        ]
    model.train(training)
    names = list(found[0].scores)
    own = {name: torch.cat([each.scores[name] for each in found]) for name in names}
    weight = torch.cat([each.weight for each in found], -1)
    rows = _rows(batches, run.processes.index, args.device)
    everyone = run.processes.gather_rows({**own, "weight": weight.T, **rows})
    start = sum(len(each["weight"]) for each in everyone[: run.processes.index])
    whole = {name: torch.cat([each[name] for each in everyone]) for name in everyone[0]}
    of_all = Scores(
        whole["weight"][:, 0], whole["weight"][:, 0], whole["sequence"], whole["origin"], whole.get("targets")
    )
    step = StepScores({name: whole[name] for name in names}, whole["weight"].T)
    columns, divisors = loss.objective.combine(step, of_all, run.progress)
    sizes = [len(batch) for batch in batches]
    parts = {name: value[start : start + sum(sizes)].split(sizes) for name, value in columns.items()}
    return [{name: part[k] for name, part in parts.items()} for k in range(len(batches))], divisors


def _rows(batches: Sequence[Batch], process: int, device: torch.device) -> dict[str, Tensor]:
    """The rows of these batches; sequences of different batches and processes get different numbers."""
    sequences: list[Tensor] = []
    first = process << 32
    for batch in batches:
        sequences.append(batch.sequence + first)
        first += int(batch.sequence.max()) + 1 if len(batch) else 0
    rows = {"sequence": torch.cat(sequences), "origin": torch.cat([batch.origin for batch in batches])}
    targets = [batch.targets for batch in batches if batch.targets is not None]
    if len(targets) == len(batches):
        rows["targets"] = torch.cat(targets)
    return {name: value.to(device) for name, value in rows.items()}
