"""Any number for every row, from one projection of both heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from abkd.divergences import ForwardKL, working_dtype
from abkd.ops._checks import check_rows, check_temperature
from abkd.ops._eager import one_thread, pieces
from abkd.ops._linear_divergence import plan_chunks
from abkd.ops._logits import as_multiplied, product_dtype
from abkd.ops._row_facts import RowFacts, RowWeight
from abkd.ops._row_metrics import chunks
from abkd.ops._top_k import top_k_facts
from abkd.ops._types import ChunkPlan, Rows, TeacherRows, TopK


@torch.no_grad()
def row_values(
    student: Rows,
    teacher: TeacherRows,
    functions: Mapping[str, RowWeight],
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    plan: ChunkPlan | None = None,
) -> dict[str, Tensor]:
    """What functions of both models' distributions return for every row, without a gradient and without ``[N, V]``.

    For what must be known of the whole batch before its loss is computed, such as ranks or a temperature per row.

    Args:
        student, teacher: as in :func:`abkd.linear_divergence`, ``N`` rows.
        functions: by name, each from the :class:`RowFacts` of some rows to one number per row, ``[n]``.
        targets: ``[N]``, or None: the functions are told no labels.
        temperature: that of the distributions; a ``TopK`` teacher's are at its own.
        plan: chunk size and implementation; None: as in :func:`abkd.linear_divergence`.

    Returns:
        ``[N]`` per function, in float32 (float64 if a model's tensors are float64).

    Raises:
        ConfigError: an invalid argument.
        VocabularyError: the two models have different numbers of classes.
    """
    check_rows(student, teacher, targets)
    check_temperature(temperature)
    known, student = as_multiplied(teacher), student.to(product_dtype(student))
    plan = plan or plan_chunks(len(student), student.classes, student.device)
    index = torch.arange(len(student), device=student.device)
    values: dict[str, list[Tensor]] = {name: [] for name in functions}
    with torch.autocast(student.device.type, enabled=False):
        for rows, z, sides in chunks(student, known, [temperature], plan.rows_per_chunk):
            label = None if targets is None else targets[rows]
            for facts in _facts(z, sides[temperature], label, index[rows], temperature, plan.compiled):
                for name, function in functions.items():
                    values[name].append(function(facts).to(facts.log_q.dtype))
    return {name: torch.cat(parts) for name, parts in values.items()}


def _facts(
    student: Tensor, teacher: Tensor | TopK, targets: Tensor | None, index: Tensor, temperature: float, compiled: bool
) -> Iterator[RowFacts]:
    """The rows of a chunk, in pieces whose temporaries stay in the processor's cache."""
    if isinstance(teacher, TopK):
        yield top_k_facts(student, teacher, targets, index, temperature, compiled=compiled)
        return
    dtype = working_dtype(ForwardKL(), student, teacher)
    with one_thread(student):
        for rows in pieces(student):
            log_p, log_q = (_log_softmax(side[rows].to(dtype), temperature) for side in (teacher, student))
            yield RowFacts(log_p, log_q, None if targets is None else targets[rows], index[rows])


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits if temperature == 1.0 else logits * (1.0 / temperature), -1)
