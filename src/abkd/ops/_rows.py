"""From two blocks of logits to per-row numbers and the gradient of the student's logits."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, Pointwise
from abkd.divergences._pointwise import Number, working_dtype
from abkd.ops._native import BuildError, find_compiler, row_function, serves

logger = logging.getLogger("abkd")

EAGER_BLOCK = 1 << 16  # classes at once in eager mode: the temporaries stay in the processor's cache
_PIECE = 1 << 15  # classes of a row at once: temporaries that the memory allocator keeps at hand
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

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers of a compiled row function: ``1/temperature, ce, kd``, then the divergence's own."""
        own = self.divergence.numbers if isinstance(self.divergence, Pointwise) else ()
        return (1.0 / self.temperature, self.ce_weight, self.kd_weight, *own)


class Block(NamedTuple):
    """Per-row numbers ``[n]`` of one block."""

    divergence: Tensor
    cross_entropy: Tensor | None
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    weight: Tensor


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
    """Numbers of some rows: logits ``[n, V]``, ``[n, V]``, targets ``[n]``, weight ``[n]``.

    With ``grad`` the student's logits are overwritten by the gradient of ``Σ weight·(ce·CE + kd·D)``.
    """
    if compiled and isinstance(terms.divergence, Pointwise) and terms.row_weight is None:
        done = _compiled_block(student, teacher, targets, weight, terms, grad=grad)
        if done is not None:
            return done
    with _one_thread(student.device):
        return _eager_blocks(student, teacher, targets, weight, terms, grad=grad)


def _eager_blocks(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block:
    dtype = working_dtype(terms.divergence, student, teacher)
    step = max(1, EAGER_BLOCK // student.shape[-1])
    parts: list[Block] = []
    for start in range(0, max(len(student), 1), step):
        rows = slice(start, start + step)
        label = None if targets is None else targets[rows]
        z, y = student[rows].to(dtype), teacher[rows].to(dtype)
        part, gradient = _eager_block(z, y, label, weight[rows], terms, grad=grad)
        if gradient is not None:
            student[rows] = gradient
        parts.append(part)
    return Block(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]


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
) -> tuple[Block, Tensor | None]:
    divergence = terms.divergence
    if not isinstance(divergence, Pointwise) or terms.row_weight is not None:
        return _generic_block(student, teacher, targets, weight, terms, grad=grad)
    function = _Fused(divergence, terms.temperature != 1.0, grad)
    return function(student, teacher, targets, weight, terms.numbers)


def _compiled_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block | None:
    """By ``rows.c`` on a CPU, by torch's compiler elsewhere; None where that cannot be."""
    if student.device.type == "cpu":
        return _native_block(student, teacher, targets, weight, terms, grad=grad)
    return _torch_compiled_block(student, teacher, targets, weight, terms, grad=grad)


def _native_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block | None:
    if not serves(terms.divergence, student, teacher):
        return None
    assert isinstance(terms.divergence, Pointwise)
    try:  # the plan may be of another machine
        if _switched_off():
            raise BuildError(_switched_off())
        function = row_function(terms.divergence, student.dtype, teacher.dtype)
    except BuildError as error:
        say_unfused(str(error))
        return None
    table = function(student, teacher, weight, targets, terms.numbers, grad)
    columns = table.to(working_dtype(terms.divergence, student, teacher)).unbind(-1)
    divergence, hard, student_entropy, teacher_entropy, agree = columns
    return Block(divergence, None if targets is None else hard, student_entropy, teacher_entropy, agree, weight)


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
    ) -> tuple[Block, Tensor | None]:
        if isinstance(numbers, Tensor):
            numbers = numbers.unbind()
        cold, ce_weight, kd_weight, *own = numbers
        log_p = torch.log_softmax(teacher * cold, -1) if self.tempered else torch.log_softmax(teacher, -1)
        log_q = torch.log_softmax(student * cold, -1) if self.tempered else torch.log_softmax(student, -1)
        q = log_q.exp()
        value, slope = _value_and_slope(self.divergence, log_p, log_q, own)
        plain = torch.log_softmax(student, -1) if self.tempered and targets is not None else log_q
        hard = None if targets is None else -plain.gather(-1, targets[:, None]).squeeze(-1)
        gradient = None
        if self.grad:
            gradient = (slope - q * slope.sum(-1, keepdim=True)) * (weight * kd_weight * cold).to(q.dtype)[:, None]
            if targets is not None and (isinstance(ce_weight, Tensor) or ce_weight != 0):
                pull = (weight * ce_weight).to(q.dtype)[:, None]
                gradient = (gradient + plain.exp() * pull).scatter_add(-1, targets[:, None], -pull)
        entropies = _entropy(log_q, q), entropy(log_p)
        return Block(value, hard, *entropies, agreement(student, teacher), weight), gradient


