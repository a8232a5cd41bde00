"""A classifier's rows are its own logits on its own preprocessing, even if another model reads the same batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models import cifar
from abkd.models.vision import Classifier, ImageRows, Preparation, as_classifier, load_classifier
from vision_parts import make_hf, photos

MEAN, STD = (0.30, 0.45, 0.60), (0.11, 0.22, 0.33)
PIL_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}

PROCESSORS: dict[str, dict[str, Any]] = {  # as published with models
    "whole": {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "resample": 2},
    "legacy": {"feature_extractor_type": "ViTFeatureExtractor", "size": 40, "resample": 3},
    "share": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_pct": 0.8,
        "resample": 3,
    },
    "middle": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 50},
        "do_center_crop": True,
        "crop_size": {"height": 40, "width": 40},
        "resample": 3,
    },
}
BEFORE_CUT = {"whole": 40, "legacy": 40, "share": 50, "middle": 50}


def view(pixels: Tensor, rows: list[int] | None = None) -> View:
    return View(inputs={"pixels": pixels}, rows=torch.tensor(range(len(pixels)) if rows is None else rows))


def by_hand(images: np.ndarray, side: int, cut: int, resample: int) -> Tensor:
    """The teacher's own preprocessing of ``[N, H, W, 3]``: Pillow and numpy, image by image."""
    out = []
    for image in images:
        resized = Image.fromarray(image)
        if image.shape[:2] != (side, side):
            resized = resized.resize((side, side), resample)
        start = (side - cut) // 2
        pixels = np.asarray(resized, np.float64)[start : start + cut, start : start + cut] / 255.0
        out.append((pixels - MEAN) / STD)
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("side", [40, 28, 64])
def test_a_teacher_sees_what_its_own_processor_shows_it(kind: str, side: int, tmp_path: Path) -> None:
    settings = {**PROCESSORS[kind], "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    pixels = photos(24, side)
    images = pixels.permute(0, 2, 3, 1).numpy()
    shown = by_hand(images, BEFORE_CUT[kind], 40, settings["resample"])
    with torch.no_grad():
        model = make_hf("resnet", classes=7)
        model.classifier[-1].bias -= model(shown).logits.mean(0)  # its answers are not all the same
        model.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        alone = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        wanted = alone(shown).logits
        theirs = alone(**AutoImageProcessor.from_pretrained(tmp_path)(images=list(images), return_tensors="pt")).logits

        teacher = load_classifier(str(tmp_path), what="teacher_model_name_or_path", num_classes=7)
        got = ImageRows(teacher._replace(model=teacher.model.eval()))(view(pixels)).values
        wrong = ImageRows(Classifier(alone, Preparation(size=40)))(
            view(pixels)
        ).values  # the trap: without mean and std

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(-1) == wanted.argmax(-1)).double().mean().item()

    untouched = side == BEFORE_CUT[kind]
    scale = (wrong - wanted).abs().max()
    assert (got - wanted).abs().max() < (1e-5 if untouched else 0.03) * scale
    assert (got - theirs).abs().max() < (1e-5 if untouched else 0.03) * scale
    assert accuracy(got) >= (1.0 if untouched else 0.95)
    assert accuracy(wrong) < 0.8


def test_two_models_prepare_one_batch_each_in_its_own_way() -> None:
    teacher, student = make_hf("vit", classes=5), cifar.create("resnet8", 5).eval()
    pixels = photos(6, 20)
    batch = view(pixels)
    seen_by_teacher = Preparation((0.5,) * 3, (0.5,) * 3, size=16)
    seen_by_student = Preparation(MEAN, STD)
    with torch.no_grad():
        p = ImageRows(Classifier(teacher, seen_by_teacher))(batch).values
        q = ImageRows(Classifier(student, seen_by_student))(batch).values
        mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
        assert torch.equal(q, student((pixels.float() / 255 - mean) / std))
        assert torch.equal(p, teacher(seen_by_teacher(pixels)).logits)
    assert batch.inputs["pixels"].dtype == torch.uint8
    assert torch.equal(batch.inputs["pixels"], photos(6, 20))  # neither changed the shared input


# -- the preparation -----------------------------------------------------------------------------------------------


RESIZED = [
    (kind, *sides) for kind in ("bilinear", "bicubic") for sides in (((32, 32), 224), ((64, 64), 24), ((30, 50), 41))
]


