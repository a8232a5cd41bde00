"""A non-finite number stops the run before it reaches a weight or a checkpoint, with an error that names its origin."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from abkd.errors import NonFiniteError
from abkd.report.results import result_of
from abkd.trainer import _checkpoints
from training_parts import StopAfter, gap, llama, rows, teacher, tokenizer, trainer, weights


class At(TrainerCallback):
    """Calls ``what(model)`` at the start of a step, or when its gradient is computed."""

    def __init__(self, step: int, what: Any, *, gradient: bool = False) -> None:
        self.step, self.what, self.gradient = step, what, gradient

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step and not self.gradient:
            self.what(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step and self.gradient:
            self.what(model)


class AtEnd(At):
    """Calls ``what(model)`` at the end of a step."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        pass

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == self.step:
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


def test_a_gradient_of_nan_reaches_no_weight_in_fp16_where_nothing_scales_the_loss(tmp_path):
    """A loss scaler skips such steps; on a CPU there is none, so the guard stays on."""

    def overflow(model: Any) -> None:
        model.lm_head.weight.grad[5, 5] = float("nan")

    made = trainer(tmp_path, callbacks=[At(2, overflow, gradient=True)], fp16=True)
    assert made.accelerator.scaler is None
    with pytest.raises(NonFiniteError, match="the gradient of step 2 is not finite"):
        made.train()
    assert all_finite(weights(made.model))


def test_a_scaler_that_only_skips_steps_ends_the_run(tmp_path, monkeypatch):
    made = trainer(tmp_path, max_steps=60)
    monkeypatch.setattr(made.accelerator, "scaler", SimpleNamespace(is_enabled=lambda: True))
    monkeypatch.setattr(type(made.accelerator), "optimizer_step_was_skipped", True)
    for _ in range(39):
        made.finite.on_step_end(made.args, made.state, made.control)
    with pytest.raises(NonFiniteError, match="the gradients of 40 steps in a row"):
        made.finite.on_step_end(made.args, made.state, made.control)


EXPLODING = {"learning_rate": 1e38, "lr_scheduler_type": "constant", "divergence": "ForwardKL()"}


@pytest.mark.parametrize("steps", [1, 3], ids=["in the last step", "before"])
def test_weights_that_a_step_made_infinite_are_in_no_checkpoint(tmp_path, steps):
    """The loss and the gradient of that step were finite."""
    made = trainer(tmp_path, **EXPLODING, max_steps=steps, save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteError, match="is NaN or infinite after step 1: no checkpoint was written"):
        made.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_weights_that_are_not_finite_are_not_saved_as_the_student(tmp_path):
    made = trainer(tmp_path, **EXPLODING, max_steps=1)
    made.train()
    with pytest.raises(NonFiniteError, match="the student was not saved"):
        made.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_what_the_optimizer_keeps_is_checked_too(tmp_path):
    def spoil_moments(model: Any) -> None:
        made.optimizer.state[model.lm_head.weight]["exp_avg"][0, 0] = float("nan")

    made = trainer(tmp_path, callbacks=[AtEnd(2, spoil_moments)], save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteError, match="the optimizer's exp_avg is NaN or infinite after step 2"):
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_weights_that_come_from_a_checkpoint_are_checked(tmp_path):
    """Its hash shows that it is unchanged, not that its content is valid."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer(tmp_path, **options, callbacks=[StopAfter(1)]).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][0] = float("inf")
    save_file(state, file, metadata={"format": "pt"})
    _checkpoints.seal(file.parent)
    with pytest.raises(NonFiniteError, match=r"the student's model\.norm\.weight is NaN or infinite after step 1"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=True)


def test_a_mask_of_infinite_numbers_is_no_fault(tmp_path):
    student = llama(0)
    student.register_buffer("mask", torch.full((3,), -torch.inf))
    trainer(tmp_path, student, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert (tmp_path / "checkpoint-1" / _checkpoints.MANIFEST).is_file()


def test_an_evaluation_that_is_not_finite_is_said_once_and_null_in_the_record(tmp_path, caplog):
    """The teacher gives NaN for a token that occurs only in the held-out rows; the student is unaffected."""
    held_out, teach = [{"prompt": "What? ", "completion": "Paris"}], teacher()
    only = set(tokenizer()("Paris")["input_ids"]) - {i for row in rows() for i in tokenizer()(str(row))["input_ids"]}
    with torch.no_grad():
        teach.get_input_embeddings().weight[list(only)] = float("nan")
    made = trainer(tmp_path, teach=teach, eval_dataset=held_out, eval_strategy="steps", eval_steps=1, max_steps=2)
    with caplog.at_level(logging.WARNING, "abkd"):
        made.train()
    said = [message for message in caplog.messages if "is not finite" in message]
    assert len(said) == 1
    assert said[0].startswith("abkd: the evaluation after step 0 is not finite: forward_kl, loss, reverse_kl")
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["eval_forward_kl"] for line in lines if "eval_loss" in line] == [None] * 3
    assert result_of(lines)["last"]["forward_kl"] == {"value": None, "step": 2, "epoch": pytest.approx(1 / 3)}
    assert made.state.best_metric is None


def test_an_evaluation_of_weights_that_are_not_finite_stops_the_run(tmp_path):
    made = trainer(tmp_path, **EXPLODING, max_steps=3, eval_dataset=rows(2), eval_strategy="steps", eval_steps=1)
    with pytest.raises(NonFiniteError, match="after step 1: the evaluation stopped the run"):
        made.train()


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
        NonFiniteError,
        match="the divergence is infinite, because only one of the models gives some class probability 0",
    ):
        trainer(tmp_path, student, divergence="ForwardKL()").train()
