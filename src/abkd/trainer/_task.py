"""What happens inside the wrapped forward: both models' rows, the objective, the numbers to log."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

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


class Task:
    """A student, a teacher and an objective; holds no parameters and is no module, so the teacher is never trained."""

    def __init__(self, student: CausalRows, teacher: Live, objective: Objective, plan: Plan) -> None:
        self.student, self.teacher, self.objective, self.plan = student, teacher, objective, plan

    def losses(self, batch: Batch, progress: float, total_weight: Tensor) -> dict[str, Tensor]:
        """``loss``, and sums over the rows of what is logged with their number ``rows``."""
        teacher = self.teacher(batch.teacher)
        rows = self.objective(
            self.student(batch.student),
            teacher,
            batch.targets,
            batch.weight,
            progress=progress,
            total_weight=total_weight,
            plan=self.plan,
        )
        sums = {name: getattr(rows, name).sum() for name in LOGGED}
        loss = rows.loss
        if batch.pretrain is not None:
            loss = loss + self.objective.lm_coef * self._plain_text(batch, total_weight)
        return {"loss": loss, "rows": batch.weight.count_nonzero(), **sums}

    def distances(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Sums over the rows of a held-out batch: the distances, cross-entropies, the objective's value."""
        student, teacher = self.student(batch.student), self.teacher(batch.teacher)
        wanted = {**_DISTANCES, "objective": self.objective.terms(progress)}
        columns = row_metrics(student, teacher, wanted, batch.targets, plan=self.plan)
        columns["loss"] = self.objective.value(columns.pop("objective"), columns["cross_entropy"], progress)
        sums = {name: values.double().sum() for name, values in columns.items()}
        return {**sums, "rows": batch.weight.count_nonzero().double()}

    def _plain_text(self, batch: Batch, total_weight: Tensor) -> Tensor:
        """Mean cross-entropy of the plain text, scaled so that the micro-batches of a step sum to their mean."""
        assert batch.pretrain is not None
        assert batch.pretrain_targets is not None
        rows = self.student(batch.pretrain)
        share = batch.weight.sum() / total_weight.clamp(min=1e-12)
        return share * linear_divergence(
            rows,
            # the divergence has no part in this term: comparing the student with itself makes it exactly 0
            rows.detach(),
            ForwardKL(),
            targets=batch.pretrain_targets,
            ce_weight=1.0,
            kd_weight=0.0,
            plan=self.plan,
        ).loss


def run_inside(model: nn.Module) -> None:
    """Let ``model(job=f)`` return ``f()`` from within the model's forward.

    Data-parallel, sharding and mixed-precision wrappers act on the forward call; a loss that reads the backbone and the
    head has to run there. Nothing is added to the module's state, and every other call is the model's own.
    """
    original = model.forward

    def forward(self: nn.Module, *args: Any, job: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if job is None else job()

    model.forward = types.MethodType(functools.wraps(getattr(original, "__func__", original))(forward), model)


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