@pytest.mark.parametrize(("kind", "before", "after"), [*RESIZED, ("nearest", (32, 32), 224), ("nearest", (63, 63), 21)])
def test_resizing_is_pillows(kind: Any, before: tuple[int, int], after: int) -> None:
    pixels = photos(4, *before)
    got = Preparation(size=after, filter=kind)(pixels) * 255
    for image, mine in zip(pixels, got, strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((after, after), PIL_FILTERS[kind])
        gap = (torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float() - mine).abs()
        assert gap.mean() < 0.5  # it rounds, we do not
        assert gap.max() <= 2.0


def test_the_middle_is_cut_out_of_an_image_that_keeps_its_shape() -> None:
    pixels = photos(2, 30, 45)
    got = Preparation(size=20, resized=24, filter="bilinear")(pixels) * 255
    for image, mine in zip(pixels, got, strict=True):
        whole = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((36, 24), 2))  # width, height
        assert (torch.from_numpy(whole[2:22, 8:28]).permute(2, 0, 1).float() - mine).abs().max() <= 2.0


def test_an_image_of_the_wanted_side_is_normalised_and_nothing_else() -> None:
    pixels = photos(3, 32)
    plain = (pixels.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(Preparation(MEAN, STD)(pixels), plain)
    assert torch.equal(Preparation(MEAN, STD, size=32)(pixels), plain)
    assert torch.equal(Preparation(MEAN, STD, size=32)(pixels.float()), plain)  # mixed images are not integers
    assert torch.equal(Preparation()(pixels), pixels.float() / 255)


def test_a_gradient_goes_through_to_the_pixels_also_after_inference_mode() -> None:
    preparation = Preparation((0.12, 0.34, 0.56), STD)  # created here, for this test only
    with torch.inference_mode():
        preparation(photos(1, 8))
    pixels = photos(1, 8).float().requires_grad_()
    preparation(pixels).sum().backward()
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad[0, :, 0, 0], 1 / (255 * torch.tensor(STD)))


@pytest.mark.parametrize(
    "wrong",
    [{"std": (1.0, 0.0, 1.0)}, {"mean": (0.5,)}, {"filter": "sinc"}, {"size": 32, "resized": 24}, {"resized": 24}],
)
def test_a_preparation_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preparation(**wrong)


# -- the rows ------------------------------------------------------------------------------------------------------


class Giving(nn.Module):
    """Returns its logits inside a container."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


WRAPS: dict[str, Any] = {
    "tensor": lambda z: z,
    "object": Output,
    "tuple": lambda z: (z, z.sum()),
    "list": lambda z: [z],
    "one of a tuple": lambda z: (z,),
    "dict": lambda z: {"features": z.sum(), "logits": z},
    "named tuple": lambda z: Named(z.sum(), z),
    "map of one place": lambda z: z[:, :, None, None],
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_logits_are_found_and_rows_are_those_of_the_view(wrap: Any) -> None:
    model, pixels = Giving(wrap), photos(3, 8)
    rows = ImageRows(Classifier(model), side=8)
    assert rows.head_rows == 4
    got = rows(view(pixels, [2, 0, 0]))
    assert torch.equal(got.values, model.net(pixels.float() / 255)[[2, 0, 0]])
    cut = ImageRows(Classifier(model), classes=3, side=8)
    assert torch.equal(cut(view(pixels)).values, model.net(pixels.float() / 255)[:, :3])
    other = cut.of(Giving(wrap))
    assert (other.classes, other.head_rows) == (3, 4)


def test_what_wraps_the_model_later_is_not_asked() -> None:
    model = Giving(lambda z: z)
    rows = ImageRows(Classifier(model), side=8)
    model.forward = lambda *_: pytest.fail("the wrapper was called")  # type: ignore[method-assign]
    assert rows(view(photos(2, 8))).classes == 4


def test_counting_classes_leaves_no_trace_in_the_model() -> None:
    model = cifar.create("resnet8", 10).train()
    next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d)).eval()  # frozen by its owner
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [part.training for part in model.modules()], torch.get_rng_state()
    rows = ImageRows(Classifier(model))
    assert rows.head_rows == 10
    rows.check()
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("family", ["vit", "resnet", "convnext", "mobilenet_v2", "cifar"])
def test_a_model_in_sixteen_bits_reads_the_same_pixels(family: str) -> None:
    model = cifar.create("resnet8", 6).eval() if family == "cifar" else make_hf(family, classes=6)
    rows = ImageRows(Classifier(model, Preparation(size=16)))
    with torch.no_grad():
        exact = rows(view(photos(3, 24))).values
        rounded = rows.of(model.to(torch.bfloat16))(view(photos(3, 24))).values
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert rows.head_rows == 6


def test_a_batch_of_one_is_a_row_of_the_batch() -> None:
    model = cifar.create("wrn_10_1", 4).eval()
    rows, pixels = ImageRows(Classifier(model)), photos(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(rows(view(pixels[1:2])).values, rows(view(pixels)).values[1:2])


def test_images_are_grey_for_a_model_of_one_channel(caplog: pytest.LogCaptureFixture) -> None:
    model, pixels = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        photos(2, 9),
    )
    rows = ImageRows(Classifier(model))
    with caplog.at_level("INFO", logger="abkd"):
        assert rows.head_rows == 3
    assert "the Sequential reads one channel: it gets greyscale images" in caplog.text
    bright = (pixels.double() / 255 * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    for each in (rows, rows.of(model)):
        torch.testing.assert_close(each(view(pixels)).values, model(bright.float()))
    grey = pixels[:, :1].repeat(1, 3, 1, 1)
    torch.testing.assert_close(rows(view(grey)).values, model(pixels[:, :1] / 255))


class Flawed(nn.Module):
    """A custom module with its own bug."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.net, self.own = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)), forward

    def forward(self, x: Tensor) -> Any:
        return self.own(self.net, x)


