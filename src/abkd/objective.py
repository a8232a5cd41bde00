"""The objective: what is compared, how much it counts, and when."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from abkd.divergences import AlphaBeta, Divergence, ForwardKL, Hellinger, ReverseKL
from abkd.errors import ConfigError
from abkd.ops import Plan, RowLosses, linear_divergence
from abkd.ops._rows import Terms
from abkd.ops._types import Rows
from abkd.schedules import Schedule, at, is_number
from abkd.weights import RowWeights


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = Σ_n w_n·(ce_weight·CE_n + kd_weight·D(p_n‖q_n)) / total weight + lm_coef·CE(plain text)``.

    Any number and the divergence may be a schedule (``anneal``, ``stages``): a function of the run's progress.

    Raises:
        ConfigError: a part that cannot be meant.
    """

    divergence: Divergence | Schedule
    temperature: float = 1.0
    ce_weight: float | Schedule = 0.0
    kd_weight: float | Schedule = 1.0
    scale_by_temperature_squared: bool = False
    row_weight: RowWeights | None = None
    lm_coef: float = 0.0

    def __post_init__(self) -> None:
        for progress in (0.0, 1.0):
            if not isinstance(at(self.divergence, progress), Divergence):
                raise ConfigError(f"divergence must be one, such as AlphaBeta(0.2, 0.7), but it is {self.divergence!r}")
        if not (is_number(self.temperature) and self.temperature > 0):
            raise ConfigError(f"kd_temperature must be a finite number above 0, but it is {self.temperature!r}")
        for name in ("ce_weight", "kd_weight", "lm_coef"):
            value = getattr(self, name)
            if not all(is_number(at(value, progress)) and at(value, progress) >= 0 for progress in (0.0, 0.5, 1.0)):
                raise ConfigError(f"{name} must be a finite number of at least 0, but it is {value!r}")
        if all(at(self.ce_weight, t) == 0 == at(self.kd_weight, t) for t in (0.0, 0.5, 1.0)):
            raise ConfigError("ce_weight and kd_weight are both 0: nothing would be learned; set one above 0")
        if self.row_weight is not None and not isinstance(self.row_weight, RowWeights):
            raise ConfigError(
                f"row_weight must be one of abkd.weights, such as TeacherConfidence(), but it is {self.row_weight!r}"
            )

    def __call__(
        self,
        student: Rows,
        teacher: Rows,
        targets: Tensor,
        weight: Tensor,
        *,
        progress: float,
        total_weight: Tensor | float | None = None,
        plan: Plan | None = None,
    ) -> RowLosses:
        """The loss of some rows at ``progress`` in [0, 1]; see :func:`abkd.linear_divergence` for shapes."""
        return linear_divergence(
            student,
            teacher,
            at(self.divergence, progress),
            temperature=self.temperature,
            targets=targets,
            ce_weight=at(self.ce_weight, progress),
            kd_weight=at(self.kd_weight, progress),
            row_weight=weight if self.row_weight is None else (weight, self.row_weight),
            total_weight=total_weight,
            scale_by_temperature_squared=self.scale_by_temperature_squared,
            plan=plan,
        )

    def terms(self, progress: float) -> Terms:
        """The divergence as it is at ``progress``, for evaluation."""
        return Terms(at(self.divergence, progress), self.temperature, row_weight=self.row_weight)

    def value(self, divergence: Tensor, cross_entropy: Tensor, progress: float) -> Tensor:
        """``ce_weight·CE + kd_weight·D`` of rows whose parts are known already."""
        squared = self.temperature**2 if self.scale_by_temperature_squared else 1.0
        return at(self.ce_weight, progress) * cross_entropy + at(self.kd_weight, progress) * squared * divergence

    def formula(self) -> str:
        """The objective in one line, as it is printed at the start of a run."""
        weight = "" if self.row_weight is None else f"{self.row_weight!r}·"
        parts = [
            _term(self.ce_weight, "CE"),
            _term(self.kd_weight, ("T²·" if self.scale_by_temperature_squared else "") + _describe(self.divergence)),
        ]
        inside = " + ".join(part for part in parts if part)
        text = f"L = mean over response tokens of {weight}{f'({inside})' if weight or all(parts) else inside}"
        if self.lm_coef:
            text += f" + {_term(self.lm_coef, 'CE(plain text)')}"
        return f"{text},  T = {self.temperature:g}"


def _term(weight: float | Schedule, what: str) -> str:
    if isinstance(weight, Schedule):
        return f"{weight!r}·{what}"
    return "" if weight == 0 else what if weight == 1 else f"{weight:g}·{what}"


def _describe(divergence: Divergence | Schedule) -> str:
    if isinstance(divergence, AlphaBeta) and not isinstance(divergence, ForwardKL | ReverseKL | Hellinger):
        return f"D_AB(p‖q; α={divergence.alpha:g}, β={divergence.beta:g})"
    return divergence.formula if isinstance(divergence, ForwardKL | ReverseKL) else repr(divergence)
