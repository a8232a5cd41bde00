"""The part of a step inside the wrapped forward pass: rows of both models, objective, metrics to log."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from abkd.data import Batch
from abkd.divergences import ForwardKL
from abkd.metrics import LOGGED
from abkd.models.rows import ModelRows, Outputs
from abkd.objective import Columns, OpenObjective, StepScores
from abkd.ops import ChunkPlan, Rows, TeacherRows, linear_divergence, row_metrics
from abkd.teachers import TeacherReader
from abkd.terms import Needs, TokenLogProbs


class Totals(NamedTuple):
    """Divisors of a step's sums: the weight of each term's rows ``[K]`` and the number of plain-text targets."""

    rows: Tensor
    plain: Tensor

    @classmethod
    def of(cls, batches: Sequence[Batch], objective: OpenObjective, progress: float) -> Totals:
        """The totals over several batches."""
        rows = sum(objective.totals(batch.origin, batch.weight, progress) for batch in batches)
        plain = sum(0 if batch.pretrain_targets is None else batch.pretrain_targets.numel() for batch in batches)
        return cls(cast(Tensor, rows), torch.tensor(float(plain)))


class DistillationLoss:
    """The loss of a student, a teacher and an objective; not a module: no parameter of the teacher is trained."""

    def __init__(
        self,
        student: ModelRows,
        teacher: TeacherReader | None,
        objective: OpenObjective,
        plan: ChunkPlan,
    ) -> None:
        self.student, self.teacher, self.objective, self.plan = student, teacher, objective, plan
        self.first_plan = plan  # stored in the record of the run; ``plan`` may become smaller

    def losses(
        self, batch: Batch, progress: float, totals: Totals, columns: Columns | None = None
    ) -> dict[str, Tensor]:
        """The batch's share of the step's ``loss``, the sums of the logged metrics over its rows, and their number.

        ``columns``: the numbers of row functions that look over the whole step.
        """
        needs = self.objective.needs(progress)
        teacher = self._read_teacher(batch, needs)
        student = self.student.read(batch.student, needs.student_features)
        found = self.objective(
            student,
            teacher,
            batch,
            progress=progress,
            total_weight=totals.rows,
            columns=columns,
            history=self._history(student.rows, teacher, batch) if needs.history else None,
            plan=self.plan,
        )
        rows, known = found.rows, dict(found.columns)
        if rows is not None:
            if rows.plan is not None:
                self.plan = rows.plan  # smaller after running out of memory: do not retry a size that did not fit
            logged = [metric for metric in LOGGED if needs.teacher or not metric.needs_teacher]
            known = {**{metric.name: getattr(rows, metric.column) for metric in logged}, **known}
        sums = {name: (column * batch.weight).sum() for name, column in known.items() if column is not None}
        loss = found.loss
        if self.student.auxiliary_loss is not None:
            loss = loss + self.student.auxiliary_loss * self._share(batch, progress, totals)
        if batch.pretrain is not None:
            loss = loss + self.objective.spec.lm_coef * self._plain_text(batch, totals.plain)
        return {"loss": loss, "rows": batch.weight.sum(), **sums}

    def _read_teacher(self, batch: Batch, needs: Needs) -> Outputs[TeacherRows | None] | None:
        if self.teacher is None or not needs.any_teacher:
            return None
        return self.teacher.read(batch.teacher, needs.teacher_features, stop=not needs.teacher)

    def scores(self, batch: Batch, progress: float) -> StepScores:
        """The scores of the batch's rows, for row functions that look over the whole step."""
        needs = self.objective.needs(progress)
        teacher, student = self._read_teacher(batch, needs), self.student.read(batch.student)
        return self.objective.scores(student, teacher, batch, progress=progress, plan=self.plan)

    def _share(self, batch: Batch, progress: float, totals: Totals) -> Tensor:
        """The batch's share of the step: a mean over batches then has weight 1, however the step is split."""
        own = self.objective.totals(batch.origin, batch.weight, progress).sum()
        return (own / totals.rows.sum().clamp(min=1e-12)).to(batch.weight.device)

    def _history(
        self, student: Rows, teacher: Outputs[TeacherRows | None] | None, batch: Batch
    ) -> TokenLogProbs | None:
        """The log-probabilities ``[N]`` of both models for the token in the text, at temperature 1."""
        if teacher is None or teacher.rows is None:
            return None
        columns = row_metrics(student.detach(), teacher.rows, {}, batch.targets, plan=self.plan)
        return TokenLogProbs(-columns["teacher_cross_entropy"], -columns["cross_entropy"], batch.sequence)

    def _plain_text(self, batch: Batch, total: Tensor) -> Tensor:
        """Sum of the cross-entropies of the plain text, divided by ``total``."""
        assert batch.pretrain is not None
        return linear_divergence(
            self.student(batch.pretrain),
            None,
            ForwardKL(),
            targets=batch.pretrain_targets,
            ce_weight=1.0,
            kd_weight=0.0,
            total_weight=total,
            plan=self.plan,
        ).loss


def run_inside(model: nn.Module) -> None:
    """Let ``model(job=f)`` return ``f()`` from within the model's forward.

    Data-parallel, sharding and mixed-precision wrappers act on the forward call, so a loss that reads the backbone and
    the head has to run inside it. Nothing is added to the module's state, and all other calls are unchanged.
    """
    original = model.forward
    function = getattr(original, "__func__", None)  # called with self, so that a copied model runs its own weights

    @functools.wraps(function or original)
    def forward(self: nn.Module, *args: object, job: Callable[[], object] | None = None, **kwargs: object) -> object:
        if job is not None:
            return job()
        return original(*args, **kwargs) if function is None else function(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)
