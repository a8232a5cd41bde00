from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from abkd.data.images import Images, held_out_beside, held_out_splits, load_images
from abkd.errors import DataError

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
LABELS = np.array([0, 0, 1, 1, 2, 2])
NAMES = ("bird", "cat", "dog")


class Torch(torch.utils.data.Dataset):
    classes = NAMES

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return torch.from_numpy(PIXELS[index]).permute(2, 0, 1), torch.tensor(LABELS[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter({"img": image, "target": NAMES[label]} for image, label in zip(PIXELS, LABELS, strict=True))


def table() -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    rows = [{"image": Image.fromarray(image), "label": label} for image, label in zip(PIXELS, LABELS, strict=True)]
    return datasets.Dataset.from_list(rows, features=features)


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def folder(root: Path) -> Path:
    for number, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        png(root / NAMES[label] / f"{number}.PNG", image)
    return root


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def saved(path: Path) -> str:
    datasets.DatasetDict({"train": table(), "test": table().select([0])}).save_to_disk(path)
    return str(path)


NAMED = {"labels": LABELS, "classes": np.array(NAMES)}
SOURCES = {
    "npz": lambda tmp: npz(tmp / "a.npz", images=PIXELS, **NAMED),
    "npz, channels first": lambda tmp: str(npz(tmp / "a.npz", x=PIXELS.transpose(0, 3, 1, 2), **NAMED)),
    "npz, split, column of labels": lambda tmp: npz(
        tmp / "a.npz",
        train_images=PIXELS,
        train_labels=LABELS[:, None].astype(np.uint8),
        test_images=PIXELS[:1].astype(float),
        classes=NAMES,
    ),
    "arrays": lambda tmp: {"x_train": PIXELS.astype(np.int64), "y_train": LABELS.astype(float), "classes": NAMES},
    "folder": lambda tmp: folder(tmp / "a"),
    "folder of splits": lambda tmp: (folder(tmp / "train"), png(tmp / "val" / "cat" / "0.png", PIXELS[0]), tmp)[-1],
    "table": lambda tmp: table(),
    "table with a format": lambda tmp: table().with_format("torch"),
    "tables": lambda tmp: datasets.DatasetDict({"train": table(), "test": table().select([0])}),
    "saved table": lambda tmp: saved(tmp / "saved"),
    "torch": lambda tmp: Torch(),
    "stream": lambda tmp: Stream(),
    "pairs": lambda tmp: [(Image.fromarray(i), NAMES[c]) for i, c in zip(PIXELS, LABELS, strict=True)],
    "paths": lambda tmp: [(str(p), p.parent.name) for p in sorted(folder(tmp / "a").rglob("*.PNG"))],
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_images(source, tmp_path):
    images = load_images(SOURCES[source](tmp_path))
    assert len(images) == 6
    for index, pixels in enumerate(PIXELS):
        assert images.image(index).dtype == np.uint8
        assert np.array_equal(images.image(index), pixels)
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == LABELS.tolist()
    assert images.class_names == NAMES
    assert images.uniform_size() == (5, 7)
    assert load_images(images) is images
    last = images.take([5, 2])
    assert np.array_equal(last.image(-1), PIXELS[2])
    assert last.labels is not None
    assert last.labels.tolist() == [2, 1]
    assert last.where(0) == images.where(5)
    (tmp_path / "again").mkdir()
    assert last.fingerprint == load_images(SOURCES[source](tmp_path / "again")).take([5, 2]).fingerprint
    with pytest.raises(IndexError, match="image 2 of 2"):
        last.image(2)


@pytest.mark.parametrize(
    "source", [PIXELS[..., 0], PIXELS[..., :1], torch.from_numpy(PIXELS[:, None, ..., 0]), list(PIXELS[..., 0])]
)
def test_grey_images_without_labels(source):
    images = load_images(source)
    assert np.array_equal(images.image(3), PIXELS[3, ..., :1])
    assert (images.labels, images.class_names, images.num_classes) == (None, None, None)


def test_which_arrays_are_taken(tmp_path):
    both = npz(tmp_path / "a.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=LABELS[4:], y=LABELS)
    assert load_images(both, split="test").labels.tolist() == [2, 2]
    with pytest.raises(DataError, match=r"no images of the split 'val': expected an array x_val .* x_train, y_train"):
        load_images(both, split="val")
    for split in ("validation", "valid", "val"):
        assert len(load_images({"x_val": PIXELS[:3], "x": PIXELS}, split=split)) == 3
        assert len(load_images({"x_validation": PIXELS[:3], "x": PIXELS}, split=split)) == 3
    assert len(load_images({"x_val": PIXELS[:3], "x": PIXELS, "y": LABELS})) == 6  # without splits: the whole
    np.savez(tmp_path / "b.npz", PIXELS, LABELS)
    assert load_images(tmp_path / "b.npz", split="test").labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("shape", [(5, 3, 8, 4), (5, 1, 8, 3), (5, 3, 3, 3)])
def test_of_a_shape_that_could_be_either_the_channels_of_a_tensor_come_first(shape):
    values = CHANCE.integers(0, 256, shape, dtype=np.uint8)
    for source in (torch.from_numpy(values), {"images": torch.from_numpy(values)}, list(torch.from_numpy(values))):
        assert np.array_equal(load_images(source).image(1), values[1].transpose(1, 2, 0))
    for source in (values, list(values)):
        assert load_images(source).image(1).shape == (*shape[1:3], 3)
    grey = torch.from_numpy(values[..., 0])
    assert np.array_equal(load_images(grey).image(1)[..., 0], values[1, ..., 0])


class TestFolders:
    def test_names_and_order(self, tmp_path):
        root = folder(tmp_path / "photos")
        png(root / "cat" / "deeper" / "9.png", PIXELS[0])
        (root / "ant").mkdir()
        (root / ".git").mkdir()
        (root / "cat" / ".hidden.png").write_text("no image")
        (root / "cat" / "Thumbs.db").write_text("no image")
        png(root / "@eaDir" / "0.png", PIXELS[0])
        images = load_images(str(root))
        assert images.class_names == ("ant", "bird", "cat", "dog")
        assert images.labels.tolist() == [1, 1, 2, 2, 2, 3, 3]
        assert [images.where(index) for index in (0, 4)] == ["photos/bird/0.PNG", "photos/cat/deeper/9.png"]
        assert images.name == "photos"

    def test_splits(self, tmp_path):
        for split in ("train", "validation"):
            png(tmp_path / split / "cat" / f"{split}.png", PIXELS[0])
        assert load_images(tmp_path).where(0) == "train/cat/train.png"
        assert load_images(tmp_path, split="val").where(0) == "validation/cat/validation.png"
        with pytest.raises(DataError, match="no split 'test': use one of train, validation"):
            load_images(tmp_path, split="test")
        png(tmp_path / "val" / "cat" / "0.png", PIXELS[0])
        with pytest.raises(DataError, match="has validation and val for split 'validation': use one of them"):
            load_images(tmp_path, split="validation")

    @pytest.mark.parametrize("names", [("Train", "Val"), ("training", "testing"), ("train", "dev"), ("TRAIN", "eval")])
    def test_what_splits_are_called(self, names, tmp_path, caplog):
        for name in names:
            png(tmp_path / name / "cat" / "0.png", PIXELS[0])
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "run.txt").write_text("no image")
        assert load_images(tmp_path).where(0) == f"{names[0]}/cat/0.png"
        [held_out] = held_out_splits(str(tmp_path))
        assert load_images(tmp_path, split=held_out).where(0) == f"{names[1]}/cat/0.png"
        beside = held_out_beside(str(tmp_path / names[0]))
        assert (beside.name, beside.images.where(0)) == (str(tmp_path / names[1]), f"{names[1]}/cat/0.png")
        assert not caplog.text
        png(tmp_path / "0.png", PIXELS[0])
        assert len(load_images(tmp_path)) == 1
        assert f"1 image(s) next to {', '.join(sorted(names))} are ignored" in caplog.text

    @pytest.mark.parametrize("name", ["train", "test", "Eval"])
    def test_a_class_may_be_called_as_a_split_is(self, name, tmp_path):
        for each in (name, "bus"):
            png(tmp_path / each / "0.png", PIXELS[0])
        assert load_images(tmp_path).class_names == tuple(sorted((name, "bus")))
        assert held_out_splits(str(tmp_path)) == ()

    @pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("test", "val")])
    def test_splits_and_classes_in_one_folder_are_refused(self, splits, tmp_path):
        for each in splits:
            png(tmp_path / each / "cat" / "0.png", PIXELS[0])
        png(tmp_path / "car" / "0.png", PIXELS[0])
        with pytest.raises(DataError, match=f"images in car, so the .* specify the folder to .*/{splits[0]}.* rename"):
            load_images(tmp_path)

    def test_an_image_is_one_by_its_content(self, tmp_path, caplog):
        for name in ("a.jfif", "b", "c.ppm", "d.data"):
            png(tmp_path / "cat" / "0.png", PIXELS[0]).rename(tmp_path / "cat" / name)
        for name in ("labels.csv", "notes.csv", "phone.HEIC", "readme"):
            (tmp_path / "cat" / name).write_text("P6 no image")
        images = load_images(tmp_path)
        assert [images.where(index).rpartition("/")[2] for index in range(4)] == ["a.jfif", "b", "c.ppm", "d.data"]
        assert np.array_equal(images.image(3), PIXELS[0])
        assert (
            "4 files cannot be read as images; left out: 2 .csv, 1 .heic (pip install pillow-heif), 1 w" in caplog.text
        )

    def test_links_are_followed_and_not_in_circles(self, tmp_path):
        root = folder(tmp_path / "photos")
        png(tmp_path / "elsewhere" / "7.png", PIXELS[0])
        (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
        (root / "cat" / "again").symlink_to(root / "cat")
        (root / "dog" / "all").symlink_to(root)
        (root / "dog" / "self").symlink_to("self")
        images = load_images(root)
        assert images.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
        assert images.where(4) == "photos/cat/more/7.png"

    def test_names_that_are_no_utf8(self, tmp_path, caplog):
        name = os.fsdecode(b"caf\xe9")
        png(tmp_path / name / f"{name}.png", PIXELS[0])
        (tmp_path / name / f"x.{name}").write_text("no image")
        images = load_images(tmp_path)
        assert images.class_names == (r"caf\xe9",)
        assert images.where(0) == rf"{tmp_path.name}/caf\xe9/caf\xe9.png"
        assert np.array_equal(images.image(0), PIXELS[0])
        assert r"1 .caf\xe9" in caplog.text
        assert load_images([(PIXELS[0], "\ud800")]).class_names == (r"\ud800",)  # JSON can spell it

    def test_a_folder_that_cannot_be_read(self, tmp_path, monkeypatch):
        folder(tmp_path / "photos")
        listed = os.listdir

        def refuse(path):
            if Path(path).name == "dog":
                raise PermissionError(13, "Permission denied", path)
            return listed(path)

        monkeypatch.setattr(os, "listdir", refuse)
        with pytest.raises(DataError, match=r"the folder .*photos/dog cannot be read: Permission denied"):
            load_images(tmp_path / "photos")

    def test_one_folder_is_unlabelled(self, tmp_path):
        for number in (10, 9):
            png(tmp_path / f"{number}.png", PIXELS[number % 6])
        images = load_images(tmp_path)
        assert images.labels is None
        assert images.class_names is None
        assert images.where(0) == f"{tmp_path.name}/10.png"

    def test_what_cannot_be_meant(self, tmp_path):
        with pytest.raises(DataError, match="has no images: expected image files"):
            load_images(tmp_path)
        png(tmp_path / "cat" / "0.png", PIXELS[0])
        png(tmp_path / "0.png", PIXELS[0])
        with pytest.raises(DataError, match=r"1 images are in class folders and 1 next to them \(0\.png.*all or none"):
            load_images(tmp_path)

    def test_nothing_is_decoded_before_it_is_asked_for(self, tmp_path):
        root = folder(tmp_path / "photos")
        (root / "cat" / "2.PNG").write_text("no image")
        images = load_images(root)
        assert images.uniform_size() == (5, 7)
        assert len(images.fingerprint) == 16
        with pytest.raises(DataError, match=r"^photos/cat/2\.PNG: not an image file"):
            images.image(2)


def test_digits():
    from sklearn.datasets import load_digits

    images = load_images("digits")
    scans = load_digits()
    assert len(images) == 1797
    assert images.labels.tolist() == scans.target.tolist()
    for index in (0, 7, 1796):
        assert np.array_equal(images.image(index)[..., 0], (scans.images[index] * 255 / 16).round())
    assert images.class_names[0] == "zero"
    assert images.class_names[9] == "nine"
    assert images.uniform_size() == (8, 8)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'abkd\[demo\]'"):
        load_images("digits")


class TestLabels:
    def load(self, labels, classes=None):
        return load_images({"x": PIXELS, "y": labels} | ({} if classes is None else {"classes": classes}))

    @pytest.mark.parametrize(
        ("labels", "expected", "names"),
        [
            (["b", "a", "b", "c", "a", "b"], [1, 0, 1, 2, 0, 1], ("a", "b", "c")),
            ([3.0, 0.0, 1.0, 1.0, 1.0, 1.0], [3, 0, 1, 1, 1, 1], None),
            ([-1] * 6, None, None),
            ([float("nan")] * 6, None, None),
        ],
    )
    def test_are_classes_from_0_or_none(self, labels, expected, names):
        images = self.load(labels)
        assert (None if images.labels is None else images.labels.tolist()) == expected
        assert images.class_names == names

    def test_by_given_names(self):
        images = self.load(["dog", "cat", "cat", "cat", "cat", "cat"], ["dog", "cat"])
        assert images.labels.tolist() == [0, 1, 1, 1, 1, 1]
        assert images.num_classes == 2

    @pytest.mark.parametrize(
        ("classes", "names"),
        [
            ([("tench", "Tinca tinca"), ("goldfish",), ("crane",)], ("tench, Tinca tinca", "goldfish", "crane")),
            (np.array([["a", "b"], ["c", "d"], ["e", "f"]]), ("a, b", "c, d", "e, f")),
            (np.array([name.encode() for name in NAMES]), NAMES),
            ([0, np.int64(1), "caf\xe9".encode()], ("0", "1", "caf\xe9")),
            (np.array([NAMES]), NAMES),
        ],
    )
    def test_class_names_as_collections_write_them(self, classes, names):
        assert self.load(LABELS, classes).class_names == names
        data = Torch()
        data.classes = classes if len(classes) > 1 else classes[0]
        assert load_images(data).class_names == names

    @pytest.mark.parametrize("wrong", [None, 0.5, True, b"\xff", (), ("a", 1), {"a": 1}])
    def test_class_names_of_another_kind_are_refused(self, wrong):
        with pytest.raises(DataError, match=r"class names must be strings, or tuples of strings, got"):
            self.load(LABELS, ["a", "b", wrong])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1, -1, -1, 0, 1], "2 of 6 images have no label. Label all or none"),
            ([0, 1, -2, 0, 0, 1], "from 0, got -2 to 1"),
            ([0, 1, 10**12, 0, 0, 1], "labels must be below 1000000, got 1000000000000"),
            ([0, 1, 2**63, 0, 0, 1], "got 9223372036854775808"),
            ([0, 1, -(10**30), 0, 0, 1], "from 0, got -1000"),
            ([0, 1, float("inf"), 0, 0, 1], "row 3: the label must be an integer"),
            ([b"cat"] * 6, "row 1: the label must be an integer or a name, got b'cat'"),
            (np.array(3), r"one label per image, got an array of shape \[\]"),
            ([0, 1], "one label for each of 6 images, got 2"),
            ([0.5] * 6, "row 1: the label must be an integer or a name, got 0.5"),
            (np.eye(6), r"shape \[6, 6\]: for one-hot labels, use y.argmax\(1\)"),
        ],
    )
    def test_that_cannot_be_meant(self, labels, message):
        with pytest.raises(DataError, match=message):
            self.load(labels)

    def test_in_part(self):
        with pytest.raises(DataError, match="2 of 3 images have no label"):
            load_images([{"image": PIXELS[0], "label": 1}, {"image": PIXELS[1]}, {"image": PIXELS[2], "label": None}])

    def test_of_items_must_be_numbers_too(self):
        with pytest.raises(DataError, match="row 1: the label must be an integer or a name, got tensor"):
            load_images([(PIXELS[0], torch.eye(3)[0])])

    def test_against_names(self):
        with pytest.raises(DataError, match=r"from 0 to 1 \(for 2 class names\), got 0 to 2"):
            self.load(LABELS, ["a", "b"])
        with pytest.raises(DataError, match="'d' is not among the 2 class names: a, b"):
            self.load(["a", "b", "d"] * 2, ["a", "b"])

    def test_of_two_classes_with_one_name(self):
        images = self.load(LABELS, ["crane", "crane", "dog"])
        assert images.with_classes(["crane", "crane", "dog"]).labels.tolist() == LABELS.tolist()
        for other in (["dog", "crane", "crane"], ["crane", "dog"]):
            with pytest.raises(DataError, match="several classes are named 'crane', so labels cannot be matched"):
                images.with_classes(other)
        cranes = self.load(["crane", "dog"] * 3, ["crane", "dog"])
        with pytest.raises(DataError, match="several classes are named 'crane'"):
            cranes.with_classes(["crane", "crane", "dog"])
        assert self.load(["dog"] * 6).with_classes(["crane", "crane", "dog"]).labels.tolist() == [2] * 6
        with pytest.raises(DataError, match="several classes are named 'crane', so the label is ambiguous"):
            self.load(["crane", "dog"] * 3, ["crane", "crane", "dog"])

    def test_can_be_taken_away(self):
        images = self.load(LABELS).without_labels()
        assert images.labels is None
        assert np.array_equal(images.image(1), PIXELS[1])


