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
    return torch.finfo(x.dtype).max / 64


def floored(log_x: Tensor) -> Tensor:
    """``log_x`` with ``-inf`` replaced, so that ``0 · log 0`` is 0."""
    return log_x.clamp(min=-largest(log_x))


def exponent_parts(s: float) -> tuple[float, float, float]:
    """``s`` as ``(coarse, rest, grid)`` for :func:`power`: a 12-bit head, what is left, and a power of 2."""
    mantissa, exponent = math.frexp(s)
    coarse = math.ldexp(round(math.ldexp(mantissa, 12)), exponent - 12)
    # s·log x matters down to -104 (the smallest float32), that is log x down to -2^(8 - exponent): 11 bits of the grid
    return coarse, s - coarse, math.ldexp(1.0, min(-3 - exponent, 64))


def power(log_x: Tensor, parts: Sequence[Number]) -> Tensor:
    """``x^s`` for ``s = parts >= 0``, without the rounding of ``s·log x`` (in float32 up to 4e-6 of the result)."""
    coarse, rest, grid = parts
    head = torch.round(log_x / grid) * grid  # coarse·head is exact, with or without fused multiply-add
    return torch.exp(coarse * head) * torch.exp(coarse * (log_x - head) + rest * log_x)


def scaled(scale: Tensor, value: Tensor) -> Tensor:
    """``scale·value``; infinite where ``value`` is, also where a positive scale has underflown to 0."""
    return torch.where(torch.isinf(value), value, scale * value)


def mean_decay(u: Tensor) -> Tensor:
    """``exp[0, -u] = (1 - e^-u) / u`` for ``u >= 0``; 1 at 0."""
    return torch.where(u == 0, 1.0, -torch.expm1(-u) / u)


def _series(u: Tensor, v: Tensor) -> Tensor:
    """``exp[0, -u, -v] = Σ_m (-1)^m h_m(u, v) / (m+2)!`` by Horner's rule for divided differences."""
    terms = 16 if u.dtype == torch.float64 else 9
    inner = outer = torch.full_like(u, (-1.0) ** (terms - 1) / math.factorial(terms + 1))
    for m in range(terms - 2, -1, -1):
        inner = (-1.0) ** m / math.factorial(m + 2) + v * inner
        outer = inner + u * outer
    return outer


def second_difference(gap: Tensor, near: Number | Tensor, far: Number | Tensor) -> Tensor:
    """``gap² · exp[0, -near·gap, -(near+far)·gap]`` for ``gap, near, far >= 0``.

    ``+inf`` for an infinite gap when ``near`` is 0, the finite limit otherwise.
    """
    a = gap.clamp(max=largest(gap))
    span = near + far
    u, w, v = near * a, far * a, span * a
    closed = a * (mean_decay(u) - torch.exp(-u) * mean_decay(w)) / span
    value = torch.where(v < _SERIES_BELOW, a * a * _series(u, v), closed)
    return torch.where(torch.isinf(gap) & (near == 0), math.inf, value)


def kl_terms(log_p: Tensor, log_q: Tensor, delta: Tensor) -> Tensor:
    """``p·Δ - p + q`` per class, never negative, accurate also where ``Δ = log p - log q`` is tiny."""
    up = delta >= 0
    near = torch.where(up, 0.0, 1.0).to(delta.dtype)
    top = torch.where(up, log_p, log_q)
    value = torch.exp(top) * second_difference(delta.abs(), near, 1.0 - near)
    return torch.where(delta == 0, 0.0, value)


def mixture(log_p: Tensor, log_q: Tensor, share: Number, rest: Number) -> tuple[Tensor, Tensor, Tensor]:
    """``(log m, log p - log m, log q - log m)`` of ``m = share·p + rest·q``, ``rest = 1 - share``: no cancellation."""
    delta = difference(log_p, log_q)
    a = delta.abs()
    up, one = delta >= 0, torch.ones_like(a)
    above = torch.where(up, share * one, rest * one)  # the share of the larger of the two
    below = torch.where(up, rest * one, share * one)
    close = (a < 1.0) | (below < 0.5)
    # log max(p, q) - log m, at least 0, and log min(p, q) - log m, at most 0
    upper = -torch.where(close, torch.log1p(below * torch.expm1(-a)), torch.log(above + below * torch.exp(-a)))
    lower = torch.where(a < 30.0, -torch.log1p(above * torch.expm1(a.clamp(max=30.0))), upper - a)
    log_m = torch.where(up, log_p, log_q) - upper
    return log_m, torch.where(up, upper, lower), torch.where(up, lower, upper)
