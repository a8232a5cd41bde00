"""The op: a divergence between two models' rows without building their logits."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from abkd.divergences import Divergence
from abkd.errors import ConfigError, VocabularyError
from abkd.ops._chunked import chunked_losses
from abkd.ops._memory import available_mb
from abkd.ops._reference import reference_losses
from abkd.ops._rows import RowWeight, Terms, blocks, compiler_missing, say_unfused
from abkd.ops._types import Dense, Plan, Projected, RowLosses, Rows

logger = logging.getLogger("abkd")

MEMORY_BUDGET_MB = 256.0
_WORTH_COMPILING = 1 << 18  # classes in one call; below that the eager path takes milliseconds
_SHARE = 0.25  # of the free memory, for one chunk: activations, gradients and the other model need the rest
_BYTES = {"cpu": 8}  # of a chunk, per class and row: both models' logits
_BYTES_ELSEWHERE = 16  # on a GPU also the gradient and a temporary


def plan_for(rows: int, classes: int, device: torch.device, *, memory_budget_mb: float = MEMORY_BUDGET_MB) -> Plan:
    """Chunk size and implementation for a problem of this size.

    Counted in float32; the gradient takes the place of the student's logits. Where less than four times the budget is
    free (on the device, in the machine or in its control group), a quarter of what is free is taken, and said.
    """
    if not 0 < memory_budget_mb < math.inf:
        wanted = "memory_budget_mb must be a finite number above 0"
        raise ConfigError(f"{wanted}, but it is {memory_budget_mb!r}; try {MEMORY_BUDGET_MB:g}")
    missing = compiler_missing(device)
    if missing is not None and rows * classes >= _WORTH_COMPILING:
        say_unfused(missing)
    memory_budget_mb = _affordable(memory_budget_mb, device)
    chunk = int(memory_budget_mb * 2**20 // (_BYTES.get(device.type, _BYTES_ELSEWHERE) * classes))
    chunk = chunk // 32 * 32 if chunk >= 32 else max(1, chunk)
    return Plan(rows_per_chunk=chunk, compiled=missing is None and rows * classes >= _WORTH_COMPILING)


def _affordable(memory_budget_mb: float, device: torch.device) -> float:
    free = available_mb(device)
    if free is None or memory_budget_mb <= _SHARE * free:
        return memory_budget_mb
    less = max(_SHARE * free, 1.0)
    said = "abkd: %.0f MB are free, so the loss takes %.0f MB at once instead of %g (memory_budget_mb)"
    logger.warning(said, free, less, memory_budget_mb)
    return less


def linear_divergence(
    student: Rows,
    teacher: Rows,
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    targets: Tensor | None = None,
    ce_weight: float = 0.0,
    kd_weight: float = 1.0,
    row_weight: Tensor | RowWeight | tuple[Tensor, RowWeight] | None = None,
    total_weight: Tensor | float | None = None,
    scale_by_temperature_squared: bool = False,
    impl: Literal["auto", "reference", "chunked"] = "auto",
    memory_budget_mb: float = MEMORY_BUDGET_MB,
    plan: Plan | None = None,
) -> RowLosses:
    """``Σ_n w_n·(ce_weight·CE_n + kd_weight·D(p_n‖q_n)) / total_weight`` and its gradients in one pass.

    Args:
        student: ``Projected(hidden [N, H], Head(weight [V, H], …))`` or ``Dense(logits [N, V])``.
        teacher: likewise, with the same N and V (H may differ); always a constant.
        divergence: any :class:`abkd.Divergence`.
        temperature: ``p, q = softmax(z / temperature)`` in the divergence; the cross-entropy stays at temperature 1.
        targets: class indices ``[N]``; needed for ``ce_weight``, and makes ``cross_entropy`` be reported.
        ce_weight, kd_weight: the weights of the hard-label cross-entropy and of the divergence.
        row_weight: ``[N]`` (a row with weight 0 is never computed), or a function ``(log_p, log_q) -> [n]`` of the two
            distributions, constant for the gradient, or a pair of both, multiplied; None weighs every row 1.
        total_weight: what the sum is divided by; default ``Σ_n w_n``. Give the count of the whole accumulated batch
            over all processes to make the loss independent of how the batch is split.
        scale_by_temperature_squared: multiply the divergence by ``temperature²`` (Hinton et al., arXiv 1503.02531).
        impl: "chunked" (what "auto" takes) or "reference", which builds everything and serves as the judge.
        memory_budget_mb: about how much memory the logits of one chunk may take.
        plan: chunk size and implementation themselves, to repeat an earlier run exactly.

    Returns:
        RowLosses; ``loss`` is 0 with zero gradients when no row has weight.

    Raises:
        ConfigError: an argument that cannot be meant.
        VocabularyError: the two models have different numbers of classes.
    """
    _check(student, teacher, targets, ce_weight, temperature)
    factor = kd_weight * (temperature**2 if scale_by_temperature_squared else 1.0)
    weight, function = _row_weights(row_weight, student)
    terms = Terms(divergence, temperature, ce_weight, factor, function)
    total = None
    if total_weight is not None:
        total = torch.as_tensor(total_weight, dtype=weight.dtype, device=student.device)
    teacher = teacher.to(_product_dtype(teacher))
    if impl == "reference":
        student = student.to(_product_dtype(student))
        return reference_losses(student, teacher, targets, weight, total, terms)
    if impl not in ("auto", "chunked"):
        raise ConfigError(f"impl is 'auto', 'chunked' or 'reference', but got {impl!r}")
    plan = plan or plan_for(len(student), student.classes, student.device, memory_budget_mb=memory_budget_mb)
    return chunked_losses(student, teacher, targets, weight, total, terms, plan, _product_dtype(student))


@torch.no_grad()
def row_metrics(
    student: Rows, teacher: Rows, divergences: Mapping[str, Terms], targets: Tensor, *, plan: Plan | None = None
) -> dict[str, Tensor]:
    """Several distances from one projection of both heads: what evaluation logs.

    Args:
        student, teacher: as in :func:`linear_divergence`, ``N`` rows.
        divergences: by name, each with its temperature.
        targets: ``[N]``.

    Returns:
        ``[N]`` tensors: one per divergence, and ``cross_entropy``, ``teacher_cross_entropy``, ``agreement``.
    """
    _check(student, teacher, targets, 0.0, 1.0)
    student, teacher = student.to(_product_dtype(student)), teacher.to(_product_dtype(teacher))
    plan = plan or plan_for(len(student), student.classes, student.device)
    columns: dict[str, list[Tensor]] = {}
    with torch.autocast(student.device.type, enabled=False):
        for start in range(0, max(len(student), 1), plan.rows_per_chunk):
            rows = slice(start, start + plan.rows_per_chunk)
            chunk = _distances(student.logits(rows), teacher.logits(rows), divergences, targets[rows], plan.compiled)
            for name, values in chunk.items():
                columns.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in columns.items()}


def _distances(
    z_student: Tensor, z_teacher: Tensor, divergences: Mapping[str, Terms], targets: Tensor, compiled: bool
) -> dict[str, Tensor]:
    ones = torch.ones(len(targets), device=targets.device)
    columns: dict[str, Tensor] = {}
    for name, terms in divergences.items():
        block = blocks(z_student, z_teacher, targets, ones, terms, grad=False, compiled=compiled)
        assert block.cross_entropy is not None
        columns |= {
            name: block.divergence * block.weight,
            "cross_entropy": block.cross_entropy,
            "agreement": block.agreement,
        }
    wide = z_teacher.float()
    columns["teacher_cross_entropy"] = wide.logsumexp(-1) - wide.gather(-1, targets[:, None]).squeeze(-1)
    return columns


def check_temperature(temperature: float) -> None:
    """Raise ConfigError where logits cannot be divided by ``temperature``."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be a finite number above 0, but it is {temperature!r}")


