"""Divided differences of the exponential: the one ingredient of every divergence here.

Write ``exp[x, y]`` and ``exp[x, y, z]`` for the first and second divided difference of ``exp``. Both are positive,
symmetric and smooth, also where nodes coincide. With ``Δ = log p - log q`` and ``s = α+β`` the α-β-divergence is

    D_{α,β}(p‖q) = Σ Δ² · exp[ s·log p,  s·log q,  α·log p + β·log q ]

which is the definition (ABKD, arXiv 2505.04560, Def. 4.1 and eq. 8) without any of its five cases, and its slope is

    ∂/∂log q     = -Δ · exp[ s·log q,  α·log p + β·log q ].

So only divided differences have to be computed well; limits then need no care.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abkd.divergences._pointwise import Number

_SERIES_BELOW = 0.5  # there the closed form loses a factor 5 and the series needs 9 (float32) or 16 (float64) terms


def difference(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``Δ = log p - log q``, 0 where both classes are impossible."""
    return torch.where(log_p == log_q, 0.0, log_p - log_q)


def largest(x: Tensor) -> float:
    """A stand-in for infinity that survives the products made here."""
    return torch.finfo(x.dtype).max ** 0.75


def floored(log_x: Tensor) -> Tensor:
    """``log_x`` with ``-inf`` replaced by a number so large that ``0 · log 0`` is 0 and ``exp`` of it 0."""
    return log_x.clamp(min=-largest(log_x))


def can_be_zero(number: Number) -> bool:
    """Whether a parameter is 0 or, inside a compiled function, not known yet."""
    return isinstance(number, Tensor) or number == 0


def exponent_parts(s: float) -> tuple[float, float, float]:
    """``s`` as ``(coarse, rest, grid)`` for :func:`power`: a 12-bit head, what is left, and a power of 2."""
    mantissa, exponent = math.frexp(s)
    coarse = math.ldexp(math.floor(math.ldexp(mantissa, 12)), exponent - 12)  # never above s, or x = 0 gives 0·inf
    # s·log x matters down to -104 (the smallest float32), that is log x down to -2^(8 - exponent): 11 bits of the grid
    return coarse, s - coarse, math.ldexp(1.0, min(-3 - exponent, 64))


def power(log_x: Tensor, parts: Sequence[Number]) -> Tensor:
    """``x^s`` for ``s = parts >= 0``, without the rounding of ``s·log x`` (in float32 up to 4e-6 of the result)."""
    coarse, rest, grid = parts
    head = torch.round(log_x / grid) * grid  # coarse·head is exact, with or without fused multiply-add
    return torch.exp(coarse * head) * torch.exp(coarse * (log_x - head) + rest * log_x)


def expm1(x: Tensor) -> Tensor:
    """``e^x - 1``. In compiled code by a series near 0: torch's code generator for CPUs writes ``exp(x) - 1``."""
    if not torch.compiler.is_compiling():
        return torch.expm1(x)
    terms = 16 if x.dtype == torch.float64 else 9
    near = x.clamp(-0.5, 0.5)
    total = torch.full_like(x, 1.0 / math.factorial(terms))
    for k in range(terms - 1, 0, -1):
        total = 1.0 / math.factorial(k) + near * total
    return torch.where(x.abs() < 0.5, near * total, torch.exp(x) - 1.0)


def mean_decay(u: Tensor) -> Tensor:
    """``exp[0, -u] = (1 - e^-u) / u`` for ``u >= 0``; 1 at 0."""
    down = (-u).clamp(max=-torch.finfo(u.dtype).eps / 4)  # where the result rounds to 1, also for u = 0
    return expm1(down) / down


def _series(u: Tensor, v: Tensor) -> Tensor:
    """``exp[0, -u, -v] = Σ_m (-1)^m h_m(u, v) / (m+2)!`` by Horner's rule for divided differences."""
    terms = 16 if u.dtype == torch.float64 else 9
    inner = torch.full_like(u, (-1.0) ** (terms - 1) / math.factorial(terms + 1))
    outer = inner.clone()
    for m in range(terms - 2, -1, -1):
        inner = inner.mul_(v).add_((-1.0) ** m / math.factorial(m + 2))
        outer = outer.mul_(u).add_(inner)
    return outer


def second_difference(gap: Tensor, u: Tensor, w: Tensor, span: Number) -> Tensor:
    """``gap² · exp[0, -u, -(u+w)]`` for ``u, w >= 0`` with ``u + w = span·gap``, all finite."""
    v = u + w
    closed = (mean_decay(u) - torch.exp(-u) * mean_decay(w)) * gap / span
    return torch.where(v < _SERIES_BELOW, _series(u, v) * gap * gap, closed)


def kl_terms(log_p: Tensor, log_q: Tensor, delta: Tensor) -> Tensor:
    """``p·Δ - p + q`` per class, never negative, accurate also where ``Δ = log p - log q < ∞`` is tiny."""
    delta = floored(delta)
    above = delta.clamp(min=0.0)
    below = above - delta
    return torch.exp(torch.maximum(log_p, log_q)) * second_difference(above + below, below, above, 1.0)


def mixture(log_p: Tensor, log_q: Tensor, share: Number, rest: Number) -> tuple[Tensor, Tensor, Tensor]:
    """``(log m, log p - log m, log q - log m)`` of ``m = share·p + rest·q``, ``rest = 1 - share``: no cancellation."""
    delta = difference(log_p, log_q)
    a = delta.abs()
    up, one = delta >= 0, torch.ones_like(a)
    above = torch.where(up, share * one, rest * one)  # the share of the larger of the two
    below = torch.where(up, rest * one, share * one)
    close = (a < 1.0) | (below < 0.5)
    # log max(p, q) - log m, at least 0, and log min(p, q) - log m, at most 0
    upper = -torch.where(close, torch.log1p(below * expm1(-a)), torch.log(above + below * torch.exp(-a)))
    lower = torch.where(a < 30.0, -torch.log1p(above * expm1(a.clamp(max=30.0))), upper - a)
    log_m = torch.where(up, log_p, log_q) - upper
    return log_m, torch.where(up, upper, lower), torch.where(up, lower, upper)
