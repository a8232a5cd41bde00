"""Creating the networks by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from abkd.errors import ConfigError
from abkd.models.cifar.mobilenet import MobileNetV2
from abkd.models.cifar.resnet import ResNet
from abkd.models.cifar.shufflenet_v1 import ShuffleNetV1
from abkd.models.cifar.shufflenet_v2 import ShuffleNetV2
from abkd.models.cifar.vgg import VGG
from abkd.models.cifar.wide_resnet import WideResNet

_DEEPEST, _WIDEST = 1000, 32  # beyond the published sizes; so a name in a file cannot exhaust the memory
_FOUR_TIMES = (32, 64, 128, 256)

_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, widths=_FOUR_TIMES) for depth in (8, 32)},
    **{f"resnet{depth}_a": partial(ResNet, depth, projected=False) for depth in (20, 32, 44, 56, 110)},
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth in (16, 40) for width in (1, 2)},
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "mobilenetv2": MobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}


def names() -> tuple[str, ...]:
    """The names that :func:`create` takes, in addition to ``wrn_DEPTH_WIDTH`` of any depth 6n + 4."""
    return tuple(_NETWORKS)


def create(name: str, num_classes: int = 100) -> nn.Module:
    """Create a network by name: images ``[B, 3, H, W]`` to logits ``[B, num_classes]``.

    Its weights are drawn from torch's global generator: ``torch.manual_seed`` makes them reproducible.

    Raises:
        ConfigError: there is no such network, or there are fewer than two classes.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, got {num_classes}.")
    return find(name)(num_classes)


def find(name: str) -> Callable[[int], nn.Module]:
    """The constructor of the network of that name, which takes the number of classes.

    Raises:
        ConfigError: there is no such network.
    """
    return _NETWORKS.get(name) or _wide(name) or _refuse(name)


def _wide(name: str) -> Callable[[int], nn.Module] | None:
    found = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    if found is None:
        return None
    depth, width = int(found[1]), int(found[2])
    if not 10 <= depth <= _DEEPEST or depth % 6 != 4 or not 1 <= width <= _WIDEST:
        raise ConfigError(
            f"A wide residual network wrn_DEPTH_WIDTH has a depth of 10, 16, 22, 28, … (at most {_DEEPEST}) and a "
            f"width of 1 to {_WIDEST}, got {name!r}."
        )
    return partial(WideResNet, depth, width)


def _refuse(name: str) -> Callable[[int], nn.Module]:
    like = difflib.get_close_matches(name.lower().replace("-", "_"), names(), n=1)
    guess = f" Did you mean {like[0]!r}?" if like else ""
    raise ConfigError(f"There is no CIFAR network {name!r}.{guess} Choose from: {', '.join(names())}, wrn_DEPTH_WIDTH.")
