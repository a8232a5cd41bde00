"""The example runs, is short, and matches the trainer."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import SequentialSampler

import abkd

MINIMAL = Path(__file__).parent.parent / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> dict[str, Any]:
    return runpy.run_path(str(MINIMAL), run_name="minimal")


class InOrder(abkd.DistillTrainer):
    """The rows in their order, as in the example."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def test_the_example_is_short() -> None:
    assert len(MINIMAL.read_text().splitlines()) <= 120


def test_the_example_runs_and_learns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(MINIMAL)])
    runpy.run_path(str(MINIMAL), run_name="__main__")
    losses = [float(line.split("=")[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 12
    assert losses[-3:] < losses[:3]


def test_the_example_takes_models_from_the_disk(minimal: dict[str, Any], tmp_path: Path) -> None:
    for name, model in zip(("student", "teacher"), minimal["load"]([])[:2], strict=True):
        model.save_pretrained(tmp_path / name)
        minimal["byte_tokenizer"]().save_pretrained(tmp_path / name)
    student, teacher, tokenizer = minimal["load"]([str(tmp_path / "student"), str(tmp_path / "teacher")])
    assert len(minimal["train"](student, teacher, tokenizer)) == 12


def test_the_trainer_arrives_at_the_same_parameters(minimal: dict[str, Any], tmp_path: Path) -> None:
    student, teacher, tokenizer = minimal["load"]([])
    same = copy.deepcopy(student)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    minimal["train"](student, teacher, tokenizer)
    args = abkd.DistillConfig(
        output_dir=str(tmp_path),
        divergence=minimal["DIVERGENCE"],
        per_device_train_batch_size=minimal["BATCH_SIZE"],
        num_train_epochs=minimal["EPOCHS"],
        learning_rate=minimal["LEARNING_RATE"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = InOrder(same, teacher, args, train_dataset=minimal["DATA"], processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 12
    for first, ours, theirs in zip(before, student.parameters(), same.parameters(), strict=True):
        assert (ours - first).abs().max() > 1e-3
        assert (ours - theirs).abs().max() <= 1e-6
