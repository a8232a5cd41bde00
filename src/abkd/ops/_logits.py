"""The logits of one chunk of rows after another, in buffers that all chunks reuse: new memory costs time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from abkd.ops._eager import one_thread, pieces
from abkd.ops._types import Averaged, Dense, Projected, Rows, TeacherRows, TopK

Index = slice | Tensor
Buffers = dict[torch.dtype, Tensor]


def student_logits(rows: Rows, most: int) -> Callable[[Index], Tensor]:
    """A function from at most ``most`` rows to logits ``[n, V]``; for ``Dense`` rows possibly the caller's memory."""
    return _as_given(rows) if isinstance(rows, Dense) else _products(rows, most, {})


def teacher_logits(rows: TeacherRows, most: int, temperature: float | Tensor) -> Callable[[Index], Tensor | TopK]:
    """The same for a teacher; a ``TopK`` returns its known classes.

    ``temperature`` is that of the divergence: one number, or one for each of the ``N`` rows, ``[N, 1]``.
    """
    if isinstance(rows, TopK):
        return rows.__getitem__
    if isinstance(rows, Averaged):
        return _averages(rows, most, temperature)
    return student_logits(rows, most)


def _as_given(rows: Dense) -> Callable[[Index], Tensor]:
    return lambda index: rows.logits(index).contiguous()


def _products(rows: Projected, most: int, buffers: Buffers) -> Callable[[Index], Tensor]:
    dtype = rows.hidden.dtype
    if dtype not in buffers:
        buffers[dtype] = torch.empty(most, rows.classes, dtype=dtype, device=rows.device)
    buffer = buffers[dtype]

    def logits(index: Index) -> Tensor:
        hidden = rows.hidden[index]
        return rows.head.logits(hidden, buffer[: len(hidden)])

    return logits


def _averages(rows: Averaged, most: int, temperature: float | Tensor) -> Callable[[Index], Tensor]:
    buffers: Buffers = {}  # reused by the members in turn
    members = [part.logits if isinstance(part, Dense) else _products(part, most, buffers) for part in rows.parts]
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in rows.tensors) else torch.float32
    buffer = torch.empty(most, rows.classes, dtype=wide, device=rows.device)
    geometric = rows.of == "logits"

    def logits(index: Index) -> Tensor:
        total = buffer
        warm = temperature[index].to(wide) if isinstance(temperature, Tensor) else temperature
        for i, member in enumerate(members):
            part = member(index)
            if i == 0:
                total = buffer[: len(part)].fill_(0.0 if geometric else -torch.inf)
            with one_thread(part):
                for some in pieces(part):
                    of_some = warm[some] if isinstance(warm, Tensor) else warm
                    _gather(total[some], part[some], None if geometric else of_some)
        if geometric:
            return total.div_(len(members))
        return total.sub_(math.log(len(members))).mul_(warm)  # the row function divides by it

    return logits


def _gather(total: Tensor, part: Tensor, temperature: float | Tensor | None) -> None:
    if temperature is None:
        total += part
    else:
        torch.logaddexp(total, torch.log_softmax(part.to(total.dtype) / temperature, -1), out=total)


def product_dtype(rows: Rows) -> torch.dtype:
    """The dtype of the head product: that of autocast if enabled, else the wider of hidden states and head."""
    kind = rows.device.type
    if isinstance(rows, Dense):
        return rows.values.dtype
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(rows.hidden.dtype, rows.head.weight.dtype)


def as_multiplied(rows: TeacherRows) -> TeacherRows:
    """A teacher's rows in the dtype of the head product."""
    if isinstance(rows, Averaged):
        return replace(rows, parts=tuple(part.to(product_dtype(part)) for part in rows.parts))
    return rows if isinstance(rows, TopK) else rows.to(product_dtype(rows))


def no_teacher(student: Rows) -> TopK:
    """A placeholder for a missing teacher: no class is known, and the tail has all probability."""
    rows = len(student)
    wide = torch.promote_types(student.tensors[0].dtype, torch.float32)
    none = torch.empty(rows, 0, dtype=wide, device=student.device)
    return TopK(none.long(), none, torch.zeros(rows, dtype=wide, device=student.device), student.classes)
