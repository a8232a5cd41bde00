"""Transforms of the rows before a divergence: standardised logits, and a softened teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abkd.divergences._alpha_beta import AlphaBeta
from abkd.divergences._dkd import DKD
from abkd.divergences._full_distribution import FORWARD_KL, Transform, check_inner, check_positive
from abkd.divergences._pointwise import Divergence
from abkd.errors import ConfigError

_LEAST_DEVIATION = 1e-7  # added to the standard deviation, as published


@dataclass(frozen=True)
class Standardized(Transform):
    """``D(p̂‖q̂)`` with ``p̂, q̂ = softmax(z-scores of the logits / temperature)`` (LSKD, arXiv 2403.01427).

    The z-scores of a row have mean 0 and (unbiased) standard deviation 1, so teacher and student agree where their
    logits differ by a shift and a scale. ``ForwardKL()`` inside gives LSKD, ``AlphaBeta()`` ABLSD, ``DKD()`` DKD + LS.

    A class with logit ``-inf`` stays impossible, and the z-scores are those of the other classes. A row whose logits
    are all equal has z-scores 0.

    The temperature of the objective has no effect here, only ``temperature`` does. The published losses are multiplied
    by its square: include that in ``kd_weight``.

    Raises:
        ConfigError: ``temperature`` is not a finite number > 0, or ``divergence`` is not a divergence.
    """

    divergence: Divergence = FORWARD_KL
    temperature: float = 2.0
    exempt: ClassVar[dict[str, str]] = {
        "positive_where_different": "logits that differ by a shift and a scale have the same z-scores",
        "a_class_impossible_to_one_is_a_limit": "an ever lower logit pushes the other z-scores together; -inf does not",
    }

    def __post_init__(self) -> None:
        check_inner(self)
        check_positive(self, "temperature")

    def written(self) -> str:
        return f"[{self.divergence.written()} of z-scores/{self.temperature:g}]"

    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        p, q = (_standardized(side, self.temperature) for side in (log_p, log_q))
        return self.divergence.rows(p, q, targets)

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return cls(), cls(AlphaBeta(1.2, -0.1)), cls(DKD())


def _standardized(log_x: Tensor, temperature: float) -> Tensor:
    """``log softmax(z/T)`` of the possible classes' z-scores; log-probabilities are logits up to a shift."""
    impossible = log_x == -torch.inf
    count = (~impossible).sum(-1, keepdim=True)
    x = log_x.masked_fill(impossible, 0.0)
    away = (x - x.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(impossible, 0.0)
    variance = away.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    level = variance == 0  # the square root has no gradient there
    deviation = variance.masked_fill(level, 1.0).sqrt().masked_fill(level, 0.0)
    z = (away / (deviation + _LEAST_DEVIATION)).masked_fill(impossible, -torch.inf)
    # impossible classes stay impossible, and their slope, which may be infinite, is dropped
    return torch.log_softmax(z / temperature, -1).masked_fill(impossible, -torch.inf)


@dataclass(frozen=True)
class TransformedTeacher(Transform):
    """``D(p̃‖q)`` with ``p̃ ∝ p^power``: only the teacher is softened (TTM, arXiv 2402.11148).

    ``weighted`` multiplies each row by ``U = Σ_v p_v^power``, which is large where the teacher is unsure (WTTM).
    ``ForwardKL()`` inside gives TTM, ``AlphaBeta()`` ABTTM. ``kd_temperature`` would soften both sides: leave it at 1.

    Raises:
        ConfigError: ``power`` is not a finite number > 0, ``weighted`` is not a boolean, or ``divergence`` is not a
            divergence.
    """

    divergence: Divergence = FORWARD_KL
    power: float = 0.1
    weighted: bool = False
    exempt: ClassVar[dict[str, str]] = {
        "zero_where_equal": "the student learns the softened teacher, which is a different distribution",
    }

    def __post_init__(self) -> None:
        check_inner(self)
        check_positive(self, "power")
        if not isinstance(self.weighted, bool):
            raise ConfigError(f"TransformedTeacher: weighted must be True or False, got {self.weighted!r}")

    def written(self) -> str:
        weight = f"Σp^{self.power:g}·" if self.weighted else ""
        return f"{weight}[{self.divergence.written()} with p ∝ p^{self.power:g}]"

    def exact(self, log_p: Tensor, log_q: Tensor, targets: Tensor | None) -> Tensor:
        softened = self.power * log_p
        value = self.divergence.rows(torch.log_softmax(softened, -1), log_q, targets)
        return value * softened.logsumexp(-1).exp() if self.weighted else value

    @classmethod
    def examples(cls) -> tuple[Divergence, ...]:
        return cls(), cls(AlphaBeta(0.8, 0.3), 0.2, weighted=True)
