"""The reference implementation: builds all logits and uses autograd. The chunked one is tested against it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, JensenShannon, SkewForwardKL, SkewReverseKL, working_dtype
from abkd.ops._eager import drop_infinite_slopes
from abkd.ops._row_facts import number_of_rows
from abkd.ops._row_loss_spec import RowColumns, RowLossSpec, entropy, times
from abkd.ops._types import Averaged, RowLosses, Rows, TeacherRows, TopK


def reference_losses(
    student: Rows,
    teacher: TeacherRows | None,
    targets: Tensor | None,
    weight: Tensor,
    columns: RowColumns,
    total: Tensor | None,
    spec: RowLossSpec,
) -> RowLosses:
    """As :func:`abkd.linear_divergence`, with ``[N, V]`` in memory several times."""
    kept = weight.nonzero().squeeze(-1)
    dtype = working_dtype(spec.divergence, *student.tensors, *(() if teacher is None else teacher.tensors))
    z = student.logits(kept).to(dtype)
    label = None if targets is None else targets[kept]
    columns = columns.rows(kept)
    temperature, factors = columns.temperature(spec, dtype), columns.factors(spec, dtype)
    both = _sides(z, teacher, label, kept, temperature)
    both = both._replace(log_q=drop_infinite_slopes(both.log_q, factors.kd_weight))
    row = _divergence(spec.divergence, both, columns.share)
    used = weight[kept].to(dtype)
    if spec.row_weight is not None:
        used = used * number_of_rows(spec.row_weight, both.log_p, both.log_q, both.targets, columns.position)
    hard = None if label is None else -torch.log_softmax(z, -1).gather(-1, label[:, None]).squeeze(-1)
    objective = times(factors.kd_weight, row) + (0.0 if hard is None else times(factors.ce_weight, hard))
    divisor = used.sum() if total is None else total
    loss = torch.where(used == 0, 0.0, objective * used).sum() / torch.where(divisor == 0, 1.0, divisor)
    loss = loss.to(torch.promote_types(student.tensors[0].dtype, torch.float32))

    def spread(values: Tensor) -> Tensor:
        full = torch.zeros(len(student), dtype=values.dtype, device=values.device)
        return full.index_copy(0, kept, values.detach())

    return RowLosses(
        loss=loss,
        divergence=spread(row),
        cross_entropy=None if hard is None else spread(hard),
        student_entropy=spread(entropy(torch.log_softmax(z / temperature, -1))),
        teacher_entropy=spread(entropy(both.log_p)),
        agreement=spread(both.agreement.to(dtype)),
        weight=spread(used),
    )


class _Sides(NamedTuple):
    """Both models over the compared classes, ``targets`` as indices into them, and whether the top classes agree."""

    log_p: Tensor
    log_q: Tensor
    targets: Tensor | None
    agreement: Tensor


def _sides(
    z: Tensor, teacher: TeacherRows | None, targets: Tensor | None, kept: Tensor, temperature: float | Tensor
) -> _Sides:
    log_q = torch.log_softmax(z / temperature, -1)
    top = z.detach() == z.detach().amax(-1, keepdim=True)
    if teacher is None:
        same = torch.zeros_like(z[:, :1])  # a single class, with probability 1
        return _Sides(same.detach(), same, None if targets is None else torch.zeros_like(targets), same[:, 0])
    if isinstance(teacher, TopK):
        return _buckets(log_q, teacher[kept], targets, top)
    log_p = _log_softmax(teacher, kept, temperature, z.dtype)
    return _Sides(log_p, log_q, targets, (top & (log_p == log_p.amax(-1, keepdim=True))).any(-1))


def _log_softmax(teacher: Rows | Averaged, kept: Tensor, temperature: float | Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(teacher, Averaged):
        return torch.log_softmax(teacher.logits(kept).to(dtype).detach() / temperature, -1)
    logits = torch.stack([part.logits(kept).to(dtype).detach() for part in teacher.parts]) / temperature
    if teacher.of == "logits":
        return torch.log_softmax(logits.mean(0), -1)
    return torch.log_softmax(logits, -1).logsumexp(0) - math.log(len(logits))


def _buckets(log_q: Tensor, teacher: TopK, targets: Tensor | None, top: Tensor) -> _Sides:
    agreement = top.gather(-1, teacher.ids[:, :1]).any(-1)
    log_p, known = teacher.log_p.to(log_q.dtype), log_q.gather(-1, teacher.ids)
    place = None
    if targets is not None:
        found = teacher.ids == targets[:, None]
        place = torch.where(found.any(-1), found.int().argmax(-1), found.shape[-1])
    if log_p.shape[-1] == teacher.classes:
        return _Sides(log_p, known, place, agreement)
    others = log_q.scatter(-1, teacher.ids, -torch.inf)
    impossible = others.detach().amax(-1, keepdim=True) == -torch.inf  # without a gradient, which would be NaN
    tail = others.masked_fill(impossible, 0.0).logsumexp(-1, keepdim=True).masked_fill(impossible, -torch.inf)
    log_p = torch.cat([log_p, teacher.log_tail.to(log_p.dtype)[:, None]], -1)
    return _Sides(log_p, torch.cat([known, tail], -1), place, agreement)


def _divergence(divergence: Divergence, both: _Sides, share: Tensor | None) -> Tensor:
    if share is None:
        return divergence(both.log_p, both.log_q, both.targets)
    each = zip(share.tolist(), both.log_p, both.log_q, strict=True)
    return torch.stack([both.log_q.new_zeros(()), *(_with_share(divergence, of_p)(p, q) for of_p, p, q in each)])[1:]


def _with_share(divergence: Divergence, share: float) -> Divergence:
    """The divergence with this teacher's share in its mixture."""
    match divergence:
        case JensenShannon():
            return JensenShannon(share)
        case SkewForwardKL():
            return SkewForwardKL(share)
    return SkewReverseKL(1.0 - share)
