"""The op: a divergence between two models' rows without building their logits."""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor

from abkd.divergences import Divergence
from abkd.errors import ConfigError
from abkd.memory import available_mb
from abkd.ops._checks import (
    check_divergence,
    check_rows,
    check_weights,
    checked_share,
    checked_temperature,
    checked_weights,
)
from abkd.ops._chunked import chunked_losses
from abkd.ops._compilers import compiler_missing, warn_unfused
from abkd.ops._logits import as_multiplied, no_teacher, product_dtype
from abkd.ops._reference import reference_losses
from abkd.ops._row_facts import RowWeight
from abkd.ops._row_loss_spec import RowColumns, RowLossSpec
from abkd.ops._types import ChunkPlan, RowLosses, Rows, TeacherRows

logger = logging.getLogger("abkd")

MEMORY_BUDGET_MB = 256.0
_WORTH_COMPILING = 1 << 18  # logits per call; below that the eager path takes milliseconds
_SHARE = 0.25  # of the free memory, for one chunk: activations, gradients and the other model need the rest
_BYTES = {"cpu": 8}  # per class and row of a chunk: both models' logits
_BYTES_ELSEWHERE = 16  # on a GPU also the gradient and a temporary


def plan_chunks(
    rows: int, classes: int, device: torch.device, *, memory_budget_mb: float = MEMORY_BUDGET_MB
) -> ChunkPlan:
    """Chunk size and implementation for a problem of this size.

    Sizes are counted in float32; the gradient overwrites the student's logits. If less than four times the budget is
    free (on the device, on the machine or in its cgroup), a quarter of the free memory is used, with a warning.
    """
    if not 0 < memory_budget_mb < math.inf:
        wanted = "memory_budget_mb must be a finite number > 0"
        raise ConfigError(f"{wanted}, got {memory_budget_mb!r}; try {MEMORY_BUDGET_MB:g}")
    missing = compiler_missing(device)
    if missing is not None and rows * classes >= _WORTH_COMPILING:
        warn_unfused(missing)
    memory_budget_mb = _affordable(memory_budget_mb, device)
    chunk = int(memory_budget_mb * 2**20 // (_BYTES.get(device.type, _BYTES_ELSEWHERE) * classes))
    chunk = chunk // 32 * 32 if chunk >= 32 else max(1, chunk)
    return ChunkPlan(rows_per_chunk=chunk, compiled=missing is None and rows * classes >= _WORTH_COMPILING)


def _affordable(memory_budget_mb: float, device: torch.device) -> float:
    free = available_mb(device)
    if free is None or memory_budget_mb <= _SHARE * free:
        return memory_budget_mb
    less = max(_SHARE * free, 1.0)
    message = "abkd: %.0f MB are free, so the loss uses chunks of %.0f MB instead of %g (memory_budget_mb)"
    logger.warning(message, free, less, memory_budget_mb)
    return less


def linear_divergence(
    student: Rows,
    teacher: TeacherRows | None,
    divergence: Divergence,
    *,
    temperature: float | Tensor = 1.0,
    targets: Tensor | None = None,
    ce_weight: float | Tensor = 0.0,
    kd_weight: float | Tensor = 1.0,
    row_weight: Tensor | RowWeight | tuple[Tensor, RowWeight] | None = None,
    total_weight: Tensor | float | None = None,
    teacher_share: Tensor | None = None,
    scale_by_temperature_squared: bool = False,
    impl: Literal["auto", "reference", "chunked"] = "auto",
    memory_budget_mb: float = MEMORY_BUDGET_MB,
    plan: ChunkPlan | None = None,
) -> RowLosses:
    """``Σ_n w_n·(ce_weight·CE_n + kd_weight·D(p_n‖q_n)) / total_weight`` and its gradients in one pass.

    Args:
        student: ``Projected(hidden [N, H], Head(weight [V, H], …))`` or ``Dense(logits [N, V])``.
        teacher: likewise, with the same N and V (H may differ); or ``Averaged``, or ``TopK``, with which the
            divergence is between the two distributions over its k classes and one bucket for all others. Always a
            constant. None, for ``kd_weight=0``: there is no teacher, and its statistics are 0.
        divergence: any :class:`abkd.Divergence`. One with a batch axis sees all rows at once, regardless of the plan.
        temperature: ``p, q = softmax(z / temperature)`` in the divergence; the cross-entropy stays at temperature 1.
            One number, or ``[N]`` with one per row, a constant; not with ``TopK``, whose rows have one already.
        targets: class indices ``[N]``; needed for ``ce_weight`` and for divergences that use the label. With them
            ``cross_entropy`` is reported.
        ce_weight, kd_weight: the weights of the hard-label cross-entropy and of the divergence; each one number, or
            ``[N]`` with one per row, a constant. What has weight 0 does not count, even if it is infinite.
        row_weight: ``[N]`` (a row with weight 0 is never computed), or a function from the :class:`RowFacts` of
            some rows to ``[n]``, a constant in the gradient, or a pair of both, multiplied; None weighs all rows 1.
        total_weight: divisor of the sum; default ``Σ_n w_n``. Pass the total of the whole accumulated batch over all
            processes to make the loss independent of how the batch is split.
        teacher_share: ``[N]``, the teacher's share of each row's mixture, instead of the divergence's own; for
            ``JensenShannon``, ``SkewForwardKL`` and ``SkewReverseKL``. A constant, clamped to [1e-6, 1 - 1e-6].
        scale_by_temperature_squared: multiply each row's divergence by its ``temperature²`` (Hinton et al., arXiv
            1503.02531).
        impl: "chunked" (the choice of "auto") or "reference", which builds all logits and is the ground truth in tests.
        memory_budget_mb: approximate memory for the logits of one chunk.
        plan: chunk size and implementation, to reproduce an earlier run exactly; None: from ``memory_budget_mb``.

    Returns:
        RowLosses; ``loss`` is 0 with zero gradients if all rows have weight 0.

    Raises:
        ConfigError: an invalid argument.
        VocabularyError: the two models have different numbers of classes.
    """
    check_rows(student, teacher, targets)
    check_weights(ce_weight, kd_weight, targets, teacher)
    check_divergence(divergence, teacher, targets)
    weight, function = _row_weights(row_weight, student)
    if teacher is None and function is not None:
        raise ConfigError("row_weight as a function of both distributions needs a teacher, got none; pass a tensor [N]")
    temperature = checked_temperature(temperature, teacher, weight)
    ce_weight, kd_weight = checked_weights(ce_weight, kd_weight, weight)
    factor = kd_weight * (temperature**2 if scale_by_temperature_squared else 1.0)
    spec, coefficients = _coefficients(divergence, temperature, ce_weight, factor, function)
    position = None if function is None else torch.arange(len(student), device=student.device)
    columns = RowColumns(checked_share(teacher_share, divergence, student), coefficients, position)
    total = None if total_weight is None else torch.as_tensor(total_weight, dtype=weight.dtype, device=student.device)
    teacher = None if teacher is None else as_multiplied(teacher)
    if impl == "reference":
        student = student.to(product_dtype(student))
        return reference_losses(student, teacher, targets, weight, columns, total, spec)
    if impl not in ("auto", "chunked"):
        raise ConfigError(f"impl must be 'auto', 'chunked' or 'reference', got {impl!r}")
    plan = plan or plan_chunks(len(student), student.classes, student.device, memory_budget_mb=memory_budget_mb)
    known = no_teacher(student) if teacher is None else teacher
    return chunked_losses(student, known, targets, weight, columns, total, spec, plan, product_dtype(student))


def _coefficients(
    divergence: Divergence,
    temperature: float | Tensor,
    ce_weight: float | Tensor,
    kd_weight: float | Tensor,
    function: RowWeight | None,
) -> tuple[RowLossSpec, Tensor | None]:
    """The specification with the numbers in it; if any is one per row, they are in a table ``[N, 3]`` instead."""
    numbers = (1.0 / temperature, ce_weight, kd_weight)
    columns = [number for number in numbers if isinstance(number, Tensor)]
    if columns:
        table = [number if isinstance(number, Tensor) else torch.full_like(columns[0], number) for number in numbers]
        return RowLossSpec(divergence, row_weight=function), torch.stack(table, -1)
    assert not isinstance(temperature, Tensor)
    assert not isinstance(ce_weight, Tensor)
    assert not isinstance(kd_weight, Tensor)
    return RowLossSpec(divergence, temperature, ce_weight, kd_weight, function), None


def _row_weights(
    row_weight: Tensor | RowWeight | tuple[Tensor, RowWeight] | None, student: Rows
) -> tuple[Tensor, RowWeight | None]:
    given, function = row_weight if isinstance(row_weight, tuple) else (row_weight, None)
    if given is not None and not isinstance(given, Tensor):
        given, function = None, given
    dtype = torch.promote_types(student.tensors[0].dtype, torch.float32)
    if given is None:
        return torch.ones(len(student), dtype=dtype, device=student.device), function
    if given.shape != (len(student),):
        raise ConfigError(f"row_weight must be [{len(student)}], one number per row, got {tuple(given.shape)}")
    return given.detach().to(device=student.device, dtype=torch.promote_types(given.dtype, dtype)), function
