"""CLIP by name, class features, and the teacher that classifies by captions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from clip_parts import MEAN, NAMES, STD, clip_in, text_features
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ViTConfig, ViTForImageClassification

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models.clip import CLIP_MEAN, CLIP_STD, ZeroShot, class_features, clip_preparation, load_clip, load_clip_pair
from abkd.models.prompted import PromptedStudent
from abkd.models.vision import ImageRows, Preparation, check_classes

PHOTO = "a photo of a {}."


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "teacher"
    clip_in(path, 1, width=32, projection=24)
    return path


@pytest.fixture
def clip(directory):
    return load_clip(str(directory), what="teacher_model_name_or_path")


@pytest.fixture
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)


def test_class_features_are_those_of_the_captions(clip, tokenizer):
    found = class_features(clip, tokenizer, ["zero", "twenty_two"], "a photo of the digit {}!")
    captions = ["a photo of the digit zero!", "a photo of the digit twenty two!"]
    for feature, caption in zip(found, captions, strict=True):
        expected = text_features(clip, **tokenizer([caption], return_tensors="pt"))[0]
        torch.testing.assert_close(feature, expected / expected.norm(), rtol=0, atol=1e-5)  # padding changes nothing
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_many_classes_are_taken_in_parts(clip, tokenizer, monkeypatch):
    names = [f"{a} {b}" for a in NAMES for b in NAMES]
    whole = class_features(clip, tokenizer, names)
    monkeypatch.setattr("abkd.models.clip._CAPTIONS_AT_ONCE", 5)
    torch.testing.assert_close(class_features(clip, tokenizer, names), whole, rtol=0, atol=1e-5)


def test_logits_are_those_of_the_clip(clip, tokenizer):
    pixels = torch.randn(5, 3, 8, 8)
    captions = tokenizer([PHOTO.format(name) for name in NAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip(pixel_values=pixels, **captions).logits_per_image
        found = ZeroShot(clip, class_features(clip, tokenizer, NAMES), NAMES)(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert expected.std() > 0.1


def test_sixteen_bits_and_autocast_cost_the_tower_and_not_the_head(directory, tokenizer):
    clip = load_clip(str(directory), what="", dtype=torch.bfloat16)
    teacher = ZeroShot(clip, class_features(clip, tokenizer, NAMES), NAMES)
    features = torch.randn(4, 24)
    expected = teacher.head(features)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(teacher.head(features), expected)
        assert teacher(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_pair(directory, tmp_path):
    clip_in(tmp_path / "student", 2, width=16, projection=12, side=6)
    names = ["zero", "one", "two"]
    teacher, student = load_clip_pair(
        str(directory), str(tmp_path / "student"), names, template="the digit {}", prompt_length=2, prompt_depth=3
    )
    assert isinstance(teacher.model, ZeroShot)
    assert isinstance(student.model, PromptedStudent)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert student.model.prompts.shape == (3, 2, 16)
    assert (teacher.preparation, student.preparation) == (Preparation(MEAN, STD, 8), Preparation(MEAN, STD, 6))
    check_classes(student, teacher, names)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    view = View(inputs={"pixels": pixels}, rows=torch.arange(2))
    assert [ImageRows(each)(view).logits(slice(None)).shape for each in (teacher, student)] == [(2, 3), (2, 3)]
    same = student.model.head.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in teacher.model.head.state_dict().items())
    assert same["class_features"].data_ptr() != teacher.model.head.class_features.data_ptr()


def test_pixels_as_the_files_say(directory, clip, tmp_path):
    assert clip_preparation(str(directory), clip) == Preparation(MEAN, STD, 8)
    assert clip_preparation(str(tmp_path), clip) == Preparation(CLIP_MEAN, CLIP_STD, 8, 8)  # no file: as OpenAI's
    side = {"height": 224, "width": 224}
    told = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN, "image_std": STD, "resample": 3}
    told |= {"size": {"shortest_edge": 224}, "crop_size": side, "do_center_crop": True, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    expected = Preparation(MEAN, STD, 8, 8)  # its size is the tower's, whatever the file specifies
    found = clip_preparation(str(tmp_path), clip)
    assert replace(found, mean=MEAN, std=STD) == expected
    assert found.mean + found.std == pytest.approx(MEAN + STD, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "template", "error", "says"),
    [
        (["zero"], "a photo of a digit", ConfigError, "needs exactly one {} for the class name"),
        (["zero"], "{} and {}", ConfigError, "needs exactly one {} for the class name"),
        ([], PHOTO, ConfigError, "needs class names"),
        (["zero " * 20], PHOTO, ConfigError, "reads at most 16 tokens"),
        (["zero", "one", "Zero"], PHOTO, VocabularyError, "'a photo of a zero.' and 'a photo of a Zero.'"),
    ],
)
def test_captions_that_cannot_be_meant(clip, tokenizer, names, template, error, says):
    with pytest.raises(error, match=says):
        class_features(clip, tokenizer, names, template)


def test_no_clip_there(tmp_path, directory):
    with pytest.raises(ConfigError, match=r"teacher_model_name_or_path: there is no model directory .*nowhere"):
        load_clip_pair(str(tmp_path / "nowhere"), str(directory), NAMES)
    with pytest.raises(ConfigError, match=r"^model_name_or_path: there is no model directory .*nowhere"):
        load_clip_pair(str(directory), str(tmp_path / "nowhere"), NAMES)


def test_another_model_is_no_clip(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **size)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"expected a CLIPModel of transformers .*, a ViTModel"):
        load_clip(str(tmp_path), what="model_name_or_path")


def test_half_a_checkpoint_is_refused(tmp_path):
    clip_in(tmp_path, 3, width=16, projection=8, layers=1)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("text_model")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights are missing from .* such as text_model\."):
        load_clip(str(tmp_path), what="model_name_or_path")
