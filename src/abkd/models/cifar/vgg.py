"""VGG for small images (Simonyan and Zisserman, arXiv 1409.1556), with batch norm and a single linear head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from abkd.models.cifar._parts import activated, conv, mean_over_places, start_by_fan_out, start_head


class VGG(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``; H and W must be at least 8.

    The resolution is halved three times, and once more for images of at least 64 pixels, as in the distillation
    literature.

    Args:
        convolutions: the number of convolutions in each of five blocks.
        num_classes: the number of logits.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0 = _block(3, 64, convolutions[0])
        self.block1 = _block(64, 128, convolutions[1])
        self.block2 = _block(128, 256, convolutions[2])
        self.block3 = _block(256, 512, convolutions[3])
        self.block4 = _block(512, 512, convolutions[4])
        self.classifier = nn.Linear(512, num_classes)
        start_by_fan_out(self)
        start_head(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[2] >= 64
        for block in (self.block0, self.block1, self.block2):
            x = max_pool2d(block(x), 2)
        x = self.block3(x)
        if large:
            x = max_pool2d(x, 2)
        return self.classifier(mean_over_places(self.block4(x)))


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers = activated(conv(inputs, outputs, bias=True))
    for _ in range(convolutions - 1):
        layers += activated(conv(outputs, outputs, bias=True))
    return nn.Sequential(*layers)