class TestFingerprint:
    def test_sees_content_order_labels_and_names(self):
        same = [load_images({"x": PIXELS.copy(), **NAMED}), load_images({"x": PIXELS.transpose(0, 3, 1, 2), **NAMED})]
        others = [
            load_images({"x": PIXELS[::-1], **NAMED}),
            load_images({"x": PIXELS ^ (np.arange(6) == 3).astype(np.uint8)[:, None, None, None], **NAMED}),
            load_images({"x": PIXELS, **NAMED, "labels": LABELS[::-1]}),
            load_images({"x": PIXELS, **NAMED, "classes": NAMES[::-1]}),
            load_images({"x": PIXELS}),
            same[0].take(range(5)),
        ]
        assert len({images.fingerprint for images in same}) == 1
        assert len({images.fingerprint for images in same + others}) == 1 + len(others)

    def test_of_files_is_of_their_bytes_wherever_they_lie(self, tmp_path):
        first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
        assert load_images(first).fingerprint == load_images(second).fingerprint
        file = second / "cat" / "2.PNG"
        file.write_bytes(file.read_bytes() + b"\0")
        assert load_images(first).fingerprint != load_images(second).fingerprint

    def test_is_the_same_tomorrow(self):
        pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
        assert load_images({"x": pixels, "y": [1, 0], "classes": ["a", "b"]}).fingerprint == "0f5012155d82677b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.npz", "nothing.npz does not exist"),
        ("./nothing", "folder nothing does not exist"),
        (Path("nothing"), "folder nothing does not exist"),
        ("abkd-tests/nothing", "cannot load dataset 'abkd-tests/nothing'.*none of this name"),
        ({"x": PIXELS / 255.0}, r"the arrays, x: pixels are float64: use uint8 .* \(255 \* x\)\.round"),
        ({"x": PIXELS.astype(np.int64) + 1}, "pixels are int64: use uint8 from 0 to 255"),
        ({"x": PIXELS.astype(np.uint16)}, "pixels are uint16"),
        ({"x": PIXELS > 9}, "pixels are bool"),
        ({"x": PIXELS.reshape(6, -1)}, r"expected images \[N, H, W\].*got \[6, 105\]"),
        ({"x": PIXELS[:0]}, "at least one image with at least one pixel"),
        ({"x": PIXELS[:, :0]}, "at least one image with at least one pixel"),
        ({"rows": PIXELS}, "got rows"),
        (
            {"x": [PIXELS[0], PIXELS[0, :3]]},
            "the arrays, x must be an array of numbers .*: pass images of several sizes as a list",
        ),
        ([], "has no images"),
        (3, "got int"),
        ([{"picture": PIXELS[0]}], "row 1: expected a key image or .*, got picture"),
        ([(PIXELS[0], 1), (PIXELS[0], 1, 2)], r"row 2: expected a pair \(image, label\), got 3 items"),
        (datasets.DatasetDict({"test": datasets.Dataset.from_dict({"image": []})}), "no split 'train': use one of"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "expected a column named image .*, got text"),
    ],
)
def test_what_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        load_images(source)


