"""Residual networks for small images (He et al., arXiv 1512.03385, section 4.2): three stages, 6n+2 layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from abkd.models.cifar._parts import conv, mean_over_places, normalised, start_by_fan_out


class ResNet(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``; 32×32 becomes 16×16 in stage 2 and 8×8 in stage 3.

    Args:
        depth: 6n + 2, with n blocks in each stage.
        num_classes: the number of logits.
        widths: channels of the stem and of the three stages; (32, 64, 128, 256) are the "x4" networks.
        projected: between stages the shortcut is a 1×1 convolution with batch norm (the paper's option B, which
            the distillation literature uses); False: every second pixel, padded with zero channels, no parameters
            (option A, the paper's own CIFAR networks).
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        projected: bool = True,
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, 1, projected)
        self.layer2 = _stage(widths[1], widths[2], blocks, 2, projected)
        self.layer3 = _stage(widths[2], widths[3], blocks, 2, projected)
        self.fc = nn.Linear(widths[3], num_classes)
        start_by_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(mean_over_places(x))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, projected)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn1(self.conv1(x)), inplace=True)
        return relu(self.bn2(self.conv2(inner)) + self.downsample(x), inplace=True)


class _Padded(nn.Module):
    """Subsampling by ``stride``, padded with ``margin`` zero channels on either side."""

    def __init__(self, stride: int, margin: int) -> None:
        super().__init__()
        self.stride, self.margin = stride, margin

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.margin, self.margin))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, projected: bool) -> nn.Sequential:
    first = _Block(inputs, outputs, stride, projected)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1, projected) for _ in range(blocks - 1)))


def _shortcut(inputs: int, outputs: int, stride: int, projected: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if projected:
        return nn.Sequential(*normalised(conv(inputs, outputs, size=1, stride=stride)))
    return _Padded(stride, (outputs - inputs) // 2)
