"""``RunContext``: the view of a run that its parts receive, so that none of them needs the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import TrainerState

from abkd.config import DistillConfig
from abkd.tasks import OpenTask, Task
from abkd.trainer._distillation import DistillationLoss

if TYPE_CHECKING:
    from accelerate import Accelerator

_Name = TypeVar("_Name")


class Processes:
    """The processes of a run and their collectives; every process has to take part in each call.

    ``accelerator`` returns the trainer's accelerator, which does not exist before the models are loaded.
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
        return self._accelerator().reduce(value, reduction="sum")

    def gather_rows(self, columns: Mapping[_Name, Tensor]) -> list[dict[_Name, Tensor]]:
        """The columns ``[n, ...]`` of each process, in the order of the processes; n may differ between them."""
        if self.count == 1:
            return [dict(columns)]
        sizes = [len(next(iter(columns.values())))]
        sizes = self._accelerator().gather(torch.tensor(sizes, device=self._args.device)).tolist()
        found: list[dict[_Name, Tensor]] = [{} for _ in sizes]
        for name, column in columns.items():
            padded = column.new_zeros(max(sizes), *column.shape[1:])
            padded[: len(column)] = column
            parts = self._accelerator().gather(padded).split(max(sizes))
            for each, part, size in zip(found, parts, sizes, strict=True):
                each[name] = part[:size]
        return found

    def max(self, count: int) -> int:
        """The largest ``count`` over all processes."""
        counts = self._accelerator().gather(torch.tensor([count], device=self._args.device))
        return int(counts.max())

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in at least one process."""
        return bool(self.sum(torch.tensor(float(flag), device=self._args.device)))

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        self._accelerator().wait_for_everyone()


@dataclass(frozen=True)
class RunContext:
    """One run as seen by its parts.

    Attributes:
        sharded: returns whether parameters are sharded (FSDP, DeepSpeed), so every process takes part in each forward.
        fsdp: returns whether they are sharded by FSDP.
        state: returns transformers' state of the run; a different object after a resume.
        model: returns the student that the trainer holds.
        evaluation_model: returns the student wrapped for distributed and mixed-precision evaluation.
        optimizer: returns the optimizer; None before training.
        accelerator: returns accelerate's Accelerator.
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
    accelerator: Callable[[], Accelerator]

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
        """The fraction of the run that is done, in [0, 1]; schedules are functions of it."""
        return self.step / max(self.state().max_steps, 1)

    def autocast(self) -> AbstractContextManager[object]:
        """The context manager for mixed precision."""
        return self.accelerator().autocast()
