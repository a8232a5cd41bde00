"""The components that CONTRIBUTING.md writes out do what it says (its divergences: tests/laws)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from abkd import DistillConfig, sources, tasks
from abkd.data import Example
from abkd.errors import ConfigError
from abkd.models.vision import Classifier, ImageRows
from abkd.sources import Dataset, Step, open_source
from abkd.stateful import StepEnd
from abkd.tasks import Given
from abkd.teachers import TeacherContext
from page_parts import ROOT, run_page
from task_parts import losses
from training_parts import llama, trainer


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield run_page(ROOT / "CONTRIBUTING.md", patch)


def classifier(side: int = 8, classes: int = 7) -> Classifier:
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes)))


def test_the_term_is_the_mean_cosine_distance_of_two_features(page: Any, tmp_path: Path) -> None:
    term = page.Cosine("hidden.1", "hidden.1", weight=2.0)
    made = trainer(tmp_path, llama(0, width=48), terms=[term], teach=llama(1, width=48), max_steps=2)
    batch = made.data_collator([made.train_dataset[0]])["batch"]
    found = losses(made.loss, batch)
    features = [reader.feature_shapes(["hidden.1"]) for reader in (made.models.student, made.models.teacher)]
    assert features == [{"hidden.1": (48,)}] * 2
    mine, theirs = (
        reader.read(batch.student, ["hidden.1"]).features["hidden.1"]
        for reader in (made.models.student, made.models.teacher)
    )
    expected = 2 * (1 - torch.nn.functional.cosine_similarity(mine, theirs, dim=-1)).mean()
    torch.testing.assert_close(found["loss"], expected)
    assert "1-cos(hidden.1, hidden.1)" in made.loss.objective.spec.formula()
    made.train()
    assert made.state.log_history[0]["cosine_distance"] > 0


def test_the_schedule_moves_at_a_constant_rate(page: Any) -> None:
    schedule = page.exponential(8.0, 2.0)
    assert [schedule(t) for t in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([8.0, 8.0, 4.0, 2.0, 2.0])
    assert schedule.values() == [8.0, 2.0]
    with pytest.raises(ConfigError, match="numbers > 0"):
        page.exponential(1.0, 0.0)


def test_the_source_draws_for_its_share_of_the_rows_and_the_same_again(page: ModuleType) -> None:
    rows = [Example(input_ids=[n, 1], trained=[False, True]) for n in range(2000)]
    writers = sources.Generators(student=lambda prompts, sampling, *, seed: [])
    source = page.Subsample(Dataset(), 0.25)
    first, again = (open_source(source, writers).draw(rows, Step(3, 0.5, 7, process)) for process in (0, 1))
    assert first == again
    assert 400 < sum(map(len, first)) < 600
    assert all(group[0]["input_ids"] == row["input_ids"] for row, group in zip(rows, first, strict=True) if group)
    assert list(sources.walk(source)) == [source, Dataset()]
    for wrong in (lambda: page.Subsample(Dataset(), 2.0), lambda: page.Subsample(3)):
        with pytest.raises(ConfigError):
            wrong()


def test_the_teacher_is_the_mean_of_the_students_that_it_has_seen(page: Any) -> None:
    model = classifier().model
    weight = next(model.parameters())
    reader = page.SWA(every=2).open(TeacherContext(student=ImageRows(Classifier(model), side=8)))
    resumed = page.SWA(every=2).open(TeacherContext(student=ImageRows(Classifier(model), side=8)))
    for step in range(1, 7):
        with torch.no_grad():
            weight.fill_(float(step))
        reader.observe(StepEnd(step, 0.0, {}))
        if step == 4:
            resumed.load_state_dict(reader.state_dict())
        elif step > 4:
            resumed.observe(StepEnd(step, 0.0, {}))
    for each in (reader, resumed):
        assert next(each.model.parameters()).unique().item() == pytest.approx((2 + 4 + 6) / 3)
    with pytest.raises(ConfigError, match="integer >= 1, got 0; try"):
        page.SWA(0)


def test_the_task_measures_the_five_most_probable_classes(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, page.TopFive.name: page.TopFive()})
    images = {"images": np.random.default_rng(0).integers(0, 255, (14, 8, 8, 3), np.uint8), "labels": np.arange(14) % 7}
    judged = {"metric_for_best_model": "top5_accuracy", "eval_strategy": "epoch"}
    args = DistillConfig(output_dir="run", task=page.TopFive.name, use_cpu=True, **judged)
    assert args.greater_is_better is True
    opened = page.TopFive().open(Given(classifier(), classifier(), images, images), args)
    batch = opened.collate([opened.held_out[i] for i in range(14)])["batch"]
    columns = opened.row_metrics(opened.models.student(batch.student), None, batch)
    logits = opened.models.student(batch.student).logits(slice(None))
    ranks = (logits > logits.gather(-1, batch.targets[:, None])).sum(-1)
    assert torch.equal(columns["top5_accuracy"], (ranks < 5).float())
    totals = {name: column.sum().item() for name, column in columns.items()}
    assert opened.summarize({**totals, "rows": 14.0})["top5_accuracy"] == (ranks < 5).sum().item() / 14
