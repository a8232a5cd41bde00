"""From two blocks of logits to per-row numbers and the gradient of the student's logits."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, Pointwise
from abkd.divergences._pointwise import Number, working_dtype

EAGER_BLOCK = 1 << 19  # classes
RowWeight = Callable[[Tensor, Tensor], Tensor]  # (log_p [n, V], log_q [n, V]) -> [n], a constant for the gradient


@dataclass(frozen=True)
class Terms:
    """What is asked of each row: ``ce_weight·CE + kd_weight·D``, and what stays the same over a run."""

    divergence: Divergence
    temperature: float = 1.0
    ce_weight: float = 0.0
    kd_weight: float = 1.0
    row_weight: RowWeight | None = None


class Block(NamedTuple):
    """Per-row numbers ``[n]`` of one block and, if asked for, the gradient ``[n, V]`` of ``Σ w·(ce·CE + kd·D)``."""

    divergence: Tensor
    cross_entropy: Tensor | None
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    weight: Tensor
    grad: Tensor | None


def entropy(log_p: Tensor) -> Tensor:
    """``-Σ p log p`` of each row, with ``0 log 0 = 0``."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def blocks(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    terms: Terms,
    *,
    grad: bool,
    compiled: bool,
) -> Block:
    """Numbers and gradient of some rows: logits ``[n, V]``, ``[n, V]``, targets ``[n]``, weight ``[n]``.

    Unfused work goes in small blocks, whose temporaries stay in the cache.
    """
    step = len(student) if compiled else max(1, EAGER_BLOCK // student.shape[-1])
    if step >= len(student):
        return _block(student, teacher, targets, weight, terms, grad=grad, compiled=compiled)
    parts = [
        _block(
            student[start : start + step],
            teacher[start : start + step],
            None if targets is None else targets[start : start + step],
            weight[start : start + step],
            terms,
            grad=grad,
            compiled=False,
        )
        for start in range(0, len(student), step)
    ]
    return Block(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _block(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    terms: Terms,
    *,
    grad: bool,
    compiled: bool,
) -> Block:
    dtype = working_dtype(terms.divergence, student, teacher)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if isinstance(terms.divergence, Pointwise) and terms.row_weight is None:
        return _pointwise_block(student, teacher, targets, weight, terms, grad=grad, compiled=compiled)
    return _generic_block(student, teacher, targets, weight, terms, grad=grad)


def _pointwise_block(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    terms: Terms,
    *,
    grad: bool,
    compiled: bool,
) -> Block:
    divergence = terms.divergence
    assert isinstance(divergence, Pointwise)
    scales = (1.0 / terms.temperature, terms.ce_weight, terms.kd_weight)
    numbers: Sequence[Number] = (*scales, *divergence.numbers)
    function = _Fused(divergence, terms.temperature != 1.0, grad)
    if compiled:
        packed = torch.tensor(numbers, dtype=student.dtype, device=student.device)
        return Block(
            *_compiled(divergence.kind, terms.temperature != 1.0, grad, function)(
                student, teacher, targets, weight, packed
            )
        )
    return Block(*function(student, teacher, targets, weight, numbers))


@dataclass(frozen=True)
class _Fused:
    """The arithmetic of one block as one function of tensors, so that a compiler can fuse it."""

    divergence: Pointwise
    tempered: bool
    grad: bool

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        targets: Tensor | None,
        weight: Tensor,
        numbers: Sequence[Number] | Tensor,
    ) -> tuple[Tensor | None, ...]:
        if isinstance(numbers, Tensor):
            numbers = numbers.unbind()
        cold, ce_weight, kd_weight, *own = numbers
        log_p = torch.log_softmax(teacher * cold, -1) if self.tempered else torch.log_softmax(teacher, -1)
        log_q = torch.log_softmax(student * cold, -1) if self.tempered else torch.log_softmax(student, -1)
        term, slope = self.divergence.terms(log_p, log_q, own)
        plain = torch.log_softmax(student, -1) if self.tempered and targets is not None else log_q
        hard = None if targets is None else -plain.gather(-1, targets[:, None]).squeeze(-1)
        gradient = None
        if self.grad:
            gradient = (kd_weight * cold) * (slope - log_q.exp() * slope.sum(-1, keepdim=True))
            if targets is not None:
                onehot = torch.arange(plain.shape[-1], device=plain.device) == targets[:, None]
                gradient = gradient + ce_weight * (plain.exp() - onehot.to(plain.dtype))
            gradient = weight.to(gradient.dtype)[:, None] * gradient
        same = (student.argmax(-1) == teacher.argmax(-1)).to(term.dtype)
        return term.sum(-1), hard, entropy(log_q), entropy(log_p), same, weight, gradient


def _generic_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block:
    """Any divergence, by automatic differentiation inside the block; also where the row weight reads the rows."""
    with torch.enable_grad():
        student = student.detach().requires_grad_(grad)
        log_q = torch.log_softmax(student / terms.temperature, -1)
        log_p = torch.log_softmax(teacher.detach() / terms.temperature, -1)
        if terms.row_weight is not None:
            weight = weight * terms.row_weight(log_p, log_q.detach()).detach().to(weight.dtype)
        row = terms.divergence(log_p, log_q, targets)
        objective = terms.kd_weight * row
        hard = None
        if targets is not None:
            hard = -torch.log_softmax(student, -1).gather(-1, targets[:, None]).squeeze(-1)
            objective = objective + terms.ce_weight * hard
        gradient = torch.autograd.grad((objective * weight.to(objective.dtype)).sum(), student)[0] if grad else None
    same = (student.argmax(-1) == teacher.argmax(-1)).to(row.dtype)
    hard = None if hard is None else hard.detach()
    return Block(row.detach(), hard, entropy(log_q.detach()), entropy(log_p), same, weight, gradient)


def compiler_missing(device: torch.device) -> str | None:
    """Why the element-wise work cannot be fused here, or None if it can."""
    if os.environ.get("TORCHDYNAMO_DISABLE", "0") not in ("", "0"):
        return "TORCHDYNAMO_DISABLE is set"
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))):
        return "no C++ compiler (g++ or clang++) was found"
    return None


_compiled_functions: dict[tuple[object, ...], Callable[..., tuple[Tensor | None, ...]]] = {}


def _compiled(
    kind: tuple[object, ...], tempered: bool, grad: bool, function: _Fused
) -> Callable[..., tuple[Tensor | None, ...]]:
    """The compiled function of this sort of divergence; its parameters are run-time numbers, so a sweep reuses it."""
    key = (kind, tempered, grad)
    if key not in _compiled_functions:
        _compiled_functions[key] = _guarded(torch.compile(function.__call__, dynamic=True), function)
    return _compiled_functions[key]


def _guarded(
    compiled: Callable[..., tuple[Tensor | None, ...]], eager: _Fused
) -> Callable[..., tuple[Tensor | None, ...]]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    broken = False

    @functools.wraps(eager.__call__)
    def call(*args: Tensor | None) -> tuple[Tensor | None, ...]:
        nonlocal broken
        if not broken:
            try:
                return compiled(*args)
            except (TorchDynamoException, InductorError) as error:
                broken = True
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"abkd: the loss runs unfused (slower, same numbers): {reason}", stacklevel=2)
        return eager(*args)  # type: ignore[arg-type]

    return call
