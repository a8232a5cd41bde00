"""Loss and gradients in one pass over chunks of rows: four head products, and never ``[N, V]`` in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from abkd.ops._rows import Block, Terms, blocks
from abkd.ops._types import Dense, Head, Plan, Projected, RowLosses, Rows

_FIELDS = ("divergence", "cross_entropy", "student_entropy", "teacher_entropy", "agreement", "weight")


@dataclass
class _Call:
    """Everything of one call that is not a tensor with a gradient."""

    teacher: Rows
    targets: Tensor | None
    weight: Tensor
    total: Tensor | None
    terms: Terms
    plan: Plan
    dtype: torch.dtype
    numbers: dict[str, Tensor | None] = field(default_factory=dict)


def chunked_losses(
    student: Rows,
    teacher: Rows,
    targets: Tensor | None,
    weight: Tensor,
    total: Tensor | None,
    terms: Terms,
    plan: Plan,
    dtype: torch.dtype,
) -> RowLosses:
    """As :func:`abkd.linear_divergence`, with the head product in ``dtype``; gradients are ready with the loss."""
    call = _Call(teacher, targets, weight, total, terms, plan, dtype)
    if not torch.is_grad_enabled():
        student = student.detach()  # or the gradients would be worked out for nobody
    if isinstance(student, Dense):
        loss = _OnePass.apply(call, student.values, None, None, None, None)
    else:
        head = student.head
        scale = head.scale if isinstance(head.scale, Tensor) else None
        loss = _OnePass.apply(call, student.hidden, head.weight, head.bias, scale, head)
    return RowLosses(loss=loss, plan=plan, **call.numbers)  # type: ignore[arg-type]


class _OnePass(torch.autograd.Function):
    """Forward does all the work; backward multiplies what is ready by the incoming number."""

    @staticmethod
    def forward(
        ctx: Any,
        call: _Call,
        source: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        head: Head | None,
    ) -> Tensor:
        student = Dense(source) if head is None else Projected(source, head._replace(weight=weight, bias=bias))
        need = ctx.needs_input_grad[1:5]
        sums = _Gradients(student, call, need)
        kept = call.weight.nonzero().squeeze(-1)
        parts: list[Block] = []
        step = call.plan.rows_per_chunk
        with torch.autocast(source.device.type, enabled=False):
            for start in range(0, len(kept), step):
                rows = kept[start : start + step]
                # all rows in order: a slice needs no copy of the hidden states
                index = slice(start, start + step) if len(kept) == len(call.weight) else rows
                parts.append(_chunk(sums, call, index, rows, any(need)))
        call.numbers.update(_spread(parts, kept, call))
        return sums.finish(ctx, call, source)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return (None, *(None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors), None)


def _chunk(sums: _Gradients, call: _Call, index: slice | Tensor, rows: Tensor, grad: bool) -> Block:
    logits = sums.student.logits(index)
    targets = None if call.targets is None else call.targets[rows]
    weight = call.weight[rows]
    share = weight if sums.share is None else weight * sums.share
    result = blocks(
        logits, call.teacher.logits(index), targets, share, call.terms, grad=grad, compiled=call.plan.compiled
    )
    if result.grad is not None:
        sums.add(index, logits, result.grad)
    return result._replace(grad=None, weight=result.weight if sums.share is None else weight)


class _Gradients:
    """Accumulators of the gradients of the student's tensors, in float32 (float64 for float64)."""

    def __init__(self, student: Rows, call: _Call, need: tuple[bool, ...]) -> None:
        self.student = student.to(call.dtype)
        source = self.student.tensors[0]
        wide = torch.promote_types(source.dtype, torch.float32)
        # What is rounded to 16 bits carries 1 / total weight already, but for a power of 2, which follows in float32:
        # nothing is rounded twice and small gradients do not vanish. (A row-weight function tells its sum at the end.)
        known = call.weight.sum() if call.total is None else call.total
        self.share = None if call.terms.row_weight is not None else torch.frexp(_inverse(known)).mantissa
        small = source.dtype == torch.float16
        self.source = torch.zeros_like(source, dtype=wide if small else None) if need[0] else None
        self.weight = self.bias = self.scale = None
        if isinstance(self.student, Projected):
            head = self.student.head
            self.weight = torch.zeros_like(head.weight, dtype=wide) if need[1] else None
            self.bias = source.new_zeros(student.classes, dtype=wide) if need[2] else None
            self.scale = torch.zeros_like(head.scale, dtype=wide) if need[3] else None  # type: ignore[arg-type]

    def add(self, index: slice | Tensor, logits: Tensor, grad: Tensor) -> None:
        """Carry the logit gradient ``[n, V]`` of some rows to the student's tensors."""
        if isinstance(self.student, Dense):
            if self.source is not None:
                self.source[index] = grad.to(self.source.dtype)
            return
        hidden, head = self.student.hidden, self.student.head
        if head.softcap is not None:
            grad = grad * (1.0 - (logits.to(grad.dtype) / head.softcap).square())
        if self.bias is not None:
            self.bias += grad.sum(0)
        grad = grad.to(head.weight.dtype)
        rows = hidden[index]
        if self.source is not None or self.scale is not None:
            to_hidden = grad @ head.weight
            if self.source is not None:
                self.source[index] = to_hidden
            if self.scale is not None:
                # the logits are scale·hidden@weight.T before the bias, and to_hidden lacks the scale
                self.scale += (to_hidden.to(self.scale.dtype) * rows).sum()
        if self.weight is not None:
            if grad.dtype == self.weight.dtype:
                self.weight.addmm_(grad.T, rows)
            else:
                self.weight += grad.T @ rows

    def finish(self, ctx: Any, call: _Call, source: Tensor) -> Tensor:
        """Divide by the total weight, hand the gradients to autograd and return the loss."""
        numbers, terms = call.numbers, call.terms
        used, divergence, hard = numbers["weight"], numbers["divergence"], numbers["cross_entropy"]
        assert used is not None
        assert divergence is not None
        row = (0.0 if hard is None else terms.ce_weight * hard) + (
            terms.kd_weight * divergence if terms.kd_weight else 0.0
        )
        factor = _inverse(used.sum() if call.total is None else call.total).to(used.dtype)
        late = factor if self.share is None else factor / self.share.to(factor.dtype)
        scaled = late * self.student.head.scale if isinstance(self.student, Projected) else late
        ready = ((self.source, scaled), (self.weight, scaled), (self.bias, late), (self.scale, late))
        ctx.save_for_backward(*(None if g is None else _times(g, by) for g, by in ready))
        loss = torch.where(used == 0, 0.0, used * row).sum() * factor  # a row that does not count may be infinite
        return loss.to(torch.promote_types(source.dtype, torch.float32))


def _inverse(total: Tensor) -> Tensor:
    return 1.0 / torch.where(total == 0, 1.0, total)


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)  # in 16 bits the factor itself would be rounded


def _spread(parts: list[Block], kept: Tensor, call: _Call) -> dict[str, Tensor | None]:
    """Per-row numbers of the kept rows put back among all rows; the others read 0."""
    rows = len(call.weight)
    if not parts:
        zeros = call.weight.new_zeros(rows, dtype=torch.float32)
        return {name: None if name == "cross_entropy" and call.targets is None else zeros.clone() for name in _FIELDS}
    numbers: dict[str, Tensor | None] = {}
    for name in _FIELDS:
        column = [getattr(part, name) for part in parts]
        if column[0] is None:
            numbers[name] = None
            continue
        values = torch.cat(column)
        numbers[name] = values if len(values) == rows else values.new_zeros(rows).index_copy(0, kept, values)
    return numbers