def _value_and_slope(
    divergence: Pointwise, log_p: Tensor, log_q: Tensor, numbers: Sequence[Number]
) -> tuple[Tensor, Tensor]:
    """``Σ term`` and slope of some rows; unfused, a piece of the classes at a time: large temporaries are slow."""
    if torch.compiler.is_compiling() or log_q.numel() <= _PIECE:
        term, slope = divergence.terms(log_p, log_q, numbers)
        return term.sum(-1), slope
    slope, values = torch.empty_like(log_q), []
    for start in range(0, log_q.shape[-1], _PIECE):
        piece = slice(start, start + _PIECE)
        term, slope[..., piece] = divergence.terms(log_p[..., piece], log_q[..., piece], numbers)
        values.append(term.sum(-1))
    return torch.stack(values).sum(0), slope


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """1 for each row ``[n, V]`` where the teacher's largest logit stands where the student's does.

    As a maximum, since finding places is slow: the teacher's logits, far down wherever the student's is not largest.
    """
    below = student - student.amax(-1, keepdim=True)
    return (torch.add(teacher, below, alpha=1e30).amax(-1) == teacher.amax(-1)).to(student.dtype)


def _generic_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> tuple[Block, Tensor | None]:
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
    same = agreement(student.detach(), teacher).to(row.dtype)
    hard = None if hard is None else hard.detach()
    return Block(row.detach(), hard, entropy(log_q.detach()), entropy(log_p), same, weight), gradient


def compiler_missing(device: torch.device) -> str | None:
    """Why the element-wise work cannot be fused here, or None if it can."""
    if _switched_off():
        return _switched_off()
    if device.type == "cpu" and find_compiler() is None:
        return "no C compiler (cc, gcc or clang) was found"
    return None


def _switched_off() -> str | None:
    return None if os.environ.get("TORCHDYNAMO_DISABLE", "0") in ("", "0") else "TORCHDYNAMO_DISABLE is set"


_said: set[str] = set()


def say_unfused(reason: str) -> None:
    """Say once in a process that, and why, the eager path serves."""
    if not _said:
        _said.add(reason)
        logger.warning("abkd: the loss runs unfused (slower, same numbers): %s", reason)


_Compiled = Callable[..., tuple[Block, Tensor | None]]
_compiled_functions: dict[tuple[object, ...], _Compiled | None] = {}


def _torch_compiled_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, terms: Terms, *, grad: bool
) -> Block | None:
    divergence = terms.divergence
    assert isinstance(divergence, Pointwise)
    if len(student) < 2:  # a single row would be compiled anew, as sizes of 1 are special to that compiler
        return None
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    function = _Fused(divergence, terms.temperature != 1.0, grad)
    key = (divergence.kind, function.tempered, grad, student.device.type)
    if key not in _compiled_functions:  # its parameters are run-time numbers, so a sweep reuses it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own, when it is first loaded
            _compiled_functions[key] = torch.compile(function.__call__, dynamic=True)
    compiled = _compiled_functions[key]
    if compiled is None:
        return None
    dtype = working_dtype(divergence, student, teacher)
    numbers = torch.tensor(terms.numbers, dtype=dtype, device=student.device)
    try:
        block, gradient = compiled(student.to(dtype), teacher.to(dtype), targets, weight, numbers)
    except (TorchDynamoException, InductorError) as error:
        _compiled_functions[key] = None
        say_unfused((str(error).strip() or type(error).__name__).splitlines()[0])
        return None
    if gradient is not None:
        student.copy_(gradient)
    return block
