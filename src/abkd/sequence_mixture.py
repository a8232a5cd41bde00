"""The teacher's share in a mixture of whole sequences, token by token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abkd.errors import ConfigError


@torch.no_grad()
def teacher_share(teacher_log_prob: Tensor, student_log_prob: Tensor, sequence: Tensor, prior: float = 0.5) -> Tensor:
    """How probable it is, given the tokens before, that the teacher is the one who writes a sequence.

    Let a coin with ``prior`` for the teacher decide who writes all of a sequence, and let M be the distribution of what
    comes out. Then M's next token is drawn from ``m_t = w_t·p_t + (1-w_t)·q_t`` with

        w_t = sigmoid( log(prior / (1-prior)) + Σ_{s<t} [log p(y_s) - log q(y_s)] )

    and with these mixtures the Jensen-Shannon divergence and the skew KLs of whole sequences are sums over tokens,
    ``KL(P‖M) = E_{y∼P} Σ_t KL(p_t‖m_t)`` and ``KL(Q‖M) = E_{y∼Q} Σ_t KL(q_t‖m_t)``. The same share at every token, as
    f-DISTILL (arXiv 2307.15190) has it, gives an upper bound of the Jensen-Shannon divergence.

    Args:
        teacher_log_prob, student_log_prob: ``[N]``, of the token that stands at each row, at the divergence's own
            temperature.
        sequence: ``[N]`` integers, the same for the rows of one sequence, which stand together and in their order.
        prior: the teacher's share before the first token: ``weight`` of JensenShannon, ``skew`` of SkewForwardKL,
            ``1 - skew`` of SkewReverseKL.

    Returns:
        ``[N]`` in float32 (float64 for float64 input), without gradient. It never reaches 0 or 1, however sure the
        tokens make it, so that the mixture keeps both. After tokens that neither could have written it is ``prior``.

    Raises:
        ConfigError: a prior that is not strictly between 0 and 1, or tensors of other shapes.
    """
    _check(teacher_log_prob, student_log_prob, sequence, prior)
    dtype = torch.promote_types(torch.promote_types(teacher_log_prob.dtype, student_log_prob.dtype), torch.float32)
    odds = _sums_before(teacher_log_prob.to(dtype) - student_log_prob.to(dtype), sequence)
    share = torch.sigmoid(odds + math.log(prior / (1.0 - prior)))
    least = torch.finfo(dtype).eps
    return torch.where(odds.isnan(), prior, share).clamp(least, 1.0 - least)


def _sums_before(values: Tensor, sequence: Tensor) -> Tensor:
    """Of each row ``[N]`` the sum of the rows before it in its own sequence.

    By doubling: after k rounds a row holds the sum of the 2^k rows before it. No sequence touches another one's sum, so
    what stands beside it in the batch changes nothing, not even the rounding; infinities too stay where they are.
    """
    totals = torch.zeros_like(values)
    totals[1:] = torch.where(sequence[1:] == sequence[:-1], values[:-1], 0.0)
    reach = 1
    while reach < len(totals):
        together = sequence[reach:] == sequence[:-reach]
        totals[reach:] += torch.where(together, totals[:-reach], 0.0)
        reach *= 2
    return totals


def _check(teacher_log_prob: Tensor, student_log_prob: Tensor, sequence: Tensor, prior: float) -> None:
    if not 0 < prior < 1:
        raise ConfigError(f"prior is the teacher's share before the first token, between 0 and 1, but it is {prior!r}")
    shapes = [list(each.shape) for each in (teacher_log_prob, student_log_prob, sequence)]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise ConfigError(
            f"log-probabilities of teacher and student and the sequence numbers must all be [N], but are {shapes}"
        )
