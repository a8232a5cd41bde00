"""Argument checks: each error says what was expected, what was given, and how to fix it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abkd.divergences import Divergence, Mixture, check_targets
from abkd.errors import ConfigError, VocabularyError
from abkd.ops._row_loss_spec import SMALLEST_SHARE
from abkd.ops._types import Averaged, Dense, Projected, Rows, TeacherRows, TopK, own_tensors


def check_temperature(temperature: float) -> None:
    """Raise ConfigError unless ``temperature`` is a finite number > 0."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be a finite number > 0, got {temperature!r}")


def check_weights(
    ce_weight: float | Tensor, kd_weight: float | Tensor, targets: Tensor | None, teacher: TeacherRows | None
) -> None:
    """Raise ConfigError if a term of the loss has a weight but no targets or no teacher."""
    if targets is None and _any(ce_weight):
        raise ConfigError(f"ce_weight={_shown(ce_weight)} needs targets [N]; pass them or set ce_weight=0")
    if teacher is None and _any(kd_weight):
        raise ConfigError(f"kd_weight={_shown(kd_weight)} needs a teacher; pass its rows or set kd_weight=0")


def _any(weight: float | Tensor) -> bool:
    return bool((weight != 0).any()) if isinstance(weight, Tensor) else weight != 0


def _shown(weight: float | Tensor) -> str:
    return f"a tensor {list(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)


def checked_temperature(temperature: float | Tensor, teacher: TeacherRows | None, weight: Tensor) -> float | Tensor:
    """The temperature, or that of each row as a column; ``weight`` ``[N]`` tells which rows are used."""
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        return temperature
    if isinstance(teacher, TopK):
        raise ConfigError(
            "a temperature of its own for each row needs the teacher's full distribution, got its top-"
            f"{teacher.ids.shape[-1]} classes (TopK), whose log-probabilities are at one temperature already: use "
            "teacher: HiddenCache() or teacher: Live(), or one temperature for all rows"
        )
    return _checked_column("temperature", temperature, weight, positive=True)


def checked_weights(
    ce_weight: float | Tensor, kd_weight: float | Tensor, weight: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """The weights of the two losses, each a number or that of each row as a column; ``weight`` as above."""
    return _checked_column("ce_weight", ce_weight, weight), _checked_column("kd_weight", kd_weight, weight)


def _checked_column(name: str, number: float | Tensor, weight: Tensor, *, positive: bool = False) -> float | Tensor:
    """A number as it is; a tensor with one per row ``[N]``, validated where the row is used, as a float64 constant."""
    if not isinstance(number, Tensor):
        return number
    if number.shape != weight.shape:
        wanted = f"{name} must be one number, or [{len(weight)}] with one number per row"
        raise ConfigError(f"{wanted}, got a tensor {list(number.shape)}")
    column = number.detach().to(weight.device, torch.float64)
    wrong = ~(column.isfinite() & ((column > 0) if positive else (column >= 0))) & (weight != 0)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        least = "> 0" if positive else ">= 0"
        raise ConfigError(f"{name} must be a finite number {least} in every row, got {column[row].item()} in row {row}")
    return column


def check_divergence(divergence: Divergence, teacher: TeacherRows | None, targets: Tensor | None) -> None:
    """Raise ConfigError if the divergence cannot be computed from these inputs; without a teacher it is unused."""
    if teacher is None:
        return
    check_targets(divergence, targets)
    if divergence.needs_full_distribution and isinstance(teacher, TopK):
        raise ConfigError(
            f"{divergence!r} needs the teacher's full distribution, got only its top-{teacher.ids.shape[-1]} classes "
            "(TopK): use teacher: HiddenCache() or teacher: Live(), or a divergence that is a sum over classes"
        )


def check_rows(student: Rows, teacher: TeacherRows | None, targets: Tensor | None) -> None:
    """Raise ConfigError or VocabularyError if rows do not match each other."""
    if not isinstance(student, Projected | Dense):
        raise ConfigError(f"the student's rows must be Projected or Dense, got {type(student).__name__}")
    if teacher is not None and len(student) != len(teacher):
        raise ConfigError(
            f"student and teacher must have the same number of rows, got {len(student)} and {len(teacher)}"
        )
    if teacher is not None and student.classes != teacher.classes:
        raise VocabularyError(
            f"student has {student.classes} classes, teacher has {teacher.classes}: cut both heads to the classes that "
            "they share (Head.first(n)); never pad logits, padding would receive probability"
        )
    _check_projected("student", student)
    for part in teacher.parts if isinstance(teacher, Averaged) else () if teacher is None else (teacher,):
        _check_projected("teacher", part)
    if isinstance(teacher, TopK):
        _check_top_k(teacher)
    if targets is not None and targets.shape != (len(student),):
        raise ConfigError(f"targets must be [{len(student)}], one class per row, got {list(targets.shape)}")


def _check_projected(model: str, rows: TeacherRows) -> None:
    if isinstance(rows, Projected) and rows.hidden.shape != (len(rows), rows.head.weight.shape[-1]):
        shapes = f"{list(rows.hidden.shape)} and {list(rows.head.weight.shape)}"
        raise ConfigError(f"the {model}'s hidden states must be [N, H] and its head's weight [V, H], got {shapes}")


def _check_top_k(rows: TopK) -> None:
    n, k = rows.ids.shape if rows.ids.ndim == 2 else (-1, -1)
    per_row = [rows.log_tail] if rows.log_target is None else [rows.log_tail, rows.log_target]
    fits = 1 <= k <= rows.classes and rows.log_p.shape == (n, k) and all(each.shape == (n,) for each in per_row)
    if not fits or rows.ids.dtype != torch.int64:
        got = [f"{list(tensor.shape)} ({tensor.dtype})" for tensor in own_tensors(rows)]
        raise ConfigError(
            f"TopK needs ids [N, k] (torch.int64), log_p [N, k], log_tail [N] and optionally log_target [N], "
            f"with 1 <= k <= {rows.classes} classes, got {', '.join(got)}"
        )


def checked_share(share: Tensor | None, divergence: Divergence, student: Rows) -> Tensor | None:
    """The teacher's share of each row's mixture ``[N]``, validated and clamped away from 0 and 1."""
    if share is None:
        return None
    if not isinstance(divergence, Mixture):
        raise ConfigError(
            "teacher_share applies only to JensenShannon, SkewForwardKL and SkewReverseKL, got the divergence "
            f"{divergence!r}; leave it out"
        )
    if share.shape != (len(student),):
        raise ConfigError(f"teacher_share must be [{len(student)}], one number per row, got {list(share.shape)}")
    share = share.detach().to(device=student.device, dtype=torch.promote_types(share.dtype, torch.float32))
    return share.clamp(SMALLEST_SHARE, 1.0 - SMALLEST_SHARE)
