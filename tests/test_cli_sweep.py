"""``abkd distill --seeds --grid`` on images: from the arguments to the table, and exit codes."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from abkd.cli import app
from abkd.models import cifar
from abkd.storage import read_checksummed

CLASSES = 3


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Noisy squares of three brightnesses, to train and evaluate on, and a teacher's weights."""
    directory = tmp_path_factory.mktemp("shelf")
    rng = np.random.default_rng(0)
    for name, count in (("train", 48), ("held_out", 30)):
        labels = np.arange(count) % CLASSES
        images = labels[:, None, None] * 80 + rng.integers(0, 90, size=(count, 8, 8))
        np.savez(directory / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    torch.manual_seed(0)
    torch.save({"state_dict": cifar.create("resnet8", CLASSES).state_dict()}, directory / "teacher.pth")
    return directory


@pytest.fixture
def words(shelf, tmp_path) -> list[str]:
    flags = {
        "task": "image-classification",
        "model_name_or_path": "cifar:resnet8",
        "teacher_model_name_or_path": "cifar:resnet8",
        "teacher_model_init_kwargs": f"{{checkpoint: {shelf / 'teacher.pth'}}}",
        "train_file": shelf / "train.npz",
        "eval_file": shelf / "held_out.npz",
        "ce_weight": 1.0,
        "kd_weight": 0.1,
        "learning_rate": 0.01,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "output_dir": tmp_path / "out",
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def abkd(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["distill", *words])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


def test_the_table_holds_means_and_deviations_of_the_accuracies(words, tmp_path, capsys):
    assert abkd(*words, "--seeds", "1,2,3") == 0
    said, remarks = capsys.readouterr()
    results = [read_checksummed(tmp_path / "out" / f"seed-{seed}" / "result.json") for seed in (1, 2, 3)]
    line = next(line for line in said.splitlines() if "student" in line)
    found = [[float(number) for number in pair] for pair in re.findall(r"([\d.]+) ± ([\d.]+)", line)]
    expected = []
    for kind in ("last", "best"):
        accuracies = [100 * result[kind]["accuracy"]["value"] for result in results]
        expected.append([round(statistics.mean(accuracies), 2), round(statistics.stdev(accuracies), 2)])
    assert found == expected
    teacher = next(line for line in said.splitlines() if "teacher" in line)
    assert f"{100 * results[0]['teacher']['accuracy']:.2f}" in teacher
    assert "selected on the evaluation set" in " ".join(said.split())
    for number, result in enumerate(results, start=1):
        assert f"abkd: run {number} of 3: seed {number}" in remarks
        last, best = result["last"]["accuracy"], result["best"]["accuracy"]
        assert f"accuracy: last {100 * last['value']:.2f} % (epoch 3), best {100 * best['value']:.2f} %" in remarks
        assert best["value"] >= last["value"]
        assert best["epoch"] in (1, 2, 3)


def test_one_seed_has_no_deviation_and_the_best_setting_is_told(words, tmp_path, capsys):
    assert abkd(*words, "--grid", "{kd_weight: [0.1, 0], num_train_epochs: [1]}") == 0
    said = capsys.readouterr().out
    assert "±" not in said
    assert "kd_weight=0.1, num_train_epochs=1" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "--seeds 42 --grid &#39;{kd_weight: [0.1, 0], num_train_epochs: [1]}&#39;" in page


def test_a_run_that_fails_is_in_the_exit_code_after_the_table(words, tmp_path, capsys):
    assert abkd(*words, "--grid", "{learning_rate: [1e30, 0.01]}", "--lr_scheduler_type", "constant") == 3
    said, remarks = capsys.readouterr()
    assert "learning_rate=0.01 " in said
    assert "1 of 2 runs did not stay finite: learning_rate=1e+30/seed-42" in remarks


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (["--seeds", "1,1"], "seeds: 1 appears twice"),
        (["--seeds", "one"], "--seeds expects integers separated by commas (1,2,3), got 'one'"),
        (["--grid", "kd_weight"], "--grid must be a YAML mapping to lists"),
        (["--grid", "{kd_weight: 3}"], "--grid must be a YAML mapping to lists"),
        (["--grid", "{lr: [1]}"], "use learning_rate"),
        (["--seeds", "1", "--resume"], "needs the sweep.json"),
    ],
)
def test_bad_words_are_exit_code_two(words, tmp_path, capsys, own, says):
    assert abkd(*words, *own) == 2
    said, remarks = capsys.readouterr()
    assert says in remarks
    assert remarks.startswith("abkd: ")
    assert "Traceback" not in remarks
    assert said == ""
    assert not (tmp_path / "out").exists()
