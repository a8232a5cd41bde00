"""A mixture of experts whose configuration enables the load-balancing loss is trained with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from abkd.models.language import CausalRows
from training_parts import gap, rows, trainer, weights


def experts(coefficient: float, *, asked: bool = True) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 340, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.MixtralConfig(
        **sizes, **heads, **ends, output_router_logits=asked, router_aux_loss_coef=coefficient
    )
    return transformers.MixtralForCausalLM(config)


def trained(path: Path, model: Any, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        **options,
    }
    done = trainer(path, model, data=[rows()[2]] * 4, **options).train()
    return done.training_loss, weights(model)


@pytest.mark.parametrize("dense", [False, True])
def test_it_is_what_transformers_adds(dense: bool, tmp_path: Path) -> None:
    model = experts(10.0)
    run = trainer(tmp_path, model, per_device_train_batch_size=2)
    batch = run.collator([run.train_dataset[0], run.train_dataset[3]])["batch"]
    student = CausalRows(model)
    student.dense_because = "asked for" if dense else None
    model.train()
    student(batch.student)
    assert student.auxiliary_loss is not None
    theirs = transformers.MixtralForCausalLM.forward(model, **batch.student.inputs, use_cache=False)
    torch.testing.assert_close(student.auxiliary_loss, 10.0 * theirs.aux_loss)
    model.eval()
    student(batch.student)
    assert student.auxiliary_loss is None


def test_it_is_trained_on_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, with_zero = trained(tmp_path, experts(10.0, asked=False)), trained(tmp_path, experts(0.0))
    assert gap(plain[1], with_zero[1]) == 0
    assert "load-balancing" not in caplog.text
    with caplog.at_level(logging.INFO, "abkd"):
        balanced = trained(tmp_path, experts(10.0))
    assert "load-balancing loss is added" in caplog.text
    assert balanced[0] > plain[0] + 1.0
    router = next(name for name in plain[1] if name.endswith("gate.weight"))
    assert not torch.equal(balanced[1][router], plain[1][router])


def test_accumulation_does_not_multiply_it(tmp_path: Path) -> None:
    """Four equal rows: each micro-batch has the same router loss as all of them."""
    whole = trained(tmp_path, experts(10.0))
    split = trained(tmp_path, experts(10.0), per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert gap(whole[1], split[1]) < 1e-4
