"""Small real image classifiers of four transformers families, and images that are smooth like photographs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification

FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0},
    "mobilenet_v2": {"depth_multiplier": 0.25, "min_depth": 4, "first_layer_is_expansion": True},
}


def make_hf(family: str, *, classes: int) -> Any:
    """In eval mode; its outputs depend on its input (the usual small head hides differences)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family], num_labels=classes)
    model = AutoModelForImageClassification.from_config(config).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(20.0)
    return model


def own_net(num_classes: int = 3, width: int = 4) -> nn.Module:
    """A model from a user's own module."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def tied_net(num_classes: int = 3, *, tied: bool = True) -> nn.Module:
    """Two layers that share a weight."""
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    if tied:
        second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


def lazy_net(num_classes: int = 3) -> nn.Module:
    """Has lazy layers, whose sizes are known after the first image."""
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def grey_net(num_classes: int = 3) -> nn.Module:
    """Reads one channel."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def quantised_net(num_classes: int = 3) -> nn.Module:
    """Has no parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, num_classes))
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def net_of_file(num_classes: int = 3) -> nn.Module:
    """Has weights that its name does not determine."""
    net = own_net(num_classes)
    net.load_state_dict(torch.load("weights.pt"))
    return net


def leaving(num_classes: int = 3) -> nn.Module:
    """A script that was never meant to be imported."""
    raise SystemExit(0)


def without_values(num_classes: int = 3) -> nn.Module:
    """As from `accelerate.init_empty_weights`."""
    return own_net(num_classes).to("meta")


def photos(count: int, height: int, width: int | None = None) -> Tensor:
    """uint8 ``[count, 3, height, width]``: a few waves of low frequency in each channel."""
    generator = torch.Generator().manual_seed(7)
    down = torch.linspace(0.0, 1.0, height)[:, None]
    across = torch.linspace(0.0, 1.0, width or height)[None, :]
    waves = torch.zeros(count, 3, height, width or height)
    for _ in range(4):
        fast, slow, phase = torch.rand(3, count, 3, 1, 1, generator=generator) * 6.0
        waves += torch.sin(fast * down + slow * across + phase)
    low, high = waves.amin((1, 2, 3), keepdim=True), waves.amax((1, 2, 3), keepdim=True)
    return ((waves - low) / (high - low) * 255.0).round().to(torch.uint8)