def test_files_that_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    np.save(tmp_path / "b.npy", PIXELS)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.array([PIXELS, None], dtype=object))
    whole = npz(tmp_path / "d.npz", x=PIXELS, y=LABELS).read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    for name in "abcd":
        with pytest.raises(DataError, match=f"{name}.npz is not a readable .npz file of plain arrays"):
            load_images(tmp_path / f"{name}.npz")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a \.npz file, a folder .*unpack the archive first"):
        load_images(tmp_path / "a.zip")


def claiming(path: Path, shape: str, dtype: str = "|u1") -> Path:
    """A .npz file whose array declares this shape but holds 12 bytes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(12))
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ("(1000000000, 64, 64, 3)", "|u1", r"shape \[1000000000, 64, 64, 3\] of uint8, but holds 12 bytes"),
        ("(2, 2, 4)", "|u1", "holds 12 bytes"),
        ("(-2, -2, 3)", "|u1", "holds 12 bytes"),
        ("(12,)", "|O", "holds Python objects"),
        ("(" * 90 + ")" * 90, "|u1", "is not a readable .npz file"),
        ("(0, 99999999999999999999)", "|u1", "is not a readable .npz file|holds 12 bytes"),
    ],
)
def test_an_array_is_not_believed_to_be_as_large_as_it_says(shape, dtype, said, tmp_path):
    with pytest.raises(DataError, match=said):
        load_images(claiming(tmp_path / "x.npz", shape, dtype))


def test_an_array_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("abkd.data.images._npz.available_mb", lambda _: 1e-4)
    assert len(load_images(claiming(tmp_path / "x.npz", "(1, 2, 2, 3)"))) == 1
    with pytest.raises(DataError, match=r"needs 0\.0 GiB .*use a folder of image files"):
        load_images(npz(tmp_path / "y.npz", x=PIXELS))


def test_whatever_happens_to_an_npz_file_it_has_images_or_a_reason(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=PIXELS, y=LABELS)
    data, chance = (tmp_path / "x.npz").read_bytes(), np.random.default_rng(1)
    for _ in range(150):
        changed = np.frombuffer(data, dtype=np.uint8).copy()
        changed[chance.integers(0, len(data), 3)] = chance.integers(0, 256, 3)
        (tmp_path / "x.npz").write_bytes(changed.tobytes())
        try:
            assert 0 < len(load_images(tmp_path / "x.npz")) <= 6
        except DataError:
            continue


def test_classes_without_images_are_said(tmp_path, caplog):
    folder(tmp_path / "photos")
    for name in ("ant", "emu"):
        (tmp_path / "photos" / name).mkdir()
    load_images(tmp_path / "photos")
    assert "photos: 2 of 5 classes have no image: ant, emu" in caplog.text
    load_images({"x": PIXELS, "y": LABELS * 4})
    assert "the arrays: 6 of 9 classes have no image: 1, 2, 3, 5, 6, …" in caplog.text
    load_images([(PIXELS[0], "a")])
    assert caplog.text.count("have no image") == 2


def test_a_data_set_whose_own_reading_fails():
    class Broken(Torch):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"row 4: cannot be read \(OSError: image file is truncated\)"):
        load_images(Broken())


def test_importing_costs_nothing():
    names = "PIL datasets sklearn transformers rich".split()
    code = "import sys, abkd.data.images.augmentation; print(*(n for n in sys.argv[1:] if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert isinstance(load_images(PIXELS), Images)
