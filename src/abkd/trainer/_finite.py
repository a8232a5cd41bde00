"""Checks that stop a run before NaN or infinite values reach a weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.errors import NonFiniteError
from abkd.models.finite import is_finite
from abkd.trainer._context import RunContext

_MOST_SKIPPED = 40  # a loss scaler halves 65536 until gradients are finite; after 40 halvings that cannot help


def check_loss(out: Mapping[str, Tensor], step: int) -> None:
    """Check that a loss is finite, and report the cause if not.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    if bool(torch.isfinite(out["loss"])):
        return
    if "teacher_entropy" in out and not bool(torch.isfinite(out["teacher_entropy"])):
        cause, cure = (
            "the teacher's logits contain NaN or +inf",
            "check the teacher (its dtype: try float32 or bfloat16)",
        )
    elif "student_entropy" in out and not bool(torch.isfinite(out["student_entropy"])):
        cause, cure = "the student's logits contain NaN or +inf", "lower the learning rate, or train in bf16 or fp32"
    elif "divergence" not in out:
        cause, cure = "the cross-entropy is not finite", "lower the learning rate"
    else:
        cause = "the divergence is infinite, because only one of the models gives some class probability 0"
        cure = "use α, β > 0 or a skew KL"
    raise NonFiniteError(f"the loss of step {step} is not finite: {cause}. No weight was changed by it; {cure}")


class FiniteRun(TrainerCallback):
    """Stops before the optimizer step when the gradient is not finite, so that no weight becomes NaN.

    If a loss scaler skips such steps itself, the run stops after many skipped steps in a row. Weights are checked when
    a run starts (after a checkpoint was loaded) and before each save; buffers that were infinite when the run started,
    such as masks, are exempt.
    """

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self._skipped = 0
        self._exempt: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: object
    ) -> None:
        self._skipped = 0
        self._exempt = {name for name, value in model.named_buffers() if not is_finite(value)}
        self.check_weights("nothing was trained; load other weights, or continue from an older checkpoint")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: object
    ) -> None:
        if self.run.accelerator().scaler is not None:  # skips such steps itself
            return
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        if norms and not bool(torch.isfinite(torch.stack([norm.detach().float() for norm in norms]).sum())):
            raise NonFiniteError(
                f"the gradient of step {state.global_step + 1} is not finite; no weight was changed. Lower "
                "the learning rate, or continue from the last checkpoint with --resume and another divergence or "
                "temperature"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        accelerator = self.run.accelerator()
        skipped = accelerator.scaler is not None and accelerator.optimizer_step_was_skipped
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= _MOST_SKIPPED:
            raise NonFiniteError(
                f"the gradients of {self._skipped} steps in a row, up to step {state.global_step}, are not finite in "
                "float16, so nothing is learned; train in bf16 or fp32, or lower the learning rate"
            )

    def check_weights(self, consequence: str) -> None:
        """Raise NonFiniteError if a weight or its optimizer state is not finite in any process."""
        found = next(self._not_finite(), None)
        if self.run.processes.any(found is not None):
            name = found or "a weight in another process"
            raise NonFiniteError(f"{name} is NaN or infinite after step {self.run.step}: {consequence}")

    def _not_finite(self) -> Iterator[str]:
        student: nn.Module = self.run.task.models.student.model
        named = [*student.named_parameters(), *(b for b in student.named_buffers() if b[0] not in self._exempt)]
        yield from (f"the student's {name}" for name, value in named if not is_finite(value))
        for values in getattr(self.run.optimizer(), "state", {}).values():
            tensors = values.items() if isinstance(values, Mapping) else ()
            yield from (f"the optimizer's {name}" for name, value in tensors if not is_finite(value))


def check_tensors(named: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise NonFiniteError if one of the tensors of ``what`` is NaN or infinite, before it is saved."""
    for name, value in named:
        if not is_finite(value):
            raise NonFiniteError(f"{name} of {what} is NaN or infinite, so it is not saved; lower the learning rate")
