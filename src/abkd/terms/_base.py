"""The interface of loss terms: a frozen ``LossTerm`` opens an ``OpenTerm``, a module, for a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.ops import ChunkPlan, RowLosses, RowLossSpec
from abkd.origin import Origin
from abkd.schedules import Schedule, evaluated, is_number, schedules_in, values_of
from abkd.stateful import Event

if TYPE_CHECKING:
    from abkd.data import Batch
    from abkd.models.rows import Outputs
    from abkd.ops import Rows, TeacherRows
    from abkd.stateful import Stateful

LARGEST_WEIGHT = 1e30
"""The upper limit of the weight of a cross-entropy or divergence; the range of float32 ends at 3e38."""


class TokenLogProbs(NamedTuple):
    """Both models' log-probabilities of the token at each row, and the sequence of each row; ``[N]`` each."""

    teacher_log_prob: Tensor
    student_log_prob: Tensor
    sequence: Tensor


@dataclass(frozen=True)
class Needs:
    """Inputs of a term, known before any model is loaded.

    Attributes:
        teacher: the teacher's rows.
        targets: labels.
        full_distribution: the teacher's complete distributions; its top-k classes are not enough.
        history: both models' log-probabilities of the previous tokens.
        batch_axis: it compares the rows of a batch with each other.
        student_features, teacher_features: names of features, as in :class:`abkd.models.rows.Outputs`.
    """

    teacher: bool = False
    targets: bool = False
    full_distribution: bool = False
    history: bool = False
    batch_axis: bool = False
    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """Everything that either of them needs."""
        return Needs(
            teacher=self.teacher or other.teacher,
            targets=self.targets or other.targets,
            full_distribution=self.full_distribution or other.full_distribution,
            history=self.history or other.history,
            batch_axis=self.batch_axis or other.batch_axis,
            student_features=tuple(dict.fromkeys(self.student_features + other.student_features)),
            teacher_features=tuple(dict.fromkeys(self.teacher_features + other.teacher_features)),
        )

    @property
    def any_teacher(self) -> bool:
        """Whether the teacher is run at all."""
        return self.teacher or bool(self.teacher_features)


@dataclass(frozen=True)
class ModelInfo:
    """The models of a run, as seen by a term that opens.

    Attributes:
        student_features, teacher_features: by name, the shape of one row's feature, without the leading ``N``.
        seed: for random initial values, the same in all processes.
    """

    student_features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teacher_features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class TermInputs:
    """Inputs of a term for one micro-batch of N rows.

    Attributes:
        spec: the term at this moment of the run: no field is a schedule or a controller.
        weight: float ``[N]``, the rows' weights; 0 for those of other origins.
        total: the sum of ``weight`` over the whole step and all processes; None: over this batch.
        temperature: the objective's, for terms that set none.
        scale_by_temperature_squared: multiply divergences by the square of their temperature.
        columns: ``[N]`` each, by field of the term: the numbers of its row functions that look at the whole step.
        state: by field of the term, the state of its row function.
        history: see :class:`TokenLogProbs`.
        plan: how the op is executed; None: chosen by the op.
    """

    spec: Any
    student: Outputs[Rows]
    teacher: Outputs[TeacherRows | None] | None
    batch: Batch
    weight: Tensor
    total: Tensor | float | None = None
    temperature: float = 1.0
    scale_by_temperature_squared: bool = False
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Stateful | None] = field(default_factory=dict)
    history: TokenLogProbs | None = None
    plan: ChunkPlan | None = None

    def mean(self, values: Tensor) -> Tensor:
        """The share of this batch in the mean of ``values`` ``[N]`` over the rows of the step."""
        total = self.weight.sum() if self.total is None else torch.as_tensor(self.total).to(values)
        return (values * self.weight).sum() / torch.where(total == 0, 1.0, total)


@dataclass(frozen=True)
class TermLoss:
    """The result of a term for one micro-batch.

    Attributes:
        loss: a scalar, already divided by ``TermInputs.total``.
        rows: the results of the op, for terms that compare rows.
        columns: ``[N]`` each, numbers to log, by the name of their metric.
    """

    loss: Tensor
    rows: RowLosses | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)


