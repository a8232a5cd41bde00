"""The evaluation set of an image run: the given one, else a split next to the training data, else some images of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abkd.errors import DataError
from abkd.recipe import Recipe
from abkd.run import distill, load_data
from abkd.sweep._plan import changed


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
    train, held_out = load_data(made)
    return len(train), len(held_out)


def test_the_test_images_of_a_file_are_those_to_measure_on(tmp_path, npz):
    assert counts(recipe(tmp_path, train_file=str(npz))) == (20, 8)
    assert counts(recipe(tmp_path, train_file=str(npz), eval_file=str(npz))) == (20, 8)
    assert counts(recipe(tmp_path, train_file=str(npz), eval_fraction=0.25)) == (15, 5)


def album(root: Path, **classes: int) -> Path:
    """A folder per class, with this many images each."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = arrays(count)["images"][i] ^ np.uint8(ord(name[0]))
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_the_folder_beside_the_training_images_is_evaluated_on(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    album(Path("photos/train"), cat=6, dog=6)
    album(Path("photos/test"), cat=1, dog=1)
    with caplog.at_level("INFO", logger="abkd"):
        assert counts(recipe(tmp_path, train_dir="photos/train")) == (12, 2)
        album(Path("photos/valid"), cat=2, dog=1)
        assert counts(recipe(tmp_path, train_dir="photos/train/")) == (12, 3)
        assert counts(recipe(tmp_path, train_dir="photos/train", eval_fraction=0.25)) == (9, 3)
        monkeypatch.chdir("photos/train")
        assert counts(recipe(tmp_path, train_dir=".")) == (12, 3)
    said = "evaluating on photos/valid (3 images); set eval_fraction to hold out training images instead"
    assert f"abkd: {said}" in caplog.text
    assert "abkd: evaluating on 3 of the 12 images of train, which are not trained on" in caplog.text


def test_a_share_that_is_asked_for_is_held_out_also_where_it_is_the_usual_one(tmp_path):
    train = album(tmp_path / "train", cat=10, dog=10)
    album(tmp_path / "val", cat=2, dog=2)
    asked, unsaid = (recipe(tmp_path, train_dir=str(train), **given) for given in ({"eval_fraction": 0.05}, {}))
    assert counts(asked) == (19, 1)
    assert counts(unsaid) == (20, 4)
    for made, parts in ((asked, (19, 1)), (unsaid, (20, 4))):  # as the recipe that a run records, and as one in a sweep
        assert counts(Recipe.from_dict(made.resolved())) == parts
        assert counts(changed(made, {"seed": 1})) == parts
    assert recipe(tmp_path, dataset_name="digits").resolved()["eval_fraction"] == 0.05


def test_what_no_images_lie_in_is_not_evaluated_on(tmp_path):
    train = album(tmp_path / "train", cat=10, dog=10)
    (tmp_path / "val").mkdir()
    assert counts(recipe(tmp_path, train_dir=str(train))) == (19, 1)
    album(tmp_path / "cats" / "val", cat=2)
    other = album(tmp_path / "cats" / "images", cat=10, dog=10)
    assert counts(recipe(tmp_path, train_dir=str(other))) == (19, 1)


def test_both_have_the_same_classes(tmp_path, caplog):
    album(tmp_path / "train", ant=2, cat=2, dog=2)
    album(tmp_path / "val", cat=1, dog=2)
    made = recipe(tmp_path, train_dir=str(tmp_path / "train"))
    _, held_out = load_data(made)
    assert held_out is not None
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [1, 2, 2]
    assert "val has no images of these training classes: ant" in caplog.text
    album(tmp_path / "val", eel=1, fox=1)
    with pytest.raises(DataError, match=r"val has classes 'eel', 'fox' that the .* not have \(ant, cat, dog\)"):
        load_data(made)


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
