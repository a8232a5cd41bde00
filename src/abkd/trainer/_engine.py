"""The interface between transformers' Trainer and the parts of a run."""

from __future__ import annotations

from typing import Any

from torch import nn

from abkd.config import DistillConfig
from abkd.tasks import Task
from abkd.trainer._context import Processes, RunContext
from abkd.trainer._distillation import DistillationLoss
from abkd.trainer._loading import DataLoading
from abkd.trainer._sums import MetricSums


class Engine(DataLoading):
    """transformers' Trainer with a :class:`RunContext`."""

    kind: Task
    loss: DistillationLoss
    run: RunContext
    saved_step: int
    sums: MetricSums

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1]; schedules are functions of it."""
        return self.run.progress

    def _restart(self) -> None:
        self.saved_step = -1
        self.sums.reset()

    def _context(self, args: DistillConfig) -> RunContext:
        self.sums = MetricSums()
        return RunContext(
            args,
            self.kind,
            self.task,
            self.loss,
            Processes(args, lambda: self.accelerator),
            sharded=lambda: bool(self.is_fsdp_enabled or self.is_deepspeed_enabled),
            fsdp=lambda: bool(self.is_fsdp_enabled),
            state=lambda: self.state,
            model=lambda: self.model,
            evaluation_model=self._evaluation_model,
            optimizer=lambda: self.optimizer,
            accelerator=lambda: self.accelerator,
        )

    def _evaluation_model(self) -> nn.Module:
        """The student wrapped for distributed and mixed-precision evaluation."""
        student: Any = self.model
        model = self._wrap_model(student, training=False)
        if not self.accelerator._models and model is self.model:
            prepare = self.accelerator.prepare if self.run.sharded() else None
            model = prepare(model) if prepare else self.accelerator.prepare_model(model, evaluation_mode=True)
            self.model_wrapped = model
        return model
