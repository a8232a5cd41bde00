"""One term of an objective: which sequences, which divergence, how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from abkd.divergences import Divergence, JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.errors import ConfigError
from abkd.row_weights import RowWeights
from abkd.schedules import Schedule, is_number, values_of

__all__ = ["Term"]

LARGEST_WEIGHT = 1e30
"""Of a cross-entropy or a divergence; float32 ends at 3e38."""

Origin = Literal["dataset", "teacher", "student"]
ORIGINS: tuple[str, ...] = get_args(Origin)


@dataclass(frozen=True)
class Term:
    """``weight · mean over the rows written by `origin` of ( kd_weight·D(p‖q) + ce_weight·CE )``.

    Args:
        divergence: a divergence, or a schedule of divergences.
        origin: "dataset", "teacher" or "student": whose sequences; None takes all.
        weight: λ of the whole term; a number or a schedule. Each term is a mean over its own rows.
        ce_weight, kd_weight: inside it, as in :class:`abkd.Objective`.
        row_weight: which rows count.
        sequence_mixture: for the divergences through a mixture: the teacher's share of it follows from the tokens
            before, as in the mixture of whole sequences, instead of being the same at every token (f-DISTILL,
            arXiv 2307.15190).

    Raises:
        ConfigError: a part that cannot be meant.
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
            raise ConfigError(f"divergence must be one, such as AlphaBeta(0.2, 0.7), but it is {self.divergence!r}")
        if self.origin is not None and self.origin not in ORIGINS:
            raise ConfigError(f"origin must be one of {', '.join(ORIGINS)}, or None for all, but it is {self.origin!r}")
        for name in ("weight", "ce_weight", "kd_weight"):
            check_weight(name, getattr(self, name))
        if self.row_weight is not None and not isinstance(self.row_weight, RowWeights):
            raise ConfigError(
                "row_weight must be one of abkd.row_weights, such as TeacherConfidence(), but it is "
                f"{self.row_weight!r}"
            )
        mixtures = (JensenShannon, SkewForwardKL, SkewReverseKL)
        if self.sequence_mixture and not all(isinstance(value, mixtures) for value in values_of(self.divergence)):
            raise ConfigError(
                "sequence_mixture is about the mixture inside JensenShannon, SkewForwardKL or SkewReverseKL, "
                f"but the divergence is {self.divergence!r}"
            )


def check_weight(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number of at least 0 all along a run."""
    if not all(is_number(each) and each >= 0 for each in values_of(value)):
        raise ConfigError(f"{name} must be a finite number of at least 0, but it is {value!r}")
    if any(each > LARGEST_WEIGHT for each in values_of(value)):
        raise ConfigError(f"{name} must be at most {LARGEST_WEIGHT:g}, got {value!r}: a float32 loss would overflow")
