"""Numbers that are not finite stop a run before they reach a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from abkd.errors import NonFiniteError


def check_loss(out: Mapping[str, Tensor], step: int) -> None:
    """Say whose fault it is that a loss is not finite.

    Raises:
        NonFiniteError: it is not.
    """
    if bool(torch.isfinite(out["loss"])):
        return
    if "teacher_entropy" in out and not bool(torch.isfinite(out["teacher_entropy"])):
        who, cure = "the teacher's logits contain NaN or +inf", "check the teacher (its dtype: try float32 or bfloat16)"
    elif not bool(torch.isfinite(out["student_entropy"])):
        who, cure = "the student's logits contain NaN or +inf", "lower the learning rate, or train in bf16 or fp32"
    elif "divergence" not in out:
        who, cure = "so is the cross-entropy", "lower the learning rate"
    else:
        who = "the divergence is infinite, for a class is impossible for one model only"
        cure = "choose α, β > 0 or a skew KL"
    raise NonFiniteError(f"the loss of step {step} is not finite: {who}. No weight was changed by it; {cure}")


class FiniteGradients(TrainerCallback):
    """Stops before the optimizer step when the gradient is not finite, so that no weight becomes NaN."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any
    ) -> None:
        if args.fp16:  # the loss scaler skips such steps by itself
            return
        norms = [parameter.grad.norm() for parameter in event["model"].parameters() if parameter.grad is not None]
        if norms and not bool(torch.isfinite(torch.stack([norm.detach().float() for norm in norms]).sum())):
            raise NonFiniteError(
                f"the gradient of step {state.global_step + 1} is not finite; no weight was changed. Lower the "
                "learning rate, or go on from the last checkpoint with --resume and another divergence or temperature"
            )
