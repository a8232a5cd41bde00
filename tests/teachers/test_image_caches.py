"""Cached image teachers: each image as in each epoch, bit-identical to the live teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from abkd import DistillConfig
from abkd.cli import app
from abkd.data.images import ImageCollator, ImageDataset, prepare_images
from abkd.data.images.augmentation import HorizontalFlip, Mixup, RandomCrop, RandomResizedCrop
from abkd.errors import AbkdError, ConfigError, DataError, NonFiniteError, VocabularyError
from abkd.models.cifar import create
from abkd.models.vision import Classifier, ImageRows, Preparation, save_classifier
from abkd.ops import TopK
from abkd.recipe import Recipe
from abkd.run import distill
from abkd.tasks import _image_caches, _image_models
from abkd.tasks._image_caches import training_passes
from abkd.teachers import HiddenCache, LiveReader, TeacherContext, TopKCache
from abkd.teachers.caches import _build, image_identity
from abkd.teachers.caches._build import build_cache
from abkd.teachers.caches._images import EpochImages
from abkd.teachers.caches._keys import image_keys
from image_parts import CLASSES, NAMES, image_teacher, image_trainer, pictures, plain, unlabelled
from training_parts import gap
from vision_parts import own_net

CHANCE = (RandomCrop(padding=2), HorizontalFlip(), Mixup(alpha=0.4, share=0.5))
MILD = "[RandomCrop(padding=2), HorizontalFlip(), Mixup(alpha=0.4, share=0.5)]"
WAY_OUT = "more epochs, or for TopKCache other labels give other images: run abkd cache"


def images(count: int = 12, *, augmentation: Any = CHANCE, rows: Any = None, seed: int = 3) -> ImageDataset:
    return prepare_images(pictures(count) if rows is None else rows, augmentation=augmentation, seed=seed)


def build(spec: Any, *passes: EpochImages, teacher: Any = None, **options: Any) -> Any:
    teacher = image_teacher() if teacher is None else teacher
    teacher.model.eval().requires_grad_(False)
    return build_cache(spec, passes, lambda: ImageRows(teacher), **{"identity": image_identity(teacher), **options})


def opened(spec: Any, teacher: Any = None, temperature: float = 1.0) -> Any:
    known, student = image_identity(image_teacher() if teacher is None else teacher), ImageRows(Classifier(plain(0)))
    return spec.open(TeacherContext(student=student, identity=known, temperature=temperature))


def views(passes: EpochImages) -> list[Any]:
    """The batches that a run reads."""
    batches = [[passes.dataset[key] for key in keys] for keys in passes.batches((0, 1))]
    return [ImageCollator()(examples)["batch"].teacher for examples in batches]


def live() -> LiveReader:
    return LiveReader(ImageRows(image_teacher()))


# ---- the rows


@pytest.mark.parametrize("augmentation", [(), CHANCE, (RandomResizedCrop(scale=(0.3, 1.0)), HorizontalFlip())])
def test_logits_are_the_live_teachers_bit_for_bit_in_the_batches_of_training(tmp_path: Path, augmentation: Any) -> None:
    spec, passes = (
        HiddenCache(path=str(tmp_path)),
        EpochImages(images(augmentation=augmentation), epochs=3, batch_size=4),
    )
    built = build(spec, passes)
    reader, alive = opened(spec), live()
    for view in views(passes):
        assert torch.equal(reader(view).values, alive(view).values)
        assert reader(view).values.shape == (len(view.rows), CLASSES)
    reader.check_covers(passes, "train")
    alone = ImageCollator()([passes.dataset.padding_example()])["batch"].teacher
    assert torch.equal(reader(alone).values, alive(alone).values) or not augmentation
    assert built.rows == (36 + 1 if augmentation else 12)  # plus the padding image
    assert built.bytes_per_row < 4 * CLASSES + 16 + 12 + 80
    assert build(spec, passes).made == 0


def test_an_image_is_found_in_every_batch_as_whole_numbers_or_not(tmp_path: Path) -> None:
    spec, passes = HiddenCache(path=str(tmp_path)), EpochImages(images(), epochs=2, batch_size=3)
    build(spec, passes)
    examples, reader = list(passes), opened(spec)
    examples = [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]
    assert {example["pixels"].dtype for example in examples} == {torch.uint8, torch.float32}
    for size in (1, 5, 24):
        for start in range(0, 24, size):
            view = ImageCollator()(examples[start : start + size])["batch"].teacher
            torch.testing.assert_close(reader(view).values, live()(view).values, rtol=0, atol=1e-5)


def test_what_tells_images_apart() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).reshape(2, 3, 2, 4)
    keys = image_keys(pixels)
    assert image_keys(pixels.float()) == keys == [*image_keys(pixels[:1]), *image_keys(pixels[1:])]
    assert (
        len({*keys, *image_keys(pixels.reshape(2, 3, 4, 2)), *image_keys(pixels + 1), *image_keys(pixels + 0.5)}) == 8
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_all_classes_are_the_live_teacher_to_a_step_at_every_temperature(tmp_path: Path, temperature: float) -> None:
    spec, passes = TopKCache(k=64, path=str(tmp_path)), EpochImages(images(), epochs=2, batch_size=4)
    build(spec, passes, temperature=temperature)
    reader = opened(spec, temperature=temperature)
    assert reader.exact
    for view in views(passes):
        exact, found = (each(view).logits(slice(None)).double().log_softmax(-1) for each in (live(), reader))
        step = (exact.amax(-1) - exact.amin(-1)) / 65534
        assert ((found - exact).abs().amax(-1) <= step + 5e-6 * temperature).all()


def test_the_likeliest_classes_the_tail_and_the_label(tmp_path: Path) -> None:
    spec, dataset = TopKCache(k=2, path=str(tmp_path / "top")), images(augmentation=())
    build(spec, EpochImages(dataset, batch_size=4), temperature=2.0)
    reader, batch = opened(spec, temperature=2.0), ImageCollator()(list(dataset))["batch"]
    rows, logits = reader(batch.teacher), live()(batch.teacher).values.double()
    exact = (logits / 2.0).log_softmax(-1)
    assert isinstance(rows, TopK)
    assert not reader.exact
    torch.testing.assert_close(exact.gather(-1, rows.ids), exact.topk(2, -1).values, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.log_p.double(), exact.topk(2, -1).values, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.log_tail.double(), (1 - exact.topk(2, -1).values.exp().sum(-1)).log())
    of_label = logits.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    torch.testing.assert_close(rows.log_target, of_label.float())
    assert 0 < reader.logs()["covered_mass"] < 1

    nameless, plain = TopKCache(k=2, path=str(tmp_path / "unlabelled")), images(rows=unlabelled(), augmentation=())
    build(nameless, EpochImages(plain, batch_size=4), temperature=2.0)
    reader = opened(nameless, temperature=2.0)
    assert reader(ImageCollator()(list(plain))["batch"].teacher).log_target is None
    with pytest.raises(DataError, match=WAY_OUT):
        reader(batch.teacher)


def test_labels_that_were_mended_are_other_rows_of_the_likeliest_and_the_same_logits(tmp_path: Path) -> None:
    mended = [{**row, "label": (row["label"] + 1) % CLASSES} for row in pictures()]
    before, after = (EpochImages(images(rows=rows, augmentation=()), batch_size=4) for rows in (pictures(), mended))
    for spec, more in ((TopKCache(k=2, path=str(tmp_path / "top")), 12), (HiddenCache(path=str(tmp_path / "all")), 0)):
        assert build(spec, before).made == 12
        assert build(spec, after).made == more
    reader = opened(TopKCache(k=2, path=str(tmp_path / "top")))
    for passes in (before, after):
        batch = ImageCollator()(list(passes.dataset))["batch"]
        of_label = live()(batch.teacher).values.double().log_softmax(-1).gather(-1, batch.targets[:, None])
        torch.testing.assert_close(reader(batch.teacher).log_target, of_label.squeeze(-1).float())


def test_half_precision_takes_half_the_bytes(tmp_path: Path) -> None:
    spec, passes = HiddenCache(path=str(tmp_path), dtype="float16"), EpochImages(images(augmentation=()), batch_size=4)
    build(spec, passes)
    (view, *_), reader = views(passes), opened(spec)
    assert reader.store.columns[0]["logits"].dtype == torch.float16
    assert reader(view).values.dtype == torch.float32
    assert torch.equal(reader(view).values, live()(view).values.half().float())


# ---- building


def test_it_goes_on_where_it_was_and_processes_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "SHARD_BYTES", 1)
    passes, spec = EpochImages(images(), epochs=2, batch_size=4), HiddenCache(path=str(tmp_path / "stopped"))

    def stop(done: int, total: int) -> None:
        assert total == 25
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(spec, passes, progress=stop)
    with pytest.raises(DataError, match=r"train: 12 of 24 images are not in the cache"):
        opened(spec).check_covers(passes, "train")
    assert build(spec, passes, workers=1).made == 25 - 12
    opened(spec).check_covers(passes, "train")

    shared = HiddenCache(path=str(tmp_path / "shared"))
    made = [build(shared, passes, share=(process, 3)).made for process in range(3)]
    assert made == [9, 8, 8]
    opened(shared).check_covers(passes, "train")


def test_of_a_long_training_some_images_from_all_epochs_are_looked_at(tmp_path: Path) -> None:
    spec, passes = HiddenCache(path=str(tmp_path)), EpochImages(images(augmentation=CHANCE[:1]), epochs=2, batch_size=4)
    build(spec, passes)
    long = EpochImages(images(augmentation=CHANCE[:1]), epochs=1000)
    some = list(long.some(50))
    assert len(some) == 50
    assert all(torch.equal(one["pixels"], other["pixels"]) for one, other in zip(some, long.some(50), strict=True))
    with pytest.raises(DataError, match=rf"of 4096 images are not in the cache.*{WAY_OUT}"):
        opened(spec).check_covers(long, "train")


def test_what_is_refused(tmp_path: Path) -> None:
    spec, passes = HiddenCache(path=str(tmp_path)), EpochImages(images(), epochs=2, batch_size=4)
    build(spec, passes)
    for other in (images(seed=4), images(rows=pictures(12, seed=1)), images(augmentation=CHANCE[:1])):
        with pytest.raises(DataError, match=WAY_OUT):
            opened(spec).check_covers(EpochImages(other, epochs=2), "train")
    (view, *_) = views(EpochImages(images(seed=4), epochs=1, batch_size=4))
    with pytest.raises(DataError, match=rf"4 of the 4 images of a batch are not in the cache.*{WAY_OUT}"):
        opened(spec)(view)
    with pytest.raises(ConfigError, match="different teacher"):
        opened(spec, image_teacher(7))
    with pytest.raises(ConfigError, match="different kind"):
        HiddenCache(path=str(tmp_path)).open(TeacherContext(student=ImageRows(Classifier(plain(0)))))
    reader = opened(spec)
    reader.classes = CLASSES - 1
    with pytest.raises(VocabularyError, match="has 5 classes, but the student has 4"):
        reader.check()
    broken = image_teacher()
    with torch.no_grad():
        broken.model.fc.bias[2] = torch.nan  # type: ignore[union-attr,operator]
    for kind in (HiddenCache, TopKCache):
        with pytest.raises(NonFiniteError):
            build(kind(path=str(tmp_path / kind.__name__)), passes, teacher=broken)


def test_identity_is_of_weights_preparation_and_what_it_is_built_from(tmp_path: Path) -> None:
    one = image_teacher()
    same = [image_identity(each) for each in (one, image_teacher(), one._replace(source="elsewhere"))]
    assert len({each["teacher"] for each in same}) == 1
    assert image_identity(one._replace(preparation=Preparation()))["teacher"] != same[0]["teacher"]
    assert image_identity(image_teacher(7))["teacher"] != same[0]["teacher"]

    def checkpoint(name: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        torch.save(create("resnet8", CLASSES).state_dict(), tmp_path / name)
        return image_identity("cifar:resnet8", {"checkpoint": str(tmp_path / name), "dtype": "float32"})

    first, copy, other = checkpoint("a.pth", 0), checkpoint("a.pth", 0), checkpoint("a.pth", 1)
    assert first == copy != other
    for name, mean in (("here", 0.5), ("there", 0.5), ("darker", 0.25)):
        save_classifier(Classifier(plain(0), Preparation((mean, mean, mean))), tmp_path / name, weights=True)
    here, there, darker = (image_identity(str(tmp_path / name))["teacher"] for name in ("here", "there", "darker"))
    assert here == there != darker
    assert image_identity("owner/model", {"revision": "abc"})["teacher"] == "owner/model@abc"


# ---- runs


def test_a_run_from_the_cache_is_the_run_with_the_teacher_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"augmentation": MILD, "max_steps": 10, "eval_dataset": pictures(7, seed=5)}
    alive = image_trainer(tmp_path / "live", data=pictures(10), **options)
    alive.train()
    spec = HiddenCache(path=str(tmp_path / "cache"))
    args = DistillConfig(
        output_dir=str(tmp_path),
        augmentation=MILD,
        max_steps=10,
        per_device_train_batch_size=2,
        seed=3,
        use_cpu=True,
        task="image-classification",
    )
    held_out = prepare_images(options["eval_dataset"], name="eval")
    training = training_passes(images(10), args)
    assert training.epochs == 2
    build(spec, training, EpochImages(held_out, batch_size=8))
    stored = image_trainer(tmp_path / "stored", data=pictures(10), teacher=repr(spec), **options)
    assert list(stored.models.teacher.models) == []
    stored.train()
    assert gap(alive.model, stored.model) == 0.0
    assert measured(alive.evaluate()) == measured(stored.evaluate())
    with pytest.raises(DataError, match=WAY_OUT):
        image_trainer(
            tmp_path / "longer", data=pictures(10), teacher=repr(spec), **{**options, "max_steps": 11}
        ).train()


def measured(record: dict[str, float]) -> dict[str, float]:
    """The log, without timings."""
    return {name: x for name, x in record.items() if not name.endswith(("runtime", "per_second"))}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    torch.manual_seed(9)
    model = create("resnet8", CLASSES).eval()
    save_classifier(
        Classifier(model, Preparation((0.5, 0.5, 0.5)), NAMES, "cifar:resnet8"), tmp_path / "teacher", weights=True
    )
    rows = pictures(20)
    images, labels = np.stack([row["image"] for row in rows]), np.array([row["label"] for row in rows])
    np.savez(tmp_path / "data.npz", images=images, labels=labels, classes=np.array(NAMES))
    np.savez(tmp_path / "other.npz", images=images, labels=labels, classes=np.array(NAMES[::-1]))
    np.savez(tmp_path / "nameless.npz", images=images)
    return tmp_path


def values(shelf: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": "image-classification",
        "model_name_or_path": "cifar:resnet8",
        "teacher_model_name_or_path": str(shelf / "teacher"),
        "train_file": str(shelf / "data.npz"),
        "teacher": f"HiddenCache(path={str(shelf / 'cache')!r})",
        "augmentation": "[RandomCrop(padding=2), HorizontalFlip()]",
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "eval_fraction": 0.2,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **more,
    }


def cache(shelf: Path, **more: Any) -> Any:
    words = (word for name, value in values(shelf, **more).items() for word in (f"--{name}", str(value)))
    return CliRunner().invoke(app, ["cache", *words])


def test_the_command_and_the_run(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cache(shelf)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert re.search(r"HiddenCache\(path=.*\): \d+ images, \d+\.\d bytes per image, in .*added now: \d+ images", said)
    alive = distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "live"), teacher="Live()")))
    original = _image_models.load_classifier

    def load(name: str, **kwargs: Any) -> Any:
        assert not name.endswith("teacher")
        return original(name, **kwargs)

    for module in (_image_models, _image_caches):
        monkeypatch.setattr(module, "load_classifier", load)
    stored = distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "stored"))))
    assert gap(alive.model, stored.model) == 0.0
    told = [list(map(measured, trainer.state.log_history)) for trainer in (alive, stored)]
    assert told[0] == told[1]
    assert any("eval_teacher_accuracy" in record for record in told[1])
    assert "HiddenCache(" in json.loads((shelf / "stored" / "run.json").read_text())["teacher"]


def refused(shelf: Path, error: type[AbkdError], match: str, **more: Any) -> None:
    with pytest.raises(error, match=match):
        distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "refused"), overwrite_output_dir=True, **more)))


def test_what_a_run_needs_of_its_cache(shelf: Path) -> None:
    refused(shelf, ConfigError, "does not exist: run abkd cache")
    assert cache(shelf).exit_code == 0
    refused(shelf, DataError, WAY_OUT, num_train_epochs=3)
    refused(shelf, DataError, WAY_OUT, seed=11)
    refused(
        shelf,
        VocabularyError,
        "class 0 is 'ant' for the teacher and 'eel' for the data",
        train_file=str(shelf / "other.npz"),
    )
    assert cache(shelf, num_train_epochs=3).exit_code == 0
    assert distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "longer"), num_train_epochs=3)))


def test_a_teacher_of_code_of_ones_own_is_known_by_what_it_built(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    more = {"teacher_model_name_or_path": "python:vision_parts:net_of_file", "max_steps": 2}
    torch.save(own_net(CLASSES).state_dict(), "weights.pt")
    assert cache(shelf, **more).exit_code == 0
    assert distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "stored"), **more)))
    torch.save(own_net(CLASSES).state_dict(), "weights.pt")
    refused(shelf, ConfigError, "cannot be used here: different teacher", **more)


@pytest.mark.filterwarnings("ignore")  # torch means to leave this to others
def test_a_quantised_teacher(shelf: Path) -> None:
    more = {"teacher_model_name_or_path": "python:vision_parts:quantised_net", "max_steps": 2}
    done = cache(shelf, **more)
    assert done.exit_code == 0, done.output
    stored = distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "stored"), **more)))
    alive = distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "live"), **{**more, "teacher": "Live()"})))
    assert gap(alive.model, stored.model) == 0.0
    assert json.loads((shelf / "live" / "run.json").read_text())["teacher_fingerprint"]


def test_unlabelled_images_get_the_classes_of_the_cached_teacher(shelf: Path) -> None:
    more = {"train_file": str(shelf / "nameless.npz"), "ce_weight": 0.0, "teacher": "TopKCache(k=2)", "max_steps": 2}
    done = cache(shelf, **more)
    assert done.exit_code == 0, done.output
    made = distill(Recipe.from_dict(values(shelf, output_dir=str(shelf / "made"), **more)))
    assert made.models.classes == CLASSES
    assert json.loads((shelf / "made" / "abkd.json").read_text())["class_names"] == list(NAMES)


def test_other_tasks_have_no_cache(shelf: Path) -> None:
    done = cache(shelf, task="zero-shot-image-classification")
    assert done.exit_code == ConfigError.exit_code
