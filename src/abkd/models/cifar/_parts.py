"""Building blocks that the networks share: convolutions, their initialisation, pooling, channel shuffle."""

from __future__ import annotations

from torch import Tensor, nn


def conv(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, *, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A ``size``×``size`` convolution, padded so that only ``stride`` reduces the resolution."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=bias)


def normalised(convolution: nn.Conv2d) -> list[nn.Module]:
    """The convolution, then batch normalisation."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels)]


def activated(convolution: nn.Conv2d) -> list[nn.Module]:
    """The convolution, batch normalisation, ReLU."""
    return [*normalised(convolution), nn.ReLU(inplace=True)]


def start_by_fan_out(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (size² · outputs)) with torch's generator (He et al., arXiv 1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_head(head: nn.Linear) -> None:
    """Initialise a head to nearly equal logits: N(0, 0.01²), bias 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def mean_over_places(features: Tensor) -> Tensor:
    """Global average pooling: ``[B, C, H, W]`` to ``[B, C]``, for any H and W."""
    return features.mean(dim=(2, 3))


def shuffled(features: Tensor, groups: int) -> Tensor:
    """Channel shuffle, which spreads the channels of each group over all groups: 0 1 2 | 3 4 5 to 0 3 | 1 4 | 2 5."""
    return features.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
