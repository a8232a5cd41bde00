"""A number that is not finite stops the run before it reaches a weight or a checkpoint, and says where it came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from abkd.errors import NonFiniteError
from training_parts import gap, llama, teacher, trainer, weights


class At(TrainerCallback):
    """Calls ``what(model)`` when a step begins, or when its gradient is there."""

    def __init__(self, step: int, what: Any, *, gradient: bool = False) -> None:
        self.step, self.what, self.gradient = step, what, gradient

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step and not self.gradient:
            self.what(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step and self.gradient:
            self.what(model)


def all_finite(state: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in state.values())


@torch.no_grad()
def spoil(model: Any) -> None:
    model.model.norm.weight[3] = float("nan")


def test_a_teacher_of_nan_is_named_before_the_first_step(tmp_path):
    broken, student = teacher(), llama(0)
    spoil(broken)
    before = weights(student)
    with pytest.raises(NonFiniteError, match=r"step 1 is not finite: the teacher's logits.*its dtype") as error:
        trainer(tmp_path, student, teach=broken).train()
    assert error.value.exit_code == 3
    assert gap(student, before) == 0.0


def test_a_student_of_nan_is_named_with_the_step(tmp_path):
    made = trainer(tmp_path, callbacks=[At(3, spoil)], save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteError, match=r"step 3 is not finite: the student's logits"):
        made.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all_finite(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_of_nan_reaches_no_weight(tmp_path, accumulation):
    def overflow(model: Any) -> None:
        model.lm_head.weight.grad[5, 5] = float("inf")

    made = trainer(
        tmp_path,
        callbacks=[At(2, overflow, gradient=True)],
        save_strategy="steps",
        save_steps=1,
        gradient_accumulation_steps=accumulation,
    )
    with pytest.raises(NonFiniteError, match="the gradient of step 2 is not finite; no weight was changed"):
        made.train()
    assert gap(made.model, load_file(tmp_path / "checkpoint-1" / "model.safetensors")) == 0.0
    assert all_finite(weights(made.model))
    assert not (tmp_path / "checkpoint-2").exists()


def test_an_infinite_divergence_says_so(tmp_path):
    """Forward KL to a teacher that gives a class a probability which the student rules out."""
    student = llama(0)

    class Ruled(torch.nn.Linear):  # no plain linear layer: the logits are taken as they are
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = super().forward(hidden)
            logits[..., 7] = -torch.inf
            return logits

    head = student.lm_head
    student.lm_head = Ruled(head.in_features, head.out_features, bias=False)
    student.lm_head.weight = head.weight
    with pytest.raises(
        NonFiniteError, match="the divergence is infinite, for a class is impossible for one model only"
    ):
        trainer(tmp_path, student, divergence="ForwardKL()").train()
