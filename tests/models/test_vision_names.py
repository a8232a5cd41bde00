"""Classifiers by name: built, fitted to the data's classes or refused, saved, and loaded back unchanged."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models import cifar
from abkd.models.vision import (
    Classifier,
    ImageRows,
    Preparation,
    as_classifier,
    check_classes,
    load_classifier,
    preparation_of,
    save_classifier,
)
from abkd.models.vision._processor import timm_preparation
from vision_parts import FAMILIES, make_hf, photos

STUDENT, TEACHER = "model_name_or_path", "teacher_model_name_or_path"
ANIMALS = ("cat", "dog", "fox", "owl")
CROPPED = Preparation((0.30, 0.45, 0.60), (0.11, 0.22, 0.33), size=16, resized=20)
CIFAR_MEAN = (0.5071, 0.4867, 0.4408)


def logits(classifier: Classifier, side: int = 24) -> Tensor:
    rows = ImageRows(classifier._replace(model=classifier.model.eval()))
    with torch.no_grad():
        return rows(View(inputs={"pixels": photos(5, side)}, rows=torch.arange(5))).values


def saved(classifier: Classifier, directory: Path) -> str:
    save_classifier(classifier, directory, weights=True)
    return str(directory)


# -- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_model_comes_back_as_it_was_with_us_and_without(family: str, tmp_path: Path) -> None:
    student = Classifier(make_hf(family, classes=4), CROPPED, ANIMALS)
    directory = saved(student, tmp_path)
    again = load_classifier(directory, what=TEACHER, num_classes=4, class_names=ANIMALS)
    assert (again.preparation, again.class_names, again.source) == (CROPPED, ANIMALS, directory)
    assert torch.equal(logits(again), logits(student))
    assert as_classifier(again.model)[1:3] == (CROPPED, ANIMALS)  # it records its origin

    alone = AutoModelForImageClassification.from_pretrained(directory).eval()
    images = list(photos(5, 24).permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        theirs = alone(**AutoImageProcessor.from_pretrained(directory)(images=images, return_tensors="pt")).logits
    assert alone.config.id2label == dict(enumerate(ANIMALS))
    assert alone.config.label2id == {"cat": 0, "dog": 1, "fox": 2, "owl": 3}
    torch.testing.assert_close(theirs, logits(student), rtol=0.0, atol=0.05 * theirs.abs().max().item())
    assert not (tmp_path / "abkd.json").exists()


def test_a_description_is_put_beside_weights_that_lie_there(tmp_path: Path) -> None:
    model = make_hf("resnet", classes=4)
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    save_classifier(Classifier(model, Preparation(), ANIMALS), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    again = load_classifier(str(tmp_path), what=TEACHER)
    assert (again.preparation, again.class_names) == (Preparation(), ANIMALS)


def test_a_student_gets_a_head_for_the_classes_of_the_data_and_a_teacher_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = saved(Classifier(make_hf("vit", classes=7), CROPPED), tmp_path)
    with pytest.raises(VocabularyError, match="has 7 classes and the data has 4"):
        load_classifier(directory, what=TEACHER, num_classes=4)
    with caplog.at_level(logging.WARNING, logger="abkd"):
        student = load_classifier(directory, what=STUDENT, num_classes=4, class_names=ANIMALS, fresh_head=True)
    assert "gets a new head for 4 classes (classifier.bias, classifier.weight), initialised randomly" in caplog.text
    assert (ImageRows(student).head_rows, student.class_names) == (4, ANIMALS)
    trained = AutoModelForImageClassification.from_pretrained(directory).state_dict()
    kept = {name: value for name, value in student.model.state_dict().items() if "classifier" not in name}
    assert len(kept) == len(trained) - 2
    assert all(torch.equal(value, trained[name]) for name, value in kept.items())
    again = load_classifier(saved(student, tmp_path / "student"), what=TEACHER, num_classes=4)
    assert again.class_names == ANIMALS
    assert torch.equal(logits(again), logits(student))


def test_a_head_for_as_many_other_classes_is_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = ("car", "bus", "van", "tram")
    directory = saved(Classifier(make_hf("resnet", classes=4), CROPPED, others), tmp_path)
    student = load_classifier(directory, what=STUDENT, class_names=ANIMALS, fresh_head=True)
    assert student.class_names == ANIMALS
    assert "trained for other classes" in caplog.text
    teacher = load_classifier(directory, what=TEACHER, class_names=ANIMALS)
    assert teacher.class_names == others
    with pytest.raises(VocabularyError, match="class 0 is 'car' for the teacher and 'cat' for the data"):
        check_classes(student, teacher, ANIMALS)


def test_a_model_without_a_trained_head_is_no_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_hf("vit", classes=4).config
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no weights for classifier\.bias, classifier\.weight"):
        load_classifier(str(tmp_path), what=TEACHER, num_classes=4)
    student = load_classifier(str(tmp_path), what=STUDENT, num_classes=4, fresh_head=True)
    assert "gets a new head" in caplog.text
    assert "its preprocessing is unknown" in caplog.text
    assert student.preparation == Preparation(size=16)  # the only size that its position embeddings allow
    assert ImageRows(student).head_rows == 4


def test_weights_are_float32_unless_asked_for_otherwise(tmp_path: Path) -> None:
    directory = saved(Classifier(make_hf("vit", classes=4).to(torch.bfloat16), CROPPED), tmp_path)
    assert next(load_classifier(directory, what=STUDENT).model.parameters()).dtype == torch.float32
    half = load_classifier(directory, what=TEACHER, dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    ours = load_classifier("cifar:resnet8", what=STUDENT, fresh_head=True, dtype=torch.bfloat16)
    assert {each.dtype for each in ours.model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="model_init_kwargs: dtype must be float32"):
        load_classifier(directory, what=STUDENT, dtype="int8")


# -- image processors ----------------------------------------------------------------------------------------------


def processor(directory: Path, **settings: Any) -> str:
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(directory)


def test_what_a_processor_does_twice_is_seen(tmp_path: Path) -> None:
    """EfficientNet's takes pixels from -1 to 1 and divides by the deviation once more."""
    std = (0.5, 0.4, 0.3)
    name = processor(
        tmp_path,
        image_processor_type="EfficientNetImageProcessor",
        size={"height": 24, "width": 24},
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        include_top=True,
        image_mean=(0.1, 0.2, 0.3),
        image_std=std,
        resample=3,
    )
    found = preparation_of(name)
    assert found is not None
    pixels = photos(2, 24)
    x = pixels.double() / 127.5 - 1
    mean, deviation = torch.tensor((0.1, 0.2, 0.3))[:, None, None], torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found(pixels).double(), (x - mean) / deviation / deviation, rtol=0.0, atol=1e-4)


