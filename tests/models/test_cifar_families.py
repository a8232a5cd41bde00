"""The CIFAR networks match the published ones: names, shapes, counts and outputs; and they take any image size."""

from __future__ import annotations

import pytest
import torch
from cifar_published import judge, shapes, weights
from torch import nn

from abkd.errors import ConfigError
from abkd.models.cifar import create, names

COUNTS = {  # parameters with 100 classes
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet20_a": 275_572,
    "resnet32_a": 470_004,
    "resnet44_a": 664_436,
    "resnet56_a": 858_868,
    "resnet110_a": 1_733_812,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
# One of each kind of block: deeper variants only add more of the same blocks.
KINDS = ("resnet8", "resnet8x4", "resnet20_a", "wrn_16_1", "wrn_16_2", "vgg8", "vgg13", *list(COUNTS)[-3:])


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_there_are_these_names() -> None:
    assert set(names()) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_count_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes(name, 100)
    assert count(network) == COUNTS[name]


def test_the_count_of_the_paper_that_has_ten_classes() -> None:
    assert count(create("resnet20_a", 10)) == 269_722  # He et al., table 6: 0.27M
    assert count(create("resnet110_a", 10)) == 1_727_962  # 1.7M
    assert count(create("wrn_28_10", 10)) == 36_479_194  # Zagoruyko and Komodakis, table 4: 36.5M


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*KINDS, "resnet20", "wrn_22_3"])
def test_computes_what_the_published_forward_pass_computes(name: str, training: bool) -> None:
    state = weights(name, 7, torch.float64)
    network = create(name, 7).double().train(training)
    network.load_state_dict(state)
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    expected = judge(name, state, images, training=training)
    assert expected.std(dim=0).min() > 0
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def test_vgg_halves_images_of_64_pixels_once_more() -> None:
    state = weights("vgg8", 5, torch.float64)
    network = create("vgg8", 5).double().eval()
    network.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(images), judge("vgg8", state, images, training=False))


@pytest.mark.parametrize("name", KINDS)
def test_other_sizes_and_a_batch_of_one(name: str) -> None:
    network = create(name, 4).eval()
    for height, width in ((32, 32), (8, 8), (28, 20), (33, 47), (64, 64)):
        images = torch.rand(2, 3, height, width)
        logits = network(images)
        assert logits.shape == (2, 4)
        assert logits.isfinite().all()
        torch.testing.assert_close(network(images[:1]), logits[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_learns(name: str) -> None:
    for side in (8, 32):
        network = create(name, 4)
        nn.functional.cross_entropy(network(torch.rand(4, 3, side, side)), torch.arange(4)).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            before_normalisation = name.startswith("vgg") and key.endswith(("0.bias", "3.bias"))  # has no influence
            assert before_normalisation or parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_of_torch_decides_the_weights(name: str) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(create(name).parameters())

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_40_2", "vgg13", "mobilenetv2"])
def test_convolutions_begin_as_he_et_al_draw_them(name: str) -> None:
    checked = 0
    for module in create(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06)
            assert abs(module.weight.mean().item()) < 0.06 * expected
            checked += 1
    assert checked > 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ResNet20", "Did you mean 'resnet20'"),
        ("wrn-40-2", "Did you mean 'wrn_40_2'"),
        ("mobilenet_v2", "Did you mean 'mobilenetv2'"),
        ("convnext", "Choose from: resnet8, .*wrn_DEPTH_WIDTH"),
        ("wrn_41_2", "a depth of 10, 16, 22"),
        ("wrn_4_2", "a depth of 10, 16, 22"),
        ("wrn_16_0", "a width of 1 to"),
    ],
)
def test_an_unknown_name_is_refused_with_a_guess(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        create(name)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes must be at least 2, got 1"):
        create("resnet8", 1)
