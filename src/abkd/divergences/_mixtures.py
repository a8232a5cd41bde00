"""Divergences through a mixture of teacher and student: Jensen-Shannon and the two skew KLs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd.divergences._exponential import expm1, floored, kl_terms, mixture
from abkd.divergences._pointwise import Number, Pointwise
from abkd.errors import ConfigError

_ALWAYS_ZERO = "at 1 the divergence is always 0: use a skew below 1"


def _checked_share(owner: object, name: str, at_zero: str, at_one: str) -> None:
    share = getattr(owner, name)
    title = type(owner).__name__
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ConfigError(f"{title}: {name} must be strictly between 0 and 1, got {share!r}")
    if share in (0, 1):
        raise ConfigError(f"{title}({name}={share}) is not a mixture; {at_one if share else at_zero}")
    object.__setattr__(owner, name, float(share))


class Mixture(Pointwise):
    """A divergence through a mixture of teacher and student, whose shares may differ from row to row."""

    @abstractmethod
    def params_at(self, share: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """``params`` for a mixture of the teacher's ``share`` and the student's ``rest = 1 - share``."""


@dataclass(frozen=True)
class JensenShannon(Mixture):
    """``w·KL(p‖m) + (1-w)·KL(q‖m)`` with ``m = w·p + (1-w)·q`` (GKD, arXiv 2306.13649, eq. 1).

    ``weight`` is the teacher's share of the mixture. Divided by it, the divergence tends to forward KL as
    ``weight -> 0``; divided by ``1 - weight`` to reverse KL as ``weight -> 1``; 0 and 1 themselves raise ConfigError.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        _checked_share(self, "weight", "use ForwardKL()", "use ReverseKL()")

    @property
    def params(self) -> tuple[float, ...]:
        return (self.weight, 1.0 - self.weight)

    def params_at(self, share: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        return share, rest

    @property
    def native(self) -> str:
        return """
    const MIXTURE m = mixture(p, q, k[0], k[1]);
    const REAL own = choose(m.teacher_on_top, -m.m_over_low, m.top_over_m);
    term = m.share_top * top_to_m(m) + m.share_low * low_to_m(m);
    slope = k[1] * m.top * choose(m.teacher_on_top, m.low, 1) * own;"""

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        share, rest = params
        log_m, from_p, from_q = mixture(log_p, log_q, share, rest)
        term = share * kl_terms(log_p, log_m, from_p) + rest * kl_terms(log_q, log_m, from_q)
        return term, rest * torch.exp(log_q) * floored(from_q)

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.value_and_slope(log_q, log_p, (1.0 - self.weight, self.weight))[1]


@dataclass(frozen=True)
class SkewForwardKL(Mixture):
    """``KL(p ‖ skew·p + (1-skew)·q)`` (DistiLLM, arXiv 2402.03898, eq. 3): bounded by ``-log(skew)``."""

    skew: float = 0.1

    def __post_init__(self) -> None:
        _checked_share(self, "skew", "use ForwardKL()", _ALWAYS_ZERO)

    @property
    def params(self) -> tuple[float, ...]:
        return (self.skew, 1.0 - self.skew)

    def params_at(self, share: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        return share, rest

    @property
    def native(self) -> str:
        return """
    const MIXTURE m = mixture(p, q, k[0], k[1]);
    const REAL beyond = choose(m.teacher_on_top, m.low * top_beyond_m(m), low_beyond_m(m));
    term = choose(m.teacher_on_top, top_to_m(m), low_to_m(m));
    slope = -k[1] * m.top * beyond;"""

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        skew, rest = params
        log_m, from_p, _ = mixture(log_p, log_q, skew, rest)
        # p/m is at most 1/skew, so p/m - 1 cannot overflow
        slope = -rest * torch.exp(log_q) * expm1(from_p)
        return kl_terms(log_p, log_m, from_p), slope

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        _, from_p, _ = mixture(log_p, log_q, *self.params)
        return torch.exp(log_p) * (floored(from_p) - self.skew * expm1(from_p))


@dataclass(frozen=True)
class SkewReverseKL(Mixture):
    """``KL(q ‖ skew·q + (1-skew)·p)`` (DistiLLM, arXiv 2402.03898, eq. 4): bounded by ``-log(skew)``."""

    skew: float = 0.1

    def __post_init__(self) -> None:
        _checked_share(self, "skew", "use ReverseKL()", _ALWAYS_ZERO)

    @property
    def params(self) -> tuple[float, ...]:
        return (self.skew, 1.0 - self.skew)

    def params_at(self, share: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        return rest, share

    @property
    def native(self) -> str:
        return """
    const MIXTURE m = mixture(p, q, k[1], k[0]);
    const REAL own = choose(m.teacher_on_top, -m.m_over_low, m.top_over_m);
    const REAL beyond = choose(m.teacher_on_top, low_beyond_m(m), top_beyond_m(m));
    term = choose(m.teacher_on_top, low_to_m(m), top_to_m(m));
    slope = m.top * choose(m.teacher_on_top, m.low, 1) * (own - k[0] * beyond);"""

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, params: Sequence[Number]) -> tuple[Tensor, Tensor]:
        skew, rest = params
        log_m, _, from_q = mixture(log_p, log_q, rest, skew)
        slope = torch.exp(log_q) * (floored(from_q) - skew * expm1(from_q))
        return kl_terms(log_q, log_m, from_q), slope

    def teacher_slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        skew, rest = self.params
        _, _, from_q = mixture(log_p, log_q, rest, skew)
        return -rest * torch.exp(log_p) * expm1(from_q)