def raising(error: Exception) -> Any:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        raise error

    return forward


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (raising(KeyError("x")), r"cannot read images of shape \[2, 3, 32, 32\] \(KeyError: 'x'\)"),
        (raising(AssertionError("Torch not compiled with CUDA enabled")), "AssertionError: Torch not compiled"),
        (lambda net, x: {"out": net(x), "aux": 3}, "must return its logits .*, got a dict with 'out', 'aux'"),
        (lambda net, x: {}, "got a dict with nothing"),
        (lambda net, x: (), "must return logits .*, got tuple"),
        (lambda net, x: None, "got NoneType"),
        (lambda net, x: {"logits": None}, "got NoneType"),
        (lambda net, x: (x.mean((1, 2, 3)), net(x)), r"for 2 images, got shape \[1, 2\]"),
        (lambda net, x: net(x).argmax(1, keepdim=True), r"got \[2, 1\] of torch.int64"),
        (lambda net, x: net(x)[:, :1], "of at least two classes"),
        (lambda net, x: net(x).reshape(2, 4), r"cannot read images of shape \[1, 3, 32, 32\]"),
    ],
)
def test_a_fault_of_somebodys_module_is_one_sentence(forward: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"the Flawed .*{said}"):
        ImageRows(Classifier(Flawed(forward))).check()


def test_a_module_that_squeezes_or_writes_into_its_input_is_read() -> None:
    pixels = photos(3, 8)
    plain, squeezing = Flawed(lambda net, x: net(x)), Flawed(lambda net, x: net(x.mul_(2)).squeeze())
    squeezing.net = plain.net
    rows = ImageRows(Classifier(squeezing))
    rows.check()
    assert torch.equal(rows(view(pixels[:1])).values, plain(pixels[:1].float() / 255 * 2))
    assert torch.equal(pixels, photos(3, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, when it is compiled
def test_lazy_modules_and_wrapped_ones_are_the_modules_themselves() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    assert ImageRows(Classifier(lazy)).head_rows == 3
    assert all(parameter.requires_grad for parameter in lazy.parameters())
    for wrapped in (nn.DataParallel(lazy), torch.compile(lazy)):
        assert as_classifier(wrapped).model is lazy
        assert as_classifier(Classifier(wrapped, Preparation(size=8))) == Classifier(lazy, Preparation(size=8))


@pytest.mark.parametrize(
    ("body", "learns"),
    [
        ([nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)], False),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Dropout()], False),
        ([nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1)], True),
        ([nn.AdaptiveAvgPool2d(1), nn.GroupNorm(1, 3)], True),
    ],
)
def test_whether_a_batch_of_one_can_be_learned_from_is_tried_without_a_trace(
    body: list[nn.Module], learns: bool
) -> None:
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(3, 4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert ImageRows(Classifier(model)).learns_from_one((8, 9)) is learns
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_is_no_row_of_logits_is_refused_with_the_way_out() -> None:
    probabilities = Giving(lambda z: z.softmax(-1))
    with pytest.raises(ConfigError, match="remove its final softmax"):
        ImageRows(Classifier(probabilities), side=8).check()
    ImageRows(Classifier(Giving(lambda z: z.log_softmax(-1))), side=8).check()  # these are logits, too
    with pytest.raises(VocabularyError, match="has 3 class names but returns 4 logits"):
        ImageRows(Classifier(Giving(lambda z: z), class_names=("a", "b", "c")), side=8).check()
    with pytest.raises(ConfigError, match=r"It accepts \[B, 3, 8, 8\]: set image_size: 8, "):
        _ = ImageRows(Classifier(Giving(lambda z: z))).head_rows
    odd = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 4))
    with pytest.raises(ConfigError, match=r"pass Classifier\(model, Preparation\(size=…\)\)"):
        _ = ImageRows(Classifier(odd)).head_rows
    assert ImageRows(Classifier(odd), side=(5, 7)).head_rows == 4
    with pytest.raises(ConfigError, match=r"for 2 images, got shape \[2, 5, 30, 30\]"):
        _ = ImageRows(Classifier(nn.Conv2d(3, 5, 3))).head_rows
