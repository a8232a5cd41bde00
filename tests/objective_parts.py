"""The loss of an objective for given rows, without models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abkd.data import Batch, View
from abkd.models.rows import Outputs
from abkd.objective import Objective, ObjectiveLoss


def batch_of(
    weight: Tensor, targets: Tensor | None = None, origin: Tensor | None = None, sequence: Tensor | None = None
) -> Batch:
    """A batch of rows that no model has to read."""
    rows = torch.arange(len(weight))
    view = View(inputs={}, rows=rows)
    zeros = torch.zeros_like(rows)
    return Batch(
        student=view,
        teacher=view,
        targets=targets,
        weight=weight,
        origin=zeros if origin is None else origin,
        sequence=rows if sequence is None else sequence,
    )


def loss_of(
    objective: Objective,
    student: Any,
    teacher: Any,
    targets: Tensor | None,
    weight: Tensor,
    *,
    progress: float = 0.0,
    origin: Tensor | None = None,
    **options: Any,
) -> ObjectiveLoss:
    """The loss of an objective without state at ``progress``."""
    known = None if teacher is None else Outputs(teacher)
    return objective.open()(Outputs(student), known, batch_of(weight, targets, origin), progress=progress, **options)
