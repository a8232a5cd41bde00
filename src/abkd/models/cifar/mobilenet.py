"""MobileNetV2 for small images (Sandler et al., arXiv 1801.04381) at half width, as distillation papers use it."""

from __future__ import annotations

from torch import Tensor, nn

from abkd.models.cifar._parts import activated, conv, mean_over_places, normalised, start_by_fan_out, start_head

# Per stage: expansion factor, channels at full width, number of blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``; the resolution is halved four times, first by the stem.

    Width 0.5, ReLU where the paper has ReLU6, no dropout; still 1280 features before the head.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*activated(conv(3, 16, stride=2)))
        self.blocks = nn.ModuleList()
        inputs = 16
        for widening, channels, blocks, stride in _STAGES:
            outputs = channels // 2
            first = _Block(inputs, outputs, stride, widening)
            self.blocks.append(
                nn.Sequential(first, *(_Block(outputs, outputs, 1, widening) for _ in range(blocks - 1)))
            )
            inputs = outputs
        self.conv2 = nn.Sequential(*activated(conv(inputs, 1280, size=1)))
        self.classifier = nn.Sequential(head := nn.Linear(1280, num_classes))
        start_by_fan_out(self)
        start_head(head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(mean_over_places(self.conv2(x)))


class _Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, linear projection; skip connection if shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = inputs * widening
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *activated(conv(inputs, inner, size=1)),
            *activated(conv(inner, inner, stride=stride, groups=inner)),
            *normalised(conv(inner, outputs, size=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)
