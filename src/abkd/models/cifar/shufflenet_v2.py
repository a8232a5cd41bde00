"""ShuffleNetV2 for small images (Ma et al., arXiv 1807.11164): half of the channels pass through a block unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from abkd.models.cifar._parts import conv, mean_over_places, shuffled


class ShuffleNetV2(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``: width 1, 1×1 stem; each of three stages halves H and W."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 24, size=1)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 116, blocks=3)
        self.layer2 = _stage(116, 232, blocks=7)
        self.layer3 = _stage(232, 464, blocks=3)
        self.conv2 = conv(464, 1024, size=1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(mean_over_places(relu(self.bn2(self.conv2(x)), inplace=True)))


class _Block(nn.Module):
    """Transforms the second half of the channels, then shuffles both halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, size=1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, size=1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, inner = x.chunk(2, dim=1)
        inner = relu(self.bn1(self.conv1(inner)), inplace=True)
        inner = self.bn2(self.conv2(inner))
        inner = relu(self.bn3(self.conv3(inner)), inplace=True)
        return shuffled(torch.cat([kept, inner], dim=1), 2)


class _Halving(nn.Module):
    """Downsampling block: two branches over the whole input, concatenated; halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv(inputs, inputs, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, size=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(inputs, half, size=1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, size=1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        short = self.bn1(self.conv1(x))
        short = relu(self.bn2(self.conv2(short)), inplace=True)
        long = relu(self.bn3(self.conv3(x)), inplace=True)
        long = self.bn4(self.conv4(long))
        long = relu(self.bn5(self.conv5(long)), inplace=True)
        return shuffled(torch.cat([short, long], dim=1), 2)


def _stage(inputs: int, outputs: int, *, blocks: int) -> nn.Sequential:
    """A halving block, then ``blocks`` more."""
    return nn.Sequential(_Halving(inputs, outputs), *(_Block(outputs) for _ in range(blocks)))