class OpenTerm(nn.Module, ABC):
    """A term opened for one run. Its parameters are trained with the student's and are not saved with the student."""

    needs_step_metrics: bool = False

    @abstractmethod
    def forward(self, inputs: TermInputs) -> TermLoss:
        """The share of one micro-batch in the loss."""

    def observe(self, event: Event) -> None:
        """React to an event; called in all processes with equal events."""

    def row_loss(self, inputs: TermInputs) -> RowLossSpec | None:
        """For evaluation: the specification of the loss of each row; None for a term that compares something else."""
        return None

    @abstractmethod
    def values(self, inputs: TermInputs, divergence: Tensor | None, cross_entropy: Tensor | None) -> Tensor:
        """For evaluation: ``[N]`` the loss of each row.

        Args:
            divergence, cross_entropy: ``[N]``, for terms with a :meth:`row_loss`.
        """


class LossTerm(ABC):
    """``weight · mean over the rows written by `origin` of …``: a frozen value, written as its constructor call.

    Subclasses are frozen dataclasses with at least these two fields. Any field may be a schedule or contain a
    controller: the opened term gets a specification with their current values.

    Attributes:
        weight: λ of the term.
        origin: whose sequences it uses; None: all.
    """

    weight: float | Schedule
    origin: Origin | None

    @abstractmethod
    def needs(self) -> Needs:
        """Its inputs; called on the term at each moment of a run's schedules."""

    @abstractmethod
    def open(self, models: ModelInfo) -> OpenTerm:
        """Open the term for a run.

        Raises:
            ConfigError: the models do not suit it.
        """

    @abstractmethod
    def written(self, rows: str, squared: bool = False) -> str:
        """Its part of the formula of an objective.

        Args:
            rows: the name of the rows, such as "response tokens".
            squared: divergences are multiplied by the squared temperature.
        """

    def at(self, progress: float) -> Self:
        """The term at ``progress`` in [0, 1], with the schedules in its fields evaluated there."""
        return evaluated(self, progress)

    def schedules(self) -> list[Schedule]:
        """The schedules in its fields."""
        return schedules_in(self)


def check_term(term: LossTerm) -> None:
    """Check ``weight`` and ``origin`` of a term, and store the origin as :class:`Origin`.

    Raises:
        ConfigError: an invalid value.
    """
    check_weight("weight", term.weight)
    if term.origin is not None:
        known = [each.value for each in Origin]
        if term.origin not in known:
            raise ConfigError(f"origin must be one of {', '.join(known)}, or None for all, got {term.origin!r}")
        object.__setattr__(term, "origin", Origin(term.origin))


def check_weight(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number >= 0 throughout a run."""
    if not all(is_number(each) and each >= 0 for each in values_of(value)):
        raise ConfigError(f"{name} must be a finite number >= 0, got {value!r}")
    if any(each > LARGEST_WEIGHT for each in values_of(value)):
        raise ConfigError(f"{name} must be at most {LARGEST_WEIGHT:g}, got {value!r}: a float32 loss would overflow")


def check_features(term: LossTerm, *names: str) -> None:
    """Check fields that name features.

    Raises:
        ConfigError: one of them is not a name.
    """
    for name in names:
        value = getattr(term, name)
        if not (isinstance(value, str) and value):
            raise ConfigError(
                f"{type(term).__name__}: {name} must be the name of a feature, such as 'hidden.6', got {value!r}"
            )


def times(weight: float | Schedule, what: str) -> str:
    """``weight·what`` as a formula shows it; empty for weight 0."""
    if isinstance(weight, Schedule):
        return f"{weight!r}·{what}"
    return "" if weight == 0 else what if weight == 1 else f"{weight:g}·{what}"


def whose(origin: Origin | None, rows: str) -> str:
    """The rows of an origin as a formula names them."""
    if origin is None:
        return rows
    return "the dataset's tokens" if origin is Origin.DATASET else f"the {origin.value}'s tokens"
