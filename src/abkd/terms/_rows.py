"""The row term: a divergence between both models' final distributions of each row, and the cross-entropy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from abkd.divergences import Divergence, JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.errors import ConfigError
from abkd.ops import RowFacts, RowLossSpec, Rows, linear_divergence
from abkd.ops import RowWeight as RowWeightFunction
from abkd.origin import Origin
from abkd.schedules import Schedule, is_number, values_of
from abkd.terms._base import (
    LossTerm,
    ModelInfo,
    Needs,
    OpenTerm,
    TermInputs,
    TermLoss,
    check_term,
    check_weight,
    times,
    whose,
)
from abkd.terms._row_functions import RowFunction, RowTemperature
from abkd.terms._row_weights import RowWeights
from abkd.terms._sequence_mixture import teacher_share

COLDEST, HOTTEST = 1e-4, 1e6
"""Limits of the temperature: within them losses and gradients of random logits stay well inside the float32 range."""

_MIXTURES = (JensenShannon, SkewForwardKL, SkewReverseKL)


@dataclass(frozen=True)
class Term(LossTerm):
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
        temperature: of the divergence: a number, a schedule, or a function of the row; None: the objective's.

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
    temperature: float | Schedule | RowTemperature | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(value, Divergence) for value in values_of(self.divergence)):
            raise ConfigError(f"divergence must be a divergence, such as AlphaBeta(0.2, 0.7), got {self.divergence!r}")
        check_term(self)
        for name in ("ce_weight", "kd_weight"):
            check_weight(name, getattr(self, name))
        if self.row_weight is not None and not isinstance(self.row_weight, RowWeights):
            raise ConfigError(f"row_weight must be row weights, such as TeacherConfidence(), got {self.row_weight!r}")
        if self.temperature is not None and not isinstance(self.temperature, RowTemperature):
            for value in values_of(self.temperature):
                check_temperature("temperature", value)
        if self.sequence_mixture and not all(isinstance(value, _MIXTURES) for value in values_of(self.divergence)):
            raise ConfigError(
                "sequence_mixture applies only to JensenShannon, SkewForwardKL and SkewReverseKL, got the divergence "
                f"{self.divergence!r}; remove sequence_mixture or use one of these"
            )

    def needs(self) -> Needs:
        compares = any(values_of(self.kd_weight)) and any(values_of(self.weight))
        divergences = values_of(self.divergence)
        return Needs(
            teacher=compares or self.row_weight is not None or isinstance(self.temperature, RowTemperature),
            targets=any(values_of(self.ce_weight)) or (compares and any(each.needs_targets for each in divergences)),
            full_distribution=compares
            and (any(each.needs_full_distribution for each in divergences) or self.temperature is not None),
            history=self.sequence_mixture,
            batch_axis=any(each.batch_axis for each in divergences),
        )

    def open(self, models: ModelInfo) -> OpenTerm:
        return OpenRowTerm()

    def written(self, rows: str, squared: bool = False) -> str:
        weight = "" if self.row_weight is None else f"{self.row_weight!r}·"
        divergence = self.divergence
        inner = repr(divergence) if isinstance(divergence, Schedule) else divergence.written()
        parts = [times(self.ce_weight, "CE"), times(self.kd_weight, ("T²·" if squared else "") + inner)]
        inside = " + ".join(part for part in parts if part)
        mean = f"mean over {whose(self.origin, rows)} of {weight}{f'({inside})' if weight or all(parts) else inside}"
        remarks = [f"T = {self.temperature!r}"] if self.temperature is not None else []
        remarks += ["sequence mixture"] if self.sequence_mixture else []
        return times(self.weight, mean) + (f" ({', '.join(remarks)})" if remarks else "")

    def functions(self) -> dict[str, RowFunction]:
        """Its row functions, by field."""
        found = {"row_weight": self.row_weight, "temperature": self.temperature}
        return {name: each for name, each in found.items() if isinstance(each, RowFunction)}


class OpenRowTerm(OpenTerm):
    """A row term in a run; its row functions' state is kept by the objective."""

    def forward(self, inputs: TermInputs) -> TermLoss:
        spec, batch = _spec(inputs), inputs.batch
        weight, total, function = inputs.weight, inputs.total, None
        resolved: Any = spec  # no field is a schedule
        ce_weight: Any = resolved.ce_weight * resolved.weight
        kd_weight: Any = resolved.kd_weight * resolved.weight
        row_weight = spec.row_weight
        if row_weight is not None and row_weight.inline:
            function = with_facts(row_weight, inputs, "row_weight")
        elif row_weight is not None:
            values = inputs.columns["row_weight"]
            if row_weight.on == "both":
                weight = weight * values
            elif row_weight.on == "divergence":
                kd_weight = kd_weight * values
            else:
                ce_weight = ce_weight * values
        rows = linear_divergence(
            _rows(inputs),
            None if inputs.teacher is None else inputs.teacher.rows,
            cast(Divergence, spec.divergence),
            temperature=_temperature(inputs),
            targets=batch.targets,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            row_weight=weight if function is None else (weight, function),
            total_weight=total,
            teacher_share=_share(spec, inputs),
            scale_by_temperature_squared=inputs.scale_by_temperature_squared,
            plan=inputs.plan,
        )
        return TermLoss(rows.loss, rows)

    def row_loss(self, inputs: TermInputs) -> RowLossSpec:
        spec, weights = _spec(inputs), _spec(inputs).row_weight
        function = None
        if weights is not None and weights.inline:
            function = with_facts(weights, inputs, "row_weight")
        return RowLossSpec(cast(Divergence, spec.divergence), base_temperature(inputs), row_weight=function)

    def values(self, inputs: TermInputs, divergence: Tensor | None, cross_entropy: Tensor | None) -> Tensor:
        spec: Any = inputs.spec
        squared = base_temperature(inputs) ** 2 if inputs.scale_by_temperature_squared else 1.0
        inside = spec.ce_weight * cross_entropy + spec.kd_weight * squared * divergence
        return spec.weight * inside


