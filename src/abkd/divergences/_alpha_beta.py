"""The α-β-divergence and its three named special cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from abkd.divergences._exponential import (
    can_be_zero,
    exponent_parts,
    floored,
    largest,
    mean,
    power,
    second_difference,
)
from abkd.divergences._pointwise import Divergence, Number, Pointwise
from abkd.errors import ConfigError

_LARGEST = 1e6  # beyond it, α + β and its products lose all float64 digits


@dataclass(frozen=True)
class AlphaBeta(Pointwise):
    """The α-β-divergence (ABKD, arXiv 2505.04560, Def. 4.1 and eq. 8), for every real α and β.

    ``D(p‖q) = -1/(αβ) Σ_v [ p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β) ]`` and its continuous limits on the lines
    α = 0, β = 0 and α+β = 0. (1, 0) is forward KL, (0, 1) reverse KL, (½, ½) four times the squared Hellinger
    distance, (1, 1) half the squared Euclidean one, (2, -1) half of Pearson's χ².

    Small α concentrates on classes where the error is large, large β on classes the student is already confident in.
    The paper uses (0.2, 0.7) for language models and large α, small β for CIFAR-100.

    Raises:
        ConfigError: α or β is not a finite number within ±1e6.
    """

    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"AlphaBeta: {name} must be a finite number, got {value!r}; try AlphaBeta(0.2, 0.7)")
            if abs(value) > _LARGEST:
                raise ConfigError(
                    f"AlphaBeta: {name} must be within ±{_LARGEST:g}, got {value!r}; typical values are 0 to 1"
                )
            object.__setattr__(self, name, float(value))

    @property
    def needs_float64(self) -> bool:
        return min(self.alpha, self.beta) < 0  # exponents could be positive and large

    def written(self) -> str:
        return f"D_AB(p‖q; α={self.alpha:g}, β={self.beta:g})"

    @property
    def kind(self) -> tuple[object, ...]:
        return (AlphaBeta, self.needs_float64)  # the named special cases share one function

    @property
    def params(self) -> tuple[float, ...]:
        """For α, β >= 0: ``-α, -β, -s, 1/s``, then ``s`` split for :func:`power`; otherwise see below.

        In units of Δ and relative to ``s·log q``, the three nodes ``s·log q, α·log p + β·log q, s·log p`` are at 0, α
        and s. For α, β >= 0 the second one is always in the middle. Otherwise: ``α, β, s``, the distances from the
        highest node to the middle one and from there to the lowest, then ``(A, B)`` of the highest and of the lowest
        node, each equal to ``A·log p + B·log q``, and the inverse of the distance between these two.
        """
        alpha, beta, s = self.alpha, self.beta, self.alpha + self.beta
        if not self.needs_float64:
            return (-alpha, -beta, -s, _inverse(s), *exponent_parts(s))
        low, mid, high = sorted([(0.0, 0.0, s), (alpha, alpha, beta), (s, s, 0.0)])
        return (alpha, beta, s, high[0] - mid[0], mid[0] - low[0], *high[1:], *low[1:], _inverse(high[0] - low[0]))

    @property
    def native(self) -> str:
        return _ELSEWHERE if self.needs_float64 else _QUADRANT

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        p, q = floored(log_p), floored(log_q)
        delta = p - q  # 0 where both classes are impossible
        above = delta.clamp(min=0.0)
        below = above - delta
        gap = above + below
        if self.needs_float64:
            return _terms_elsewhere(p, q, delta, above, below, gap, params)
        alpha, beta, s, inverse, *parts = params  # the first three below 0
        x = alpha * below + beta * above  # from the top node to the middle one
        v = s * gap  # and to the lowest one
        mean_x, lower = mean(x), torch.exp(x) * mean(v - x)
        term = second_difference(gap, x, v, mean_x, lower, inverse)
        top = power(torch.maximum(p, q), parts)
        term = term * top
        if can_be_zero(alpha) or can_be_zero(beta):
            # infinitely far apart, with the middle node at the top: 1e38 times something huge
            term = (
                term + (gap - 0.5 * largest(gap)).clamp(min=0.0) * (1.0 + x).clamp(min=0.0) * torch.finfo(x.dtype).max
            )
        return term, top * (below * mean_x - above * lower)

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


def _inverse(span: float) -> float:
    """``1/span``; where it is too large for float32, the span is effectively 0 and the inverse is not used."""
    return 1.0 / max(span, 1e-38)


def _terms_elsewhere(
    p: Tensor, q: Tensor, delta: Tensor, above: Tensor, below: Tensor, gap: Tensor, params: Sequence[Number]
) -> tuple[Tensor, Tensor]:
    """Term and slope for negative α or β: exponents may be positive, and any of the three nodes the middle one."""
    alpha, beta, s, upper, lower, high_p, high_q, low_p, low_q, inverse = params
    x = -(upper * above + lower * below)
    y = -(lower * above + upper * below)
    term = second_difference(gap, x, x + y, mean(x), torch.exp(x) * mean(y), inverse)
    slope = _slope(p, q, delta, gap, alpha, beta, s)
    scale = torch.exp(torch.where(delta >= 0, high_p * p + high_q * q, low_p * p + low_q * q))
    # where delta is 0, the other factor may be infinite
    term, slope = (torch.where(delta == 0, 0.0, part) for part in (scale * term, slope))
    return torch.where((gap > 0.5 * largest(gap)) & (x == 0), math.inf, term), slope


def _slope(p: Tensor, q: Tensor, delta: Tensor, gap: Tensor, alpha: Number, beta: Number, s: Number) -> Tensor:
    """``-Δ · exp[s·log q, α·log p + β·log q]`` = ``q^β (q^α - p^α) / α``."""
    top = torch.maximum(alpha * p + beta * q, s * q)
    return -delta * mean(-abs(alpha) * gap) * torch.exp(top)


_APART = """
    const REAL a = floored(p), b = floored(q), delta = a - b;
    const REAL above = at_least(delta, 0), below = above - delta, gap = above + below;"""
_QUADRANT = (
    _APART
    + """
    const REAL x = k[0] * below + k[1] * above, v = k[2] * gap, y = v - x, decay = exponential(x);
    const REAL mean_x = mean(x, decay), lower = decay * mean(y, exponential(y));
    const REAL near = second_series(at_least(x, -NEAR), at_least(v, -NEAR)) * gap * gap;
    const REAL top = power_of(at_least(a, b), k[4], k[5]);
    term = top * choose(v > -NEAR, near, (mean_x - lower) * gap * k[3]);
    term = choose((gap > LARGEST / 2) & (x == 0), INFINITY, term);
    slope = top * (below * mean_x - above * lower);"""
)
_ELSEWHERE = (
    _APART
    + """
    const REAL x = -(k[3] * above + k[4] * below), y = -(k[4] * above + k[3] * below), v = x + y;
    const REAL decay = exponential(x), mean_x = mean(x, decay), lower = decay * mean(y, exponential(y));
    const REAL near = second_series(at_least(x, -NEAR), at_least(v, -NEAR)) * gap * gap;
    const REAL scale = exponential(choose(delta >= 0, k[5] * a + k[6] * b, k[7] * a + k[8] * b));
    const REAL far = -size(k[0]) * gap, top = exponential(at_least(k[0] * a + k[1] * b, k[2] * b));
    term = choose(delta == 0, 0, scale * choose(v > -NEAR, near, (mean_x - lower) * gap * k[9]));
    term = choose((gap > LARGEST / 2) & (x == 0), INFINITY, term);
    slope = choose(delta == 0, 0, -delta * mean(far, exponential(far)) * top);"""
)


@dataclass(frozen=True)
class ForwardKL(AlphaBeta):
    """``KL(p‖q) = Σ p log(p/q)``, that is ``AlphaBeta(1, 0)``: covers every class that the teacher finds likely."""

    alpha: float = field(default=1.0, init=False, repr=False)
    beta: float = field(default=0.0, init=False, repr=False)

    def written(self) -> str:
        return "KL(p‖q)"

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)


@dataclass(frozen=True)
class ReverseKL(AlphaBeta):
    """``KL(q‖p) = Σ q log(q/p)``, that is ``AlphaBeta(0, 1)``: seeks a mode of the teacher."""

    alpha: float = field(default=0.0, init=False, repr=False)
    beta: float = field(default=1.0, init=False, repr=False)

    def written(self) -> str:
        return "KL(q‖p)"

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)


@dataclass(frozen=True)
class Hellinger(AlphaBeta):
    """``2 Σ (√p - √q)² = 4·H²(p, q)``, that is ``AlphaBeta(½, ½)``: four times the squared Hellinger distance."""

    alpha: float = field(default=0.5, init=False, repr=False)
    beta: float = field(default=0.5, init=False, repr=False)

    def written(self) -> str:
        return repr(self)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return (cls(),)
