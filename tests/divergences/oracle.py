"""The definition as printed (ABKD, arXiv 2505.04560, App. B eq. 8), in mpmath's arbitrary precision."""

from __future__ import annotations

import mpmath
from mpmath import mpf
from torch import Tensor

DIGITS = 50
# The printed form cancels: the lost digits are added to the wanted ones.
GUARD = 1000


def _term(alpha: mpf, beta: mpf, lp: mpf, lq: mpf) -> mpf:
    e, s = mpmath.exp, alpha + beta
    if alpha == 0 and beta == 0:
        return (lp - lq) ** 2 / 2
    if beta == 0:
        return (e(alpha * lp) * alpha * (lp - lq) - e(alpha * lp) + e(alpha * lq)) / alpha**2
    if alpha == 0:
        return (e(beta * lq) * beta * (lq - lp) - e(beta * lq) + e(beta * lp)) / beta**2
    if s == 0:
        return (alpha * (lq - lp) + e(alpha * (lp - lq)) - 1) / alpha**2
    return -(e(alpha * lp + beta * lq) - alpha / s * e(s * lp) - beta / s * e(s * lq)) / (alpha * beta)


def divergence(alpha: float, beta: float, log_p: Tensor, log_q: Tensor) -> mpf:
    """``D_{α,β}(p‖q)`` of two rows of finite log-probabilities, to :data:`DIGITS` digits."""
    with mpmath.workdps(DIGITS + GUARD):
        a, b = mpf(alpha), mpf(beta)
        terms = (_term(a, b, mpf(x), mpf(y)) for x, y in zip(log_p.tolist(), log_q.tolist(), strict=True))
        return mpmath.fsum(terms)


def student_slope(alpha: float, beta: float, log_p: Tensor, log_q: Tensor) -> list[mpf]:
    """``-q^β (p^α - q^α)/α`` per class (eq. 128 as a derivative by ``log q``); its limit at α = 0."""
    with mpmath.workdps(DIGITS + GUARD):
        a, b, e = mpf(alpha), mpf(beta), mpmath.exp
        rows = [(mpf(x), mpf(y)) for x, y in zip(log_p.tolist(), log_q.tolist(), strict=True)]
        if a == 0:
            return [-e(b * lq) * (lp - lq) for lp, lq in rows]
        return [-(e(a * lp + b * lq) - e((a + b) * lq)) / a for lp, lq in rows]


def relative_error(got: float, exact: mpf) -> float:
    if exact == 0:
        return abs(got)
    return float(abs((mpf(got) - exact) / exact))


def divided_difference(*nodes: mpf) -> mpf:
    """``exp[x_0, …, x_n]`` from its integral over the simplex, so that no nodes are subtracted."""
    if len(nodes) == 2:
        x, y = nodes
        return mpmath.quad(lambda t: mpmath.exp(x + t * (y - x)), [0, 1])
    x, y, z = nodes
    return mpmath.quad(
        lambda t: mpmath.quad(lambda u: t * mpmath.exp(x + t * (y - x) + t * u * (z - y)), [0, 1]), [0, 1]
    )
