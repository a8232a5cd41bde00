"""Published checkpoints of CIFAR networks: their containers and names, and the errors if they do not fit."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cifar_published import akamaster, judge, weights
from safetensors.torch import save_file
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.models.cifar import create, load_checkpoint, names


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    assert own.keys() == state.keys()
    for key, value in own.items():
        assert torch.equal(value, state[key]), key


def repdistiller(state: dict[str, Tensor]) -> dict[str, Any]:
    """The last checkpoint of ``train_teacher.py``, with its flags and its optimizer."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.05, momentum=0.9)
    flags = argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180, 210], weight_decay=5e-4)
    return {"opt": flags, "model": state, "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("name", names())
def test_repdistiller(name: str, tmp_path: Path) -> None:
    state = weights(name, 6)
    torch.save(repdistiller(state), tmp_path / "last.pth")
    network = create(name, 6)
    load_checkpoint(network, tmp_path / "last.pth")
    assert_holds(network, state)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_pytorch_resnet_cifar10(modern: bool, counted: bool, tmp_path: Path) -> None:
    """Trained by a torch that wrote another file format and did not count batches; the network under test computes
    what the published one computes.
    """
    state = weights("resnet20_a", 10)
    saved = {k: v for k, v in akamaster(state).items() if counted or not k.endswith("num_batches_tracked")}
    assert "module.linear.weight" in saved
    content = {"state_dict": saved, "best_prec1": torch.tensor(91.73)}
    torch.save(content, tmp_path / "resnet20.th", _use_new_zipfile_serialization=modern)
    network = create("resnet20_a", 10).eval()
    load_checkpoint(network, tmp_path / "resnet20.th")
    images = torch.rand(2, 3, 32, 32)
    expected = judge("resnet20_a", state, images, training=False)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_its_option_b(tmp_path: Path) -> None:
    state = weights("resnet20", 10)
    theirs = {k.replace("downsample", "shortcut"): v for k, v in akamaster(state).items()}
    torch.save({"state_dict": theirs}, tmp_path / "model.th")
    network = create("resnet20", 10)
    load_checkpoint(network, tmp_path / "model.th")
    assert_holds(network, state)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["wrn_16_2", "mobilenetv2"])
def test_plain_weights_and_data_parallel(name: str, prefix: str, tmp_path: Path) -> None:
    state = weights(name, 6)
    named = {prefix + key: value for key, value in state.items()}
    torch.save(named, tmp_path / "plain.pt")
    save_file(named, tmp_path / "plain.safetensors")
    for file in ("plain.pt", "plain.safetensors"):
        network = create(name, 6)
        load_checkpoint(network, str(tmp_path / file))
        assert_holds(network, state)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_1", "vgg8", "shufflenetv1", "shufflenetv2"])
def test_what_we_save_comes_back(name: str, tmp_path: Path) -> None:
    network = create(name, 6)
    network(torch.rand(4, 3, 32, 32))  # batch statistics of its own
    torch.save(network.state_dict(), tmp_path / "a.pth")
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        other = create(name, 6)
        load_checkpoint(other, tmp_path / file)
        assert_holds(other, network.state_dict())


def test_half_precision_fills_a_float32_network(tmp_path: Path) -> None:
    state = weights("resnet8", 6)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pt")
    network = create("resnet8", 6)
    load_checkpoint(network, tmp_path / "half.pt")
    assert network.get_parameter("fc.weight").dtype == torch.float32
    assert torch.equal(network.get_parameter("fc.weight"), state["fc.weight"].half().float())


