"""The specification of the loss of each row, what differs from row to row, and the per-row results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, Mixture, Pointwise
from abkd.ops._row_facts import RowWeight

SMALLEST_SHARE = 1e-6  # of either model in a mixture: with a share of 0 it is not a mixture


@dataclass(frozen=True)
class RowLossSpec:
    """The loss of each row, ``ce_weight·CE + kd_weight·D``, with its parameters."""

    divergence: Divergence
    temperature: float = 1.0
    ce_weight: float = 0.0
    kd_weight: float = 1.0
    row_weight: RowWeight | None = None

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """``1/temperature, ce, kd``."""
        return 1.0 / self.temperature, self.ce_weight, self.kd_weight

    @property
    def params(self) -> tuple[float, ...]:
        """The parameters of the divergence."""
        return self.divergence.params if isinstance(self.divergence, Pointwise) else ()


class Coefficients(NamedTuple):
    """The factors in a row's loss: numbers, or ``[n]`` with one per row."""

    inv_temperature: float | Tensor
    ce_weight: float | Tensor
    kd_weight: float | Tensor


class RowColumns(NamedTuple):
    """What may differ from row to row, ``N`` rows each; None: it is the same for all of them."""

    share: Tensor | None = None
    """``[N]`` the teacher's share of a mixture."""
    coefficients: Tensor | None = None
    """float64 ``[N, 3]``: 1/temperature, ce, kd, instead of the numbers of the ``RowLossSpec``."""
    position: Tensor | None = None
    """int64 ``[N]`` in the call, for row-weight functions."""

    def rows(self, rows: slice | Tensor) -> RowColumns:
        """The columns of some rows."""
        return RowColumns(*(None if column is None else column[rows] for column in self))

    def factors(self, spec: RowLossSpec, dtype: torch.dtype) -> Coefficients:
        """The numbers of ``spec``, or those of each row, ``[N]`` in ``dtype``."""
        if self.coefficients is None:
            return Coefficients(*spec.coefficients)
        return Coefficients(*self.coefficients.to(dtype).unbind(-1))

    def temperature(self, spec: RowLossSpec, dtype: torch.dtype) -> float | Tensor:
        """The temperature of ``spec``, or that of each row, ``[N, 1]`` in ``dtype``."""
        return spec.temperature if self.coefficients is None else self.coefficients[:, :1].reciprocal().to(dtype)

    def tempered(self, spec: RowLossSpec) -> bool:
        """Whether the temperature may be other than 1."""
        return spec.temperature != 1.0 or self.coefficients is not None


def per_class(number: float | Tensor) -> float | Tensor:
    """A number of each row ``[n]`` as ``[n, 1]``, for products with ``[n, V]``; others as they are."""
    return number[:, None] if isinstance(number, Tensor) and number.ndim else number


def times(weight: float | Tensor, values: Tensor) -> Tensor:
    """``weight · values`` ``[n]``, with ``0 · inf = 0``."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, 0.0, weight.to(values.dtype) * values)
    return weight * values if weight else torch.zeros_like(values)


def without_uncounted(gradient: Tensor, kd_weight: float | Tensor) -> Tensor:
    """The gradient ``[n, V]`` of a weighted divergence, 0 where the weight is 0, even if the slope is infinite."""
    if isinstance(kd_weight, Tensor):
        return gradient.masked_fill(torch.as_tensor(per_class(kd_weight)) == 0, 0.0)
    return gradient if kd_weight else torch.zeros_like(gradient)


class Block(NamedTuple):
    """Per-row results ``[n]`` of one block."""

    divergence: Tensor
    cross_entropy: Tensor | None
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    weight: Tensor


def entropy(log_p: Tensor) -> Tensor:
    """``-Σ p log p`` of each row, with ``0 log 0 = 0``."""
    return entropy_of(log_p, log_p.exp())


def entropy_of(log_p: Tensor, p: Tensor) -> Tensor:
    """The same where ``p`` is already computed."""
    return -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """1 for each row ``[n, V]`` where teacher and student have the same top class.

    Computed with maxima, since argmax is slow: the teacher's logits, far down wherever the student's is not largest.
    """
    below = student - student.amax(-1, keepdim=True)
    return (torch.add(teacher, below, alpha=1e30).amax(-1) == teacher.amax(-1)).to(student.dtype)


def params_of(divergence: Pointwise, share: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The parameters of the divergence, ``[n, 1]`` each, with the teacher's share ``share[n]`` in row n's mixture."""
    assert isinstance(divergence, Mixture)
    rest = 1.0 - share  # before it is rounded to another dtype
    return divergence.params_at(share.to(dtype)[:, None], rest.to(dtype)[:, None])
