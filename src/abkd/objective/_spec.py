"""The objective: its terms, their weights and their schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from abkd.divergences import Divergence
from abkd.errors import ConfigError
from abkd.schedules import Schedule, at, controllers_in, moments_of, stages, values_of
from abkd.terms import LossTerm, ModelInfo, Needs, RowWeights, Term, check_temperature, check_weight, times

if TYPE_CHECKING:
    from abkd.objective._open import OpenObjective


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = Σ_k λ_k · mean over the rows of term k of w·( ce_weight·CE + kd_weight·D(p‖q) ) + lm_coef·CE(plain text)``.

    Most objectives have one term: its ``divergence``, ``ce_weight``, ``kd_weight`` and ``row_weight`` are set here.
    Objectives with several terms, such as for sequences of several origins or for features, set ``terms`` instead. Any
    number, the divergence and the terms may be a schedule (``anneal``, ``stages``): a function of the run's progress;
    or a controller, which depends on the run's measurements.

    Raises:
        ConfigError: an invalid argument.
    """

    divergence: Divergence | Schedule | None = None
    temperature: float = 1.0
    ce_weight: float | Schedule = 0.0
    kd_weight: float | Schedule = 1.0
    scale_by_temperature_squared: bool = False
    row_weight: RowWeights | None = None
    lm_coef: float = 0.0
    terms: Sequence[LossTerm] | Schedule | None = None

    def __post_init__(self) -> None:
        check_temperature("kd_temperature", self.temperature)
        check_weight("lm_coef", self.lm_coef)
        if self.terms is not None and self.divergence is not None:
            raise ConfigError("terms have their own divergences: set terms, or divergence with its weights, not both")
        if isinstance(self.terms, list):
            object.__setattr__(self, "terms", tuple(self.terms))
        for terms in values_of(self.schedule):
            _check_terms(terms)
        every = self.all_terms()
        for term in every:
            _check_mixture(term, self.temperature)
        if not any(_learns(term) for term in every):
            raise ConfigError("ce_weight and kd_weight are both 0: nothing would be learned; set one above 0")

    @property
    def schedule(self) -> Sequence[LossTerm] | Schedule:
        """The terms as they were given: a tuple, or a schedule of tuples."""
        if self.terms is not None:
            return self.terms
        if self.divergence is None:
            raise ConfigError("an objective needs a divergence, such as AlphaBeta(0.2, 0.7), or terms")
        return (Term(self.divergence, ce_weight=self.ce_weight, kd_weight=self.kd_weight, row_weight=self.row_weight),)

    def specs(self) -> list[LossTerm]:
        """The distinct terms of all phases, as they were given."""
        found: list[LossTerm] = []
        for terms in values_of(self.schedule):
            found += [term for term in terms if term not in found]
        return found

    def specs_at(self, progress: float) -> tuple[LossTerm, ...]:
        """The terms of the phase at ``progress`` in [0, 1], as they were given."""
        return tuple(at(self.schedule, progress))

    def at(self, progress: float) -> tuple[LossTerm, ...]:
        """The terms at ``progress`` in [0, 1], with every schedule in them evaluated there."""
        return tuple(term.at(progress) for term in self.specs_at(progress))

    def moments(self) -> list[float]:
        """Values of ``progress`` with at least one from each phase of the schedules."""
        return moments_of(self.schedule, *(each for term in self.specs() for each in term.schedules()))

    def all_terms(self) -> list[LossTerm]:
        """The terms at each of the :meth:`moments`, for checks of what must hold throughout a run."""
        return [term for progress in self.moments() for term in self.at(progress)]

    def row_terms(self) -> list[Term]:
        """Those of :meth:`all_terms` that compare rows."""
        return [term for term in self.all_terms() if isinstance(term, Term)]

    @property
    def changes(self) -> bool:
        """Whether the objective changes during a run, so that its values at different steps are not comparable."""
        first = self.at(0.0)
        return bool(controllers_in(self.schedule)) or any(self.at(progress) != first for progress in self.moments())

    def needs(self, progress: float) -> Needs:
        """The inputs that the terms need at ``progress``."""
        return reduce(or_, (needs_of(term) for term in self.at(progress)), Needs())

    def ever_needs(self) -> Needs:
        """The inputs that the terms need at any time."""
        return reduce(or_, (self.needs(progress) for progress in self.moments()), Needs())

    def open(self, models: ModelInfo | None = None) -> OpenObjective:
        """Open the objective for a run; without ``models`` if no term needs to know them.

        Raises:
            ConfigError: a term does not suit the models.
        """
        from abkd.objective._open import OpenObjective

        return OpenObjective(self, models or ModelInfo())

    def needs_teacher(self, progress: float) -> bool:
        """Whether any term needs the teacher at ``progress``; cross-entropy alone does not."""
        return self.needs(progress).any_teacher

    def ever_needs_teacher(self) -> bool:
        """Whether any term needs the teacher at any time."""
        return self.ever_needs().any_teacher

    def formula(self, rows: str = "response tokens") -> str:
        """The objective in one line, as it is printed at the start of a run; ``rows`` is the name of the rows in it."""
        text = f"L = {_formula(self.schedule, rows, self.scale_by_temperature_squared)}"
        if self.lm_coef:
            text += f" + {times(self.lm_coef, 'CE(plain text)')}"
        return f"{text},  T = {self.temperature:g}"


def needs_of(term: LossTerm) -> Needs:
    """The inputs of a term at a moment; one with weight 0 is not run unless it compares rows."""
    return Needs() if not isinstance(term, Term) and term.weight == 0 else term.needs()


def _learns(term: LossTerm) -> bool:
    return bool(term.ce_weight or term.kd_weight) if isinstance(term, Term) else bool(term.weight)


def _check_mixture(term: LossTerm, temperature: float) -> None:
    own = term.temperature if isinstance(term, Term) and term.temperature is not None else temperature
    if isinstance(term, Term) and term.sequence_mixture and own != 1.0:
        raise ConfigError(
            f"sequence_mixture needs kd_temperature 1, at which sequences are sampled, got {own!r}; "
            "set kd_temperature: 1.0"
        )


def _check_terms(terms: object) -> None:
    if not isinstance(terms, list | tuple) or not terms or not all(isinstance(term, LossTerm) for term in terms):
        raise ConfigError(
            "terms must be a list of terms, such as [Term(SkewForwardKL(0.5), origin='teacher'), "
            f"Term(SkewReverseKL(0.5), origin='student')], got {terms!r}"
        )


def _formula(terms: Sequence[LossTerm] | Schedule, rows: str, squared: bool) -> str:
    if isinstance(terms, stages):
        total = sum(share for share, _ in terms.parts)
        each = (f"for {share / total:.0%}: {_formula(part, rows, squared)}" for share, part in terms.parts)
        return f"[{'; then '.join(each)}]"
    if isinstance(terms, Schedule):
        return repr(terms)
    return " + ".join(term.written(rows, squared) for term in terms)
