"""An objective opened for one run: its terms as modules, their state, and the loss of a micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from abkd.objective._columns import Columns, StepScores, combined, scored, term_columns
from abkd.objective._spec import Objective, needs_of
from abkd.objective._together import together
from abkd.ops import ChunkPlan, RowLosses, RowLossSpec
from abkd.schedules import Control, Controller, controllers_in, with_controls
from abkd.stateful import Event, Stateful
from abkd.terms import LossTerm, ModelInfo, Needs, OpenTerm, RowWeights, Scores, Term, TermInputs, TokenLogProbs

if TYPE_CHECKING:
    from abkd.data import Batch
    from abkd.models.rows import Outputs
    from abkd.ops import Rows, TeacherRows
    from abkd.terms import RowFunction


class Active(NamedTuple):
    """A term at one moment: its place among the terms of this moment, its specification and its module."""

    place: int
    spec: LossTerm
    term: OpenTerm
    functions: Mapping[str, RowFunction]
    """The row functions of its fields."""
    state: Mapping[str, Stateful | None]
    """Their state, by field."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """The loss of a micro-batch.

    Attributes:
        loss: the share of the micro-batch in the loss of the step.
        rows: the results of the op, summed over the terms that compare rows; None if there are none.
        columns: ``[N]`` each, numbers of other terms to log.
    """

    loss: Tensor
    rows: RowLosses | None
    columns: Mapping[str, Tensor] = field(default_factory=dict)


class OpenObjective(Stateful):
    """The objective of one run.

    Attributes:
        spec: its specification.
        modules: the opened terms; register them on the student if there are parameters.
    """

    def __init__(self, spec: Objective, models: ModelInfo) -> None:
        self.spec = spec
        self._specs = spec.specs()
        self._known: tuple[tuple[float, ...], list[Active]] | None = None
        with torch.random.fork_rng([]):
            torch.manual_seed(models.seed)  # the same initial values in all processes, and no draw from the run's own
            self.modules = nn.ModuleList([term.open(models) for term in self._specs])
        self.controls: dict[Controller, Control] = {each: each.open() for each in controllers_in(spec.schedule)}
        self._states = [
            {name: each.open() for name, each in term.functions().items()} if isinstance(term, Term) else {}
            for term in self._specs
        ]

    # -- the terms at a moment -----------------------------------------------------------------------------------

    def at(self, progress: float) -> list[Active]:
        """The terms at ``progress`` in [0, 1], without those of weight 0 that do not compare rows."""
        key = progress, *(control.value for control in self.controls.values())
        if self._known is None or self._known[0] != key:  # it is asked several times for each micro-batch
            self._known = key, self._active(progress)
        return self._known[1]

    def _active(self, progress: float) -> list[Active]:
        found: list[Active] = []
        for given in self.spec.specs_at(progress):
            place = self._specs.index(given)
            spec = (with_controls(given, self.controls) if self.controls else given).at(progress)
            if not isinstance(spec, Term) and spec.weight == 0:
                continue
            functions = spec.functions() if isinstance(spec, Term) else {}
            term: Any = self.modules[place]
            found.append(Active(len(found), spec, term, functions, self._states[place]))
        return found

    def needs(self, progress: float) -> Needs:
        """The inputs that the terms need at ``progress``."""
        found = Needs()
        for active in self.at(progress):
            found |= needs_of(active.spec)
        return found

    def looks_ahead(self, progress: float) -> bool:
        """Whether a row function looks over the whole step, so that its scores are needed before the first loss."""
        return any(each.over == "step" for active in self.at(progress) for each in active.functions.values())

    def totals(self, origin: Tensor, weight: Tensor, progress: float) -> Tensor:
        """``[K]`` the total row weight of each term at ``progress``."""
        return torch.stack([(weight * selected(active.spec, origin, weight)).sum() for active in self.at(progress)])

    # -- the loss ------------------------------------------------------------------------------------------------

    def __call__(
        self,
        student: Outputs[Rows],
        teacher: Outputs[TeacherRows | None] | None,
        batch: Batch,
        *,
        progress: float,
        total_weight: Tensor | float | None = None,
        columns: Columns | None = None,
        history: TokenLogProbs | None = None,
        plan: ChunkPlan | None = None,
    ) -> ObjectiveLoss:
        """The loss of a micro-batch at ``progress`` in [0, 1].

        Args:
            teacher: None if no term needs it (:meth:`needs`).
            total_weight: the divisor of each term, ``[K]``, or one number for all; None: the batch's own.
            columns: the numbers of row functions that look over the whole step.
            history: the previous tokens' log-probabilities, needed by terms with ``sequence_mixture``.
        """
        losses: list[Tensor] = []
        parts: list[RowLosses] = []
        logged: dict[str, Tensor] = {}
        active = self.at(progress)
        for each in active:
            inputs = self._inputs(each, student, teacher, batch, history, plan)
            total = total_weight[each.place] if isinstance(total_weight, Tensor) and total_weight.ndim else total_weight
            known = term_columns(each.place, each.functions, inputs, columns or {})
            found = each.term(dataclasses.replace(inputs, total=total, columns=known))
            losses.append(found.loss)
            for name, column in found.columns.items():
                logged[name] = logged[name] + column if name in logged else column
            if found.rows is not None:
                plan = found.rows.plan or plan  # smaller after running out of memory
                parts.append(found.rows)
        losses += self._untouched(active, student, parts)
        return ObjectiveLoss(sum(losses[1:], start=losses[0]), together(parts), logged)

    def _inputs(
        self,
        active: Active,
        student: Outputs[Rows],
        teacher: Outputs[TeacherRows | None] | None,
        batch: Batch,
        history: TokenLogProbs | None = None,
        plan: ChunkPlan | None = None,
    ) -> TermInputs:
        weight = batch.weight
        if active.spec.origin is not None:
            weight = weight * selected(active.spec, batch.origin, weight)
        return TermInputs(
            active.spec,
            student,
            teacher,
            batch,
            weight,
            temperature=self.spec.temperature,
            scale_by_temperature_squared=self.spec.scale_by_temperature_squared,
            state=active.state,
            history=history,
            plan=plan,
        )

    def _untouched(self, active: Sequence[Active], student: Outputs[Rows], parts: Sequence[RowLosses]) -> list[Tensor]:
        """Zeros with a gradient of 0 for parameters that nothing uses at this moment.

        Data parallelism waits for the gradient of every parameter; and an optimizer treats one without a gradient in
        another way than one with a gradient of 0, so without this a run would depend on the number of processes.
        """
        used = {id(each.term) for each in active}
        unused: list[Tensor] = [weight for term in self.modules if id(term) not in used for weight in term.parameters()]
        if not parts:
            unused += student.rows.tensors
        return [tensor.sum() * 0.0 for tensor in unused]

    # -- row functions over a step -------------------------------------------------------------------------------

    def scores(
        self,
        student: Outputs[Rows],
        teacher: Outputs[TeacherRows | None] | None,
        batch: Batch,
        *,
        progress: float,
        plan: ChunkPlan | None = None,
    ) -> StepScores:
        """The scores of a micro-batch's rows, at temperature 1; the same arguments as for the loss."""
        scores: dict[tuple[int, str], Tensor] = {}
        weights: list[Tensor] = []
        for active in self.at(progress):
            inputs = self._inputs(active, student, teacher, batch, plan=plan)
            weights.append(inputs.weight)
            wanted = {name: each for name, each in active.functions.items() if each.over == "step"}
            scores |= {(active.place, name): score for name, score in scored(wanted, inputs).items()}
        return StepScores(scores, torch.stack(weights))

    def combine(self, step: StepScores, rows: Batch | Scores, progress: float) -> tuple[Columns, dict[int, Tensor]]:
        """The numbers of all rows of a step, from the scores of all; called once per step, in all processes alike.

        Also the divisors of the terms that divide by the sum of these numbers, by index.
        """
        found: dict[tuple[int, str], Tensor] = {}
        divisors: dict[int, Tensor] = {}
        for active in self.at(progress):
            for name, each in active.functions.items():
                if each.over == "step":
                    weight, score = step.weight[active.place], step.scores[active.place, name]
                    found[active.place, name] = values = combined(each, active.state.get(name), score, weight, rows)
                    if isinstance(each, RowWeights) and each.mean == "weights":
                        divisors[active.place] = (weight * values).sum()
        return found, divisors

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluation_specs(
        self, student: Outputs[Rows], teacher: Outputs[TeacherRows | None] | None, batch: Batch, progress: float
    ) -> list[tuple[Active, TermInputs, RowLossSpec | None]]:
        """The terms at ``progress`` on all rows of an evaluation batch, whatever their origin."""
        found: list[tuple[Active, TermInputs, RowLossSpec | None]] = []
        for active in self.at(progress):
            inputs = dataclasses.replace(self._inputs(active, student, teacher, batch), weight=batch.weight)
            found.append((active, inputs, active.term.row_loss(inputs)))
        return found

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def has_parameters(self) -> bool:
        """Whether any term trains parameters of its own."""
        return any(True for _ in self.modules.parameters())

    @property
    def needs_step_metrics(self) -> bool:  # type: ignore[override]
        """Whether some part of it needs the metrics of each step."""
        return any(each.needs_step_metrics for each in self._observers())

    def _observers(self) -> Iterator[Any]:
        yield from self.controls.values()
        yield from self.modules
        yield from (state for states in self._states for state in states.values() if state is not None)

    def observe(self, event: Event) -> None:
        for each in self._observers():
            each.observe(event)

    def state_dict(self) -> dict[str, object]:
        found: dict[str, object] = {f"terms.{name}": value for name, value in self.modules.state_dict().items()}
        for name, part in self._parts():
            found |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(_under("terms", state))
        for name, part in self._parts():
            part.load_state_dict(_under(name, state))

    def _parts(self) -> Iterator[tuple[str, Stateful]]:
        for place, control in enumerate(self.controls.values()):
            yield f"controls.{place}", control
        for place, states in enumerate(self._states):
            for name, state in states.items():
                if state is not None:
                    yield f"rows.{place}.{name}", state

    def logs(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for _, part in self._parts():
            found |= part.logs()
        return found


def selected(term: LossTerm, origin: Tensor | None, like: Tensor) -> Tensor:
    """``[N]`` 1 for the rows that a term uses, else 0; in the dtype of ``like``."""
    if term.origin is None:
        return torch.ones_like(like)
    mine = term.origin.code
    return torch.full_like(like, float(mine == 0)) if origin is None else (origin == mine).to(like.dtype)


def _under(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
