"""Total variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abkd.divergences._exponential import expm1, floored
from abkd.divergences._pointwise import Number, Pointwise


@dataclass(frozen=True)
class TotalVariation(Pointwise):
    """``½ Σ |p - q|``, in [0, 1] (f-DISTILL, arXiv 2307.15190). Its slope jumps where ``p = q``; 0 is used there."""

    exempt: ClassVar[dict[str, str]] = {"gradient_is_smooth_where_equal": "|p - q| has a kink where p = q"}

    @property
    def native(self) -> str:
        return """
    const REAL a = floored(p), b = floored(q), delta = a - b;
    term = (REAL)-0.5 * exponential(at_least(a, b)) * exponential_1(-size(delta));
    slope = choose(delta == 0, 0, choose(delta < 0, 0.5, -0.5)) * exponential(b);"""

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        delta = floored(log_p) - floored(log_q)
        term = -0.5 * torch.exp(torch.maximum(log_p, log_q)) * expm1(-delta.abs())
        return term, -0.5 * torch.sign(delta) * torch.exp(log_q)

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.value_and_slope(log_q, log_p, ())[1]
