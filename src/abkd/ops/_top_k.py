"""A top-k teacher: both models over its known classes and one bucket for all others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import ForwardKL, working_dtype
from abkd.ops._eager import one_thread, value_and_slope
from abkd.ops._passes import TailSums, finite_top, is_one, tail_gradient, tail_logsumexp
from abkd.ops._row_facts import RowFacts, number_of_rows
from abkd.ops._row_loss_spec import (
    Block,
    Coefficients,
    RowColumns,
    RowLossSpec,
    entropy,
    per_class,
    without_uncounted,
)
from abkd.ops._types import TopK


def top_k_block(
    student: Tensor,
    teacher: TopK,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    *,
    grad: bool,
    compiled: bool,
    columns: RowColumns,
) -> Block:
    """The top-k implementation of :func:`abkd.ops._rows.blocks`.

    The known classes are removed from the student's logits, so that the tail's mass is a sum over the tail and not a
    difference. With slopes g = ∂D/∂log q over the k+1 classes, the gradient of a known class is g - q·Σg; that of the
    tail, g_tail - q_tail·Σg, is divided among its classes by their probabilities within it.
    """
    dtype = working_dtype(spec.divergence, student, *teacher.tensors)
    factors = columns.factors(spec, dtype)
    inv_temperature = factors.inv_temperature
    known = student.gather(-1, teacher.ids)
    rows, label, tail = _compared(student, known, teacher, targets, inv_temperature, dtype, compiled=compiled)
    with one_thread(student):
        block, slope = _block(rows, label, weight, spec, columns)
        gradients = _gradients(rows, label, slope, block.weight.to(dtype), factors) if grad else None
    if gradients is None:
        student.scatter_(-1, teacher.ids, known)
    else:
        _write(student, teacher.ids, targets, tail, gradients, inv_temperature, compiled=compiled)
    return block


def top_k_facts(
    student: Tensor, teacher: TopK, targets: Tensor | None, index: Tensor, temperature: float, *, compiled: bool
) -> RowFacts:
    """Both models over the known classes and the tail; the student's logits are written to, and restored."""
    known = student.gather(-1, teacher.ids)
    dtype = working_dtype(ForwardKL(), student, *teacher.tensors)
    rows, label, _ = _compared(student, known, teacher, targets, 1.0 / temperature, dtype, compiled=compiled)
    student.scatter_(-1, teacher.ids, known)
    return RowFacts(rows.log_p, rows.log_q, None if label is None else label.place.squeeze(-1), index)


def _compared(
    student: Tensor,
    known: Tensor,
    teacher: TopK,
    targets: Tensor | None,
    inv_temperature: float | Tensor,
    dtype: torch.dtype,
    *,
    compiled: bool,
) -> tuple[_Coarse, _Label | None, TailSums | None]:
    """Both models over the known classes and the tail; the student's ``known`` logits become -inf in ``student``."""
    logit = None if targets is None else student.gather(-1, targets[:, None]).to(dtype)
    student.scatter_(-1, teacher.ids, -torch.inf)
    tail = None
    if known.shape[-1] < teacher.classes:
        tail = tail_logsumexp(student, inv_temperature, plain=targets is not None, compiled=compiled)
    with one_thread(student):
        rows = _coarse(teacher, known.to(dtype), tail, inv_temperature)
        label = None if targets is None or logit is None else _label(rows, teacher.ids == targets[:, None], logit)
    return rows, label, tail


class _Coarse(NamedTuple):
    """Some rows over the known classes and the tail: ``[n, k+1]``, or ``[n, k]`` if the tail has no class."""

    log_p: Tensor
    log_q: Tensor
    log_plain: Tensor
    """The student's at temperature 1, if requested."""
    agrees: Tensor
    """``[n]`` 1 where the student's top class is the teacher's."""
    tail: TailSums | None
    inv_temperature: float | Tensor
    """A number, or ``[n]``."""


class _Label(NamedTuple):
    """The label's class in some rows, ``[n, 1]`` each."""

    place: Tensor
    """Its column in the coarse rows."""
    part: Tensor
    """Its fraction of this column's probability: 1, or its probability within the tail."""
    log_q: Tensor
    """Its log-probability at temperature 1."""


class _Gradients(NamedTuple):
    """The gradient of the student's logits, that of the tail not yet divided among its classes."""

    kd: Tensor
    """``[n, k+1]`` of the divergence."""
    ce: Tensor | None
    """``[n, k+1]`` of the cross-entropy, without the label's -1."""
    label: Tensor | None
    """``[n, 1]`` of the label's own logit, in total."""


