"""Row weights: functions of a row's two distributions, constant in the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from abkd.errors import ConfigError
from abkd.ops import RowFacts
from abkd.terms._row_functions import RowFunction


class RowWeights(RowFunction):
    """A function of rows that returns weights ``>= 0``; a row with weight 0 is not computed.

    ``on``: what is weighted: the divergence, the cross-entropy, or both.
    ``mean``: "rows" if the divisor is the number of rows, "weights" if it is the sum of these weights over the whole
    step, which takes a function ``over`` the step.
    """

    on: ClassVar[Literal["both", "divergence", "cross_entropy"]] = "both"
    mean: ClassVar[Literal["rows", "weights"]] = "rows"

    @property
    def inline(self) -> bool:
        return self.over == "row" and self.on == "both"


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
