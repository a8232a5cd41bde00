"""Per-row results and logit gradients of a block, from the student's logits and the teacher's logits or ``TopK``."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd.divergences import Pointwise, working_dtype
from abkd.ops._compilers import fused_by_torch, native
from abkd.ops._eager import Fused, eager_blocks
from abkd.ops._native import row_function, serves
from abkd.ops._row_loss_spec import Block, RowColumns, RowLossSpec, params_of
from abkd.ops._top_k import top_k_block
from abkd.ops._types import TopK


def blocks(
    student: Tensor,
    teacher: Tensor | TopK,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    *,
    grad: bool,
    compiled: bool,
    columns: RowColumns | None = None,
) -> Block:
    """Per-row results for logits ``[n, V]``, the teacher's logits or ``TopK``, targets ``[n]`` and weights ``[n]``.

    With ``grad`` the student's logits are overwritten with the gradient of ``Σ weight·(ce·CE + kd·D)``; with a ``TopK``
    they are always written to, and restored without ``grad``. ``columns``: what differs from row to row, ``[n]`` each.
    """
    columns = RowColumns() if columns is None else columns
    if isinstance(teacher, TopK):
        return top_k_block(student, teacher, targets, weight, spec, grad=grad, compiled=compiled, columns=columns)
    if compiled and isinstance(spec.divergence, Pointwise) and spec.row_weight is None:
        fused = _native_block if student.device.type == "cpu" else _torch_compiled_block
        done = fused(student, teacher, targets, weight, spec, grad=grad, columns=columns)
        if done is not None:
            return done
    return eager_blocks(student, teacher, targets, weight, spec, grad=grad, columns=columns)


def _native_block(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    *,
    grad: bool,
    columns: RowColumns,
) -> Block | None:
    """A block by ``rows.c``; None if that is not possible."""
    if not serves(spec.divergence, student, teacher):
        return None
    assert isinstance(spec.divergence, Pointwise)
    function = native(row_function, spec.divergence, student.dtype, teacher.dtype)
    if function is None:
        return None
    params = torch.tensor([spec.params], dtype=torch.float64)
    if columns.share is not None:
        params = torch.cat(params_of(spec.divergence, columns.share, torch.float64), -1)
    coefficients = columns.coefficients
    if coefficients is None:
        coefficients = torch.tensor([spec.coefficients], dtype=torch.float64)
    table = function(student, teacher, weight, targets, coefficients, params, grad)
    results = table.to(working_dtype(spec.divergence, student, teacher)).unbind(-1)
    divergence, hard, student_entropy, teacher_entropy, agree = results
    return Block(divergence, None if targets is None else hard, student_entropy, teacher_entropy, agree, weight)


def _torch_compiled_block(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    *,
    grad: bool,
    columns: RowColumns,
) -> Block | None:
    """A block by ``torch.compile``; None if that is not possible."""
    divergence = spec.divergence
    assert isinstance(divergence, Pointwise)
    if len(student) < 2:  # torch.compile specialises on sizes of 1, so a single row would be compiled again
        return None
    function = Fused(divergence, columns.tempered(spec), grad)
    columns = columns._replace(position=None)  # used by functions only
    # its parameters are run-time numbers, so a sweep reuses it
    given = tuple(column is None for column in columns)
    key = (divergence.kind, function.tempered, grad, *given, student.device.type)
    dtype = working_dtype(divergence, student, teacher)
    scalars = torch.tensor((*spec.coefficients, *spec.params), dtype=dtype, device=student.device)
    arguments = (student.to(dtype), teacher.to(dtype), targets, weight, columns, scalars)
    done = fused_by_torch(key, function.__call__, *arguments)
    if done is None:
        return None
    block, gradient = done
    if gradient is not None:
        student.copy_(gradient)
    return block
