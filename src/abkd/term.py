"""One term of an objective: its sequences, its divergence and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from abkd.divergences import Divergence, JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.errors import ConfigError
from abkd.row_weights import RowWeights
from abkd.schedules import Schedule, is_number, values_of

__all__ = ["Term"]

LARGEST_WEIGHT = 1e30
"""The upper limit of the weight of a cross-entropy or divergence; the range of float32 ends at 3e38."""

Origin = Literal["dataset", "teacher", "student"]
ORIGINS: tuple[str, ...] = get_args(Origin)


@dataclass(frozen=True)
class Term:
    """``weight · mean over the rows written by `origin` of ( kd_weight·D(p‖q) + ce_weight·CE )``.

    Args:
        divergence: a divergence, or a schedule of divergences.
        origin: "dataset", "teacher" or "student": which sequences it uses; None: all.
        weight: λ of the whole term; a number or a schedule. Each term is a mean over its own rows.
        ce_weight, kd_weight: weights inside the term, as in :class:`abkd.Objective`.
        row_weight: how much each row counts.
        sequence_mixture: for divergences through a mixture: compute the teacher's share from the previous tokens, as
            in the mixture of whole sequences, instead of using the same share at every token (f-DISTILL,
            arXiv 2307.15190).

    Raises:
        ConfigError: an invalid argument.
    """

    divergence: Divergence | Schedule
    origin: Origin | None = None
    weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    kd_weight: float | Schedule = 1.0
    row_weight: RowWeights | None = None
    sequence_mixture: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(value, Divergence) for value in values_of(self.divergence)):
            raise ConfigError(f"divergence must be a divergence, such as AlphaBeta(0.2, 0.7), got {self.divergence!r}")
        if self.origin is not None and self.origin not in ORIGINS:
            raise ConfigError(f"origin must be one of {', '.join(ORIGINS)}, or None for all, got {self.origin!r}")
        for name in ("weight", "ce_weight", "kd_weight"):
            check_weight(name, getattr(self, name))
        if self.row_weight is not None and not isinstance(self.row_weight, RowWeights):
            raise ConfigError(
                f"row_weight must be one of abkd.row_weights, such as TeacherConfidence(), got {self.row_weight!r}"
            )
        mixtures = (JensenShannon, SkewForwardKL, SkewReverseKL)
        if self.sequence_mixture and not all(isinstance(value, mixtures) for value in values_of(self.divergence)):
            raise ConfigError(
                "sequence_mixture applies only to JensenShannon, SkewForwardKL and SkewReverseKL, got the divergence "
                f"{self.divergence!r}; remove sequence_mixture or use one of these"
            )


def check_weight(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number >= 0 throughout a run."""
    if not all(is_number(each) and each >= 0 for each in values_of(value)):
        raise ConfigError(f"{name} must be a finite number >= 0, got {value!r}")
    if any(each > LARGEST_WEIGHT for each in values_of(value)):
        raise ConfigError(f"{name} must be at most {LARGEST_WEIGHT:g}, got {value!r}: a float32 loss would overflow")
