"""The specification of the loss of each row, and its per-row results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, Mixture, Pointwise

RowWeight = Callable[[Tensor, Tensor], Tensor]  # (log_p [n, V], log_q [n, V]) -> [n], a constant in the gradient

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
