"""``RunContext``: what the parts of a run may know of it, so that none of them needs the trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from abkd.config import DistillConfig
from abkd.tasks import OpenTask, Task
from abkd.trainer._distillation import DistillationLoss


class Processes:
    """The processes of a run, and what they do together; every one of them has to take part in each call.

    ``accelerator`` returns the trainer's accelerator, which is not there before its models are loaded.
    """

    def __init__(self, args: DistillConfig, accelerator: Callable[[], Any]) -> None:
        self._args, self._accelerator = args, accelerator

    @property
    def index(self) -> int:
        """The rank of this process."""
        return self._args.process_index

    @property
    def count(self) -> int:
        """The world size."""
        return self._args.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self._args.process_index == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values."""
        total: Any = self._accelerator().reduce(value, reduction="sum")
        return total

    def max(self, count: int) -> int:
        """The largest ``count`` of any process."""
        counts: Any = self._accelerator().gather(torch.tensor([count], device=self._args.device))
        return int(counts.max())

    def any(self, flag: bool) -> bool:
        """Whether it is so in at least one process."""
        return bool(self.sum(torch.tensor(float(flag), device=self._args.device)))

    def wait(self) -> None:
        """Return when all processes have come here."""
        self._accelerator().wait_for_everyone()


@dataclass(frozen=True)
class RunContext:
    """One run, as its parts see it.

    Attributes:
        sharded: parameters are in shards (FSDP, DeepSpeed), so that every process takes part in each forward pass.
        fsdp: they are so by FSDP.
        state: returns transformers' state of the run; another object after a resume.
        model: returns the student as the trainer holds it.
        evaluation_model: returns it as the wrappers for several processes and precisions do.
        optimizer: returns the optimizer; None before training.
        accelerator: returns that of accelerate.
    """

    args: DistillConfig
    kind: Task
    task: OpenTask
    loss: DistillationLoss
    processes: Processes
    sharded: Callable[[], bool]
    fsdp: Callable[[], bool]
    state: Callable[[], TrainerState]
    model: Callable[[], Any]
    evaluation_model: Callable[[], nn.Module]
    optimizer: Callable[[], Any]
    accelerator: Callable[[], Any]

    @property
    def directory(self) -> Path:
        """The run's output_dir."""
        return Path(str(self.args.output_dir))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state().global_step

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]: what schedules are functions of."""
        return self.step / max(self.state().max_steps, 1)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context manager of mixed precision."""
        return self.accelerator().autocast()
