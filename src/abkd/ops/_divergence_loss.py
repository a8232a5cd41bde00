"""The plain loss, for custom training loops."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from abkd.divergences import Divergence, working_dtype
from abkd.errors import ConfigError, VocabularyError
from abkd.ops._checks import checked_temperature
from abkd.ops._linear_divergence import linear_divergence
from abkd.ops._row_loss_spec import per_class
from abkd.ops._types import Dense


def divergence_loss(
    z_student: Tensor,
    z_teacher: Tensor,
    divergence: Divergence,
    *,
    temperature: float | Tensor = 1.0,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    scale_by_temperature_squared: bool = False,
) -> Tensor:
    """A divergence between the softmax rows of two logit tensors, as a loss.

    Args:
        z_student: student logits ``[..., V]``, any floating dtype; the arithmetic is float32 at least.
        z_teacher: teacher logits ``[..., V]``, a constant. (Logits are passed student first, as in other losses; the
            divergences themselves take log-probabilities, teacher first.)
        divergence: any :class:`abkd.Divergence`.
        temperature: divides both models' logits; one number, or ``[...]`` with one per row, a constant.
        targets: class indices ``[...]``, only for divergences that use the label.
        mask: boolean or numeric ``[...]``: False or 0 excludes a row, whatever it contains (NaN included).
        reduction: "mean" over the remaining rows (0 if there are none), "sum", or "none": ``[...]``, 0 where masked.
        scale_by_temperature_squared: multiply each row's divergence by its ``temperature²``.

    Returns:
        A scalar, or ``[...]`` for ``reduction="none"``.

    Raises:
        ConfigError: an invalid argument.
        VocabularyError: the logits have different shapes.
    """
    _check_logits(z_student, z_teacher)
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    shape, classes = z_student.shape[:-1], z_student.shape[-1]
    if mask is not None and mask.shape != shape:
        raise ConfigError(f"mask must be {tuple(shape)}, one number per row, got {tuple(mask.shape)}")
    if targets is not None and targets.shape != shape:
        raise ConfigError(f"targets must be {tuple(shape)}, one class per row, got {tuple(targets.shape)}")
    temperature = _flattened(temperature, shape)
    weight = None if mask is None else mask.reshape(-1).to(torch.float32)
    targets = None if targets is None else targets.reshape(-1)
    if reduction == "none":
        return _each(z_student, z_teacher, divergence, temperature, targets, weight, scale_by_temperature_squared)
    return linear_divergence(
        Dense(z_student.reshape(-1, classes)),
        Dense(z_teacher.reshape(-1, classes)),
        divergence,
        temperature=temperature,
        targets=targets,
        row_weight=weight,
        total_weight=None if reduction == "mean" else 1.0,
        scale_by_temperature_squared=scale_by_temperature_squared,
    ).loss


def _check_logits(z_student: Tensor, z_teacher: Tensor) -> None:
    for name, logits in (("student", z_student), ("teacher", z_teacher)):
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f"the {name}'s logits must be a tensor, got {type(logits).__name__}; "
                "linear_divergence takes rows of other kinds"
            )
    if z_student.shape != z_teacher.shape:
        raise VocabularyError(
            f"student and teacher logits must have the same shape, got {tuple(z_student.shape)} and "
            f"{tuple(z_teacher.shape)}; cut both to the classes that they share"
        )


def _flattened(temperature: float | Tensor, shape: torch.Size) -> float | Tensor:
    if not isinstance(temperature, Tensor):
        return temperature
    if temperature.shape != shape:
        wanted = f"temperature must be one number, or {tuple(shape)} with one per row"
        raise ConfigError(f"{wanted}, got a tensor {tuple(temperature.shape)}")
    return temperature.reshape(-1)


def _each(
    z_student: Tensor,
    z_teacher: Tensor,
    divergence: Divergence,
    temperature: float | Tensor,
    targets: Tensor | None,
    weight: Tensor | None,
    squared: bool,
) -> Tensor:
    student, teacher = z_student.reshape(-1, z_student.shape[-1]), z_teacher.detach().reshape(-1, z_teacher.shape[-1])
    used = torch.ones(len(student), device=student.device) if weight is None else weight
    kept = used.nonzero().squeeze(-1)
    dtype = working_dtype(divergence, student, teacher)
    temperature = checked_temperature(temperature, None, used)
    if isinstance(temperature, Tensor):
        temperature = temperature[kept].to(dtype)
    log_q = torch.log_softmax(student[kept].to(dtype) / per_class(temperature), -1)
    log_p = torch.log_softmax(teacher[kept].to(dtype) / per_class(temperature), -1)
    row = divergence(log_p, log_q, None if targets is None else targets[kept]) * (temperature**2 if squared else 1.0)
    if weight is not None:
        row = row * weight[kept].to(row.dtype)
    row = row.to(torch.promote_types(z_student.dtype, torch.float32))
    return row.new_zeros(len(student)).index_copy(0, kept, row).reshape(z_student.shape[:-1])
