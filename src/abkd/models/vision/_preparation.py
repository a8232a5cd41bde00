"""Preprocessing: from the pixels that all models share to the input of one model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError

Filter = Literal["nearest", "bilinear", "bicubic"]

_LARGEST = 16_384
_GREY = (0.299, 0.587, 0.114)  # luma weights of red, green and blue (ITU-R 601)

FILTERS: dict[Filter, tuple[str, bool]] = {
    "nearest": ("nearest-exact", False),
    "bilinear": ("bilinear", True),
    "bicubic": ("bicubic", True),
}
"""The mode of ``torch.nn.functional.interpolate``, and whether it antialiases."""


@dataclass(frozen=True)
class Preparation:
    """A model's preprocessing: ``(pixels / 255 - mean) / std``, resized to side ``size`` (None: not resized).

    Attributes:
        mean, std: per channel, of pixels in [0, 1].
        size: the side of the model's square input.
        resized: the shorter side that the image is resized to before the center crop of ``size``; None: the whole
            image is resized to the square.
        filter: the interpolation; an image that already has this size is not resampled.
        grey: whether the model reads one channel, a weighted mean of the three.

    Raises:
        ConfigError: not three channels, a std that is not positive, an unknown filter, or a crop larger than the
            resized image.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: int | None = None
    resized: int | None = None
    filter: Filter = "bicubic"
    grey: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean and std must have three values, and std must be positive, got {self!r}")
        if not all(map(_is_side, (self.size, self.resized))):
            raise ConfigError(f"size and resized must be integers from 1 to {_LARGEST}, in pixels, got {self!r}")
        if self.filter not in FILTERS:
            raise ConfigError(f"filter must be one of {', '.join(FILTERS)}, got {self.filter!r}")
        if self.resized is not None and (self.size is None or self.resized < self.size):
            raise ConfigError(f"resized must be >= size, the side of the crop, got {self.resized} and {self.size}")

    def __call__(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` from 0 to 255, of any dtype, to float32 ``[B, 3, S, S]``, or ``[B, 1, S, S]`` in grey."""
        image = pixels.float() / 255.0
        if self.size is not None:
            image = _middle(self._resize(image), self.size)
        mean, std = _constants(self.mean, self.std, image.device)
        image = (image - mean) / std
        return _in_grey(image) if self.grey else image

    def _resize(self, image: Tensor) -> Tensor:
        sides = self._sides(*image.shape[-2:])
        if sides == tuple(image.shape[-2:]):
            return image
        mode, antialias = FILTERS[self.filter]
        return nn.functional.interpolate(image, sides, mode=mode, antialias=antialias).clamp(0.0, 1.0)

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        if self.resized is None:
            return self.size, self.size  # type: ignore[return-value]  # only called if there is a size
        shorter = min(height, width)
        return int(self.resized * height / shorter), int(self.resized * width / shorter)


def _is_side(side: int | None) -> bool:
    return side is None or (isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST)


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def _in_grey(images: Tensor) -> Tensor:
    """``[B, 3, H, W]`` to ``[B, 1, H, W]``."""
    weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """``[3, 1, 1]`` each; cached, because a copy to the GPU at every step would synchronise with it."""
    with torch.inference_mode(False):
        low, wide = (torch.tensor(each, device=device)[:, None, None] for each in (mean, std))
        return low, wide
