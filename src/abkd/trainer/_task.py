"""What happens inside the wrapped forward: both models' rows, the objective, the numbers to log."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abkd.data import Batch
from abkd.divergences import ForwardKL, ReverseKL
from abkd.models.language import CausalRows
from abkd.objective import Objective
from abkd.ops import Plan, linear_divergence, row_metrics
from abkd.ops._rows import Terms
from abkd.teachers import Live

LOGGED = ("divergence", "cross_entropy", "student_entropy", "teacher_entropy", "agreement")
_DISTANCES = {"forward_kl": Terms(ForwardKL()), "reverse_kl": Terms(ReverseKL())}


class Totals(NamedTuple):
    """What the two sums of a step are divided by: the weight of its rows, and its targets in plain text."""

    rows: Tensor
    plain: Tensor

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Totals:
        """The totals of some batches together."""
        rows = sum((batch.weight.sum() for batch in batches), start=torch.zeros(()))
        plain = sum(0 if batch.pretrain_targets is None else batch.pretrain_targets.numel() for batch in batches)
        return cls(rows, torch.tensor(float(plain)))


class Task:
    """A student, a teacher and an objective; holds no parameters and is no module, so the teacher is never trained."""

    def __init__(self, student: CausalRows, teacher: Live, objective: Objective, plan: Plan) -> None:
        self.student, self.teacher, self.objective, self.plan = student, teacher, objective, plan

    def losses(self, batch: Batch, progress: float, totals: Totals) -> dict[str, Tensor]:
        """``loss``, this batch's part of the step's; and sums over its rows of what is logged, with their number."""
        teacher = self.teacher(batch.teacher)
        rows = self.objective(
            self.student(batch.student),
            teacher,
            batch.targets,
            batch.weight,
            progress=progress,
            total_weight=totals.rows,
            plan=self.plan,
        )
        if rows.plan is not None:
            self.plan = rows.plan  # smaller where memory did not suffice: what did not fit once is not tried again
        sums = {name: getattr(rows, name).sum() for name in LOGGED}
        loss = rows.loss
        if batch.pretrain is not None:
            loss = loss + self.objective.lm_coef * self._plain_text(batch, totals.plain)
        return {"loss": loss, "rows": batch.weight.count_nonzero(), **sums}

    def distances(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Sums over the rows of a held-out batch: the distances, cross-entropies, the objective's value."""
        student, teacher = self.student(batch.student), self.teacher(batch.teacher)
        wanted = {**_DISTANCES, "objective": self.objective.terms(progress)}
        columns = row_metrics(student, teacher, wanted, batch.targets, plan=self.plan)
        columns["loss"] = self.objective.value(columns.pop("objective"), columns["cross_entropy"], progress)
        sums = {name: values.double().sum() for name, values in columns.items()}
        return {**sums, "rows": batch.weight.count_nonzero().double()}

    def _plain_text(self, batch: Batch, total: Tensor) -> Tensor:
        """Sum of the cross-entropies of the plain text, over ``total``."""
        assert batch.pretrain is not None
        rows = self.student(batch.pretrain)
        return linear_divergence(
            rows,
            # the divergence has no part in this term: comparing the student with itself makes it exactly 0
            rows.detach(),
            ForwardKL(),
            targets=batch.pretrain_targets,
            ce_weight=1.0,
            kd_weight=0.0,
            total_weight=total,
            plan=self.plan,
        ).loss


def run_inside(model: nn.Module) -> None:
    """Let ``model(job=f)`` return ``f()`` from within the model's forward.

    Data-parallel, sharding and mixed-precision wrappers act on the forward call; a loss that reads the backbone and the
    head has to run there. Nothing is added to the module's state, and every other call is the model's own.
    """
    original = model.forward
    function = getattr(original, "__func__", None)  # called with the module at hand, so that a copied model runs itself

    @functools.wraps(function or original)
    def forward(self: nn.Module, *args: Any, job: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        if job is not None:
            return job()
        return original(*args, **kwargs) if function is None else function(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


@torch.no_grad()
def covered_mass(task: Task, batch: Batch, likeliest: int = 10) -> float:
    """The student's mean probability mass on the teacher's likeliest classes, over the rows of a batch."""
    student, teacher = task.student(batch.student), task.teacher(batch.teacher)
    total = 0.0
    step = task.plan.rows_per_chunk
    for start in range(0, len(student), step):
        rows = slice(start, start + step)
        top = teacher.logits(rows).topk(min(likeliest, student.classes), -1).indices
        total += torch.softmax(student.logits(rows).float(), -1).gather(-1, top).sum().item()
    return total / max(len(student), 1)
