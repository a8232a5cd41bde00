"""The start-up benchmark on tiny models: the phases add up, the table shows what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import startup
from training_parts import llama, rows, save_models, teacher, write_rows


@pytest.mark.long
def test_phases_until_the_first_step(tmp_path: Path):
    save_models(tmp_path, student=llama(0), teacher=teacher())
    data = tmp_path / "rows.jsonl"
    write_rows(data, rows(40))
    flags = ["--model_name_or_path", str(tmp_path / "student"), "--teacher_model_name_or_path"]
    flags += [str(tmp_path / "teacher"), "--train_file", str(data)]
    found = startup._first_step(tmp_path, flags, cold=False)
    phases = found["phases"]
    assert sum(phases.values()) == pytest.approx(found["done"])
    assert found["begun"] < found["done"]
    assert {"import transformers", "models", "evaluation before the first step", "first step"} <= phases.keys()


def test_report_judges_the_claims():
    step = {"begun": 8.0, "done": 11.0, "phases": {"models": 2.0, "first step": 6.0}}
    ways = {way: [step] for way in startup.WAYS}
    text = startup.report({"imports": [[0.01, 0.02]], "load": [6.0], **ways})
    assert "| abkd distill: first step begun / transformers' loading | 1.333 | ≤ 1.5 | met |" in text
    assert "| models |  | 2.00 | 2.00 | 2.00 |" in text
