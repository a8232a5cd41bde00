"""Textbook implementations of the divergences: softmax, powers, logarithms, autograd. In float64, the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from abkd.divergences import AlphaBeta, Divergence, ForwardKL, JensenShannon, ReverseKL, SkewForwardKL


def row_losses(teacher: Tensor, student: Tensor, divergence: Divergence) -> Tensor:
    """``D(p‖q)`` of each row, from logits ``[n, V]`` of float32 or float64."""
    if isinstance(divergence, JensenShannon | SkewForwardKL):
        return _through_mixture(teacher, student, divergence)
    if isinstance(divergence, ForwardKL):
        log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if isinstance(divergence, ReverseKL):
        log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if isinstance(divergence, AlphaBeta):
        return _alpha_beta(F.softmax(teacher, -1), F.softmax(student, -1), divergence.alpha, divergence.beta)
    raise TypeError(f"no textbook formula here for {divergence!r}")


def _alpha_beta(p: Tensor, q: Tensor, alpha: float, beta: float) -> Tensor:
    """The paper's definition (arXiv 2505.04560, eq. 8); α, β and α+β are not 0."""
    s = alpha + beta
    inside = p**alpha * q**beta - alpha / s * p**s - beta / s * q**s
    return -inside.sum(-1) / (alpha * beta)


def _through_mixture(teacher: Tensor, student: Tensor, divergence: JensenShannon | SkewForwardKL) -> Tensor:
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    p, q = log_p.exp(), log_q.exp()
    share = divergence.weight if isinstance(divergence, JensenShannon) else divergence.skew
    log_m = torch.log(share * p + (1 - share) * q)
    from_teacher = (p * (log_p - log_m)).sum(-1)
    if isinstance(divergence, SkewForwardKL):
        return from_teacher
    return share * from_teacher + (1 - share) * (q * (log_q - log_m)).sum(-1)


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """``-log q`` of the label, for each row."""
    return F.cross_entropy(student, targets, reduction="none")
