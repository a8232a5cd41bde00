"""The same rows in one step give the same step, however they are split into micro-batches and processes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from training_parts import SHORT, gap, gpt2, llama, rows, teacher, trainer, weights

SPLITS = ((8, 1), (4, 2), (1, 8))
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain text": {"lm_coef": 0.7},
    "both losses": {"ce_weight": 0.5, "kd_weight": 2.0, "kd_temperature": 2.0, "scale_by_temperature_squared": True},
    "row weights": {"row_weight": "TeacherConfidence()"},
}


class Gradients(TrainerCallback):
    """Records the gradient of every step, before clipping."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.steps.append({name: p.grad.detach().clone() for name, p in model.named_parameters()})


def run(path: Any, student: Any, batch: int, accumulation: int, **options: Any):
    kept = Gradients()
    made = trainer(
        path,
        student,
        teach=teacher().double(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=0.05,
        data=rows(12),  # the last step of an epoch has four rows instead of eight
        max_steps=4,
        callbacks=[kept],
        **options,
    )
    made.train()
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return made, kept.steps, [record for record in records if "loss" in record]


def relative(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    largest = max(value.abs().max().item() for value in one.values())
    return gap(one, other) / largest


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", [llama, gpt2])
def test_batch_size_and_accumulation_change_nothing(tmp_path, variant, family):
    def student():
        model = family(0).double()  # so that nothing but rounding is below 1e-10
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            setattr(model.config, name, 0.0)
        return model

    runs = [run(tmp_path / f"{batch}", student(), batch, n, **VARIANTS[variant]) for batch, n in SPLITS]
    whole, gradients, logs = runs[0]
    for other, steps, records in runs[1:]:
        assert relative(weights(whole.model), weights(other.model)) < 1e-10
        for mine, theirs in zip(gradients, steps, strict=True):
            assert relative(mine, theirs) < 1e-10
        for mine, theirs in zip(logs, records, strict=True):
            for name in ("loss", "divergence", "cross_entropy", "student_entropy", "teacher_entropy", "top1_agreement"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-6), name


def test_the_loss_of_a_step_is_one_number(tmp_path):
    """In float64, where rounding hides nothing."""
    losses = []
    for batch, n in SPLITS:
        *_, records = run(tmp_path / str(batch), llama(0).double(), batch, n)
        losses.append([(record["loss"], record["grad_norm"]) for record in records])
    for other in losses[1:]:
        assert other == [pytest.approx(step, rel=1e-7) for step in losses[0]]


@pytest.mark.parametrize("source", ["StudentSamples(temperature=0)", "Union(Dataset(), StudentSamples(temperature=0))"])
def test_given_the_same_text_a_step_is_the_same_however_it_is_split(tmp_path, source):
    """Greedy text is a function of the weights only, so even the generated text is the same."""
    runs = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        made = trainer(
            tmp_path / str(batch),
            llama(0).double(),
            teach=teacher().double(),
            source=source,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            max_steps=3,
            **{**SHORT, "learning_rate": 0.05},
        )
        made.train()
        runs.append(weights(made.model))
    assert max(relative(runs[0], other) for other in runs[1:]) < 1e-10
