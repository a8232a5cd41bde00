"""The objective: its terms, their weights and their schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abkd.divergences import Divergence, JensenShannon, SkewReverseKL
from abkd.errors import ConfigError
from abkd.ops import ChunkPlan, RowLosses, RowLossSpec, Rows, TeacherRows, linear_divergence
from abkd.row_weights import RowWeights
from abkd.schedules import Schedule, at, is_number, moments_of, stages, values_of
from abkd.sequence_mixture import teacher_share
from abkd.term import ORIGINS, Term, check_weight

COLDEST, HOTTEST = 1e-4, 1e6
"""Limits of the temperature: within them losses and gradients of random logits stay well inside the float32 range."""

_SCHEDULED = ("divergence", "weight", "ce_weight", "kd_weight")  # the fields of a term that may be a schedule


class TokenLogProbs(NamedTuple):
    """Both models' log-probabilities of the token at each row, and the sequence of each row; ``[N]`` each."""

    teacher_log_prob: Tensor
    student_log_prob: Tensor
    sequence: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = Σ_k λ_k · mean over the rows of term k of w·( ce_weight·CE + kd_weight·D(p‖q) ) + lm_coef·CE(plain text)``.

    Most objectives have one term: its ``divergence``, ``ce_weight``, ``kd_weight`` and ``row_weight`` are set here.
    Objectives with sequences of several origins set ``terms`` instead. Any number, the divergence and the terms may be
    a schedule (``anneal``, ``stages``): a function of the run's progress.

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
    terms: Sequence[Term] | Schedule | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature > 0):
            raise ConfigError(f"kd_temperature must be a finite number > 0, got {self.temperature!r}")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise ConfigError(
                f"kd_temperature must be from {COLDEST:g} to {HOTTEST:g}, got {self.temperature!r}: outside this range "
                "losses are infinite or gradients 0 in float32"
            )
        check_weight("lm_coef", self.lm_coef)
        if self.terms is not None and self.divergence is not None:
            raise ConfigError("terms have their own divergences: set terms, or divergence with its weights, not both")
        if isinstance(self.terms, list):
            object.__setattr__(self, "terms", tuple(self.terms))
        for terms in values_of(self._terms):
            _check_terms(terms)
        every = self.all_terms()
        if self.temperature != 1.0 and any(term.sequence_mixture for term in every):
            raise ConfigError(
                f"sequence_mixture needs kd_temperature 1, at which sequences are sampled, got {self.temperature!r}; "
                "set kd_temperature: 1.0"
            )
        if not any(term.ce_weight or term.kd_weight for term in every):
            raise ConfigError("ce_weight and kd_weight are both 0: nothing would be learned; set one above 0")

    @property
    def _terms(self) -> Sequence[Term] | Schedule:
        if self.terms is not None:
            return self.terms
        if self.divergence is None:
            raise ConfigError("an objective needs a divergence, such as AlphaBeta(0.2, 0.7), or terms")
        return (Term(self.divergence, ce_weight=self.ce_weight, kd_weight=self.kd_weight, row_weight=self.row_weight),)

    def at(self, progress: float) -> tuple[Term, ...]:
        """The terms at ``progress`` in [0, 1], with every schedule in them evaluated there."""
        return tuple(
            replace(term, **{name: at(getattr(term, name), progress) for name in _SCHEDULED})
            for term in at(self._terms, progress)
        )

    def moments(self) -> list[float]:
        """Values of ``progress`` with at least one from each phase of the schedules."""
        terms = [term for value in values_of(self._terms) for term in value]
        fields = [getattr(term, name) for term in terms for name in _SCHEDULED]
        return moments_of(self._terms, *fields)

    def all_terms(self) -> list[Term]:
        """The terms at each of the :meth:`moments`, for checks of what must hold throughout a run."""
        return [term for progress in self.moments() for term in self.at(progress)]

    def __call__(
        self,
        student: Rows,
        teacher: TeacherRows | None,
        targets: Tensor | None,
        weight: Tensor,
        *,
        progress: float,
        origin: Tensor | None = None,
        total_weight: Tensor | float | None = None,
        history: TokenLogProbs | None = None,
        plan: ChunkPlan | None = None,
    ) -> RowLosses:
        """The loss of some rows at ``progress`` in [0, 1]; see :func:`abkd.linear_divergence` for shapes.

        Args:
            origin: ``[N]`` the origin of each row's sequence (index into ``abkd.term.ORIGINS``); None: the dataset.
            total_weight: the divisor of each term, ``[K]``, or one number for all.
            history: the previous tokens' log-probabilities, needed by terms with ``sequence_mixture``.
            teacher: None if no term needs it (:meth:`needs_teacher`).
        """
        parts: list[RowLosses] = []
        for k, term in enumerate(self.at(progress)):
            used = weight if term.origin is None else weight * selected(term, origin, weight)
            total = total_weight[k] if isinstance(total_weight, Tensor) and total_weight.ndim else total_weight
            part = linear_divergence(
                student,
                teacher,
                term.divergence,  # type: ignore[arg-type]  # at() left no schedule
                temperature=self.temperature,
                targets=targets,
                ce_weight=term.ce_weight * term.weight,  # type: ignore[operator]
                kd_weight=term.kd_weight * term.weight,  # type: ignore[operator]
                row_weight=used if term.row_weight is None else (used, term.row_weight),
                total_weight=total,
                teacher_share=_share(term, history),
                scale_by_temperature_squared=self.scale_by_temperature_squared,
                plan=plan,
            )
            plan = part.plan or plan  # smaller after running out of memory
            parts.append(part)
        return parts[0] if len(parts) == 1 else _together(parts)

    @property
    def changes(self) -> bool:
        """Whether the objective changes during a run, so that its values at different steps are not comparable."""
        first = self.at(0.0)
        return any(self.at(progress) != first for progress in self.moments())

    def needs_teacher(self, progress: float) -> bool:
        """Whether any term needs the teacher at ``progress``; cross-entropy alone does not."""
        return any((term.weight and term.kd_weight) or term.row_weight is not None for term in self.at(progress))

    def ever_needs_teacher(self) -> bool:
        """Whether any term needs the teacher at any time."""
        return any(self.needs_teacher(progress) for progress in self.moments())

    def totals(self, origin: Tensor, weight: Tensor, progress: float) -> Tensor:
        """``[K]`` the total row weight of each term at ``progress``."""
        return torch.stack([(weight * selected(term, origin, weight)).sum() for term in self.at(progress)])

    def row_specs(self, progress: float) -> list[tuple[Term, RowLossSpec]]:
        """The terms at ``progress``, each with the specification of its row loss, for evaluation."""
        return [
            (term, RowLossSpec(term.divergence, self.temperature, row_weight=term.row_weight))  # type: ignore[arg-type]
            for term in self.at(progress)
        ]

    def value(self, term: Term, divergence: Tensor, cross_entropy: Tensor) -> Tensor:
        """The loss of a term (at some progress) for rows whose divergence and cross-entropy are known."""
        squared = self.temperature**2 if self.scale_by_temperature_squared else 1.0
        inside = term.ce_weight * cross_entropy + term.kd_weight * squared * divergence  # type: ignore[operator]
        return term.weight * inside  # type: ignore[operator]

    def formula(self, rows: str = "response tokens") -> str:
        """The objective in one line, as it is printed at the start of a run; ``rows`` is the name of the rows in it."""
        text = f"L = {_terms_formula(self._terms, rows, self.scale_by_temperature_squared)}"
        if self.lm_coef:
            text += f" + {_weighted(self.lm_coef, 'CE(plain text)')}"
        return f"{text},  T = {self.temperature:g}"


