"""Row weights: functions of a row's two distributions, constant in the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from abkd.errors import ConfigError


class RowWeights:
    """A frozen function ``(log_p [n, V], log_q [n, V]) -> [n]`` that returns weights >= 0."""

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
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

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (self.power * log_p.max(-1).values).exp()
