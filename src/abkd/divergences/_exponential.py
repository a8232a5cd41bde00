"""Divided differences of the exponential: the building block of every divergence here.

Write ``exp[x, y]`` and ``exp[x, y, z]`` for the first and second divided difference of ``exp``. Both are positive,
symmetric and smooth, also where nodes coincide. With ``Δ = log p - log q`` and ``s = α+β`` the α-β-divergence is

    D_{α,β}(p‖q) = Σ Δ² · exp[ s·log p,  s·log q,  α·log p + β·log q ]

which is the definition (ABKD, arXiv 2505.04560, Def. 4.1 and eq. 8) without any of its five cases, and its slope is

    ∂/∂log q     = -Δ · exp[ s·log q,  α·log p + β·log q ].

So only the divided differences have to be computed accurately; the limits then need no special treatment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abkd.divergences._pointwise import Number

NEAR = 0.25  # there the closed form loses a factor of 8, and the series needs 6 (float32) or 12 (float64) terms
_STEEP = 1e30


def largest(x: Tensor) -> float:
    """A finite substitute for infinity that does not overflow in the products formed here."""
    return torch.finfo(x.dtype).max ** 0.75


def floored(log_x: Tensor) -> Tensor:
    """``log_x`` with ``-inf`` replaced by a finite number low enough that its ``exp`` and ``0 · log 0`` are 0."""
    return log_x.clamp(min=-largest(log_x))


def can_be_zero(number: Number) -> bool:
    """Whether a parameter is 0 or, inside a compiled function, not yet known."""
    return isinstance(number, Tensor) or number == 0


def exponent_parts(s: float) -> tuple[float, float, float]:
    """``s`` as ``(coarse, rest, grid)`` for :func:`power`: a 12-bit head, the remainder, and a power of 2."""
    mantissa, exponent = math.frexp(s)
    coarse = math.ldexp(math.floor(math.ldexp(mantissa, 12)), exponent - 12)  # never above s, or x = 0 would give 0·inf
    # s·log x matters down to -104 (the smallest float32), that is log x down to -2^(8 - exponent): 11 bits of the grid
    return coarse, s - coarse, math.ldexp(1.0, min(-3 - exponent, 64))


def power(log_x: Tensor, parts: Sequence[Number]) -> Tensor:
    """``x^s`` for ``s = parts >= 0``, without the rounding of ``s·log x`` (in float32 up to 4e-6 of the result)."""
    coarse, rest, grid = parts
    if not isinstance(rest, Tensor) and coarse == 1 and rest == 0:
        return torch.exp(log_x)
    head = torch.round(log_x / grid) * grid  # coarse·head is exact, with or without fused multiply-add
    return torch.exp(coarse * head) * torch.exp(coarse * (log_x - head) + rest * log_x)


def is_above(x: Tensor) -> Tensor:
    """1 where ``x > 0``, else 0, as floats: on a CPU ``torch.where`` takes as long as thirty multiplications."""
    return (x * _STEEP).clamp(0.0, 1.0)


def either(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` where ``condition`` is 1, ``other`` where it is 0; both must be finite."""
    return torch.lerp(other, one, condition)  # exact at 0 and 1


def expm1(x: Tensor) -> Tensor:
    """``e^x - 1``. In compiled code by a series near 0: Inductor generates ``exp(x) - 1`` for CPUs."""
    if not torch.compiler.is_compiling():
        return torch.expm1(x)
    near = x.clamp(-NEAR, NEAR)
    return torch.where(x.abs() < NEAR, near * _series(near, 1), torch.exp(x) - 1.0)


def mean(x: Tensor) -> Tensor:
    """``exp[0, x] = (e^x - 1) / x`` for ``x <= 0``: the mean of ``e^t`` between x and 0; 1 at 0."""
    down = x.clamp(max=-torch.finfo(x.dtype).eps / 4)  # where the result rounds to 1, also for x = 0
    return expm1(down) / down