def _coarse(teacher: TopK, known: Tensor, tail: TailSums | None, inv_temperature: float | Tensor) -> _Coarse:
    log_p, logits = teacher.log_p.to(known.dtype), known
    if tail is not None:
        tail = TailSums(*(column.to(known.dtype) for column in tail))
        log_p = torch.cat([log_p, teacher.log_tail.to(known.dtype)[:, None]], -1)
        logits = torch.cat([known, tail.top[:, None]], -1)
    top = logits.amax(-1, keepdim=True)

    def log_softmax(inv_temperature: float | Tensor, log_mass: Tensor | None) -> Tensor:
        below = (logits - top) * per_class(inv_temperature)
        if log_mass is not None:
            below[:, -1] += log_mass
        return torch.log_softmax(below, -1)

    agrees = (known[:, :1] == top).to(known.dtype).sum(-1)  # with no known class the sum is 0
    log_q = log_softmax(inv_temperature, None if tail is None else tail.log_mass)
    log_plain = log_q if is_one(inv_temperature) else log_softmax(1.0, None if tail is None else tail.log_plain)
    return _Coarse(log_p, log_q, log_plain, agrees, tail, inv_temperature)


def _label(rows: _Coarse, found: Tensor, logit: Tensor) -> _Label:
    inside = found.any(-1, keepdim=True)
    columns = torch.arange(found.shape[-1], device=found.device)
    place = (found * columns).sum(-1, keepdim=True)
    if rows.tail is None:
        return _Label(place, torch.ones_like(logit), rows.log_plain.gather(-1, place))
    tail = rows.tail
    place = place.where(inside, found.shape[-1])
    below = logit - finite_top(tail)[:, None]
    part = (below * per_class(rows.inv_temperature) - tail.log_mass[:, None]).exp()
    within = (below - tail.log_plain[:, None]).where(~inside, 0.0)
    return _Label(place, part.where(~inside, 1.0), rows.log_plain.gather(-1, place) + within)


def _block(
    rows: _Coarse, label: _Label | None, weight: Tensor, spec: RowLossSpec, columns: RowColumns
) -> tuple[Block, Tensor]:
    """The per-row results of some rows, and the slopes of the divergence ``[n, k+1]``."""
    place = None if label is None else label.place.squeeze(-1)
    if spec.row_weight is not None:
        of_function = number_of_rows(spec.row_weight, rows.log_p, rows.log_q, place, columns.position)
        weight = weight.to(rows.log_q.dtype) * of_function
    if rows.log_q.shape[-1] == 1:  # no class of the teacher is known: there is nothing to compare
        value, slope = torch.zeros_like(rows.agrees), torch.zeros_like(rows.log_q)
    else:
        value, slope = value_and_slope(spec.divergence, rows.log_p, rows.log_q, place, columns.share)
    of_student = entropy(rows.log_q)
    if rows.tail is not None:
        of_student = of_student + rows.log_q[:, -1].exp() * rows.tail.entropy
    hard = None if label is None else -label.log_q.squeeze(-1)
    return Block(value, hard, of_student, entropy(rows.log_p), rows.agrees, weight), slope


def _gradients(rows: _Coarse, label: _Label | None, slope: Tensor, weight: Tensor, factors: Coefficients) -> _Gradients:
    """The gradient of ``Σ weight·(ce·CE + kd·D)``."""
    inv_temperature, ce_weight, kd_weight = factors
    total = slope.sum(-1, keepdim=True)
    soft = (slope - rows.log_q.exp() * total) * (weight * kd_weight * inv_temperature)[:, None]
    soft = without_uncounted(soft, kd_weight)
    if label is None or (not isinstance(ce_weight, Tensor) and ce_weight == 0):
        return _Gradients(soft, None, None)
    weight = (weight * ce_weight)[:, None]
    of_label = soft.gather(-1, label.place) * label.part + torch.expm1(label.log_q) * weight
    return _Gradients(soft, rows.log_plain.exp() * weight, of_label)


def _write(
    student: Tensor,
    ids: Tensor,
    targets: Tensor | None,
    tail: TailSums | None,
    gradients: _Gradients,
    inv_temperature: float | Tensor,
    *,
    compiled: bool,
) -> None:
    """Overwrite the student's logits ``[n, V]`` with their gradient."""
    if tail is not None:
        wide = tail.top.dtype
        hard = None if gradients.ce is None else gradients.ce[:, -1].to(wide)
        tail_gradient(student, tail, inv_temperature, gradients.kd[:, -1].to(wide), hard, compiled=compiled)
    of_known = gradients.kd if gradients.ce is None else gradients.kd + gradients.ce
    student.scatter_(-1, ids, of_known[:, : ids.shape[-1]].to(student.dtype))
    if targets is not None and gradients.label is not None:
        student.scatter_(-1, targets[:, None], gradients.label.to(student.dtype))