def refusal(network: nn.Module, path: Path) -> str:
    """The error message; the network is unchanged."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(network, path)
    assert_holds(network, before)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenetv2", "shufflenetv2"])
def test_another_number_of_classes(name: str, tmp_path: Path) -> None:
    torch.save({"model": weights(name, 100)}, tmp_path / "a.pth")
    said = refusal(create(name, 10), tmp_path / "a.pth")
    assert "it has 100 classes, and the network has 10" in said
    assert "num_classes=100" in said
    odd = {key: value[:1, 0] if value.dim() == 2 else value for key, value in weights(name, 100).items()}
    torch.save(odd, tmp_path / "b.pth")
    assert "other shapes" in refusal(create(name, 10), tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("saved", "wanted", "parts"),
    [
        (
            "resnet56",
            "resnet20",
            ["the network lacks layer1.3.conv1.weight, ", "(216 in all)", "create('resnet56', num_"],
        ),
        ("resnet20", "resnet56", ["it lacks layer1.3.conv1.weight, ", "create('resnet20', num_classes=10)"]),
        ("resnet8x4", "resnet8", ["conv1.weight [32, 3, 3, 3] instead of [16, 3, 3, 3]", "create('resnet8x4', "]),
        (
            "wrn_16_4",
            "wrn_16_2",
            ["other shapes", "Create the network that the file was saved from", "wrn_DEPTH_WIDTH"],
        ),
    ],
)
def test_another_network_is_named(saved: str, wanted: str, parts: list[str], tmp_path: Path) -> None:
    torch.save({"model": weights(saved, 10)}, tmp_path / "a.pth")
    said = refusal(create(wanted, 10), tmp_path / "a.pth")
    for part in parts:
        assert part in said


def test_shortcuts_without_parameters_are_told_apart(tmp_path: Path) -> None:
    torch.save({"state_dict": akamaster(weights("resnet56_a", 10))}, tmp_path / "resnet56.th")
    said = refusal(create("resnet56", 10), tmp_path / "resnet56.th")
    assert "it lacks layer2.0.downsample.0.weight" in said
    assert "create('resnet56_a', num_classes=10)" in said


def test_weights_too_many_or_too_few_are_named(tmp_path: Path) -> None:
    state = weights("resnet8", 10)
    torch.save({**state, "total_ops": torch.zeros(1)}, tmp_path / "more.pth")
    assert "the network lacks total_ops" in refusal(create("resnet8", 10), tmp_path / "more.pth")
    del state["layer2.0.bn1.running_mean"]
    torch.save(state, tmp_path / "less.pth")
    assert "it lacks layer2.0.bn1.running_mean" in refusal(create("resnet8", 10), tmp_path / "less.pth")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    network = create("resnet8", 4)
    whole, files = tmp_path / "whole.pth", [tmp_path / "missing.pth", tmp_path]
    torch.save(network.state_dict(), whole)
    contents = {
        "cut.pth": whole.read_bytes()[:-2000],
        "empty.pth": b"",
        "text.pth": b"<html>404</html>",
        "odd.pth": whole.read_bytes()[:150] + b"\x93" * 20 + whole.read_bytes()[170:],
        "text.safetensors": b"<html>404</html>",
        "plain.pkl": pickle.dumps({"a": 1}, protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    torch.save(network, tmp_path / "pickled.pth")  # the object, which only code can restore
    for file in [*files, tmp_path / "pickled.pth"]:
        said = refusal(network, file)
        assert "torch.save(model.state_dict(), path)" in said
        assert "weights_only" not in said  # torch's advice would run the file
    assert "No such file" in refusal(network, files[0])
    assert "objects other than tensors" in refusal(network, tmp_path / "pickled.pth")
    for content in ([1, 2], {"accuracy": 71.0}, {"model": {"fc.weight": "gone"}}, {0: torch.ones(2)}):
        torch.save(content, whole)
        assert "holds no state dict" in refusal(network, whole)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return warnings.warn, ("code of the file was run",)  # an error in this suite

    with (tmp_path / "trap.pth").open("wb") as file:
        torch.save({"model": weights("resnet8", 4), "note": Trap()}, file)
    assert "cannot be read as weights" in refusal(create("resnet8", 4), tmp_path / "trap.pth")