def _coefficients(x: Tensor, first: int) -> list[float]:
    """``1/first!, 1/(first+1)!, …``, all that matter for ``|x| <= NEAR``."""
    last = 13 if x.dtype == torch.float64 else 7
    return [1.0 / math.factorial(k) for k in range(first, last + 1)]


def _series(x: Tensor, first: int) -> Tensor:
    """``Σ_k x^k / (k + first)!`` for ``|x| <= NEAR``."""
    *rest, last = _coefficients(x, first)
    total = last * x + rest.pop()
    for coefficient in reversed(rest):
        total = total.mul_(x).add_(coefficient)
    return total


def _second_series(x: Tensor, v: Tensor) -> Tensor:
    """``exp[0, x, v]`` for ``-NEAR <= v <= x <= 0``, by Horner's rule for divided differences."""
    *rest, last = _coefficients(x, 2)
    inner = last * v + rest.pop()
    outer = last * x + inner
    for coefficient in reversed(rest):
        inner = inner.mul_(v).add_(coefficient)
        outer = outer.mul_(x).add_(inner)
    return outer


def second_difference(gap: Tensor, x: Tensor, v: Tensor, mean_x: Tensor, lower: Tensor, inverse_span: Number) -> Tensor:
    """``gap² · exp[0, x, v]`` for ``v <= x <= 0``, ``v = -span·gap``, all finite.

    ``mean_x = exp[0, x]``, ``lower = exp[x, v]``; for a span of 0 the inverse may be any finite number.
    """
    near = _second_series(x.clamp(min=-NEAR), v.clamp(min=-NEAR)) * gap.clamp(max=1e18).square()
    far = ((mean_x - lower) * gap * inverse_span).clamp(max=torch.finfo(gap.dtype).max)  # tiny spans give inf
    return either(is_above(v + NEAR), near, far)


def kl_terms(log_p: Tensor, log_q: Tensor, delta: Tensor) -> Tensor:
    """``p·Δ - p + q`` per class, never negative, accurate also where ``Δ = log p - log q < ∞`` is tiny.

    With ``g = |Δ|``, in units of max(p, q): ``e^-g - 1 + g`` where p is the larger, ``1 - (1+g)·e^-g`` where q is.
    """
    delta = floored(delta)
    gap = delta.abs()
    near, decay, close = -gap.clamp(max=NEAR), torch.exp(-gap), is_above(NEAR - gap)
    series = _series(near, 2)  # (e^-g - 1 + g) / g²
    excess = either(close, near.square() * series, decay - 1.0 + gap)
    shortfall = either(close, near.square() * (1.0 - (1.0 - near) * series), 1.0 - (1.0 + gap) * decay)
    return torch.exp(torch.maximum(log_p, log_q)) * either(is_above(delta), excess, shortfall)


def mixture(log_p: Tensor, log_q: Tensor, share: Number, rest: Number) -> tuple[Tensor, Tensor, Tensor]:
    """``(log m, log p - log m, log q - log m)`` of ``m = share·p + rest·q``, ``rest = 1 - share``: no cancellation."""
    p, q = floored(log_p), floored(log_q)
    delta = p - q
    a, up = delta.abs(), is_above(delta)
    above = up * share + (1.0 - up) * rest  # the share of the larger of the two
    below = up * rest + (1.0 - up) * share
    # log max(p, q) - log m >= 0: from m/max - 1, or from m/max itself where that has more correct digits
    close = torch.maximum(is_above(1.0 - a), is_above(0.5 - below))
    less = (below * expm1(-a)).clamp(min=-0.75)
    upper = -either(close, torch.log1p(less), torch.log(above + below * torch.exp(-a)))
    # log min(p, q) - log m <= 0
    lower = either(is_above(30.0 - a), -torch.log1p(above * expm1(a.clamp(max=30.0))), upper - a)
    return torch.maximum(p, q) - upper, either(up, upper, lower), either(up, lower, upper)
