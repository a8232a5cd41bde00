"""Rows longer than a model's positions are reported before training; rows that are short enough train."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers

from abkd.errors import ConfigError
from abkd.sources import StudentSamples
from training_parts import llama, rows, teacher, trainer

LONG = [{"prompt": "What is it? ", "completion": "the list returns items of a capital " * 4}]
SHORT = {"max_length": 1024, "max_steps": 1}


def narrow(positions: int) -> Any:
    """GPT-2 with this many positions."""
    sizes = {"vocab_size": 340, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": None, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=positions, **sizes))


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_row_that_a_model_has_no_positions_for(who: str, part: str, tmp_path: Path) -> None:
    models = {"student": narrow(32), "teach": teacher()} if who == "student" else {"teach": narrow(32)}
    data = {"data": [*rows(2), *LONG]} if part == "train" else {"eval_dataset": LONG}
    with pytest.raises(ConfigError, match=rf"the {who} \(GPT2LMHeadModel\) has 32 positions, .*row of {part} "):
        trainer(tmp_path, **models, **data, **SHORT)


def test_short_rows_train_whatever_max_length_says(tmp_path: Path) -> None:
    trainer(tmp_path, narrow(32), teach=narrow(40), **SHORT).train()


def test_packed_rows_need_positions_for_each_row_alone(tmp_path: Path) -> None:
    trainer(tmp_path, narrow(32), packing=True, **{**SHORT, "max_length": 100}).train()


def test_what_is_written_needs_positions_too(tmp_path: Path) -> None:
    asked = {"source": StudentSamples(), "max_completion_length": 64, **SHORT}
    with pytest.raises(ConfigError, match=r"the student \(GPT2LMHeadModel\) has 32 positions"):
        trainer(tmp_path, narrow(32), **asked)
    trainer(tmp_path, narrow(32), **{**asked, "max_completion_length": 8})


def test_rotary_positions_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = {"max_position_embeddings": 16}
    with caplog.at_level(logging.INFO, "abkd"):
        trainer(tmp_path, llama(0, **short), teach=llama(1, **short), data=LONG, eval_dataset=LONG, max_length=64)
    lines = [record.getMessage() for record in caplog.records if "max_position_embeddings" in record.getMessage()]
    assert len(lines) == 1
    assert "more than the student (16) and the teacher (16) saw" in lines[0]


def test_a_model_that_cannot_be_packed_says_so(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=340, hidden_size=32, n_layer=1, n_head=4)
    with pytest.raises(ConfigError, match=r"BloomForCausalLM cannot be run on packed rows .*set packing: false"):
        trainer(tmp_path, transformers.BloomForCausalLM(config), packing=True)


def test_packed_rows_are_counted_as_rows(tmp_path):
    made = trainer(tmp_path, max_steps=1, packing=True, eval_dataset=rows(5))
    made.train()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["train_rows"], record["held_out_rows"]) == (12, 5)
    assert len(made.train_dataset) < 12
