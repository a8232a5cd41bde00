from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from abkd.data.images import Images, base_and_new, load_images, prepare_images, read_coop_split, split_images
from abkd.errors import DataError

CHANCE = np.random.default_rng(0)


def images(counts, seed: int = 0) -> Images:
    """This many different images per class, shuffled."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(len(labels))
    return load_images({"x": pixels[order], "y": labels[order]})


def contents(part: Images) -> set[bytes]:
    return {part.image(index).tobytes() for index in range(len(part))}


def per_class(part: Images, classes: int) -> list[int]:
    assert part.labels is not None
    return np.bincount(part.labels, minlength=classes).tolist()


class TestSplit:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
    @pytest.mark.parametrize("counts", [[10] * 10, [97, 13, 2, 1], [100] + [2] * 30, [5]])
    def test_laws(self, counts, fraction, seed):
        whole = images(counts)
        train, held = split_images(whole, fraction, seed)
        assert not contents(train) & contents(held)
        assert contents(train) | contents(held) == contents(whole)
        assert len(train) + len(held) == len(whole)
        assert len(held) == max(1, round(fraction * len(whole))) or fraction == 0.9  # no class is held out entirely
        out = per_class(held, len(counts))
        floors = [min(int(fraction * count), count - 1) for count in counts]
        assert all(floor <= found <= floor + 1 for floor, found in zip(floors, out, strict=True))
        assert all(count > found for count, found in zip(counts, out, strict=True))
        left = max(1, round(fraction * len(whole))) - sum(floors)
        missing = sum(count > 1 and floor == 0 for count, floor in zip(counts, floors, strict=True))
        assert sum(count > 1 and found == 0 for count, found in zip(counts, out, strict=True)) == max(0, missing - left)

    def test_both_parts_keep_the_order(self):
        whole = images([20, 20])
        for part in split_images(whole, 0.3):
            rows = [int(part.where(index).split()[1]) for index in range(len(part))]
            assert rows == sorted(rows)
            assert np.array_equal(part.image(0), whole.image(rows[0] - 1))

    def test_depends_on_content_and_seed_alone(self):
        whole = images([30, 30, 7])
        held = split_images(whole, 0.2)[1]
        again = split_images(whole.take(np.random.default_rng(3).permutation(67)), 0.2)[1]
        assert contents(held) == contents(again)
        assert contents(held) != contents(split_images(whole, 0.2, seed=1)[1])

    def test_identical_images_stay_together(self):
        whole = images([20, 20])
        copied = whole.take(list(range(40)) + list(range(0, 40, 2)) * 2)
        for fraction in (0.1, 0.3, 0.6):
            train, held = split_images(copied, fraction)
            assert not contents(train) & contents(held)
            assert len(held) <= round(fraction * 80)
            assert len(held) >= 0.7 * fraction * 80

    def test_of_unlabelled_images(self):
        train, held = split_images(images([40]).without_labels(), 0.25)
        assert (len(train), len(held), held.labels) == (30, 10, None)

    def test_what_cannot_be_split(self):
        one = images([1]).take([0] * 5)
        with pytest.raises(DataError, match="only one distinct image, 5 times"):
            split_images(one, 0.5)
        for fraction in (0, 1, 1.5):
            with pytest.raises(DataError, match="between 0 and 1"):
                split_images(images([5]), fraction)

    def test_copies_that_do_not_fit_leave_the_smallest_group(self):
        whole = images([2]).take([0, 0, 0, 1, 1])
        train, held = split_images(whole, 0.2)
        assert (len(train), len(held)) == (3, 2)

    def test_broken_files_are_split_too_and_named_when_prepared(self, tmp_path):
        for number in range(10):
            (tmp_path / f"{number}.png").write_bytes(b"" if number < 5 else bytes(number))
        train, held = split_images(load_images(tmp_path), 0.5)
        assert len(train) + len(held) == 10
        with pytest.raises(DataError, match="5 of 5 images cannot be used"):
            prepare_images(held)


def split_file(tmp_path, **parts) -> dict[str, Images]:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(parts))
    return read_coop_split(file, tmp_path)


class TestCoOp:
    def test_parts_with_all_names(self, tmp_path):
        pixels = CHANCE.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
        (tmp_path / "faces").mkdir()
        for number, each in enumerate(pixels):
            Image.fromarray(each).save(tmp_path / "faces" / f"{number}.png")
        parts = split_file(
            tmp_path,
            train=[["faces/2.png", 1, "snoopy"], ["faces/0.png", 0, "accordion"]],
            val=[],
            test=[["faces/1.png", 2, "yin_yang"]],
            notes="ours",
        )
        assert list(parts) == ["train", "test"]
        assert parts["train"].labels.tolist() == [1, 0]
        assert parts["train"].class_names == parts["test"].class_names == ("accordion", "snoopy", "yin_yang")
        assert np.array_equal(parts["train"].image(0), pixels[2])
        assert parts["test"].where(0) == f"{tmp_path.name}/faces/1.png"
        assert prepare_images(parts["test"]).num_classes == 3

    def test_images_that_are_not_there_are_named(self, tmp_path):
        parts = split_file(tmp_path, train=[["a.png", 0, "a"], ["b.png", 0, "a"]])
        with pytest.raises(DataError, match=r"2 of 2 images cannot be used: .*a\.png: file does not exist"):
            prepare_images(parts["train"])

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"a.png": 0}, r"train: expected a list of \[path, label, class name\], got dict"),
            ([["a.png", 0, "a"], ["b.png", "a"]], r"train, entry 2: expected .*got \['b.png', 'a'\]"),
            ([["a.png", -1, "a"]], "entry 1: expected"),
            ([["a.png", 0, "a"], ["b.png", 0, "b"]], "label 0 has two names, 'a' and 'b'"),
            ([["a.png", 0, "a"], ["b.png", 2, "b"]], "labels go up to 2, but 1 has no image"),
            ([], "has no images: expected lists named train, val, test"),
        ],
    )
    def test_other_forms(self, tmp_path, entries, message):
        with pytest.raises(DataError, match=message):
            split_file(tmp_path, train=entries)

    def test_files_that_cannot_be_read(self, tmp_path):
        with pytest.raises(DataError, match=r"split\.json does not exist"):
            read_coop_split(tmp_path / "split.json", tmp_path)
        (tmp_path / "split.json").write_text("{")
        with pytest.raises(DataError, match="not valid JSON"):
            read_coop_split(tmp_path / "split.json", tmp_path)
        (tmp_path / "split.json").write_text("[]")
        with pytest.raises(DataError, match="expected an object with the lists train, val, test, got list"):
            read_coop_split(tmp_path / "split.json", tmp_path)
        with pytest.raises(DataError, match="does not exist: expected the images"):
            read_coop_split(tmp_path / "split.json", tmp_path / "nowhere")


def test_base_and_new_classes():
    assert base_and_new("abcd") == ((0, 1), (2, 3))
    assert base_and_new(["a"] * 5) == ((0, 1, 2), (3, 4))
    with pytest.raises(DataError, match="at least two classes, got 1"):
        base_and_new(["a"])
