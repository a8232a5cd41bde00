"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146): 6n+4 layers, pre-activation blocks."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu

from abkd.models.cifar._parts import conv, mean_over_places, start_by_fan_out


class WideResNet(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``, without dropout.

    Args:
        depth: 6n + 4, with n blocks in each of three stages.
        width: the stages have 16, 32 and 64 times as many channels.
        num_classes: the number of logits.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(3, 16)
        self.block1 = _stage(16, 16 * width, blocks, 1)
        self.block2 = _stage(16 * width, 32 * width, blocks, 2)
        self.block3 = _stage(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        start_by_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(mean_over_places(relu(self.bn1(x), inplace=True)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs)
        # The attribute name is that of the published checkpoints.
        self.convShortcut = conv(inputs, outputs, size=1, stride=stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.bn1(x), inplace=True)
        inner = relu(self.bn2(self.conv1(active)), inplace=True)
        return self.conv2(inner) + (x if self.convShortcut is None else self.convShortcut(active))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """The blocks under the name ``layer``, as in the published checkpoints."""
    first = _Block(inputs, outputs, stride)
    layer = nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))
