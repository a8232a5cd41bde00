"""The plain implementation: builds every logit, lets autograd do the rest. It is the judge of the other one."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd.divergences._pointwise import working_dtype
from abkd.ops._rows import Terms, entropy
from abkd.ops._types import RowLosses, Rows


def reference_losses(
    student: Rows, teacher: Rows, targets: Tensor | None, weight: Tensor, total: Tensor | None, terms: Terms
) -> RowLosses:
    """As :func:`abkd.linear_divergence`, with ``[N, V]`` in memory several times."""
    kept = weight.nonzero().squeeze(-1)
    dtype = working_dtype(terms.divergence, *student.tensors, *teacher.tensors)
    z_student = student.logits(kept).to(dtype)
    z_teacher = teacher.logits(kept).to(dtype).detach()
    log_p = torch.log_softmax(z_teacher / terms.temperature, -1)
    log_q = torch.log_softmax(z_student / terms.temperature, -1)
    label = None if targets is None else targets[kept]
    row = terms.divergence(log_p, log_q, label)
    used = weight[kept].to(dtype)
    if terms.row_weight is not None:
        used = used * terms.row_weight(log_p, log_q.detach()).detach().to(dtype)
    objective = terms.kd_weight * row if terms.kd_weight else torch.zeros_like(row)
    hard = None
    if label is not None:
        hard = -torch.log_softmax(z_student, -1).gather(-1, label[:, None]).squeeze(-1)
        objective = objective + terms.ce_weight * hard
    divisor = used.sum() if total is None else total
    loss = torch.where(used == 0, 0.0, objective * used).sum() / torch.where(divisor == 0, 1.0, divisor)
    loss = loss.to(torch.promote_types(student.tensors[0].dtype, torch.float32))

    def spread(values: Tensor) -> Tensor:
        full = torch.zeros(len(student), dtype=values.dtype, device=values.device)
        return full.index_copy(0, kept, values.detach())

    top, teacher_top = (z == z.amax(-1, keepdim=True) for z in (z_student.detach(), z_teacher))
    return RowLosses(
        loss=loss,
        divergence=spread(row),
        cross_entropy=None if hard is None else spread(hard),
        student_entropy=spread(entropy(log_q)),
        teacher_entropy=spread(entropy(log_p)),
        agreement=spread((top & teacher_top).any(-1).to(dtype)),
        weight=spread(used),
    )
