"""ShuffleNet for small images (Zhang et al., arXiv 1707.01083): grouped 1×1 convolutions, three groups, a 1×1 stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from abkd.models.cifar._parts import conv, mean_over_places, shuffled


class ShuffleNetV1(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``; each of the three stages halves the resolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 24, size=1)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 240, blocks=4, groups=1)
        self.layer2 = _stage(240, 480, blocks=8)
        self.layer3 = _stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        return self.linear(mean_over_places(self.layer3(self.layer2(self.layer1(x)))))


class _Block(nn.Module):
    """Residual block; with ``halve``, the input is 3×3 average-pooled and concatenated instead of added.

    ``groups``: the groups of the first convolution; the last one always has three.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool, groups: int) -> None:
        super().__init__()
        added = outputs - inputs if halve else outputs
        inner = added // 4
        self.halve, self.groups = halve, groups
        self.conv1 = conv(inputs, inner, size=1, groups=groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, stride=2 if halve else 1, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, added, size=1, groups=3)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        inner = shuffled(relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        inner = relu(self.bn2(self.conv2(inner)), inplace=True)
        added = self.bn3(self.conv3(inner))
        if self.halve:
            return relu(torch.cat([added, avg_pool2d(x, 3, stride=2, padding=1)], dim=1), inplace=True)
        return relu(added + x, inplace=True)


def _stage(inputs: int, outputs: int, *, blocks: int, groups: int = 3) -> nn.Sequential:
    first = _Block(inputs, outputs, halve=True, groups=groups)
    return nn.Sequential(first, *(_Block(outputs, outputs, halve=False, groups=3) for _ in range(blocks - 1)))