def base_temperature(inputs: TermInputs) -> float:
    """The temperature of a row term: its own, that of its row function's base, or the objective's."""
    own = inputs.spec.temperature
    return inputs.temperature if own is None else own.base if isinstance(own, RowTemperature) else own


def with_facts(function: RowFunction, inputs: TermInputs, name: str) -> RowWeightFunction:
    """The row function of a field as the op calls it, with the facts that the op does not know."""
    batch, state = inputs.batch, inputs.state.get(name)

    def call(facts: RowFacts) -> Tensor:
        index = facts.index
        return function(
            dataclasses.replace(facts, origin=batch.origin[index], sequence=batch.sequence[index], state=state)
        )

    return call


def check_temperature(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a usable temperature."""
    if not (is_number(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number > 0, got {value!r}")
    if not COLDEST <= value <= HOTTEST:
        raise ConfigError(
            f"{name} must be from {COLDEST:g} to {HOTTEST:g}, got {value!r}: outside this range losses are infinite or "
            "gradients 0 in float32"
        )


def _spec(inputs: TermInputs) -> Term:
    spec: Term = inputs.spec
    return spec


def _rows(inputs: TermInputs) -> Rows:
    return inputs.student.rows


def _temperature(inputs: TermInputs) -> float | Tensor:
    return inputs.columns["temperature"] if "temperature" in inputs.columns else base_temperature(inputs)


def _share(spec: Term, inputs: TermInputs) -> Tensor | None:
    """The teacher's share in the mixture of whole sequences; before the first token it is the divergence's own."""
    if not spec.sequence_mixture:
        return None
    if inputs.history is None:
        raise ConfigError(f"{spec!r} needs both models' log-probabilities of the previous tokens: pass history")
    divergence: Any = spec.divergence
    own = divergence.weight if isinstance(divergence, JensenShannon) else divergence.skew
    return teacher_share(*inputs.history, prior=1.0 - own if isinstance(divergence, SkewReverseKL) else own)
