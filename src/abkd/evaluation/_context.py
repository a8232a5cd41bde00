"""``EvaluationContext``: everything that an evaluation needs, whoever runs the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from abkd.config import DistillConfig
from abkd.generation import Completion, Sampling
from abkd.models.loading import placed
from abkd.objective import OpenObjective
from abkd.ops import ChunkPlan, plan_chunks
from abkd.tasks import OpenTask, open_objective, write_completions_for

T = TypeVar("T")


class Processes(Protocol):
    """The processes that evaluate together; every process has to take part in each call."""

    @property
    def index(self) -> int:
        """The rank of this process."""
        ...

    @property
    def count(self) -> int:
        """The world size."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values."""
        ...

    def max(self, count: int) -> int:
        """The largest ``count`` over all processes."""
        ...


class OneProcess:
    """A single process."""

    index, count = 0, 1

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def max(self, count: int) -> int:
        """The count itself."""
        return count


class Forward(Protocol):
    """Returns ``job()``, called inside the student's forward pass: within its wrappers and its mixed precision."""

    def __call__(self, job: Callable[[], T], /) -> T: ...


class GenerateFn(Protocol):
    """A model's sampled completions of ``prompts`` (token ids), one each."""

    def __call__(self, model: nn.Module, prompts: Sequence[Sequence[int]], /) -> list[Completion]: ...


@dataclass(frozen=True)
class EvaluationContext:
    """What is evaluated, and how its models are run; the trainer passes its wrapped student and its processes.

    Attributes:
        task: student, teacher, settings, and the metrics of the task.
        objective: its value is the metric ``loss``, with every schedule at ``progress`` in [0, 1].
        plan: the chunks in which logits are computed.
        module: the student, perhaps wrapped: it is in eval mode during the evaluation.
        forward: returns ``job()``, called inside the student's forward pass.
        generate: ``(model, prompts)``: sampled completions with the settings of the task.
        writer: the student as the model that generates.
        processes: those that evaluate together.
    """

    task: OpenTask
    objective: OpenObjective
    progress: float
    plan: ChunkPlan
    module: nn.Module
    forward: Forward
    generate: GenerateFn
    writer: nn.Module
    processes: Processes

    @classmethod
    def alone(cls, task: OpenTask, *, progress: float) -> EvaluationContext:
        """The models of an open task, moved to its device, in this process, in the precision of its settings."""
        args, models = task.args, task.models
        for model in (models.student.model, *(models.teacher.models if models.teacher is not None else ())):
            placed(model, args.device)

        def forward(job: Callable[[], T], /) -> T:
            with _autocast(args):
                return job()

        def generate(model: nn.Module, prompts: Sequence[Sequence[int]], /) -> list[Completion]:
            with _autocast(args):
                return write_completions_for(task, model, prompts, Sampling(), seed=args.seed)

        return cls(
            task,
            open_objective(args.objective(), models, args.seed),
            progress,
            plan_chunks(task.max_rows, models.classes, args.device, memory_budget_mb=args.memory_budget_mb),
            module=models.student.model,
            forward=forward,
            generate=generate,
            writer=models.student.model,
            processes=OneProcess(),
        )


def _autocast(args: DistillConfig) -> AbstractContextManager[object]:
    """Mixed precision as in training."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(args.device.type, dtype=dtype)
