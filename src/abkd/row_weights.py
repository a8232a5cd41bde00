"""Row weights: functions of what is known of a row, constant in the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from abkd.errors import ConfigError
from abkd.ops import RowFacts

__all__ = ["RowWeights", "TeacherConfidence"]


class RowWeights:
    """A frozen function of the :class:`abkd.ops.RowFacts` of some rows that returns weights >= 0, ``[n]``."""

    def __call__(self, facts: RowFacts) -> Tensor:
        """The weight of each row."""
        raise NotImplementedError


@dataclass(frozen=True)
class TeacherConfidence(RowWeights):
    """``(max_v p_v) ** power``: rows on which the teacher is unsure count less.

    Raises:
        ConfigError: ``power`` is not a finite number >= 0.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.power, int | float) and math.isfinite(self.power) and self.power >= 0):
            raise ConfigError(f"TeacherConfidence: power must be a finite number >= 0, got {self.power!r}")

    def __call__(self, facts: RowFacts) -> Tensor:
        return (self.power * facts.log_p.max(-1).values).exp()
