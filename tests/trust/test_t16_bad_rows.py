"""Unusable rows are reported together, with line and reason, before a model is loaded; or dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from abkd.cli._app import app
from abkd.data import load_rows, prepare_dataset
from abkd.errors import DataError
from tiny_parts import make_chatml
from training_parts import llama, tokenizer

GOOD = {"prompt": "What is the list? ", "completion": "items"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({**GOOD, "completion": None}, "completion is null"),
    ({**GOOD, "completion": ""}, "completion is empty"),
    ({**GOOD, "prompt": "What is it? " * 80}, "prompt has "),
]
TURNS = [{"role": "user", "content": "bye"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_all_of_them_are_named_at_once(tmp_path):
    file = write(tmp_path / "mine.jsonl", [GOOD, *(row for row, _ in BAD)])
    with pytest.raises(DataError) as refused:
        prepare_dataset(load_rows(file), tokenizer(), max_length=64)
    said = str(refused.value)
    assert "mine.jsonl: 3 of 4 rows cannot be used" in said
    for line, (_, reason) in enumerate(BAD, start=2):
        assert f"line {line}: {reason}" in said


def test_or_dropped_and_counted(tmp_path):
    file = write(tmp_path / "mine.jsonl", [GOOD, *(row for row, _ in BAD)])
    prepared = prepare_dataset(load_rows(file), tokenizer(), max_length=64, on_bad_row="drop")
    assert len(prepared) == 1
    assert sum(prepared.dropped.values()) == len(BAD)


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match="all 3 rows were dropped"):
        prepare_dataset([row for row, _ in BAD], tokenizer(), max_length=64, on_bad_row="drop")


def test_a_conversation_that_nobody_answers_is_named():
    answered = [*TURNS, {"role": "assistant", "content": "see you"}]
    with pytest.raises(DataError, match=r"row 2: .*assistant"):
        prepare_dataset([{"messages": answered}, {"messages": TURNS}], make_chatml(), max_length=64)


def test_a_long_completion_is_cut_and_counted():
    prepared = prepare_dataset([{**GOOD, "completion": "bye " * 100}], tokenizer(), max_length=64)
    assert prepared.truncated == 1
    assert len(prepared[0]["input_ids"]) == 64


def test_the_command_says_so_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        llama(0).save_pretrained(name)
        tokenizer().save_pretrained(name)
    write(tmp_path / "mine.jsonl", [GOOD, *(row for row, _ in BAD)])
    words = ["--model_name_or_path", "student", "--teacher_model_name_or_path", "teacher", "--train_file", "mine.jsonl"]
    ended = CliRunner().invoke(
        app, ["distill", *words, "--output_dir", "run", "--eval_fraction", "0", "--use_cpu", "true"]
    )
    assert ended.exit_code == 2, ended.output
    assert "line 2: completion is null" in " ".join(ended.output.split())
    assert "Traceback" not in ended.output
    assert not list(tmp_path.rglob("*.draft"))
