"""From two blocks of logits to per-row numbers and the gradient of the student's logits."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, Pointwise
from abkd.divergences._pointwise import Number, working_dtype

logger = logging.getLogger("abkd")

EAGER_BLOCK = 1 << 16  # classes at once in eager mode: the temporaries stay in the processor's cache
_FEW_THREADS = 4
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
    return _entropy(log_p, log_p.exp())


def _entropy(log_p: Tensor, p: Tensor) -> Tensor:
    return -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


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
    """Numbers and gradient of some rows: logits ``[n, V]``, ``[n, V]``, targets ``[n]``, weight ``[n]``."""
    dtype = working_dtype(terms.divergence, student, teacher)
    # a single row would be compiled anew, as sizes of 1 are special to the compiler
    if compiled and len(student) > 1 and isinstance(terms.divergence, Pointwise) and terms.row_weight is None:
        fused = _fused_block(student.to(dtype), teacher.to(dtype), targets, weight, terms, grad=grad)
        if fused is not None:
            return fused
    with _one_thread(student.device):
        return _eager_blocks(student, teacher, targets, weight, terms, dtype, grad=grad)


def _eager_blocks(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    terms: Terms,
    dtype: torch.dtype,
    *,
    grad: bool,
) -> Block:
    step = max(1, EAGER_BLOCK // student.shape[-1])
    gradient = torch.empty_like(student, dtype=dtype) if grad else None
    parts: list[Block] = []
    for start in range(0, max(len(student), 1), step):
        rows = slice(start, start + step)
        label = None if targets is None else targets[rows]
        part = _eager_block(student[rows].to(dtype), teacher[rows].to(dtype), label, weight[rows], terms, grad=grad)
        if gradient is not None and part.grad is not None:
            gradient[rows] = part.grad
        parts.append(part._replace(grad=None))
    numbers = (None if column[0] is None else torch.cat(column) for column in list(zip(*parts, strict=True))[:-1])
    return Block(*numbers, gradient)  # type: ignore[arg-type]


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a few cores: a hundred small operations a block wait for the slowest thread a hundred times.

    Seen on two cores with other work on them: 40 s with two threads where one takes 2 s. The head products keep all.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or not 1 < threads <= _FEW_THREADS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _eager_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block:
    divergence = terms.divergence
    if not isinstance(divergence, Pointwise) or terms.row_weight is not None:
        return _generic_block(student, teacher, targets, weight, terms, grad=grad)
    function = _Fused(divergence, terms.temperature != 1.0, grad)
    return function(student, teacher, targets, weight, _numbers(terms, divergence))


def _fused_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block | None:
    divergence = terms.divergence
    assert isinstance(divergence, Pointwise)
    numbers = torch.tensor(_numbers(terms, divergence), dtype=student.dtype, device=student.device)
    fused = _compiled(_Fused(divergence, terms.temperature != 1.0, grad), student.device)
    return fused(student, teacher, targets, weight, numbers)


def _numbers(terms: Terms, divergence: Pointwise) -> tuple[float, ...]:
    return (1.0 / terms.temperature, terms.ce_weight, terms.kd_weight, *divergence.numbers)


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
    ) -> Block:
        if isinstance(numbers, Tensor):
            numbers = numbers.unbind()
        cold, ce_weight, kd_weight, *own = numbers
        log_p = torch.log_softmax(teacher * cold, -1) if self.tempered else torch.log_softmax(teacher, -1)
        log_q = torch.log_softmax(student * cold, -1) if self.tempered else torch.log_softmax(student, -1)
        q = log_q.exp()
        term, slope = self.divergence.terms(log_p, log_q, own)
        plain = torch.log_softmax(student, -1) if self.tempered and targets is not None else log_q
        hard = None if targets is None else -plain.gather(-1, targets[:, None]).squeeze(-1)
        gradient = None
        if self.grad:
            gradient = (slope - q * slope.sum(-1, keepdim=True)) * (weight * kd_weight * cold).to(q.dtype)[:, None]
            if targets is not None and (isinstance(ce_weight, Tensor) or ce_weight != 0):
                onehot = torch.arange(plain.shape[-1], device=plain.device) == targets[:, None]
                gradient = gradient + (plain.exp() - onehot.to(q.dtype)) * (weight * ce_weight).to(q.dtype)[:, None]
        same = (student.argmax(-1) == teacher.argmax(-1)).to(term.dtype)
        return Block(term.sum(-1), hard, _entropy(log_q, q), entropy(log_p), same, weight, gradient)


def _generic_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block:
    """Any divergence, by automatic differentiation inside the block; also where the row weight reads the rows."""
    with torch.enable_grad():
        student = student.detach().requires_grad_(grad)
        log_q = torch.log_softmax(student / terms.temperature, -1)
        log_p = torch.log_softmax(teacher.detach() / terms.temperature, -1)
        if terms.row_weight is not None:
            weight = weight.to(student.dtype) * terms.row_weight(log_p, log_q.detach()).detach().to(student.dtype)
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


Fused = Callable[..., Block | None]

_compiled_functions: dict[tuple[object, ...], Fused] = {}
_said: set[str] = set()


def say_unfused(reason: str) -> None:
    """Say once in a process that, and why, the eager path serves."""
    if not _said:
        _said.add(reason)
        logger.warning("abkd: the loss runs unfused (slower, same numbers): %s", reason)


def _compiled(function: _Fused, device: torch.device) -> Fused:
    """The compiled function of this sort of divergence; its parameters are run-time numbers, so a sweep reuses it."""
    key = (function.divergence.kind, function.tempered, function.grad, device.type)
    if key not in _compiled_functions:
        _compiled_functions[key] = _compile(function, device)
    return _compiled_functions[key]


def _compile(function: _Fused, device: torch.device) -> Fused:
    missing = compiler_missing(device)
    if missing is not None:  # the plan is of another machine
        say_unfused(missing)
        return lambda *_: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own, when it is first loaded
        return _guarded(torch.compile(function.__call__, dynamic=True))


def _guarded(compiled: Fused) -> Fused:
    """``compiled``, or None from the moment on that compiling it has failed."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    broken = False

    def call(*args: Tensor | None) -> Block | None:
        nonlocal broken
        if broken:
            return None
        try:
            return compiled(*args)
        except (TorchDynamoException, InductorError) as error:
            broken = True
            say_unfused((str(error).strip() or type(error).__name__).splitlines()[0])
            return None

    return call