def selected(term: Term, origin: Tensor | None, like: Tensor) -> Tensor:
    """``[N]`` 1 for the rows that a term uses, else 0; in the dtype of ``like``."""
    if term.origin is None:
        return torch.ones_like(like)
    mine = ORIGINS.index(term.origin)
    return torch.full_like(like, float(mine == 0)) if origin is None else (origin == mine).to(like.dtype)


def _share(term: Term, history: TokenLogProbs | None) -> Tensor | None:
    """The teacher's share in the mixture of whole sequences; before the first token it is the divergence's own."""
    if not term.sequence_mixture:
        return None
    if history is None:
        raise ConfigError(f"{term!r} needs both models' log-probabilities of the previous tokens: pass history")
    divergence: Any = term.divergence
    own = divergence.weight if isinstance(divergence, JensenShannon) else divergence.skew
    return teacher_share(*history, prior=1.0 - own if isinstance(divergence, SkewReverseKL) else own)


def _check_terms(terms: object) -> None:
    if not isinstance(terms, list | tuple) or not terms or not all(isinstance(term, Term) for term in terms):
        raise ConfigError(
            "terms must be a list of terms, such as [Term(SkewForwardKL(0.5), origin='teacher'), "
            f"Term(SkewReverseKL(0.5), origin='student')], got {terms!r}"
        )


def _together(parts: Sequence[RowLosses]) -> RowLosses:
    """The sum of losses and divergences; columns common to all terms come from the first term that has the row."""
    first = parts[0]
    for part in parts[1:]:
        free = (first.weight == 0) & (part.weight != 0)

        def either(name: str, first: RowLosses = first, part: RowLosses = part, free: Tensor = free) -> Tensor:
            mine, other = getattr(first, name), getattr(part, name)
            return torch.where(free, other, mine)

        first = RowLosses(
            loss=first.loss + part.loss,
            divergence=first.divergence + part.divergence,
            cross_entropy=None if first.cross_entropy is None else either("cross_entropy"),
            student_entropy=either("student_entropy"),
            teacher_entropy=either("teacher_entropy"),
            agreement=either("agreement"),
            weight=either("weight"),
            plan=part.plan,
        )
    return first


def _terms_formula(terms: Sequence[Term] | Schedule, rows: str, squared: bool) -> str:
    if isinstance(terms, stages):
        total = sum(share for share, _ in terms.parts)
        each = (f"for {share / total:.0%}: {_terms_formula(part, rows, squared)}" for share, part in terms.parts)
        return f"[{'; then '.join(each)}]"
    if isinstance(terms, Schedule):
        return repr(terms)
    return " + ".join(_term_formula(term, rows, squared) for term in terms)


def _term_formula(term: Term, rows: str, squared: bool) -> str:
    whose = {None: rows, "dataset": "the dataset's tokens"}.get(term.origin, f"the {term.origin}'s tokens")
    weight = "" if term.row_weight is None else f"{term.row_weight!r}·"
    divergence = ("T²·" if squared else "") + _describe(term.divergence)
    parts = [_weighted(term.ce_weight, "CE"), _weighted(term.kd_weight, divergence)]
    inside = " + ".join(part for part in parts if part)
    mean = f"mean over {whose} of {weight}{f'({inside})' if weight or all(parts) else inside}"
    return _weighted(term.weight, mean) + (" (sequence mixture)" if term.sequence_mixture else "")


def _weighted(weight: float | Schedule, what: str) -> str:
    if isinstance(weight, Schedule):
        return f"{weight!r}·{what}"
    return "" if weight == 0 else what if weight == 1 else f"{weight:g}·{what}"


def _describe(divergence: Divergence | Schedule) -> str:
    return repr(divergence) if isinstance(divergence, Schedule) else divergence.written()
