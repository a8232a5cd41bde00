"""Evaluation metrics compared with an independent dense computation in double precision, and their use."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
import torch

from abkd.data import prepare_dataset
from abkd.errors import ConfigError, DataError
from training_parts import llama, rows, teacher, tokenizer, trainer

NAMES = ("loss", "forward_kl", "reverse_kl", "top1_agreement", "perplexity", "teacher_perplexity")


@torch.no_grad()
def log_probabilities(model: Any, example: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """For the trained tokens of one row: [n, V] in double precision, and the tokens [n]."""
    ids = torch.tensor(example["input_ids"])
    at = torch.tensor(example["trained"]).nonzero().squeeze(1)
    model = model.eval()
    logits = model(input_ids=ids[None]).logits[0].double()[at - 1]
    return torch.log_softmax(logits, -1), ids[at]


def expected_metrics(student: Any, teach: Any, data: list[dict[str, str]]) -> dict[str, float]:
    total = dict.fromkeys(("forward_kl", "reverse_kl", "agree", "hard", "teacher_hard", "alpha_beta"), 0.0)
    count = 0
    a, b = 0.2, 0.7
    for example in prepare_dataset(data, tokenizer(), max_length=64):
        log_q, tokens = log_probabilities(student, example)
        log_p, _ = log_probabilities(teach, example)
        p, q = log_p.exp(), log_q.exp()
        total["forward_kl"] += (p * (log_p - log_q)).sum().item()
        total["reverse_kl"] += (q * (log_q - log_p)).sum().item()
        total["agree"] += (p.argmax(-1) == q.argmax(-1)).sum().item()
        total["hard"] -= log_q.gather(-1, tokens[:, None]).sum().item()
        total["teacher_hard"] -= log_p.gather(-1, tokens[:, None]).sum().item()
        powers = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
        total["alpha_beta"] += -(powers.sum() / (a * b)).item()
        count += len(tokens)
    mean = {name: value / count for name, value in total.items()}
    return {
        "loss": 0.5 * mean["hard"] + 2.0 * mean["alpha_beta"],
        "forward_kl": mean["forward_kl"],
        "reverse_kl": mean["reverse_kl"],
        "top1_agreement": mean["agree"],
        "perplexity": math.exp(mean["hard"]),
        "teacher_perplexity": math.exp(mean["teacher_hard"]),
    }


def test_other_rows_are_evaluated_on_in_any_form_and_leave_the_record_alone(tmp_path):
    made = trainer(tmp_path / "run", eval_dataset=rows(4), dataloader_num_workers=1)
    own, logged = made.evaluate(), len(made.state.log_history)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    prepared = prepare_dataset(rows(3), tokenizer(), max_length=64)
    listed, stored, ready = (made.evaluate(each, metric_key_prefix="test") for each in (rows(3), str(file), prepared))
    assert listed == stored == ready
    assert listed["test_loss"] != own["eval_loss"]
    assert len(made.state.log_history) == logged
    with pytest.raises(DataError):
        made.evaluate([{"nothing": "here"}])
    with pytest.raises(ConfigError, match="predict returns logits, and the trainer stores none"):
        made.predict(rows(3))


@pytest.mark.parametrize("batch", [1, 4])
def test_metrics_are_those_of_a_dense_computation(tmp_path, batch):
    held_out = rows(11)
    student, teach = llama(0, sharpness=6.0), teacher()
    made = trainer(
        tmp_path,
        student,
        teach=teach,
        eval_dataset=held_out,
        per_device_eval_batch_size=batch,
        ce_weight=0.5,
        kd_weight=2.0,
    )
    found = made.evaluate()
    for name, value in expected_metrics(student, teach, held_out).items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name


def test_names_and_modes(tmp_path):
    made = trainer(tmp_path, eval_dataset=rows(3))
    made.model.eval()
    found = made.evaluate()
    assert {name for name in found if not name.endswith(("runtime", "per_second", "epoch"))} == {
        f"eval_{name}" for name in NAMES
    }
    assert not made.model.training  # as the caller had it
    other = made.evaluate(eval_dataset=made.train_dataset, metric_key_prefix="train")
    assert "train_forward_kl" in other
    assert json.dumps(found)


def test_a_weak_teacher_is_noticed_once(tmp_path, caplog):
    student = llama(0)
    with torch.no_grad():
        student.lm_head.weight.zero_()  # uniform, and so better than a confident wrong teacher
    made = trainer(tmp_path, student, eval_dataset=rows(4), eval_on_start=True, eval_strategy="steps", eval_steps=3)
    with caplog.at_level(logging.WARNING, "abkd"):
        made.train()
    said = [record.getMessage() for record in caplog.records if "is no better than the student" in record.getMessage()]
    assert len(said) == 1
    assert "Fine-tune the teacher on this data first, or add ce_weight" in said[0]


def test_a_better_teacher_is_not_complained_about(tmp_path, caplog):
    student, teach = llama(0, sharpness=6.0), llama(1)
    with torch.no_grad():
        teach.lm_head.weight.zero_()
    with caplog.at_level(logging.WARNING, "abkd"):
        trainer(tmp_path, student, teach=teach, eval_dataset=rows(4)).evaluate()
    assert "no better than" not in caplog.text


def test_a_student_without_mass_is_warned_about(tmp_path, caplog):
    """The gradient of D_AB has a factor q^β; forward KL's does not vanish, so there is no warning."""
    student, teach = llama(0, sharpness=6.0), llama(1, sharpness=6.0)
    with caplog.at_level(logging.WARNING, "abkd"):
        trainer(tmp_path / "ab", student, teach=teach, max_steps=1).train()
    assert "to the teacher's top 10 tokens" in caplog.text
    assert "stages((0.5, ForwardKL()), (0.5, AlphaBeta(alpha=0.2, beta=0.7)))" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "abkd"):
        trainer(tmp_path / "kl", student, teach=teach, max_steps=1, divergence="ForwardKL()").train()
        trainer(tmp_path / "same", llama(1, sharpness=6.0), teach=teach, max_steps=1).train()
    assert "likeliest tokens" not in caplog.text


def test_the_log_is_a_line_per_event(tmp_path):
    made = trainer(
        tmp_path, eval_dataset=rows(4), eval_on_start=True, eval_strategy="steps", eval_steps=3, logging_steps=2
    )
    made.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6, 6, 6]
    logged = {"loss", "learning_rate", "grad_norm", "epoch", "divergence", "cross_entropy", "student_entropy"}
    assert logged | {"teacher_entropy", "top1_agreement"} <= lines[1].keys()
    assert lines[1]["loss"] == pytest.approx(lines[1]["divergence"], rel=0.3)  # means over rows, and over steps
    assert {f"eval_{name}" for name in NAMES} <= lines[0].keys()
    assert "train_runtime" in lines[-1]
    again = trainer(tmp_path, max_steps=1)
    again.train()  # a new run in the same place starts a new file
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 1]
