"""The row function in torch operations: ``torch.compile`` can fuse it, and it runs everywhere without a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd.divergences import Divergence, Number, Pointwise, working_dtype
from abkd.ops._row_loss_spec import Block, RowLossSpec, RowWeight, agreement, entropy, entropy_of, params_of

EAGER_BLOCK = 1 << 16  # elements per block in eager mode: the temporaries stay in the processor's cache
_PIECE = 1 << 15  # classes per piece of a row: the allocator reuses temporaries of this size
_FEW_THREADS = 4
_UNSHARED = 1 << 15  # torch runs operations of up to this many elements on one thread


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``[n, V]``, small enough that temporaries stay in the processor's cache."""
    step = max(1, EAGER_BLOCK // max(1, rows.shape[-1]))
    return (slice(start, start + step) for start in range(0, max(len(rows), 1), step))


def pieces(rows: Tensor) -> Iterator[slice]:
    """The same for few operations per block: on other devices than a CPU all rows at once, as blocks add latency."""
    return row_blocks(rows) if rows.device.type == "cpu" else iter([slice(None)])


@contextmanager
def one_thread(logits: Tensor) -> Iterator[None]:
    """Use one thread where cores are few: a hundred small operations per block wait a hundred times for the slowest.

    Measured on two busy cores: 40 s with two threads, 2 s with one. The head products keep all threads. Operations that
    torch does not parallelise anyway are left alone, since changing the number of threads takes time itself.
    """
    threads = torch.get_num_threads()
    if logits.device.type != "cpu" or not 1 < threads <= _FEW_THREADS or logits.numel() <= _UNSHARED:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def eager_blocks(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    *,
    grad: bool,
    share: Tensor | None,
) -> Block:
    """The eager implementation of :func:`abkd.ops._rows.blocks`."""
    dtype = working_dtype(spec.divergence, student, teacher)
    parts: list[Block] = []
    with one_thread(student):
        # rows that are compared with each other must be in one block
        for rows in [slice(None)] if spec.divergence.batch_axis else row_blocks(student):
            label, of_teacher = (None if each is None else each[rows] for each in (targets, share))
            z, y = student[rows].to(dtype), teacher[rows].to(dtype)
            part, gradient = _eager_block(z, y, label, weight[rows], spec, of_teacher, grad=grad)
            if gradient is not None:
                student[rows] = gradient
            parts.append(part)
    return Block(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _eager_block(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    share: Tensor | None,
    *,
    grad: bool,
) -> tuple[Block, Tensor | None]:
    if not isinstance(spec.divergence, Pointwise):
        return _generic_block(student, teacher, targets, weight, spec, grad=grad)
    function = Fused(spec.divergence, spec.temperature != 1.0, grad, spec.row_weight)
    return function(student, teacher, targets, weight, share, (*spec.coefficients, *spec.params))


@dataclass(frozen=True)
class Fused:
    """The arithmetic of one block as one function of tensors, so that a compiler can fuse it."""

    divergence: Pointwise
    tempered: bool
    grad: bool
    row_weight: RowWeight | None = None

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        targets: Tensor | None,
        weight: Tensor,
        share: Tensor | None,
        scalars: Sequence[Number] | Tensor,
    ) -> tuple[Block, Tensor | None]:
        if isinstance(scalars, Tensor):
            scalars = scalars.unbind()
        inv_temperature, ce_weight, kd_weight, *params = scalars
        log_p = torch.log_softmax(teacher * inv_temperature, -1) if self.tempered else torch.log_softmax(teacher, -1)
        log_q = torch.log_softmax(student * inv_temperature, -1) if self.tempered else torch.log_softmax(student, -1)
        q = log_q.exp()
        if self.row_weight is not None:
            weight = weight.to(q.dtype) * self.row_weight(log_p, log_q).detach().to(q.dtype)
        if share is not None:
            params = params_of(self.divergence, share, q.dtype)
        value, slope = _value_and_slope(self.divergence, log_p, log_q, params)
        plain = torch.log_softmax(student, -1) if self.tempered and targets is not None else log_q
        hard = None if targets is None else -plain.gather(-1, targets[:, None]).squeeze(-1)
        gradient = None
        if self.grad:
            gradient = (slope - q * slope.sum(-1, keepdim=True)) * (weight * kd_weight * inv_temperature).to(q.dtype)[
                :, None
            ]
            if targets is not None and (isinstance(ce_weight, Tensor) or ce_weight != 0):
                pull = (weight * ce_weight).to(q.dtype)[:, None]
                gradient = (gradient + plain.exp() * pull).scatter_add(-1, targets[:, None], -pull)
        entropies = entropy_of(log_q, q), entropy(log_p)
        return Block(value, hard, *entropies, agreement(student, teacher), weight), gradient


def value_and_slope(
    divergence: Divergence, log_p: Tensor, log_q: Tensor, targets: Tensor | None, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``D`` ``[n]`` and ``∂D/∂log_q`` ``[n, V]`` of some rows ``[n, V]``, for any divergence."""
    if isinstance(divergence, Pointwise):
        params = divergence.params if share is None else params_of(divergence, share, log_q.dtype)
        return _value_and_slope(divergence, log_p, log_q, params)
    with torch.enable_grad():
        log_q = log_q.detach().requires_grad_()
        value = divergence(log_p, log_q, targets)
        (slope,) = torch.autograd.grad(value.sum(), log_q)
    return value.detach(), slope


def _value_and_slope(
    divergence: Pointwise, log_p: Tensor, log_q: Tensor, params: Sequence[Number]
) -> tuple[Tensor, Tensor]:
    """``Σ term`` and slope of some rows; unfused, in pieces of the classes, as large temporaries are slow."""
    if torch.compiler.is_compiling() or log_q.numel() <= _PIECE:
        term, slope = divergence.value_and_slope(log_p, log_q, params)
        return term.sum(-1), slope
    slope, values = torch.empty_like(log_q), []
    for start in range(0, log_q.shape[-1], _PIECE):
        piece = slice(start, start + _PIECE)
        term, slope[..., piece] = divergence.value_and_slope(log_p[..., piece], log_q[..., piece], params)
        values.append(term.sum(-1))
    return torch.stack(values).sum(0), slope


def _generic_block(
    student: Tensor, teacher: Tensor, targets: Tensor | None, weight: Tensor, spec: RowLossSpec, *, grad: bool
) -> tuple[Block, Tensor | None]:
    """A block with any divergence, by automatic differentiation within the block."""
    with torch.enable_grad():
        student = student.detach().requires_grad_(grad)
        log_q = torch.log_softmax(student / spec.temperature, -1)
        log_p = torch.log_softmax(teacher.detach() / spec.temperature, -1)
        if spec.row_weight is not None:
            weight = weight.to(student.dtype) * spec.row_weight(log_p, log_q.detach()).detach().to(student.dtype)
        row = spec.divergence(log_p, log_q, targets)
        objective = spec.kd_weight * row if spec.kd_weight else torch.zeros_like(row)
        hard = None
        if targets is not None:
            hard = -torch.log_softmax(student, -1).gather(-1, targets[:, None]).squeeze(-1)
            objective = objective + spec.ce_weight * hard
        gradient = torch.autograd.grad((objective * weight.to(objective.dtype)).sum(), student)[0] if grad else None
    same = agreement(student.detach(), teacher).to(row.dtype)
    hard = None if hard is None else hard.detach()
    return Block(row.detach(), hard, entropy(log_q.detach()), entropy(log_p), same, weight), gradient
