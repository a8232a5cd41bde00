"""What an image run is measured on: what is named, else a split beside the training, else some of its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abkd.recipe import Recipe
from abkd.run import distill, load_image_data


def arrays(count: int) -> dict[str, Any]:
    draw = np.random.default_rng(count)
    return {"images": draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), "labels": np.arange(count) % 4}


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    train, test = arrays(20), arrays(8)
    np.savez(
        tmp_path / "both.npz",
        x_train=train["images"],
        y_train=train["labels"],
        x_test=test["images"],
        y_test=test["labels"],
    )
    return tmp_path / "both.npz"


def recipe(tmp_path: Path, **values: Any) -> Recipe:
    own = {"task": "image-classification", "model_name_or_path": "cifar:resnet8", "kd_weight": 0.0, "ce_weight": 1.0}
    return Recipe.from_dict({**own, "output_dir": str(tmp_path / "out"), "use_cpu": True, "max_steps": 1, **values})


def counts(made: Recipe) -> tuple[int, int]:
    train, held_out = load_image_data(made, made.distill_config())
    return len(train), len(held_out)


def test_the_test_images_of_a_file_are_those_to_measure_on(tmp_path, npz):
    assert counts(recipe(tmp_path, train_file=str(npz))) == (20, 8)
    assert counts(recipe(tmp_path, train_file=str(npz), eval_file=str(npz))) == (20, 8)
    assert counts(recipe(tmp_path, train_file=str(npz), eval_fraction=0.25)) == (15, 5)


def test_a_validation_folder_goes_before_a_test_folder(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(arrays(count)["images"][i]).save(folder / f"{i}.png")
    assert counts(recipe(tmp_path, train_dir=str(tmp_path / "photos"))) == (12, 6)
    assert counts(recipe(tmp_path, train_dir=str(tmp_path / "photos"), eval_dir=str(tmp_path / "photos"))) == (12, 4)


def test_the_last_number_is_of_the_trained_student(tmp_path, npz):
    distill(recipe(tmp_path, train_file=str(npz), eval_strategy="no", learning_rate=0.1))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "eval_accuracy" in line]
    assert [line["step"] for line in measured] == [0, 1]
    assert "accuracy" in json.dumps(result)
    assert measured[0]["eval_cross_entropy"] != measured[1]["eval_cross_entropy"]