def _check(student: Rows, teacher: Rows, targets: Tensor | None, ce_weight: float, temperature: float) -> None:
    if len(student) != len(teacher):
        raise ConfigError(f"student and teacher must give the same rows, but give {len(student)} and {len(teacher)}")
    if student.classes != teacher.classes:
        raise VocabularyError(
            f"student has {student.classes} classes, teacher has {teacher.classes}: cut both heads to the classes they "
            "share (Head.first(n)); never pad logits, padding would receive probability"
        )
    for who, rows in (("student", student), ("teacher", teacher)):
        if isinstance(rows, Projected) and rows.hidden.shape != (len(rows), rows.head.weight.shape[-1]):
            shapes = f"{list(rows.hidden.shape)} and {list(rows.head.weight.shape)}"
            raise ConfigError(f"hidden states must be [N, H] and the head's weight [V, H]; the {who}'s are {shapes}")
    if targets is not None and targets.shape != (len(student),):
        raise ConfigError(f"targets must be [{len(student)}], one class a row, but are {list(targets.shape)}")
    check_temperature(temperature)
    if ce_weight != 0 and targets is None:
        raise ConfigError(f"ce_weight={ce_weight!r} needs targets [N]; pass them or set ce_weight=0")


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
        raise ConfigError(f"row_weight must be [{len(student)}], one number a row, but is {tuple(given.shape)}")
    return given.detach().to(device=student.device, dtype=torch.promote_types(given.dtype, dtype)), function


def _product_dtype(rows: Rows) -> torch.dtype:
    """The dtype of the head product: autocast's where it is on, otherwise the wider of hidden states and head."""
    kind = rows.device.type
    if isinstance(rows, Dense):
        return rows.values.dtype
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(rows.hidden.dtype, rows.head.weight.dtype)
