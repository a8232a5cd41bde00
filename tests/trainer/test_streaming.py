"""Training on streamed rows: resumable, the same for every number of workers, refused where impossible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from abkd.data import stream, stream_rows
from abkd.errors import ConfigError, DataError
from abkd.recipe import Recipe
from abkd.run import distill
from training_parts import EVERY_THIRD, StopAfter, gap, gpt2, llama, rows, save_models, teacher, trainer, write_rows


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten rows, of which four are in memory."""
    monkeypatch.setattr(stream, "WINDOW", 4)
    write_rows(tmp_path / "data.jsonl", rows(10))
    return tmp_path / "data.jsonl"


def streaming(path: Path, file: Path, **options: Any) -> Any:
    return trainer(path, gpt2(0), data=stream_rows(file), max_steps=8, **options)


def test_a_run_that_was_resumed_ends_with_the_same_weights(file, tmp_path):
    whole = streaming(tmp_path / "whole", file, **EVERY_THIRD)
    whole.train()
    parts = streaming(tmp_path / "parts", file, **EVERY_THIRD, callbacks=[StopAfter(5)])
    parts.train()
    again = streaming(tmp_path / "parts", file, **EVERY_THIRD)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert gap(whole.model, again.model) == 0
    losses = [[e["loss"] for e in each.state.log_history if "loss" in e] for each in (whole, again)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(file, tmp_path, workers):
    alone = streaming(tmp_path / "alone", file)
    alone.train()
    several = streaming(tmp_path / "several", file, dataloader_num_workers=workers)
    several.train()
    assert gap(alone.model, several.model) == 0


def test_accumulated_batches_are_those_of_a_large_one(file, tmp_path):
    parts = streaming(tmp_path / "parts", file, gradient_accumulation_steps=2)
    whole = streaming(tmp_path / "whole", file, per_device_train_batch_size=4)
    assert len(parts.train_dataset) == len(whole.train_dataset) == 8 * 4
    assert [parts.train_dataset[i] for i in range(32)] == [whole.train_dataset[i] for i in range(32)]


def test_plain_text_and_written_text_go_with_it(file, tmp_path):
    made = streaming(tmp_path, file, lm_coef=0.5, source="StudentSamples()", max_completion_length=4)
    made.train()
    assert made.state.global_step == 8


def test_a_bad_row_in_the_middle_ends_the_run_and_leaves_a_checkpoint(file, tmp_path):
    with file.open("a") as handle:
        handle.write('{"prompt": "What? ", "completion": ""}\n')
    stream.HEAD, head = 6, stream.HEAD
    try:
        made = streaming(tmp_path / "run", file, save_strategy="steps", save_steps=1)
        with pytest.raises(DataError, match=r"data\.jsonl, line 11: completion is empty"):
            made.train()
    finally:
        stream.HEAD = head
    assert list((tmp_path / "run").glob("checkpoint-*"))


def test_learned_positions_bound_rows_that_nobody_has_seen(file, tmp_path):
    with pytest.raises(ConfigError, match="has 128 positions"):
        streaming(tmp_path, file, max_length=200)


def values(file: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tmp_path / "student"),
        "teacher_model_name_or_path": str(tmp_path / "teacher"),
        "train_file": str(file),
        "output_dir": str(tmp_path / "out"),
        "streaming": True,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "max_length": 64,
        "use_cpu": True,
        "report_to": "none",
    } | more


def test_the_command_streams_and_evaluates_on_a_file(file, tmp_path, monkeypatch):
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path / "cache"))
    save_models(tmp_path, student=llama(0), teacher=teacher())
    write_rows(tmp_path / "eval.jsonl", rows(3))
    trained = distill(Recipe.from_dict(values(file, tmp_path, eval_file=str(tmp_path / "eval.jsonl"))))
    assert trained is not None
    assert trained.state.global_step == 4
    assert any("eval_perplexity" in entry for entry in trained.state.log_history)
    assert not (tmp_path / "cache" / "data").exists()  # nothing was copied
    assert (trained.args.save_strategy, trained.args.save_steps) == ("steps", 500)  # a stream is one epoch
    assert torch.isfinite(next(trained.model.parameters())).all()


def test_the_recorded_recipe_of_a_run_without_held_out_rows_is_one(file, tmp_path):
    made = Recipe.from_dict(values(file, tmp_path))
    assert Recipe.from_dict(made.resolved()).resolved() == made.resolved()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_steps": -1}, "streaming needs max_steps"),
        ({"packing": True}, "packing needs all rows in advance"),
        ({"group_by_length": True}, "group_by_length needs all rows in advance"),
        ({"eval_fraction": 0.1}, "no rows can be held out of streamed data: set eval_file"),
        ({"source": "TeacherSamples()"}, "needs all prompts in advance"),
        ({"teacher": "TopKCache(k=8)"}, "is built from all rows in advance"),
        ({"task": "image-classification"}, "streaming"),
    ],
    ids=str,
)
def test_what_needs_all_rows_is_refused(more, said, file, tmp_path):
    with pytest.raises(ConfigError, match=said):
        Recipe.from_dict(values(file, tmp_path, **more))
