"""Every shipped recipe on the command line, with tiny models: shown, cached if it needs a cache, and trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abkd import notation
from abkd.cli import app
from abkd.recipe import load, shipped
from abkd.schedules import Schedule
from abkd.sources import Dataset, StudentSamples, walk
from abkd.teachers.caches import CachedTeacher
from training_parts import WORDS, gpt2, llama, rows, save_models, write_rows

TEXT = [name for name in shipped() if "/" not in name]  # those for images: test_vision_recipes
STEPS = 4  # the last one is in the last stage of every recipe
REPLAY = "Replay(StudentSamples(), capacity=1000, fresh=anneal(1.0, 0.0))"
TABLE_8 = {
    "gpt2_dolly_abkd_on_policy": "StudentSamples()",
    "gpt2_dolly_abkd_mixed": "Mix(0.5, StudentSamples(), Dataset())",
    "gpt2_dolly_abkd_adaptive": f"Mix(Adaptive(0.0, 0.1, 0.1), {REPLAY}, Dataset())",
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with dropout and a larger teacher; prompts with completions; plain text."""
    directory = tmp_path_factory.mktemp("shelf")
    save_models(directory, student=gpt2(0), teacher=llama(7, width=48, layers=2))
    write_rows(directory / "data.jsonl", rows(40))
    write_rows(directory / "text.jsonl", [{"text": " ".join(WORDS * 9)} for _ in range(4)])
    return directory


def _flags(name: str, shelf: Path, output: Path) -> list[str]:
    given = {
        "model_name_or_path": shelf / "student",
        "teacher_model_name_or_path": shelf / "teacher",
        "train_file": shelf / "data.jsonl",
        "output_dir": output,
        "max_steps": STEPS,
        "max_length": 64,
        "max_completion_length": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "eval_fraction": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "save_steps": "null",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    if load(name).pretrain_file:
        given["pretrain_file"] = shelf / "text.jsonl"
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def abkd(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    return run


@pytest.mark.parametrize("name", shipped())
def test_it_is_shown_with_its_sources(name: str, abkd: Callable[..., str]) -> None:
    shown = abkd("show", name)
    recipe = load(name)
    assert yaml.safe_load(shown) == recipe.resolved()  # the rest is comments
    head = "\n".join(line for line in shown.splitlines() if line.startswith("#"))
    assert head.startswith("# L = ")
    source = _source(name)
    for part in walk(source) if source != Dataset() else ():
        assert type(part).__name__ in head


def _source(name: str) -> Any:
    return load(name).config.get("source", Dataset())


@pytest.mark.parametrize("name", TEXT)
def test_it_runs_on_the_models_and_the_data_that_flags_name(name: str, shelf: Path, tmp_path: Path, abkd: Any) -> None:
    flags = _flags(name, shelf, tmp_path / "run")
    if isinstance(load(name).config.get("teacher"), CachedTeacher):
        abkd("cache", name, *flags)
    abkd("distill", name, *flags)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert all(record["loss"] > 0 for record in steps)
    assert (tmp_path / "run" / "model.safetensors").is_file() or load(name).use_peft
    source = _source(name)
    last = source(1.0) if isinstance(source, Schedule) else source
    if {type(part) for part in walk(last) if not part.parts} == {StudentSamples}:
        assert steps[-1]["on_policy_fraction"] == 1.0


@pytest.mark.parametrize("name", TABLE_8)
def test_a_row_of_table_8_is_the_plain_recipe_but_for_its_source(name: str) -> None:
    """The plain one is the row "Fixed"."""
    plain, row = load("gpt2_dolly_abkd"), load(name)
    assert row.config["source"] == notation.parse(TABLE_8[name])
    assert row.config["max_completion_length"] == 256
    assert dict(row.config) == {**plain.config, **{key: row.config[key] for key in ("source", "max_completion_length")}}
    assert dataclasses.replace(row, config={}, output_dir="") == dataclasses.replace(plain, config={}, output_dir="")
