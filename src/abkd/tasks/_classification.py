"""What all tasks share whose rows are examples with a class: their metrics, and the accuracy of the teacher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from abkd.data import Batch
from abkd.metrics import METRICS
from abkd.ops import Rows, TeacherRows, TopK, teacher_logits
from abkd.tasks.base import OpenTask
from abkd.teachers.caches import CacheReader

logger = logging.getLogger("abkd")

OF_CLASSES = (METRICS["accuracy"], METRICS["cross_entropy"])
_SCORED = 1024  # examples for the teacher's accuracy before training


class OpenClassification(OpenTask):
    """Two classifiers and examples whose rows have a class, or no labels at all.

    ``rows``: the noun of the examples in messages, such as "images". Datasets have an attribute ``labelled``.
    """

    rows: ClassVar[str]

    @property
    def max_rows(self) -> int:
        return self.args.per_device_train_batch_size

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        if batch.targets is None:
            return {}
        found = {"accuracy": _right(student.logits(slice(None)), batch.targets)}
        if teacher is not None:
            found["teacher_accuracy"] = _right(logits_of(teacher), batch.targets)
        return found

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        rows = max(totals["rows"], 1.0)
        names = ("accuracy", "teacher_accuracy", "cross_entropy", "teacher_cross_entropy")
        return {name: totals[name] / rows for name in names if name in totals}

    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        if "teacher_accuracy" not in metrics:
            return
        teacher, student = metrics["teacher_accuracy"], metrics["accuracy"]
        logger.info(
            "abkd: accuracy on the held-out %s: teacher %.2f %%, student %.2f %%",
            self.rows,
            100 * teacher,
            100 * student,
        )
        if teacher <= student:
            logger.warning(
                "abkd: the teacher (%.2f %%) is no better than the student (%.2f %%) on the held-out %s; check its "
                "weights, its preprocessing and the order of its classes",
                100 * teacher,
                100 * student,
                self.rows,
            )

    @torch.no_grad()
    def score_teacher(self) -> None:
        """Log the accuracy of the teacher, if there is no evaluation before the first step."""
        dataset: Any = self.held_out or self.train
        teacher = self.models.teacher
        if teacher is None or not dataset.labelled or isinstance(teacher, CacheReader):
            return  # a cache may not contain the images without augmentation
        count, right, size = min(len(dataset), _SCORED), 0.0, self.args.per_device_eval_batch_size
        for start in range(0, count, size):
            examples = [dataset[i] for i in range(start, min(start + size, count))]
            batch = self.collate(examples)["batch"].to(self.args.device)
            right += _right(logits_of(teacher(batch.teacher)), cast(Tensor, batch.targets)).sum().item()
        which = "held-out" if self.held_out is not None else "training"
        share = 100 * right / count
        logger.info("abkd: accuracy of the teacher on %d %s %s: %.2f %%", count, which, self.rows, share)


def logits_of(teacher: TeacherRows) -> Tensor:
    """``[N, C]`` the teacher's logits; for a ``TopK`` its log-probabilities, and -inf for all other classes."""
    if not isinstance(teacher, TopK):
        logits = teacher_logits(teacher, len(teacher), 1.0)(slice(None))
        assert isinstance(logits, Tensor)
        return logits
    lowest = teacher.log_p.new_full((len(teacher), teacher.classes), -torch.inf)
    return lowest.scatter(-1, teacher.ids, teacher.log_p)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """``[N]`` 1 if the top-1 class is the target, else 0."""
    return (logits.argmax(-1) == targets).float()
