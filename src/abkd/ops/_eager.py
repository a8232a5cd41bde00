"""The row function in torch operations: ``torch.compile`` can fuse it, and it runs everywhere without a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd.divergences import Divergence, Number, Pointwise, working_dtype
from abkd.ops._row_facts import RowWeight, number_of_rows
from abkd.ops._row_loss_spec import (
    Block,
    Coefficients,
    RowColumns,
    RowLossSpec,
    agreement,
    entropy,
    entropy_of,
    params_of,
    per_class,
    times,
    without_uncounted,
)

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
    columns: RowColumns,
) -> Block:
    """The eager implementation of :func:`abkd.ops._rows.blocks`."""
    dtype = working_dtype(spec.divergence, student, teacher)
    parts: list[Block] = []
    with one_thread(student):
        # rows that are compared with each other must be in one block
        for rows in [slice(None)] if spec.divergence.batch_axis else row_blocks(student):
            label = None if targets is None else targets[rows]
            z, y = student[rows].to(dtype), teacher[rows].to(dtype)
            part, gradient = _eager_block(z, y, label, weight[rows], spec, columns.rows(rows), grad=grad)
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
    columns: RowColumns,
    *,
    grad: bool,
) -> tuple[Block, Tensor | None]:
    if not isinstance(spec.divergence, Pointwise):
        return _generic_block(student, teacher, targets, weight, spec, columns, grad=grad)
    function = Fused(spec.divergence, columns.tempered(spec), grad, spec.row_weight)
    return function(student, teacher, targets, weight, columns, (*spec.coefficients, *spec.params))


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
        columns: RowColumns,
        scalars: Sequence[Number] | Tensor,
    ) -> tuple[Block, Tensor | None]:
        if isinstance(scalars, Tensor):
            scalars = scalars.unbind()
        factors, params = Coefficients(*scalars[:3]), scalars[3:]
        if columns.coefficients is not None:
            factors = Coefficients(*columns.coefficients.to(student.dtype).unbind(-1))
        cold = per_class(factors.inv_temperature)
        log_p = torch.log_softmax(teacher * cold, -1) if self.tempered else torch.log_softmax(teacher, -1)
        log_q = torch.log_softmax(student * cold, -1) if self.tempered else torch.log_softmax(student, -1)
        q = log_q.exp()
        if self.row_weight is not None:
            weight = weight.to(q.dtype) * number_of_rows(self.row_weight, log_p, log_q, targets, columns.position)
        if columns.share is not None:
            params = params_of(self.divergence, columns.share, q.dtype)
        value, slope = _value_and_slope(self.divergence, log_p, log_q, params)
        plain = torch.log_softmax(student, -1) if self.tempered and targets is not None else log_q
        hard = None if targets is None else -plain.gather(-1, targets[:, None]).squeeze(-1)
        gradient = _gradient(q, slope, plain, targets, weight, factors) if self.grad else None
        entropies = entropy_of(log_q, q), entropy(log_p)
        return Block(value, hard, *entropies, agreement(student, teacher), weight), gradient


def _gradient(
    q: Tensor, slope: Tensor, plain: Tensor, targets: Tensor | None, weight: Tensor, factors: Coefficients
) -> Tensor:
    """The gradient ``[n, V]`` of ``Σ weight·(ce·CE + kd·D)``; ``plain``: log-probabilities at temperature 1."""
    inv_temperature, ce_weight, kd_weight = factors
    scale = (weight * kd_weight * inv_temperature).to(q.dtype)[:, None]
    gradient = without_uncounted((slope - q * slope.sum(-1, keepdim=True)) * scale, kd_weight)
    if targets is not None and (isinstance(ce_weight, Tensor) or ce_weight != 0):
        pull = (weight * ce_weight).to(q.dtype)[:, None]
        gradient = (gradient + plain.exp() * pull).scatter_add(-1, targets[:, None], -pull)
    return gradient


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
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    weight: Tensor,
    spec: RowLossSpec,
    columns: RowColumns,
    *,
    grad: bool,
) -> tuple[Block, Tensor | None]:
    """A block with any divergence, by automatic differentiation within the block."""
    factors, temperature = columns.factors(spec, student.dtype), columns.temperature(spec, student.dtype)
    with torch.enable_grad():
        student = student.detach().requires_grad_(grad)
        log_q = torch.log_softmax(student / temperature, -1)
        log_p = torch.log_softmax(teacher.detach() / temperature, -1)
        if spec.row_weight is not None:
            of_function = number_of_rows(spec.row_weight, log_p, log_q, targets, columns.position)
            weight = weight.to(student.dtype) * of_function
        row = spec.divergence(log_p, drop_infinite_slopes(log_q, factors.kd_weight), targets)
        objective = times(factors.kd_weight, row)
        hard = None
        if targets is not None:
            hard = -torch.log_softmax(student, -1).gather(-1, targets[:, None]).squeeze(-1)
            objective = objective + times(factors.ce_weight, hard)
        gradient = None
        if grad:
            total = (objective * weight.to(objective.dtype)).sum()
            gradient = torch.autograd.grad(total, student)[0] if total.requires_grad else torch.zeros_like(student)
    same = agreement(student.detach(), teacher).to(row.dtype)
    hard = None if hard is None else hard.detach()
    return Block(row.detach(), hard, entropy(log_q.detach()), entropy(log_p), same, weight), gradient


def drop_infinite_slopes(log_q: Tensor, kd_weight: float | Tensor) -> Tensor:
    """``log_q``, with the slope 0 and not 0·inf where it is infinite and the row's divergence has weight 0.

    Finite slopes of such a row are kept: with a batch axis the divergence of another row may depend on it.
    """
    if isinstance(kd_weight, Tensor) and log_q.requires_grad:
        counts = (kd_weight != 0)[:, None]
        log_q.register_hook(lambda slope: torch.where(counts | slope.isfinite(), slope, 0.0))
    return log_q
