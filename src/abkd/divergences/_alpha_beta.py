"""The α-β-divergence and its three famous points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from abkd.divergences._exponential import (
    can_be_zero,
    exponent_parts,
    floored,
    mean_decay,
    power,
    second_difference,
)
from abkd.divergences._pointwise import Divergence, Number, Pointwise
from abkd.errors import ConfigError


@dataclass(frozen=True)
class AlphaBeta(Pointwise):
    """The α-β-divergence (ABKD, arXiv 2505.04560, Def. 4.1 and eq. 8), for every real α and β.

    ``D(p‖q) = -1/(αβ) Σ_v [ p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β) ]`` and its continuous limits on the lines
    α = 0, β = 0 and α+β = 0. (1, 0) is forward KL, (0, 1) reverse KL, (½, ½) four times the squared Hellinger
    distance, (1, 1) half the squared Euclidean one, (2, -1) half of Pearson's χ².

    Small α concentrates on classes where the error is large, large β on classes the student is already confident in.
    The paper uses (0.2, 0.7) for language models and large α, small β for CIFAR-100.

    Raises:
        ConfigError: α or β is not a finite number.
    """

    alpha: float = 0.2
    beta: float = 0.7
    formula: ClassVar[str] = "D_AB(p‖q)"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"AlphaBeta needs finite numbers, but {name} is {value!r}; try AlphaBeta(0.2, 0.7)")
            object.__setattr__(self, name, float(value))

    @property
    def wide(self) -> bool:
        return min(self.alpha, self.beta) < 0

    @property
    def kind(self) -> tuple[Any, ...]:
        return (AlphaBeta, self.wide)  # the named points are values of the same function

    @property
    def numbers(self) -> tuple[float, ...]:
        """``(α, β, s, high - mid, mid - low)``, then how to reach the end nodes.

        In units of Δ and seen from ``s·log q``, the three nodes ``s·log q, α·log p + β·log q, s·log p`` lie at 0, α and
        s. For α, β >= 0 the ends are ``s·log q`` and ``s·log p``, and ``s`` follows in the parts of :func:`power`.
        Otherwise the ends are ``A·log p + B·log q``, and ``(A, B)`` of the high and of the low one follow.
        """
        alpha, beta, s = self.alpha, self.beta, self.alpha + self.beta
        low, mid, high = sorted([(0.0, 0.0, s), (alpha, alpha, beta), (s, s, 0.0)])
        ends = (*high[1:], *low[1:]) if self.wide else exponent_parts(s)
        return (alpha, beta, s, high[0] - mid[0], mid[0] - low[0], *ends)

    def terms(self, log_p: Tensor, log_q: Tensor, numbers: Sequence[Number]) -> tuple[Tensor, Tensor]:
        alpha, beta, s, upper, lower, *ends = numbers
        p, q = floored(log_p), floored(log_q)
        delta = p - q  # 0 where both classes are impossible
        above = delta.clamp(min=0.0)
        below = above - delta
        gap = above + below
        near = upper * above + lower * below
        term = second_difference(gap, near, lower * above + upper * below, upper + lower)
        slope = _slope(p, q, delta, gap, alpha, beta, s)
        if self.wide:
            high_p, high_q, low_p, low_q = ends
            scale = torch.exp(torch.where(delta >= 0, high_p * p + high_q * q, low_p * p + low_q * q))
            # the factor beside 0 may be infinite
            term, slope = (torch.where(delta == 0, 0.0, part) for part in (scale * term, slope))
        else:
            term = term * power(torch.maximum(p, q), ends)
        if can_be_zero(upper) or can_be_zero(lower):
            term = torch.where(torch.isinf(log_p - log_q) & (near == 0), math.inf, term)
        return term, slope

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        # D_{α,β}(p‖q) = D_{β,α}(q‖p): the teacher's slope is the dual's student slope.
        p, q = floored(log_p), floored(log_q)
        delta = q - p
        slope = _slope(q, p, delta, delta.abs(), self.beta, self.alpha, self.alpha + self.beta)
        return torch.where(delta == 0, 0.0, slope)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        points = [
            (0.2, 0.7),
            (0.8, 0.3),
            (1, 1),
            (0, 0),
            (0.4, 0),
            (0, 0.4),
            (0.3, -0.3),
            (2, -1),
            (-1, 2),
            (1.2, -0.1),
        ]
        return tuple(AlphaBeta(*point) for point in points)


def _slope(p: Tensor, q: Tensor, delta: Tensor, gap: Tensor, alpha: Number, beta: Number, s: Number) -> Tensor:
    """``-Δ · exp[s·log q, α·log p + β·log q]`` = ``q^β (q^α - p^α) / α``."""
    top = torch.maximum(alpha * p + beta * q, s * q)
    return -delta * mean_decay(abs(alpha) * gap) * torch.exp(top)


@dataclass(frozen=True)
class ForwardKL(AlphaBeta):
    """``KL(p‖q) = Σ p log(p/q)``, that is ``AlphaBeta(1, 0)``: covers every class that the teacher finds likely."""

    alpha: float = field(default=1.0, init=False, repr=False)
    beta: float = field(default=0.0, init=False, repr=False)
    formula: ClassVar[str] = "KL(p‖q)"

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)


@dataclass(frozen=True)
class ReverseKL(AlphaBeta):
    """``KL(q‖p) = Σ q log(q/p)``, that is ``AlphaBeta(0, 1)``: seeks a mode of the teacher."""

    alpha: float = field(default=0.0, init=False, repr=False)
    beta: float = field(default=1.0, init=False, repr=False)
    formula: ClassVar[str] = "KL(q‖p)"

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)


@dataclass(frozen=True)
class Hellinger(AlphaBeta):
    """``2 Σ (√p - √q)² = 4·H²(p, q)``, that is ``AlphaBeta(½, ½)``: four times the squared Hellinger distance."""

    alpha: float = field(default=0.5, init=False, repr=False)
    beta: float = field(default=0.5, init=False, repr=False)
    formula: ClassVar[str] = "4·H²(p, q)"

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)
