"""Loss and gradients in one pass over chunks of rows: four head products, and never ``[N, V]`` in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from abkd.memory import is_out_of_memory
from abkd.ops._head import Head
from abkd.ops._logits import student_logits, teacher_logits
from abkd.ops._row_loss_spec import Block, RowColumns, RowLossSpec, times
from abkd.ops._rows import blocks
from abkd.ops._types import (
    ChunkPlan,
    Dense,
    Projected,
    RowLosses,
    Rows,
    TeacherRows,
    TopK,
    own_tensors,
    with_own_tensors,
)

logger = logging.getLogger("abkd")

_FIELDS = ("divergence", "cross_entropy", "student_entropy", "teacher_entropy", "agreement", "weight")


@dataclass
class _Call:
    """The state of one call, except the tensors that need a gradient."""

    teacher: TeacherRows
    targets: Tensor | None
    weight: Tensor
    columns: RowColumns
    total: Tensor | None
    spec: RowLossSpec
    plan: ChunkPlan
    dtype: torch.dtype
    results: dict[str, Tensor | None] = field(default_factory=dict)


def chunked_losses(
    student: Rows,
    teacher: TeacherRows,
    targets: Tensor | None,
    weight: Tensor,
    columns: RowColumns,
    total: Tensor | None,
    spec: RowLossSpec,
    plan: ChunkPlan,
    dtype: torch.dtype,
) -> RowLosses:
    """As :func:`abkd.linear_divergence`, with the head product in ``dtype``; gradients are computed with the loss."""
    call = _Call(teacher, targets, weight, columns, total, spec, plan, dtype)
    if not torch.is_grad_enabled():
        student = student.detach()  # otherwise unused gradients would be computed
    if isinstance(student, Dense):
        loss = _OnePass.apply(call, student.values, None, None, None, None)
    else:
        head = student.head
        scale = head.scale if isinstance(head.scale, Tensor) else None
        loss = _OnePass.apply(call, student.hidden, head.weight, head.bias, scale, head)
    return RowLosses(loss=loss, plan=call.plan, **call.results)  # type: ignore[arg-type]


class _OnePass(torch.autograd.Function):
    """Forward computes loss and gradients; backward returns the finished gradients."""

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
        loss, ctx.ready = _solve(student, call, ctx.needs_input_grad[1:5])
        # saved for a second backward through the same graph; autograd frees saved tensors unless the graph is retained
        known = own_tensors(call.teacher)
        ctx.save_for_backward(source, weight, bias, scale, *known)
        without = with_own_tensors(call.teacher, [tensor.new_empty((0, *tensor.shape[1:])) for tensor in known])
        ctx.call, ctx.head = replace(call, teacher=without), head
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[object, ...]:  # type: ignore[override]
        # Ownership is passed on, so that parameters keep them: a copy of the head's gradient is as large as the head.
        ready, ctx.ready = ctx.ready, None
        if ready is None:
            source, weight, bias, scale, *known = ctx.saved_tensors
            student: Rows = Dense(source)
            if ctx.head is not None:
                scale = ctx.head.scale if scale is None else scale
                student = Projected(source, ctx.head._replace(weight=weight, bias=bias, scale=scale))
            call = replace(ctx.call, teacher=with_own_tensors(ctx.call.teacher, known))
            _, ready = _solve(student, call, ctx.needs_input_grad[1:5])
        if grads[0].device.type != "cpu" or grads[0] != 1:  # elsewhere, reading it would synchronise the device
            for gradient in ready:
                _multiply(gradient, grads[0])
        return (None, *ready, None)


def _solve(student: Rows, call: _Call, need: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and the gradients of source, weight, bias and scale; per-row results and plan are stored in ``call``.

    When out of memory, start over in chunks of half the size, so that nothing is counted twice.
    """
    while True:
        try:
            return _attempt(student, call, need)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if call.spec.divergence.batch_axis:
                raise torch.OutOfMemoryError(_too_large(call)) from error
            if call.plan.rows_per_chunk == 1:
                raise
            call.plan = replace(call.plan, rows_per_chunk=call.plan.rows_per_chunk // 2)
            logger.warning("abkd: out of memory; the loss continues with %d rows per chunk", call.plan.rows_per_chunk)
        torch.cuda.empty_cache()  # outside the handler, which still holds the failed attempt


def _too_large(call: _Call) -> str:
    return (
        f"{call.spec.divergence!r} compares the rows of a batch with each other, so a batch is never split, but the "
        f"logits of {len(call.weight)} rows do not fit into memory: reduce the batch size, which changes the loss, or "
        "use a divergence of single rows"
    )


def _attempt(student: Rows, call: _Call, need: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
    sums = _Gradients(student, call, need)
    kept = call.weight.nonzero().squeeze(-1)
    rows = len(kept)
    step = max(1, rows) if call.spec.divergence.batch_axis else _even(rows, call.plan.rows_per_chunk)
    parts: list[Block] = []
    with torch.no_grad(), torch.autocast(call.weight.device.type, enabled=False):
        most = min(step, rows)
        of_student = student_logits(sums.student, most)
        temperature = call.columns.temperature(call.spec, torch.float64)
        of_teacher = teacher_logits(call.teacher, most, temperature)
        for start in range(0, rows, step):
            chunk = kept[start : start + step]
            # all rows in order: a slice needs no copy of the hidden states
            index = slice(start, start + step) if rows == len(call.weight) else chunk
            parts.append(_chunk(sums, call, of_student(index), of_teacher(index), index, chunk, any(need)))
        call.results.update(_spread(parts, kept, call))
        return sums.finish(call)


def _even(rows: int, most: int) -> int:
    """Rows per chunk for chunks of equal size: a short last one makes head products inefficient and saves no memory."""
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // chunks))


def _chunk(
    sums: _Gradients,
    call: _Call,
    logits: Tensor,
    teacher: Tensor | TopK,
    index: slice | Tensor,
    rows: Tensor,
    grad: bool,
) -> Block:
    shared = isinstance(sums.student, Dense) and isinstance(index, slice)  # the caller's logits: must not change
    if (grad and sums.rounds) or (shared and (grad or isinstance(teacher, TopK))):
        logits = logits.to(sums.sum_dtype if sums.rounds else logits.dtype, copy=True)
    targets = None if call.targets is None else call.targets[rows]
    weight, columns = call.weight[rows], call.columns.rows(rows)
    cap_slope = sums.cap_slope(logits) if grad else None
    scaled, compiled = weight * sums.share, call.plan.compiled
    result = blocks(logits, teacher, targets, scaled, call.spec, grad=grad, compiled=compiled, columns=columns)
    if grad:
        sums.add(index, logits if cap_slope is None else logits.mul_(cap_slope))
    return result._replace(weight=result.weight if call.spec.row_weight is not None else weight)


class _Gradients:
    """Accumulators of the gradients of the student's tensors, in float32 (float64 for float64)."""

    def __init__(self, student: Rows, call: _Call, need: tuple[bool, ...]) -> None:
        self.student = student.to(call.dtype)
        source = self.student.tensors[0]
        self.sum_dtype = torch.promote_types(source.dtype, torch.float32)
        self.need = need
        self.small = source.dtype == torch.float16
        capped = isinstance(self.student, Projected) and self.student.head.softcap is not None
        self.rounds = self.small or capped  # a gradient stored in the logits' 16 bits would be rounded once too often
        # The factor of the row weights: 1 / total weight. In float16 only its mantissa; the power of 2 follows in
        # float32, or small gradients would underflow. (The sum of a row-weight function is known only at the end.)
        self.share: Tensor | float = 1.0
        if call.spec.row_weight is None:
            known = _inverse(call.weight.sum() if call.total is None else call.total)
            self.share = torch.frexp(known).mantissa if self.small else known
        self.source = torch.zeros_like(source, dtype=self.sum_dtype if self.small else None) if need[0] else None
        self.weight: Tensor | None = None
        self.bias = source.new_zeros(student.classes, dtype=self.sum_dtype) if need[2] else None
        self.scale: Tensor | None = None
        if need[3] and isinstance(self.student, Projected) and isinstance(self.student.head.scale, Tensor):
            self.scale = torch.zeros_like(self.student.head.scale, dtype=self.sum_dtype)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """The slope of the soft-cap at some logits, before they are overwritten."""
        if isinstance(self.student, Dense) or self.student.head.softcap is None:
            return None
        return 1.0 - (logits / self.student.head.softcap).square()

    def add(self, index: slice | Tensor, grad: Tensor) -> None:
        """Propagate the logit gradient ``[n, V]`` of some rows to the student's tensors."""
        if isinstance(self.student, Dense):
            assert self.source is not None
            self.source[index] = grad.to(self.source.dtype)
            return
        head, rows = self.student.head, self.student.hidden[index]
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=self.sum_dtype)
        grad = grad.to(rows.dtype)
        if self.source is not None or self.scale is not None:
            to_hidden = grad @ head.weight
            if self.source is not None:
                self.source[index] = to_hidden.to(self.source.dtype)
            if self.scale is not None:
                # the logits are scale·hidden@weight.T before the bias, and to_hidden lacks the scale
                self.scale += (to_hidden.to(self.sum_dtype) * rows).sum()
        if self.need[1]:
            self._add_weight(grad, rows)

    def _add_weight(self, grad: Tensor, rows: Tensor) -> None:
        if self.weight is None:  # the first chunk need not be added to zeros
            self.weight = (grad.T @ rows).to(self.sum_dtype)
        elif grad.dtype == self.sum_dtype:
            self.weight.addmm_(grad.T, rows)
        else:
            self.weight += grad.T @ rows

    def finish(self, call: _Call) -> tuple[Tensor, list[Tensor | None]]:
        """Apply what is still missing of the factor ``1 / total weight``; return the loss and the gradients."""
        results, spec = call.results, call.spec
        used, divergence, hard = results["weight"], results["divergence"], results["cross_entropy"]
        assert used is not None
        assert divergence is not None
        _, ce_weight, kd_weight = call.columns.factors(spec, divergence.dtype)
        row = (0.0 if hard is None else times(ce_weight, hard)) + times(kd_weight, divergence)
        factor = _inverse(used.sum() if call.total is None else call.total).to(used.dtype)
        loss = torch.where(used == 0, 0.0, used * row).sum() * factor  # a row with weight 0 may be infinite
        head = self.student.head if isinstance(self.student, Projected) else None
        if self.weight is None and self.need[1] and head is not None:  # all rows have weight 0
            self.weight = torch.zeros_like(head.weight, dtype=self.sum_dtype)
        scale = 1.0 if head is None else head.scale
        if spec.row_weight is not None or self.small:
            late = factor / self.share
            for gradient in (self.bias, self.scale):
                _multiply(gradient, late)
            scale = late * scale
        if isinstance(scale, Tensor) or scale != 1.0:
            self.source, self.weight = _multiply(self.source, scale), _multiply(self.weight, scale)
        return loss.to(self.sum_dtype), [self.source, self.weight, self.bias, self.scale]


def _inverse(total: Tensor) -> Tensor:
    return 1.0 / torch.where(total == 0, 1.0, total)


def _multiply(gradient: Tensor | None, factor: Tensor | float) -> Tensor | None:
    if gradient is None:
        return None
    if isinstance(factor, Tensor) and factor.dtype != gradient.dtype:  # in 16 bits the factor itself would be rounded
        return gradient.copy_(gradient.to(factor.dtype) * factor)
    return gradient.mul_(factor)


def _spread(parts: list[Block], kept: Tensor, call: _Call) -> dict[str, Tensor | None]:
    """Scatter the per-row columns of the kept rows to all rows; the others are 0."""
    rows = len(call.weight)
    if not parts:
        zeros = call.weight.new_zeros(rows, dtype=torch.float32)
        return {name: None if name == "cross_entropy" and call.targets is None else zeros.clone() for name in _FIELDS}
    columns: dict[str, Tensor | None] = {}
    for name in _FIELDS:
        column = [getattr(part, name) for part in parts]
        if column[0] is None:
            columns[name] = None
            continue
        values = torch.cat(column)
        columns[name] = values if len(values) == rows else values.new_zeros(rows).index_copy(0, kept, values)
    return columns