def test_a_processor_that_swaps_channels_is_refused(tmp_path: Path) -> None:
    name = processor(
        tmp_path,
        image_processor_type="MobileViTImageProcessor",
        size={"shortest_edge": 28},
        crop_size={"height": 24, "width": 24},
        do_flip_channel_order=True,
        do_normalize=False,
    )
    with pytest.raises(ConfigError, match=r"Classifier\(module, Preparation\(mean, std, size\)\)"):
        preparation_of(name)


def test_a_processor_that_does_not_import_is_read_from_its_file(tmp_path: Path) -> None:
    settings = {"size": {"height": 20, "width": 20}, "image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}
    name = processor(tmp_path, image_processor_type="OfTomorrowImageProcessorFast", resample=2, **settings)
    assert preparation_of(name) == Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), size=20, filter="bilinear")
    settings["size"] = {"height": 20, "width": 30}
    with pytest.raises(ConfigError, match="images of size"):
        preparation_of(processor(tmp_path, image_processor_type="OfTomorrowImageProcessorFast", **settings))
    assert preparation_of(str(tmp_path / "nothing")) is None


def test_what_timm_says_of_its_models_is_understood() -> None:
    published = {  # timm/resnet50.tv_in1k
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    wanted = Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=224, resized=256, filter="bilinear")
    assert timm_preparation(published) == wanted
    squashed = timm_preparation({**published, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"})
    assert (squashed.resized, squashed.filter) == (None, "bicubic")
    module = nn.Flatten()
    module.pretrained_cfg = published  # type: ignore[assignment]  # as timm's models have it
    assert as_classifier(module).preparation == wanted


# -- our own networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_2", "vgg8", "shufflenetv2"])
def test_a_cifar_network_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    student = load_classifier(f"cifar:{name}", what=STUDENT, num_classes=4, class_names=ANIMALS, fresh_head=True)
    assert (student.class_names, student.preparation.mean, student.preparation.size) == (ANIMALS, CIFAR_MEAN, None)
    named = student._replace(preparation=CROPPED)
    again = load_classifier(saved(named, tmp_path), what=TEACHER, num_classes=4, class_names=ANIMALS)
    assert again[1:] == named[1:]
    assert torch.equal(logits(again, 32), logits(named, 32))
    description = json.loads((tmp_path / "abkd.json").read_text())
    assert description["name"] == f"cifar:{name}"
    assert (description["num_classes"], tuple(description["class_names"])) == (4, ANIMALS)
    assert as_classifier(again) is again


def test_a_published_checkpoint_makes_a_teacher(tmp_path: Path) -> None:
    net = cifar.create("resnet20", 10).eval()
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": net.state_dict()}, path)
    teacher = load_classifier("cifar:resnet20", what=TEACHER, num_classes=10, checkpoint=str(path))
    assert teacher.class_names is None  # not in the file
    wanted = Preparation(CIFAR_MEAN, (0.2675, 0.2565, 0.2761))
    assert torch.equal(logits(teacher, 32), logits(Classifier(net, wanted), 32))
    with pytest.raises(ConfigError, match="num_classes=10"):
        load_classifier("cifar:resnet20", what=TEACHER, num_classes=100, checkpoint=str(path))
    with pytest.raises(ConfigError, match=r"teacher_model_init_kwargs: \{checkpoint: resnet20\.pth\}"):
        load_classifier("cifar:resnet20", what=TEACHER, num_classes=10)


def test_a_saved_network_can_become_a_student_for_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_classifier("cifar:resnet8", what=STUDENT, num_classes=6, fresh_head=True)
    directory = saved(first, tmp_path)
    with pytest.raises(VocabularyError, match="has 6 classes and the data has 4"):
        load_classifier(directory, what=TEACHER, num_classes=4)
    student = load_classifier(directory, what=STUDENT, class_names=ANIMALS, fresh_head=True)
    assert "new head for 4 classes (fc.weight, fc.bias)" in caplog.text
    assert (ImageRows(student).head_rows, student.class_names) == (4, ANIMALS)
    trained, own = first.model.state_dict(), student.model.state_dict()
    assert [name for name in own if not torch.equal(own[name], trained[name])] == ["fc.weight", "fc.bias"]
    again = load_classifier(saved(student, tmp_path / "next"), what=TEACHER, class_names=ANIMALS)
    assert torch.equal(logits(again, 32), logits(student, 32))


def test_a_model_given_in_python_is_described_and_its_weights_load_without_us(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    given = as_classifier(model)
    assert given == Classifier(model)
    directory = saved(given._replace(class_names=ANIMALS, preparation=Preparation(size=8)), tmp_path)
    with pytest.raises(ConfigError, match=r"safetensors\.torch\.load_model"):
        load_classifier(directory, what=TEACHER)
    again = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    load_model(again, tmp_path / "model.safetensors")
    assert torch.equal(again[1].weight, model[1].weight)
    assert json.loads((tmp_path / "abkd.json").read_text())["size"] == 8


def test_a_network_of_ones_own_comes_back_by_the_function_that_built_it(tmp_path: Path) -> None:
    name = "python:vision_parts:own_net"
    student = load_classifier(name, what=STUDENT, class_names=ANIMALS, fresh_head=True, width=6)
    assert (student.class_names, student.options) == (ANIMALS, {"num_classes": 4, "width": 6})
    allowed = {"allow_code": ["vision_parts"]}
    again = load_classifier(saved(student, tmp_path), what=TEACHER, num_classes=4, **allowed)
    assert again[1:] == student[1:]
    assert torch.equal(logits(again, 8), logits(student, 8))
    usual = load_classifier(name, what=STUDENT, fresh_head=True)  # the number of classes is recorded
    again = load_classifier(saved(usual, tmp_path / "usual"), what=TEACHER, **allowed)
    assert torch.equal(logits(again, 8), logits(usual, 8))


OWN = {"allow_code": ["vision_parts"]}


@pytest.mark.parametrize("net", ["tied_net", "lazy_net", "grey_net"])
@pytest.mark.parametrize("written_by", ["us", "a trainer"])
def test_weights_that_are_shared_or_lazy_and_images_in_grey_come_back(
    net: str, written_by: str, tmp_path: Path
) -> None:
    student = load_classifier(f"python:vision_parts:{net}", what=STUDENT, num_classes=4, fresh_head=True)
    rows = ImageRows(student)
    rows.check()
    save_classifier(rows.classifier, tmp_path, weights=True)
    if written_by == "a trainer":  # which keeps a weight under each of its names
        weights = {name: value.clone() for name, value in student.model.state_dict().items()}
        save_file(weights, tmp_path / "model.safetensors")
    again = load_classifier(str(tmp_path), what=TEACHER, **OWN)
    with torch.no_grad():
        for side in (16, 24):
            found = again.model.eval()(again.preparation(photos(5, side)))
            assert torch.equal(found, rows.classifier.model.eval()(rows.classifier.preparation(photos(5, side))))
    assert again.preparation.grey == (net == "grey_net")
    other = load_classifier(str(tmp_path), what=STUDENT, num_classes=5, fresh_head=True, **OWN)
    assert ImageRows(other).head_rows == 5


def test_a_shared_weight_of_which_a_file_holds_two_is_refused(tmp_path: Path) -> None:
    student = load_classifier("python:vision_parts:tied_net", what=STUDENT, num_classes=4, fresh_head=True, tied=False)
    saved(student._replace(options={"num_classes": 4}), tmp_path)
    with pytest.raises(ConfigError, match=r"different weights for 0\.weight, 2\.weight, which the network shares"):
        load_classifier(str(tmp_path), what=TEACHER, **OWN)


@pytest.mark.parametrize("classes", [4, 7])
def test_weights_that_are_missing_are_named_whatever_the_classes(classes: int, tmp_path: Path) -> None:
    saved(load_classifier("cifar:resnet8", what=STUDENT, num_classes=4, fresh_head=True), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["conv1.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has no weights for conv1\.weight: download or save it again"):
        load_classifier(str(tmp_path), what=STUDENT, num_classes=classes, fresh_head=True)


def test_a_head_for_the_same_classes_in_another_order_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = load_classifier("cifar:resnet8", what=STUDENT, class_names=ANIMALS, fresh_head=True)
    directory = saved(student, tmp_path)
    for names, said in ((ANIMALS, False), (ANIMALS[::-1], True)):
        caplog.clear()
        again = load_classifier(directory, what=STUDENT, class_names=names, fresh_head=True)
        assert again.class_names == names
        assert ("was trained for other classes, or for the same in another order" in caplog.text) == said


def test_options_that_no_file_can_hold_are_refused_of_a_student(tmp_path: Path) -> None:
    name = "python:vision_parts:own_net"
    student = load_classifier(name, what=STUDENT, num_classes=4, fresh_head=True, width=np.int64(6))
    assert load_classifier(saved(student, tmp_path), what=TEACHER, **OWN).options == {"num_classes": 4, "width": 6}
    with pytest.raises(ConfigError, match=r"model_init_kwargs: width must be .*, which can be saved with the student"):
        load_classifier(name, what=STUDENT, num_classes=4, fresh_head=True, width=nn.Tanh)


def test_an_adapter_of_an_image_classifier_is_no_classifier(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="holds an adapter, which is not supported for image classifiers: merge it"):
        load_classifier(str(tmp_path), what=STUDENT)


# -- a saved directory executes no code ---------------------------------------------------------------------------


def claiming(directory: Path, **changed: Any) -> str:
    """A saved classifier whose description was changed."""
    student = load_classifier("cifar:resnet8", what=STUDENT, num_classes=4, fresh_head=True)
    saved(student, directory)
    file = directory / "abkd.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    return str(directory)


def test_code_that_a_directory_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted_net.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    name = claiming(tmp_path / "gift", name="python:planted_net:build")
    for allowed in ([], ["planted"], ["vision_parts"]):
        with pytest.raises(ConfigError, match=r"only runs if you allow it: set allow_code: \[planted_net\]"):
            load_classifier(name, what=TEACHER, num_classes=4, allow_code=allowed)
    assert not (tmp_path / "ran").exists()


def test_of_an_allowed_module_a_directory_reaches_only_what_is_written_in_it(tmp_path: Path) -> None:
    name = claiming(tmp_path, name="python:vision_parts:Any")
    with pytest.raises(ConfigError, match="Any must be defined in vision_parts, not imported"):
        load_classifier(name, what=TEACHER, num_classes=4, allow_code=["vision_parts"])


class Zoo(types.ModuleType):
    """A stub of timm and of torchvision.models."""

    def is_model(self, name: str) -> bool:
        return name == "tiny"

    def list_models(self, module: Any) -> list[str]:
        return ["tiny"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: pytest.fail(f"{name} was called")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "timm:hf-hub:somebody/net"}, "timm has no architecture of this name"),
        ({"name": "timm:tiny", "options": {"checkpoint_path": "evil.pth"}}, "checkpoint_path, which would load"),
        ({"name": "timm:tiny", "options": {"pretrained": True}}, "pretrained, which would load"),
        ({"name": "torchvision:tiny", "options": {"weights": "DEFAULT"}}, "weights, which would load"),
        ({"name": "torchvision:deeplabv3_resnet50"}, "no classifier of this name"),
        ({"name": "cifar:create"}, "no CIFAR network"),
        ({"options": {"colour": 3}}, "cannot build cifar:resnet8"),
        ({"num_classes": 10**12}, "does not describe a classifier"),
        ({"name": "cifar:wrn_10_1000000"}, "a width of 1 to 32"),
        ({"name": ["python:os:system"]}, "does not describe a classifier"),
        ({"options": [1]}, "does not describe a classifier"),
        ({"mean": [0.5, "x", 0.5]}, "does not describe a classifier"),
        ({"size": -1}, "size"),
    ],
)
def test_a_directory_can_ask_for_an_architecture_and_nothing_else(
    changed: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zoo in ("timm", "torchvision.models"):
        monkeypatch.setitem(sys.modules, zoo, Zoo(zoo))
    with pytest.raises(ConfigError, match=said):
        load_classifier(claiming(tmp_path, **changed), what=TEACHER)


# -- invalid names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("keras:resnet50", {}, "expected one of cifar:, .* before 'resnet50', got 'keras'"),
        ("cifar:resnet21", {}, "no CIFAR network"),
        ("python:vision_parts", {}, "expected python:package.module:function"),
        ("python:vision_parts:no_such_net", {}, "cannot be imported"),
        ("python:vision_parts:own_net", {"colour": 3}, "cannot build python:vision_parts:own_net"),
        ("python:vision_parts:leaving", {}, "cannot build python:vision_parts:leaving .*SystemExit: 0"),
        ("python:vision_parts:without_values", {}, "weights on the meta device: initialise them"),
        ("cifar:resnet20", {"pretrained": True}, "takes checkpoint and dtype, got pretrained"),
        (
            "nobody/has-this-model",
            {},
            "model_name_or_path: cannot load an image classifier from 'nobody/has-this-model'",
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_classifier(name, what=STUDENT, num_classes=4, fresh_head=True, **options)


def test_broken_directories_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        load_classifier(str(tmp_path), what=STUDENT)
    student = load_classifier("cifar:resnet8", what=STUDENT, num_classes=4, fresh_head=True)
    save_classifier(student, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot load the weights in .*"):
        load_classifier(str(tmp_path), what=STUDENT)
    save_model(cifar.create("vgg8", 4), str(tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"belong to another architecture \(block0\.0\.bias"):
        load_classifier(str(tmp_path), what=STUDENT)
    with pytest.raises(ConfigError, match="belong to another architecture"):
        load_classifier(str(tmp_path), what=STUDENT, num_classes=5, fresh_head=True)
    with pytest.raises(ConfigError, match="only dtype can be set, got checkpoint"):
        load_classifier(str(tmp_path), what=STUDENT, checkpoint="x.pth")
    (tmp_path / "abkd.json").write_text('{"name": "cifar:resnet8"}')
    with pytest.raises(ConfigError, match="does not describe a classifier"):
        load_classifier(str(tmp_path), what=STUDENT)
    with pytest.raises(ConfigError, match="got dict"):
        as_classifier({})  # type: ignore[arg-type]


Spoil = Callable[[Path], object]


def put(**changed: Any) -> Spoil:
    def spoil(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return spoil


def rewrite(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Spoil:
    def spoil(directory: Path) -> None:
        file = directory / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return spoil


def cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without(part: str) -> Spoil:
    return rewrite(lambda weights: {name: weight for name, weight in weights.items() if part not in name})


BROKEN: dict[str, tuple[Spoil, str]] = {
    "cut short": (cut, r"model\.safetensors"),
    "empty": (lambda path: (path / "model.safetensors").write_bytes(b""), "is empty"),
    "pointer": (
        lambda path: (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "nan": (rewrite(lambda weights: {name: weight * torch.nan for name, weight in weights.items()}), "not finite"),
}
BROKEN_HF: dict[str, tuple[Spoil, str]] = {
    **BROKEN,
    "config is a list": (lambda path: (path / "config.json").write_text("[]"), "must hold a JSON object"),
    "odd activation": (put(hidden_act="nope"), "cannot load an image classifier"),
    "code": (put(auto_map={"AutoConfig": "own.C"}, model_type="own"), "cannot load an image classifier"),
    "code on the hub": (put(attn_implementation="owner/kernel"), "names code on the hub"),
    "layer lost": (without(".1."), "it has no weights for"),
    "layer not known": (put(num_hidden_layers=1), "has weights for more layers than its config.json"),
}


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN)
def test_a_directory_of_ours_with_a_fault_is_one_sentence(spoil: Spoil, said: str, tmp_path: Path) -> None:
    saved(load_classifier("cifar:resnet8", what=STUDENT, num_classes=4, fresh_head=True), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=f"teacher_model_name_or_path: .*{said}"):
        load_classifier(str(tmp_path), what=TEACHER)


@pytest.mark.parametrize(("spoil", "said"), BROKEN_HF.values(), ids=BROKEN_HF)
def test_a_directory_of_transformers_with_a_fault_is_one_sentence(spoil: Spoil, said: str, tmp_path: Path) -> None:
    saved(Classifier(make_hf("vit", classes=4), CROPPED, ANIMALS), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=f"teacher_model_name_or_path: .*{said}"):
        load_classifier(str(tmp_path), what=TEACHER)


def test_batch_statistics_that_are_lost_make_no_teacher(tmp_path: Path) -> None:
    saved(Classifier(make_hf("resnet", classes=4), CROPPED, ANIMALS), tmp_path)
    without("running_var")(tmp_path)
    with pytest.raises(ConfigError, match=r"has no weights for .*running_var"):
        load_classifier(str(tmp_path), what=TEACHER)


def test_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    torch.save(cifar.create("resnet8", 4).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConfigError, match=r"got the file .*net\.pth; .*teacher_model_init_kwargs: \{checkpoint: "):
        load_classifier(str(tmp_path / "net.pth"), what=TEACHER)


# -- classes -------------------------------------------------------------------------------------------------------


def telling(names: tuple[str, ...] | None, count: int = 4) -> Classifier:
    return Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, count)), class_names=names)


@pytest.mark.parametrize(
    ("student", "teacher", "data"),
    [
        (ANIMALS, ANIMALS, ANIMALS),
        (None, ("Cat", "DOG", "fox", "owl"), ANIMALS),
        (None, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), ANIMALS),
        (None, ("house cat, cat", "dog, hound", "red_fox, fox", "owl"), ANIMALS),
        (None, ANIMALS, ("0", "1", "2", "3")),
        (None, ANIMALS, ("n02123045", "n02084071", "n02118333", "n01621127")),
        (None, ANIMALS, None),
    ],
)
def test_the_same_classes_under_the_names_that_people_use(student: Any, teacher: Any, data: Any) -> None:
    check_classes(telling(student), telling(teacher), data)


@pytest.mark.parametrize(
    ("student", "teacher", "data", "said"),
    [
        (
            None,
            ("cat", "fox", "dog", "owl"),
            ANIMALS,
            "class 1 is 'fox' for the teacher and 'dog' for the data, which has the same",
        ),
        (
            None,
            ("cat", "dog", "fox", "emu"),
            ANIMALS,
            "class 3 is 'emu' for the teacher and 'owl' for the data: number",
        ),
        (("cat", "dog", "owl", "fox"), ANIMALS, None, "class 2 is 'owl' for the student and 'fox' for the teacher"),
        (None, ANIMALS, ANIMALS[:3], "the teacher has 4 classes and the data 3"),
    ],
)
def test_other_classes_or_another_order_are_refused(student: Any, teacher: Any, data: Any, said: str) -> None:
    with pytest.raises(VocabularyError, match=said):
        check_classes(telling(student), telling(teacher), data)


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(VocabularyError, match="the student has 4 classes and the teacher 5"):
        check_classes(telling(None), telling(None, 5), None)
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)))  # accepts no other image size
    check_classes(ImageRows(flat, side=8), ImageRows(telling(None, 5)), ANIMALS[:3])


# -- collections that are extras -----------------------------------------------------------------------------------

WITHOUT = {zoo: importlib.util.find_spec(zoo) is None for zoo in ("timm", "torchvision")}


@pytest.mark.parametrize("zoo", WITHOUT)
def test_a_collection_that_is_not_there_is_named(zoo: str) -> None:
    if not WITHOUT[zoo]:
        pytest.skip(f"{zoo} is installed here")
    with pytest.raises(ConfigError, match=f"pip install {zoo}"):
        load_classifier(f"{zoo}:resnet18", what=STUDENT, num_classes=4, fresh_head=True)


@pytest.mark.skipif(WITHOUT["timm"], reason="timm is not installed here")
def test_a_timm_model_comes_back_as_it_was(tmp_path: Path) -> None:
    student = load_classifier(
        "timm:vit_tiny_patch16_224", what=STUDENT, class_names=ANIMALS, fresh_head=True, pretrained=False, img_size=32
    )
    assert ImageRows(student._replace(preparation=Preparation(size=32))).head_rows == 4
    again = load_classifier(saved(student._replace(preparation=Preparation(size=32)), tmp_path), what=TEACHER)
    assert torch.equal(logits(again, 32), logits(student._replace(preparation=Preparation(size=32)), 32))


@pytest.mark.skipif(WITHOUT["torchvision"], reason="torchvision is not installed here")
def test_a_torchvision_model_comes_back_as_it_was(tmp_path: Path) -> None:
    student = load_classifier("torchvision:resnet18", what=STUDENT, class_names=ANIMALS, fresh_head=True, weights=None)
    again = load_classifier(saved(student, tmp_path), what=TEACHER)
    assert again[1:] == student[1:]
    assert torch.equal(logits(again, 64), logits(student, 64))
