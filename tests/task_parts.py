"""The loss of a batch without a trainer around it, and its gradient."""

from __future__ import annotations

from typing import Any

import torch

import abkd
from abkd.models.language import CausalRows
from abkd.objective import Objective
from abkd.ops import plan_chunks
from abkd.teachers import LiveReader
from abkd.trainer._distillation import DistillationLoss, Totals


def losses(task: DistillationLoss, batch: Any) -> dict[str, torch.Tensor]:
    return task.losses(batch, 0.0, Totals.of([batch], task.objective, 0.0))


def task_of(student: Any, teach: Any, divergence: Any = None, **options: Any) -> DistillationLoss:
    objective = Objective(divergence=divergence or abkd.AlphaBeta(0.2, 0.7), **options).open()
    return DistillationLoss(
        CausalRows(student), LiveReader(teach), objective, plan_chunks(64, 340, torch.device("cpu"))
    )


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
