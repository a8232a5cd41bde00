"""AdaKD: only the hardest rows of a step, each at a temperature of its own (arXiv 2510.11615, AAAI 2026).

With the hardness ``s = ‖√p - √q‖ / √2`` of a row, the Hellinger distance: LATF keeps the hardest ``r`` of a step, and
``r`` follows the loss; IDTS compares a row at ``T·exp(-c·tanh(log(s / median s)))``, hard rows at a lower temperature.

    terms: [Term(ReverseKL(), row_weight=Hardest(LossSteered()), temperature=ByHardness(1.0, strength=0.5))]
    scale_by_temperature_squared: true

Both look at all rows of an optimizer step, whatever its micro-batches and processes. A flag in the released code
reverses the sign of IDTS unless it is disabled; this is the paper's formula. The smoothing and the interval of the
checks of ``r`` are not given in the paper; the defaults here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from abkd.errors import ConfigError
from abkd.ops import RowFacts
from abkd.schedules import Control, Controller, Schedule, at, is_number, values_of
from abkd.stateful import Event, Stateful, StepEnd
from abkd.terms._row_functions import Over, RowTemperature, Scores
from abkd.terms._row_weights import RowWeights
from abkd.terms._rows import check_temperature


def hardness(facts: RowFacts) -> Tensor:
    """``[n]``: the Hellinger distance ``‖√p - √q‖ / √2`` of each row, in [0, 1]; its square is AB(½, ½) / 4."""
    return ((facts.log_p / 2).exp() - (facts.log_q / 2).exp()).square().sum(-1).div(2).sqrt()


@dataclass(frozen=True)
class Hardest(RowWeights):
    """LATF: weight 1 for the hardest ``share`` of a step's rows, ``⌈share·n⌉`` of n, else 0; the mean is over these.

    Raises:
        ConfigError: a share that is not above 0 and at most 1.
    """

    share: float | Schedule = 1.0
    over: ClassVar[Over] = "step"
    mean: ClassVar[Literal["rows", "weights"]] = "weights"

    def __post_init__(self) -> None:
        if not all(is_number(value) and 0 < value <= 1 for value in values_of(self.share)):
            raise ConfigError(f"Hardest: share must be above 0 and at most 1, got {self.share!r}")

    def __call__(self, facts: RowFacts) -> Tensor:
        return hardness(facts)

    def combine(self, scores: Scores, state: Stateful | None) -> Tensor:
        rows = scores.score.numel()
        kept = math.ceil(at(self.share, 0.0) * rows)
        hardest = scores.score.sort(descending=True, stable=True).indices[:kept]
        return torch.zeros_like(scores.score).index_fill(0, hardest, 1.0)


@dataclass(frozen=True)
class ByHardness(RowTemperature):
    """IDTS: a row's temperature ``base·exp(-strength·tanh(log(s / median s)))``, with the median over the step.

    Raises:
        ConfigError: ``base`` is not a usable temperature, or ``strength`` not a finite number >= 0.
    """

    base: float = 1.0
    strength: float = 0.5
    over: ClassVar[Over] = "step"

    def __post_init__(self) -> None:
        check_temperature("ByHardness: base", self.base)
        if not (is_number(self.strength) and self.strength >= 0):
            raise ConfigError(f"ByHardness: strength must be a finite number >= 0, got {self.strength!r}")

    def __call__(self, facts: RowFacts) -> Tensor:
        return hardness(facts)

    def combine(self, scores: Scores, state: Stateful | None) -> Tensor:
        if not len(scores.score):
            return scores.score
        own, median = scores.score.square(), scores.score.quantile(0.5).square()
        ratio = torch.where(own + median == 0, 0.0, (own - median) / (own + median))  # tanh(log(s / median))
        return self.base * (-self.strength * ratio).exp()


@dataclass(frozen=True)
class LossSteered(Controller):
    """LATF's r: ``rate`` larger when the loss has risen by more than ``tolerance``, smaller when it has fallen by more.

    The loss is its exponential moving average, and the reference is that average at the last change of r, at first
    after ``warmup`` of the run. r stays in [``least``, 1].

    Raises:
        ConfigError: an argument outside [0, 1], or ``start`` below ``least``.
    """

    start: float = 1.0
    least: float = 0.1
    rate: float = 0.05
    tolerance: float = 0.05
    decay: float = 0.9
    warmup: float = 0.1

    def __post_init__(self) -> None:
        for name in ("start", "least", "rate", "tolerance", "decay", "warmup"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ConfigError(f"LossSteered: {name} must be a number from 0 to 1, got {value!r}")
        if not 0 < self.least <= self.start:
            raise ConfigError(f"LossSteered: least must be above 0 and at most start, got {self.least!r}")

    def values(self) -> list[float]:
        return [self.start, self.least, 1.0]

    def open(self) -> Control:
        return _Steered(self)


class _Steered(Control):
    needs_step_metrics = True

    def __init__(self, spec: LossSteered) -> None:
        self.spec, self.value = spec, spec.start
        self.mean: float | None = None
        self.reference: float | None = None

    def observe(self, event: Event) -> None:
        if not isinstance(event, StepEnd):
            return
        spec, loss = self.spec, event.metrics["loss"]
        self.mean = loss if self.mean is None else spec.decay * self.mean + (1 - spec.decay) * loss
        if event.progress < spec.warmup:
            return
        if self.reference is None:
            self.reference = self.mean
        for beyond, factor in (
            (self.mean > (1 + spec.tolerance) * self.reference, 1 + spec.rate),
            (self.mean < (1 - spec.tolerance) * self.reference, 1 - spec.rate),
        ):
            if beyond:
                self.value = min(1.0, max(spec.least, self.value * factor))
                self.reference = self.mean
                return

    def state_dict(self) -> dict[str, float | None]:
        return {"share": self.value, "mean": self.mean, "reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.mean, self.reference = state["share"], state["mean"], state["reference"]

    def logs(self) -> dict[str, float]:
        return {"kept_share": self.value}
